"""The gateway as its users meet it: real sockets, the official OpenAI client, several servers on one port."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest

from cotenant.calls import Call, Directory, InMemoryBackend, Reply, Served, StreamedReply, error_reply
from cotenant.calls.backend import Handler
from cotenant.config.model import Gateway
from cotenant.errors import EnvironmentFault, Overloaded
from cotenant.gateway.app import create_app
from cotenant.gateway.keys import load_keys
from cotenant.gateway.server import HttpServer
from cotenant.telemetry.metrics import GatewayMetrics

pytestmark = pytest.mark.integration
#: `scripts/test` runs it beside another.
WAITS_MORE_THAN_IT_COMPUTES = True

DIRECTORY = Directory(
    (
        Served("writer", "llm", models=("org/tiny", "writer"), deadline_s=20),
        Served("hasty", "llm", models=("hasty",), deadline_s=0.2),
        Served("full", "llm", models=("full",)),
        Served("mockups", "mockup", templates=("mug",), deadline_s=20),
    )
)
WORDS = ("Two", " mugs", " share", " one", " card", ".")


class Writer:
    """An engine that answers as vLLM does, and remembers how its streams ended."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self.pause_s = pause_s
        self.ended: list[str] = []

    async def __call__(self, call: Call) -> Reply | StreamedReply:
        body = json.loads(call.body)
        if body.get("temperature", 0) > 2:
            return error_reply(400, "temperature must be at most 2", param="temperature")
        if body.get("stream"):
            return StreamedReply(200, "text/event-stream; charset=utf-8", self._events(body))
        choice = {"index": 0, "message": {"role": "assistant", "content": "".join(WORDS)}, "finish_reason": "stop"}
        return Reply(200, json.dumps({**_head(body, "chat.completion"), "choices": [choice]}).encode())

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        try:
            for word in WORDS:
                await asyncio.sleep(self.pause_s)
                choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
                event = {**_head(body, "chat.completion.chunk"), "choices": [choice]}
                yield b"data: " + json.dumps(event).encode() + b"\n\n"
            yield b"data: [DONE]\n\n"
            self.ended.append("whole")
        except GeneratorExit:
            self.ended.append("closed")
            raise
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise


def _head(body: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "chat-1", "object": kind, "created": 1, "model": body["model"]}


async def _sleeps(call: Call) -> Reply:
    await asyncio.sleep(60)
    return Reply(200, b"{}")


def _refuses(call: Call) -> Reply:
    raise Overloaded("full has 8 requests waiting; come back in a second", retry_after_s=0.5)


def _measures(call: Call) -> Reply:
    seen = {"body": json.loads(call.body), "bytes": {name: len(data) for name, data in call.files.items()}}
    return Reply(200, json.dumps(seen).encode())


@asynccontextmanager
async def door(
    writer: Handler, *, port: int = 0, keys: str = "acme:sk-acme", grace_s: float = 5
) -> AsyncIterator[HttpServer]:
    config = Gateway(max_body_mib=8)
    backend = InMemoryBackend(
        {"writer": writer, "hasty": _sleeps, "full": _refuses, "mockups": _measures}, slots=64, queue=64
    )
    app = create_app(
        lambda: DIRECTORY, backend, config, load_keys(config, {"COTENANT_API_KEYS": keys}), GatewayMetrics()
    )
    server = HttpServer(app, host="127.0.0.1", port=port, grace_s=grace_s)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@pytest.fixture
def writer() -> Writer:
    return Writer()


@pytest.fixture
async def server(writer: Writer) -> AsyncIterator[HttpServer]:
    async with door(writer) as running:
        yield running


@pytest.fixture
async def client(server: HttpServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="sk-acme", max_retries=0, timeout=20) as found:
        yield found


MESSAGES: Any = [{"role": "user", "content": "Say it."}]


async def test_the_openai_client_chats_whole_and_streamed(client: openai.AsyncOpenAI, writer: Writer) -> None:
    whole = await client.chat.completions.create(model="org/tiny", messages=MESSAGES)
    stream = await client.chat.completions.create(model="writer", messages=MESSAGES, stream=True)
    words = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert whole.choices[0].message.content == "".join(words) == "Two mugs share one card."
    assert len(words) == len(WORDS)
    assert writer.ended == ["whole"]
    assert whole._request_id


async def test_the_blocking_openai_client_works_too(server: HttpServer) -> None:
    def talk() -> tuple[str, list[str]]:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-acme", max_retries=0) as client:
            stream = client.chat.completions.create(model="writer", messages=MESSAGES, stream=True)
            said = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            return said, [model.id for model in client.models.list()]

    said, models = await asyncio.to_thread(talk)
    assert said == "Two mugs share one card."
    assert models == ["org/tiny", "writer", "hasty", "full"]


async def test_a_model_with_a_slash_in_its_name_is_retrieved(client: openai.AsyncOpenAI) -> None:
    model = await client.models.retrieve("org/tiny")
    assert (model.id, model.object, model.owned_by) == ("org/tiny", "model", "cotenant")


async def test_every_error_is_the_exception_that_openai_users_know(
    client: openai.AsyncOpenAI, server: HttpServer
) -> None:
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as unknown:
        await create(model="tiny", messages=MESSAGES)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("nobody")
    with pytest.raises(openai.BadRequestError, match="temperature must be at most 2"):
        await create(model="writer", messages=MESSAGES, temperature=3)
    with pytest.raises(openai.RateLimitError) as full:
        await create(model="full", messages=MESSAGES)
    assert full.value.response.headers["retry-after"] == "1"
    with pytest.raises(openai.InternalServerError) as late:
        await create(model="hasty", messages=MESSAGES)
    assert late.value.status_code == 504
    with pytest.raises(openai.AuthenticationError, match="nobody's"):
        await client.with_options(api_key="sk-other").models.list()


