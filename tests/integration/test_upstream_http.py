"""The backend over HTTP: the contract that it shares with the others, with a real gateway behind a real port."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import pytest

from cotenant.calls import Backend, Call, Directory, InMemoryBackend, Reply, Served, StreamedReply
from cotenant.errors import (
    CallError,
    DeadlineExceeded,
    Overloaded,
    ReplicaDied,
    UnknownWorkload,
    WorkloadUnavailable,
)
from cotenant.upstream.auth import KeyAuth, auth_of
from cotenant.upstream.backend import UpstreamBackend
from tests.contracts.backend import SLOTS, BackendContract, Puppet, order, read_all
from tests.contracts.upstream_house import Upstream, until, upstream

pytestmark = pytest.mark.integration
#: `scripts/test` runs it beside another.
WAITS_MORE_THAN_IT_COMPUTES = True

PUPPETS = Directory((Served("puppet", "mockup", templates=("puppet",), slots=SLOTS, deadline_s=60),))
WRITER = Directory((Served("writer", "llm", models=("tiny", "writer"), deadline_s=20),))


class TestUpstreamBackend(BackendContract):
    @pytest.fixture
    async def behind(self) -> AsyncIterator[Upstream]:
        async with upstream({"puppet": Puppet().call}, PUPPETS, slots=SLOTS) as running:
            yield running

    @pytest.fixture
    async def backend(self, behind: Upstream) -> AsyncIterator[Backend]:
        self.behind_it = behind
        backend = UpstreamBackend(behind.url, {"puppet": None})
        yield backend
        await backend.close()

    async def kill(self, backend: Backend) -> None:
        """Twice, since the gateway repeats a call whose replica died."""
        inner = self.behind_it.backend
        assert isinstance(inner, InMemoryBackend)
        for _ in range(2):
            inner.kill("puppet")
            await asyncio.sleep(0.3)


@asynccontextmanager
async def calling(url: str, models: dict[str, str | None], **options: Any) -> AsyncIterator[UpstreamBackend]:
    backend = UpstreamBackend(url, models, **options)
    try:
        yield backend
    finally:
        await backend.close()


def chat(model: str = "tiny", **options: Any) -> Call:
    body = {"model": model, "messages": [], **options.pop("body", {})}
    return Call("/v1/chat/completions", json.dumps(body).encode(), **{"deadline_s": 10.0, **options})


class Tokens:
    """Streams words, and remembers how that ended."""

    def __init__(self, words: int = 5, pause_s: float = 0.0) -> None:
        self.words, self.pause_s = words, pause_s
        self.ended: list[str] = []
        self.calls: list[Call] = []

    def __call__(self, call: Call) -> Reply | StreamedReply:
        self.calls.append(call)
        if not json.loads(call.body).get("stream"):
            return Reply(200, json.dumps({"said": json.loads(call.body)["model"]}).encode())
        return StreamedReply(200, "text/event-stream", self._events())

    async def _events(self) -> AsyncIterator[bytes]:
        try:
            for number in range(self.words):
                yield b"data: %d\n\n" % number
                await asyncio.sleep(self.pause_s)
            self.ended.append("whole")
        except (GeneratorExit, asyncio.CancelledError):
            self.ended.append("cut")
            raise


async def test_chunks_arrive_one_by_one_as_they_are_made() -> None:
    tokens = Tokens(pause_s=0.05)
    async with upstream({"writer": tokens}, WRITER) as behind, calling(behind.url, {"writer": None}) as backend:
        reply = await backend.stream("writer", chat(body={"stream": True}))
        chunks = [chunk async for chunk in reply.chunks]
    assert (reply.status, reply.content_type) == (200, "text/event-stream")
    assert chunks == [b"data: %d\n\n" % number for number in range(5)]
    assert tokens.ended == ["whole"]


async def test_a_stream_that_is_closed_ends_the_work_on_the_other_side() -> None:
    tokens = Tokens(words=1000, pause_s=0.02)
    async with upstream({"writer": tokens}, WRITER) as behind, calling(behind.url, {"writer": None}) as backend:
        reply = await backend.stream("writer", chat(body={"stream": True}))
        chunks: Any = reply.chunks
        assert await chunks.__anext__() == b"data: 0\n\n"
        await chunks.aclose()
        await until(lambda: tokens.ended == ["cut"])


async def test_a_stream_past_its_deadline_ends_with_that() -> None:
    tokens = Tokens(words=1000, pause_s=0.05)
    async with upstream({"writer": tokens}, WRITER) as behind, calling(behind.url, {"writer": None}) as backend:
        reply = await backend.stream("writer", chat(body={"stream": True}, deadline_s=0.4))
        with pytest.raises(DeadlineExceeded, match=r"within 0\.4 s"):
            async for _ in reply.chunks:
                pass
        await until(lambda: tokens.ended == ["cut"])


async def test_a_model_has_the_other_servers_name_there() -> None:
    tokens = Tokens()
    async with upstream({"writer": tokens}, WRITER) as behind, calling(behind.url, {"poet": "tiny"}) as backend:
        assert (await backend.call("poet", chat("poet-7b"))).json() == {"said": "tiny"}
        assert (await backend.call("poet", chat("tiny"))).json() == {"said": "tiny"}


async def test_a_model_that_is_not_there_is_not_the_customers_mistake() -> None:
    async with upstream({"writer": Tokens()}, WRITER) as behind, calling(behind.url, {"writer": "gone"}) as backend:
        with pytest.raises(UnknownWorkload, match="'gone' does not exist"):
            await backend.call("writer", chat())


async def test_an_engines_own_refusal_is_a_reply() -> None:
    def refuses(call: Call) -> Reply:
        return Reply(400, b'{"error": {"message": "too long"}}')

    async with upstream({"writer": refuses}, WRITER) as behind, calling(behind.url, {"writer": None}) as backend:
        whole = await backend.call("writer", chat())
        streamed = await backend.stream("writer", chat(body={"stream": True}))
        body = b"".join([chunk async for chunk in streamed.chunks])
    assert (whole.status, streamed.status) == (400, 400)
    assert whole.body == body == b'{"error": {"message": "too long"}}'


async def test_the_key_lets_it_in_and_a_wrong_one_is_the_operators_to_mend() -> None:
    async with upstream({"writer": Tokens()}, WRITER, keys="other:sk-spill") as behind:
        async with calling(behind.url, {"writer": None}, auth=KeyAuth("sk-spill")) as backend:
            assert (await backend.call("writer", chat())).ok
        async with calling(behind.url, {"writer": None}, auth=KeyAuth("sk-wrong")) as backend:
            with pytest.raises(WorkloadUnavailable, match="does not let this platform in"):
                await backend.call("writer", chat())
            status = (await backend.status())["writer"]
            assert (status.ready, "does not let this platform in" in status.message) == (False, True)


async def test_a_job_stays_a_job_with_its_priority_and_its_time() -> None:
    tokens = Tokens()
    house = upstream({"writer": tokens}, WRITER, max_job_s=3600)
    async with house as behind, calling(behind.url, {"writer": None}) as backend:
        await backend.call("writer", chat(batch=True, priority=-3, deadline_s=900.0))
        await backend.call("writer", chat(batch=True, deadline_s=7200.0))
        await backend.call("writer", chat())
    job, long, interactive = tokens.calls
    assert (job.batch, job.priority, interactive.batch) == (True, -3, False)
    assert job.deadline_s is not None
    assert 800 < job.deadline_s <= 900
    assert long.deadline_s is not None
    assert 3500 < long.deadline_s <= 3600
    assert interactive.deadline_s is not None
    assert interactive.deadline_s <= 20


async def test_only_what_was_sent_on_says_so() -> None:
    tokens = Tokens()
    async with upstream({"writer": tokens}, WRITER) as behind:
        async with calling(behind.url, {"writer": None}, spilled_from="acme") as backend:
            await backend.call("writer", chat())
        async with calling(behind.url, {"writer": None}) as backend:
            await backend.call("writer", chat())
    assert [call.spilled for call in tokens.calls] == [True, False]


async def test_the_status_is_what_the_other_gateway_says_of_each_workload() -> None:
    house = upstream({"writer": Tokens(), "mockups": Tokens()}, WRITER)
    async with house as behind, calling(behind.url, {"writer": None, "painter": None}) as backend:
        status = await backend.status()
        assert (status["writer"].ready, status["writer"].replicas) == (True, 1)
        assert (status["painter"].ready, status["painter"].message) == (False, f"{backend.host} has no painter")
        assert isinstance(behind.backend, InMemoryBackend)
        behind.backend.down["writer"] = "loads its weights"
        status = await backend.status()
        assert (status["writer"].ready, status["writer"].message) == (False, "loads its weights")


# --- servers that misbehave ---

Script = list[bytes]


@asynccontextmanager
async def saying(*answers: bytes, close: bool = True, heads: list[str] | None = None) -> AsyncIterator[str]:
    """A server that reads each request's head (into `heads`) and says the next answer, whatever was asked; its URL."""
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if heads is not None:
                heads.append(head.decode().lower())
            if left:
                writer.write(left.pop(0))
                await writer.drain()
            if not close:
                await reader.read()
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


