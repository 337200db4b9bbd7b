"""A client that leaves takes its work with it. Spoken in plain ASGI, where leaving is a message."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cotenant.calls import Call, Reply, StreamedReply
from tests.unit.gateway.house import House

pytestmark = pytest.mark.unit


class Visitor:
    """One request, with a client that can leave."""

    def __init__(self, body: dict[str, Any], *, more_body: bool = False) -> None:
        self.left = asyncio.Event()
        self.sent: list[Any] = []
        self._body = json.dumps(body).encode()
        self._more_body = more_body
        self._told = False

    async def receive(self) -> dict[str, Any]:
        if not self._told:
            self._told = True
            return {"type": "http.request", "body": self._body, "more_body": self._more_body}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def visit(self, house: House) -> None:
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": "/v1/chat/completions", "raw_path": b"/v1/chat/completions", "query_string": b"", "root_path": "",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
            "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1),
        }  # fmt: skip
        await asyncio.wait_for(house.app(scope, self.receive, self.send), 5)


async def test_a_client_that_leaves_cancels_a_call_that_is_not_streamed() -> None:
    started, ended = asyncio.Event(), []

    async def engine(call: Call) -> Reply:
        started.set()
        try:
            await asyncio.sleep(30)
        finally:
            ended.append("cancelled")
        return Reply(200, b"{}")

    house, visitor = House({"writer": engine}), Visitor({"model": "tiny"})
    visit = asyncio.create_task(visitor.visit(house))
    await started.wait()
    assert house.count("in_flight_requests", workload="writer") == 1
    visitor.left.set()
    await visit
    assert ended == ["cancelled"]
    assert house.count("in_flight_requests", workload="writer") == 0
    gone = {"workload": "writer", "route": "/v1/chat/completions", "status": "499", "tenant": ""}
    assert house.count("requests_total", **gone) == 1


async def test_a_client_that_leaves_in_mid_stream_closes_the_engines_stream() -> None:
    flowing, ended = asyncio.Event(), []

    def engine(call: Call) -> StreamedReply:
        async def events() -> AsyncIterator[bytes]:
            try:
                yield b"data: one\n\n"
                flowing.set()
                await asyncio.sleep(30)
            finally:
                ended.append("closed")

        return StreamedReply(200, "text/event-stream", events())

    house, visitor = House({"writer": engine}), Visitor({"model": "tiny", "stream": True})
    visit = asyncio.create_task(visitor.visit(house))
    await flowing.wait()
    visitor.left.set()
    await visit
    assert ended == ["closed"]
    assert [message.get("body") for message in visitor.sent][1:] == [b"data: one\n\n"]
    assert house.count("in_flight_requests", workload="writer") == 0


async def test_a_stream_that_opens_as_the_client_leaves_is_closed() -> None:
    asked, closed = asyncio.Event(), []

    class Chunks:
        def __aiter__(self) -> Chunks:
            return self

        async def __anext__(self) -> bytes:
            raise StopAsyncIteration

        async def aclose(self) -> None:
            closed.append("closed")

    async def engine(call: Call) -> StreamedReply:
        asked.set()
        with contextlib.suppress(asyncio.CancelledError):  # it had opened already
            await asyncio.sleep(30)
        return StreamedReply(200, "text/event-stream", Chunks())

    house, visitor = House({"writer": engine}), Visitor({"model": "tiny", "stream": True})
    visit = asyncio.create_task(visitor.visit(house))
    await asked.wait()
    visitor.left.set()
    await visit
    assert closed == ["closed"]


async def test_a_client_that_leaves_before_its_body_is_whole_calls_nobody() -> None:
    house, visitor = House({"writer": lambda call: pytest.fail("called")}), Visitor({}, more_body=True)
    visitor.left.set()
    await visitor.visit(house)
    lost = {"workload": "", "route": "/v1/chat/completions", "status": "499", "tenant": ""}
    assert house.count("requests_total", **lost) == 1
