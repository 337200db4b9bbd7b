"""The in-memory backend: the contract that it shares with the one over Serve, and its own queue."""

from __future__ import annotations

import asyncio

import pytest

from cotenant.calls import Backend, InMemoryBackend
from cotenant.errors import Overloaded
from tests.contracts.backend import SLOTS, BackendContract, Puppet, order, read_all

pytestmark = pytest.mark.unit


class TestInMemoryBackend(BackendContract):
    @pytest.fixture
    def backend(self) -> Backend:
        return InMemoryBackend({"puppet": Puppet().call}, slots=SLOTS)

    async def kill(self, backend: Backend) -> None:
        assert isinstance(backend, InMemoryBackend)
        backend.kill("puppet")


async def test_a_trip_that_finds_the_queue_full_is_refused_call_by_call() -> None:
    backend = InMemoryBackend({"puppet": Puppet().call}, slots=1, queue=1)
    tasks = [asyncio.create_task(backend.call("puppet", order(f"w{n}", sleep_s=30))) for n in range(2)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    answers = await read_all(backend.call_many("puppet", [order("r0"), order("r1")]))
    assert [type(answers[n]) for n in range(2)] == [Overloaded, Overloaded]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
