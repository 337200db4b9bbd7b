"""Runs an ASGI application in process: a `Call` becomes a request, its response a `Reply` or chunks in a sink.

vLLM's own HTTP application answers the calls, so that bodies are byte for byte what a vLLM server sends, without
a socket or a second HTTP parse. Cancelling the awaiting task looks to the application like a client that hung
up, which is what makes the engine drop the request. Whether a call is a job is told beside the request, in `RANK`:
nothing that a client sends can change it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any, Protocol

from cotenant.calls.relay import RelayClosed, Start
from cotenant.calls.reply import JSON_TYPE, Call, Reply
from cotenant.engines.llm.turns import INTERACTIVE, rank

Message = MutableMapping[str, Any]
App = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]

#: Rank of the call that is answered in this context (`turns.rank`).
RANK: ContextVar[int] = ContextVar("rank", default=INTERACTIVE)

#: How long an application may take to notice that its client hung up, before its task is cancelled.
HANG_UP_S = 2.0

#: Headers of a response that describe its transport, not its content.
_TRANSPORT = frozenset({"content-length", "content-type", "transfer-encoding", "connection", "server", "date"})


class Sink(Protocol):
    """Where the chunks of a streamed response go (`cotenant.calls.relay.Sink`, or a list in tests)."""

    def start(self, start: Start) -> None: ...
    async def chunk(self, data: bytes) -> None: ...
    def end(self) -> None: ...
    def error(self, message: str) -> None: ...


async def answer(app: App, call: Call) -> Reply:
    """Run `call` to its end and return the whole response."""
    collected = _Collected()
    await _run(app, call, collected)
    return Reply(collected.head.status, b"".join(collected.chunks), collected.head.content_type, collected.head.headers)


async def answer_into(app: App, call: Call, sink: Sink) -> None:
    """Run `call` and send its response into `sink` as the application makes it.

    Returns when the response is complete. A sink whose reader is gone (RelayClosed) hangs up on the application.
    An application that breaks ends the stream with an error, and the exception is raised.
    """
    try:
        await _run(app, call, sink)
    except RelayClosed:
        return
    except Exception as error:
        with contextlib.suppress(RelayClosed):
            sink.error(f"the engine broke off the response: {type(error).__name__}")
        raise
    sink.end()


class _Collected:
    """The sink of a whole response."""

    def __init__(self) -> None:
        self.head = Start(500, JSON_TYPE)
        self.chunks: list[bytes] = []

    def start(self, start: Start) -> None:
        self.head = start

    async def chunk(self, data: bytes) -> None:
        self.chunks.append(data)

    def end(self) -> None: ...
    def error(self, message: str) -> None: ...


async def _run(app: App, call: Call, sink: Sink) -> None:
    hung_up = asyncio.Event()
    body_sent = False

    async def receive() -> Message:
        nonlocal body_sent
        if not body_sent:
            body_sent = True
            return {"type": "http.request", "body": call.body, "more_body": False}
        await hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if hung_up.is_set():
            raise OSError("the client hung up")
        if message["type"] == "http.response.body":
            if data := message.get("body"):
                await sink.chunk(data)
        elif message["type"] == "http.response.start":
            sink.start(_head(message))

    outside = RANK.set(rank(batch=call.batch, priority=call.priority))
    running = asyncio.ensure_future(app(_scope(call), receive, send))
    RANK.reset(outside)
    try:
        await asyncio.shield(running)
    except BaseException:
        if not running.done():
            hung_up.set()
            await _wind_up(running)
        raise


async def _wind_up(running: asyncio.Future[None]) -> None:
    """Let the application see the hang-up, and cancel it if it does not act on it."""
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.wait([running], timeout=HANG_UP_S)
    if not running.done():
        running.cancel()
    else:
        running.cancelled() or running.exception()


def _head(message: Message) -> Start:
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in message.get("headers", ())}
    content_type = headers.get("content-type", JSON_TYPE)
    kept = {name: value for name, value in headers.items() if name not in _TRANSPORT}
    return Start(int(message["status"]), content_type, kept)


def _scope(call: Call) -> Message:
    headers = [
        (b"host", b"engine"),
        (b"content-type", JSON_TYPE.encode()),
        (b"content-length", str(len(call.body)).encode()),
        (b"accept", call.accept.encode("latin-1")),
    ]
    if call.request_id:
        headers.append((b"x-request-id", call.request_id.encode("latin-1")))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": call.method,
        "scheme": "http",
        "path": call.url,
        "raw_path": call.url.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": None,
        "state": {},
    }
