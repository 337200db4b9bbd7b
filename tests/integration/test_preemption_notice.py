"""The notice of a preemption, from a server that answers as Compute Engine's metadata server does."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest

from cotenant.agent.preemption import HOST_ENV, metadata_url, preempted
from tests.contracts.metadata_server import MetadataServer, metadata_server

pytestmark = pytest.mark.integration
#: `scripts/test` runs it beside another.
WAITS_MORE_THAN_IT_COMPUTES = True


@pytest.fixture
def server() -> Iterator[MetadataServer]:
    with metadata_server() as started:
        yield started


def watch(server: MetadataServer) -> asyncio.Task[bool]:
    return asyncio.create_task(preempted(metadata_url({HOST_ENV: server.host}), pause_s=0.05))


async def asked(server: MetadataServer, times: int) -> None:
    while len(server.asked) < times:  # noqa: ASYNC110 (the server is another thread's)
        await asyncio.sleep(0.02)


async def test_the_notice_arrives_while_it_is_waited_for(server: MetadataServer) -> None:
    watching = watch(server)
    await asked(server, 2)
    assert not watching.done()
    server.preempt()
    assert await asyncio.wait_for(watching, 10)


async def test_a_notice_from_before_the_watch_began_is_seen(server: MetadataServer) -> None:
    server.preempt()
    assert await asyncio.wait_for(watch(server), 10)


async def test_a_server_that_fails_for_a_while_is_asked_again(server: MetadataServer) -> None:
    watching = watch(server)
    await asked(server, 2)
    server.failing = 3
    await asked(server, 7)
    server.preempt()
    assert await asyncio.wait_for(watching, 10)


async def test_where_nobody_tells_the_watch_ends_quietly(server: MetadataServer) -> None:
    server.google = False
    assert not await asyncio.wait_for(watch(server), 10)
    server.google, server.failing = True, 1
    assert not await asyncio.wait_for(watch(server), 10)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        begun = time.monotonic()
        assert not await preempted(f"http://127.0.0.1:{nobody.getsockname()[1]}")
        assert time.monotonic() - begun < 10


def test_the_server_is_where_googles_own_libraries_look_for_it() -> None:
    assert metadata_url({}) == "http://169.254.169.254"
