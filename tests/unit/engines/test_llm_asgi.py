"""Running an ASGI application in process: whole, streamed, and left early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from cotenant.calls import Call
from cotenant.calls.relay import RelayClosed, Start
from cotenant.engines.llm import asgi
from cotenant.engines.llm.turns import INTERACTIVE, rank

pytestmark = pytest.mark.unit


class ListSink:
    """Keeps what it is given. Its reader leaves after `leaves_after` chunks."""

    def __init__(self, leaves_after: int | None = None) -> None:
        self.started: Start | None = None
        self.chunks: list[bytes] = []
        self.ended = False
        self.errors: list[str] = []
        self._leaves_after = leaves_after

    def start(self, start: Start) -> None:
        self.started = start

    async def chunk(self, data: bytes) -> None:
        if len(self.chunks) == self._leaves_after:
            raise RelayClosed("gone")
        self.chunks.append(data)

    def end(self) -> None:
        self.ended = True

    def error(self, message: str) -> None:
        self.errors.append(message)


class Engine:
    """An application that echoes, counts, and notices when it is left."""

    def __init__(self) -> None:
        self.left: list[str] = []
        self.begun = asyncio.Event()
        routes = [
            Route("/echo", self.echo, methods=["POST"]),
            Route("/count", self.count, methods=["POST"]),
            Route("/wait", self.wait, methods=["POST"]),
            Route("/break", self.broken, methods=["POST"]),
            Route("/hello", self.hello, methods=["GET"]),
        ]
        self.app = Starlette(routes=routes)

    async def echo(self, request: Request) -> Response:
        headers = {name: request.headers.get(name) for name in ("content-type", "accept", "x-request-id")}
        body = {"body": (await request.body()).decode(), **headers}
        return JSONResponse(body, status_code=201, headers={"X-Engine": "yes"})

    async def count(self, request: Request) -> Response:
        then_s = 0 if await request.body() == b"end" else 60

        async def numbers() -> AsyncIterator[bytes]:
            try:
                for number in range(5):
                    yield f"data: {number}\n\n".encode()
                    await asyncio.sleep(0)
                self.begun.set()
                await asyncio.sleep(then_s)
            except asyncio.CancelledError:
                self.left.append("count")
                raise

        return StreamingResponse(numbers(), media_type="text/event-stream")

    async def wait(self, request: Request) -> Response:
        await request.body()
        self.begun.set()
        assert (await request.receive())["type"] == "http.disconnect"
        self.left.append("wait")
        return Response()

    async def broken(self, request: Request) -> Response:
        async def numbers() -> AsyncIterator[bytes]:
            yield b"one"
            raise RuntimeError("out of memory at /secret/path")

        return StreamingResponse(numbers())

    async def hello(self, request: Request) -> Response:
        return Response("hello", media_type="text/plain")


@pytest.fixture
async def engine() -> Engine:
    return Engine()


async def test_a_call_becomes_a_request_and_the_response_a_reply(engine: Engine) -> None:
    reply = await asgi.answer(engine.app, Call("/echo", b'{"a": 1}', accept="text/html", request_id="req-7"))
    assert reply.status == 201
    assert reply.content_type == "application/json"
    assert reply.headers == {"x-engine": "yes"}
    assert reply.json() == {
        "body": '{"a": 1}',
        "content-type": "application/json",
        "accept": "text/html",
        "x-request-id": "req-7",
    }


async def test_a_get_has_no_body(engine: Engine) -> None:
    reply = await asgi.answer(engine.app, Call("/hello", method="GET"))
    assert (reply.status, reply.body) == (200, b"hello")


async def test_an_unknown_path_is_the_applications_to_refuse(engine: Engine) -> None:
    assert (await asgi.answer(engine.app, Call("/nowhere"))).status == 404


async def test_a_stream_reaches_the_sink_chunk_by_chunk(engine: Engine) -> None:
    sink = ListSink()
    await asgi.answer_into(engine.app, Call("/count", b"end"), sink)
    assert sink.started is not None
    assert sink.started.status == 200
    assert sink.started.content_type.startswith("text/event-stream")
    assert sink.chunks == [f"data: {number}\n\n".encode() for number in range(5)]
    assert sink.ended
    assert not sink.errors


async def test_a_whole_response_fits_into_a_sink_too(engine: Engine) -> None:
    sink = ListSink()
    await asgi.answer_into(engine.app, Call("/nowhere"), sink)
    assert sink.started is not None
    assert sink.started.status == 404
    assert sink.ended


@pytest.mark.parametrize("url", ["/count", "/wait"])
async def test_cancelling_looks_like_a_client_that_hung_up(engine: Engine, url: str) -> None:
    task = asyncio.create_task(asgi.answer_into(engine.app, Call(url), ListSink()))
    await engine.begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.left == [url.strip("/")]


async def test_an_application_that_ignores_the_hang_up_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "HANG_UP_S", 0.01)
    cancelled = asyncio.Event()

    async def deaf(scope: object, receive: object, send: object) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    task = asyncio.create_task(asgi.answer(deaf, Call("/")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(cancelled.wait(), 1)


async def test_a_reader_that_is_gone_ends_the_work_quietly(engine: Engine) -> None:
    sink = ListSink(leaves_after=2)
    await asyncio.wait_for(asgi.answer_into(engine.app, Call("/count"), sink), 1)
    assert len(sink.chunks) == 2
    assert not sink.ended


async def test_an_application_that_breaks_ends_the_stream_without_its_secrets(engine: Engine) -> None:
    sink = ListSink()
    with pytest.raises(RuntimeError):
        await asgi.answer_into(engine.app, Call("/break"), sink)
    assert sink.chunks == [b"one"]
    assert not sink.ended
    assert sink.errors == ["the engine broke off the response: RuntimeError"]


async def test_the_application_is_told_of_a_job_beside_the_request_and_only_of_that_one() -> None:
    ranks: list[tuple[str, int]] = []

    async def app(scope: asgi.Message, receive: object, send: Callable[[asgi.Message], Awaitable[None]]) -> None:
        async def told() -> int:
            await asyncio.sleep(0)
            return asgi.RANK.get()

        ranks.append((scope["path"], await asyncio.create_task(told())))
        await send({"type": "http.response.start", "status": 200})

    body = b'{"priority": 7}'
    await asyncio.gather(
        asgi.answer(app, Call("/job", body, batch=True)),
        asgi.answer(app, Call("/chat", body)),
        asgi.answer_into(app, Call("/streamed job", body, batch=True), ListSink()),
    )
    assert dict(ranks) == {"/job": rank(batch=True), "/chat": INTERACTIVE, "/streamed job": rank(batch=True)}
    assert asgi.RANK.get() == INTERACTIVE