def answer(status: int, body: bytes = b"", *lines: str, kind: str = "text/html") -> bytes:
    head = [f"HTTP/1.1 {status} X", f"content-type: {kind}", f"content-length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body


@pytest.mark.parametrize(
    ("said", "error", "text"),
    [
        pytest.param(b"", ReplicaDied, "closed the connection", id="hangs up without a word"),
        pytest.param(answer(200, b"ab")[:-1], ReplicaDied, "closed the connection", id="breaks off in the middle"),
        pytest.param(b"SSH-2.0-OpenSSH\r\n\r\n", ReplicaDied, "closed the connection", id="speaks something else"),
        pytest.param(answer(429), Overloaded, "full queue", id="429 without a word"),
        pytest.param(answer(301, b"", "location: https://elsewhere"), WorkloadUnavailable, "leads elsewhere", id="301"),
        pytest.param(answer(404, b"<html>"), UnknownWorkload, "404", id="404 of a proxy"),
        pytest.param(answer(403, b"<html>"), WorkloadUnavailable, "does not let", id="403 of IAM"),
        pytest.param(answer(500, b"<html>"), WorkloadUnavailable, "failed", id="500 of a proxy"),
        pytest.param(answer(502, b"<html>"), WorkloadUnavailable, "can't take", id="502"),
        pytest.param(answer(504, b"<html>"), DeadlineExceeded, "in time", id="504"),
    ],
)
async def test_a_server_that_misbehaves_is_told_by_class(said: bytes, error: type[CallError], text: str) -> None:
    async with saying(said) as url, calling(url, {"writer": None}) as backend:
        with pytest.raises(error, match=text):
            await backend.call("writer", chat())


async def test_a_full_server_says_when_to_come_back() -> None:
    full = answer(429, b'{"error": {"message": "full"}}', "retry-after: 12", kind="application/json")
    async with saying(full) as url, calling(url, {"writer": None}) as backend:
        with pytest.raises(Overloaded, match="full") as caught:
            await backend.call("writer", chat())
    assert caught.value.retry_after_s == 12


async def test_a_stream_that_breaks_off_is_a_dead_replica() -> None:
    begun = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n"
    async with saying(begun) as url, calling(url, {"writer": None}) as backend:
        reply = await backend.stream("writer", chat(body={"stream": True}))
        chunks = []
        with pytest.raises(ReplicaDied):
            async for chunk in reply.chunks:
                chunks.append(chunk)
    assert chunks == [b"one"]


async def test_a_server_that_never_answers_meets_the_deadline() -> None:
    async with saying(close=False) as url, calling(url, {"writer": None}) as backend:
        with pytest.raises(DeadlineExceeded, match=r"within 0\.2 s"):
            await backend.call("writer", chat(deadline_s=0.2))
        with pytest.raises(DeadlineExceeded, match=r"within 0\.2 s"):
            await backend.stream("writer", chat(deadline_s=0.2))


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    async with saying() as url:
        pass
    async with calling(url, {"writer": None}) as backend:
        with pytest.raises(WorkloadUnavailable, match="can't be reached"):
            await backend.call("writer", chat())
        status = (await backend.status())["writer"]
        assert (status.ready, "can't be reached" in status.message) == (False, True)
        answers = await read_all(backend.call_many("writer", [chat(), chat()]))
        assert [type(answers[n]) for n in range(2)] == [WorkloadUnavailable] * 2


async def test_a_server_without_readyz_is_ready_if_it_lists_its_models() -> None:
    listed = answer(200, b'{"data": []}', kind="application/json")
    async with saying(answer(404), listed, answer(404), answer(401)) as url, calling(url, {"writer": None}) as backend:
        assert (await backend.status())["writer"].ready
        refused = (await backend.status())["writer"]
        assert (refused.ready, "401" in refused.message) == (False, True)


async def test_an_upload_arrives_beside_the_body_as_it_was_sent() -> None:
    async with upstream({"puppet": Puppet().call}, PUPPETS) as behind, calling(behind.url, {"puppet": None}) as backend:
        reply = await backend.call("puppet", order("u", files={"artwork": b"\x89PNG\x00"}))
    assert reply.json()["files"] == {"artwork": "iVBORwA="}


async def test_on_google_cloud_a_call_carries_the_machines_token_beside_the_key() -> None:
    fine, asked, called = answer(200, b"{}", kind="application/json"), list[str](), list[str]()
    async with saying(answer(200, b"e30.e30.sig\n"), heads=asked) as metadata, saying(fine, fine, heads=called) as url:
        environ = {"GCE_METADATA_HOST": metadata.removeprefix("http://"), "K": "sk-1"}
        auth = auth_of(environ, url=f"{url}/prefix", key_env="K", google=True)
        async with calling(f"{url}/prefix", {"writer": None}, auth=auth) as backend:
            await backend.call("writer", chat())
            await backend.call("writer", chat())
    [question] = asked
    assert "metadata-flavor: google" in question
    assert f"identity?audience={quote(url, safe='')}".lower() in question
    assert [head.splitlines()[0] for head in called] == ["post /prefix/v1/chat/completions http/1.1"] * 2
    assert all("authorization: bearer sk-1" in head.splitlines() for head in called)
    assert all("x-serverless-authorization: bearer e30.e30.sig" in head.splitlines() for head in called)


async def test_a_machine_without_a_service_account_is_told_so() -> None:
    async with saying(answer(404)) as metadata:
        auth = auth_of(
            {"GCE_METADATA_HOST": metadata.removeprefix("http://")}, url="https://x", key_env=None, google=True
        )
        with pytest.raises(WorkloadUnavailable, match="answers 404; does this machine, or pod, have a service account"):
            await auth.headers()