async def test_a_closed_stream_ends_the_engines_work(server: HttpServer) -> None:
    slow = Writer(pause_s=0.05)
    async with door(slow) as other, openai.AsyncOpenAI(base_url=f"{other.url}/v1", api_key="sk-acme") as client:
        stream = await client.chat.completions.create(model="writer", messages=MESSAGES, stream=True)
        async for _ in stream:
            break
        await stream.close()
        await _until(lambda: bool(slow.ended))
    assert slow.ended == ["cancelled"]


async def test_a_client_that_hangs_up_ends_a_call_that_is_not_streamed() -> None:
    ended: list[str] = []

    async def sleeps(call: Call) -> Reply:
        try:
            return await _sleeps(call)
        finally:
            ended.append("cancelled")

    async with door(sleeps) as server, httpx.AsyncClient(headers={"api-key": "sk-acme"}) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(f"{server.url}/v1/chat/completions", json={"model": "writer"}, timeout=0.3)
        await _until(lambda: bool(ended))


async def test_a_picture_is_uploaded_as_a_form_and_one_too_large_is_told_so(server: HttpServer) -> None:
    picture = b"\x89PNG" + bytes(5 << 20)
    async with httpx.AsyncClient(base_url=server.url, headers={"authorization": "Bearer sk-acme"}) as client:
        files = {"artwork": ("a.png", picture, "image/png")}
        seen = (await client.post("/v1/mockups", data={"template": "mug", "samples": "8"}, files=files)).json()
        large = await client.post("/v1/mockups", files={"artwork": bytes(9 << 20)})
        again = await client.get("/v1/models")
    assert seen == {
        "body": {"artwork": {"file": "artwork"}, "template": "mug", "samples": 8},
        "bytes": {"artwork": len(picture)},
    }
    assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")
    assert again.status_code == 200


async def test_two_servers_share_one_port_and_the_other_goes_on_when_one_stops(writer: Writer) -> None:
    async with door(writer) as first, door(writer, port=first.port) as second:
        assert first.port == second.port
        async with httpx.AsyncClient(headers={"api-key": "sk-acme"}) as client:
            await first.stop()
            for _ in range(20):
                reply = await client.get(f"{second.url}/v1/models", headers={"connection": "close"})
                assert reply.status_code == 200


async def test_a_stopping_server_finishes_its_stream_and_takes_no_new_connection() -> None:
    slow = Writer(pause_s=0.1)
    async with door(slow) as server, httpx.AsyncClient(headers={"api-key": "sk-acme"}) as client:
        body = {"model": "writer", "stream": True}
        async with client.stream("POST", f"{server.url}/v1/chat/completions", json=body) as reply:
            chunks = reply.aiter_raw()
            first = await anext(chunks)
            stopping = asyncio.create_task(server.stop())
            await asyncio.sleep(0.02)
            with pytest.raises(httpx.ConnectError):
                await client.get(f"{server.url}/healthz")
            rest = b"".join([chunk async for chunk in chunks])
        await stopping
    assert (first + rest).count(b"data: ") == len(WORDS) + 1
    assert rest.endswith(b"data: [DONE]\n\n")
    assert slow.ended == ["whole"]


async def test_a_stream_that_outlasts_the_grace_is_cancelled() -> None:
    slow = Writer(pause_s=5)
    async with door(slow, grace_s=1) as server, httpx.AsyncClient(headers={"api-key": "sk-acme"}) as client:
        body = {"model": "writer", "stream": True}
        async with client.stream("POST", f"{server.url}/v1/chat/completions", json=body):
            await asyncio.wait_for(server.stop(), 4)
        await _until(lambda: bool(slow.ended))
    assert slow.ended == ["cancelled"]


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port somebody listens on without sharing it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


async def test_whoever_stops_a_server_may_give_its_answers_longer() -> None:
    slow = Writer(pause_s=0.4)
    async with door(slow, grace_s=1) as server, httpx.AsyncClient(headers={"api-key": "sk-acme"}) as client:
        request = {"model": "writer", "stream": True}
        async with client.stream("POST", f"{server.url}/v1/chat/completions", json=request) as stream:
            chunks = stream.aiter_text()
            text = await anext(chunks)
            stopping = asyncio.create_task(server.stop(within_s=30))
            async for chunk in chunks:
                text += chunk
        await stopping
    assert text.endswith("data: [DONE]\n\n")


async def test_a_port_that_another_program_has_is_a_clear_fault(writer: Writer, taken_port: int) -> None:
    with pytest.raises(EnvironmentFault, match=rf"needs port {taken_port} .* set gateway\.port to a free one"):
        async with door(writer, port=taken_port):
            pass


async def test_an_address_of_another_machine_is_a_clear_fault() -> None:
    with pytest.raises(EnvironmentFault, match=r"no address 192\.0\.2\.1"):
        await HttpServer(_never, host="192.0.2.1", port=0).start()


async def _never(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("called")


async def _until(condition: Callable[[], bool], timeout_s: float = 5) -> None:
    ends_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_s, "it never came true"
        await asyncio.sleep(0.01)
