"""Files, batches and jobs as their users meet them: the official OpenAI client, real sockets, the real desk."""

from __future__ import annotations

import asyncio
import io
import json
import resource
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from cotenant.calls import Directory, InMemoryBackend, Served
from cotenant.config import Jobs
from cotenant.config.model import Gateway
from cotenant.gateway.app import create_app
from cotenant.gateway.keys import load_keys
from cotenant.gateway.server import HttpServer
from cotenant.jobs.desk.desk import Desk
from cotenant.jobs.queue.memory import MemorySource
from cotenant.jobs.store.results import ResultStore, open_store
from cotenant.telemetry.metrics import GatewayMetrics

pytestmark = pytest.mark.integration
#: `scripts/test` runs it beside another.
WAITS_MORE_THAN_IT_COMPUTES = True

DIRECTORY = Directory((Served("writer", "llm", models=("tiny",)), Served("mockups", "mockup", templates=("mug",))))
KEYS = "acme:sk-acme,other:sk-other"


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(store=str(tmp_path / "results"))


@pytest.fixture
def store(jobs: Jobs) -> ResultStore:
    return open_store(jobs.store)


@pytest.fixture
async def server(jobs: Jobs, store: ResultStore) -> AsyncIterator[HttpServer]:
    desk = Desk(store, MemorySource(jobs).publish, jobs, lambda: DIRECTORY)
    config = Gateway(max_body_mib=1)
    keys = load_keys(config, {"COTENANT_API_KEYS": KEYS})
    app = create_app(lambda: DIRECTORY, InMemoryBackend({}), config, keys, GatewayMetrics(), desk=desk)
    server = HttpServer(app, host="127.0.0.1", port=0, grace_s=5)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@pytest.fixture
async def client(server: HttpServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="sk-acme", max_retries=0, timeout=60) as found:
        yield found


def lines(count: int) -> bytes:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Say it."}]}
    return b"".join(
        json.dumps({"custom_id": f"c-{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}).encode()
        + b"\n"
        for n in range(count)
    )


async def test_the_openai_client_keeps_lists_reads_and_deletes_files(client: openai.AsyncOpenAI) -> None:
    data = lines(100)
    made = [await client.files.create(file=(f"{n}.jsonl", data), purpose="batch") for n in range(5)]
    assert {one.status for one in made} <= {"uploaded", "processed"}
    assert (made[0].filename, made[0].bytes, made[0].purpose) == ("0.jsonl", len(data), "batch")
    assert await client.files.retrieve(made[0].id) == made[0]
    newest = await client.files.list(limit=2)
    assert [one.id for one in newest.data] == [made[4].id, made[3].id]
    assert newest.has_next_page()
    assert [one.id async for one in client.files.list(limit=2)] == [one.id for one in made[::-1]]
    assert [one.id async for one in client.files.list(limit=2, order="asc")] == [one.id for one in made]
    assert (await client.files.content(made[2].id)).content == data
    deleted = await client.files.delete(made[2].id)
    assert (deleted.id, deleted.deleted) == (made[2].id, True)
    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            await ask(made[2].id)


async def test_a_file_may_expire_and_a_picture_is_no_batch(client: openai.AsyncOpenAI) -> None:
    picture = await client.files.create(
        file=Path(__file__), purpose="vision", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert picture.expires_at == picture.created_at + 3600
    assert picture.filename == Path(__file__).name
    assert [one.id async for one in client.files.list(purpose="batch")] == []
    with pytest.raises(openai.BadRequestError) as wrong:
        await client.files.create(file=b"x", purpose="nonsense")  # type: ignore[arg-type]
    assert wrong.value.param == "purpose"


async def test_the_blocking_openai_client_pages_through_files_too(server: HttpServer) -> None:
    def work() -> tuple[list[str], list[str]]:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-acme", max_retries=0) as client:
            made = [client.files.create(file=io.BytesIO(lines(1)), purpose="batch").id for _ in range(3)]
            return made, [one.id for one in client.files.list(limit=1, order="asc")]

    made, listed = await asyncio.to_thread(work)
    assert made == listed


async def test_the_openai_client_makes_shows_lists_and_cancels_batches(client: openai.AsyncOpenAI) -> None:
    file = await client.files.create(file=("a.jsonl", lines(3)), purpose="batch")
    ask: dict[str, Any] = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    made = [await client.batches.create(**ask, metadata={"n": str(n)}) for n in range(3)]
    assert (made[0].object, made[0].status, made[0].input_file_id) == ("batch", "validating", file.id)
    assert (await client.batches.retrieve(made[1].id)).metadata == {"n": "1"}
    assert {one.id async for one in client.batches.list(limit=2)} == {one.id for one in made}
    cancelled = await client.batches.cancel(made[2].id)
    assert cancelled.status in ("cancelling", "cancelled")
    with pytest.raises(openai.NotFoundError):
        await client.batches.retrieve("batch_none")
    with pytest.raises(openai.BadRequestError) as wrong:
        await client.batches.create(**{**ask, "endpoint": "/v1/none"})
    assert wrong.value.param == "endpoint"


async def test_another_tenants_things_are_not_there(client: openai.AsyncOpenAI) -> None:
    other = client.with_options(api_key="sk-other")
    file = await client.files.create(file=("a.jsonl", lines(1)), purpose="batch")
    batch = await client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    for ask in (other.files.retrieve, other.files.content, other.files.delete):
        with pytest.raises(openai.NotFoundError):
            await ask(file.id)
    for look in (other.batches.retrieve, other.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            await look(batch.id)
    assert [one async for one in other.files.list()] == []
    assert [one async for one in other.batches.list()] == []
    assert (await client.files.content(file.id)).content == lines(1)


async def test_a_job_is_accepted_once_for_one_key_shown_listed_and_cancelled(server: HttpServer) -> None:
    body = {"url": "/v1/chat/completions", "body": json.loads(lines(1))["body"], "metadata": {"order": "A-1"}}
    async with httpx.AsyncClient(base_url=server.url, headers={"authorization": "Bearer sk-acme"}) as client:
        made = await client.post("/v1/jobs", json=body, headers={"idempotency-key": "k-1"})
        again = await client.post("/v1/jobs", json=body, headers={"idempotency-key": "k-1"})
        other = await client.post("/v1/jobs", json={**body, "metadata": {}}, headers={"idempotency-key": "k-1"})
        seen = await client.get(made.headers["location"])
        began_s = time.monotonic()
        waited = await client.get(made.headers["location"], params={"wait_s": 0.5})
        waited_s = time.monotonic() - began_s
        early = await client.get(f"{made.headers['location']}/content")
        listed = await client.get("/v1/jobs")
        stolen = await client.get(made.headers["location"], headers={"authorization": "Bearer sk-other"})
        ended = await client.delete(made.headers["location"])
    assert made.status_code == again.status_code == 202, made.text
    assert (seen.status_code, seen.json()["id"]) == (200, made.json()["id"])
    assert again.json()["id"] == made.json()["id"]
    assert other.status_code == 409
    assert seen.json()["status"] == "queued"
    assert int(seen.headers["retry-after"]) >= 1
    assert waited.json()["status"] == "queued"
    assert 0.5 <= waited_s < 5
    assert early.status_code == 404
    assert [one["id"] for one in listed.json()["data"]] == [made.json()["id"]]
    assert stolen.status_code == 404
    assert (ended.status_code, ended.json()["status"]) == (200, "cancelled")


async def test_a_wait_ends_when_the_job_does(server: HttpServer) -> None:
    body = {"url": "/v1/chat/completions", "body": json.loads(lines(1))["body"]}
    async with httpx.AsyncClient(base_url=server.url, headers={"authorization": "Bearer sk-acme"}) as client:
        url = (await client.post("/v1/jobs", json=body)).headers["location"]
        began_s = time.monotonic()
        waiting = asyncio.create_task(client.get(url, headers={"prefer": "wait=30"}, timeout=40))
        await asyncio.sleep(0.3)
        await client.delete(url)
        reply = await waiting
    assert (reply.json()["status"], reply.headers["preference-applied"]) == ("cancelled", "wait=30")
    assert time.monotonic() - began_s < 10


async def test_a_file_far_over_the_body_limit_passes_through_and_never_lies_in_memory(
    client: openai.AsyncOpenAI, tmp_path: Path
) -> None:
    """The gateway takes bodies of 1 MiB here. The client's own copy and the parts being written are all that grows."""
    path, row = tmp_path / "large.jsonl", lines(1)
    size = 0
    with path.open("wb") as large:
        while size < 150 << 20:
            size += large.write(row * 10_000)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with path.open("rb") as source:
        made = await client.files.create(file=source, purpose="batch")
    got = 0
    async with client.files.with_streaming_response.content(made.id) as reply:
        assert reply.headers["content-length"] == str(size)
        async for chunk in reply.iter_bytes():
            got += len(chunk)
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024
    assert (made.bytes, got) == (size, size)
    assert grown_mib < 75


async def test_a_client_that_hangs_up_in_the_middle_of_its_file_leaves_nothing(
    server: HttpServer, store: ResultStore, client: openai.AsyncOpenAI
) -> None:
    head = (
        b"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-acme\r\nContent-Length: 99000000\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    )
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head + lines(100_000))
    await writer.drain()
    writer.transport.abort()
    await asyncio.wait_for(_noted(server, 'route="/v1/files",status="499"'), 10)
    assert _held(store) == []
    assert [one async for one in client.files.list()] == []


async def test_a_file_over_the_limit_is_told_so_though_the_client_still_sends(server: HttpServer) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
        for _ in range(210):
            yield bytes(1 << 20)

    headers = {"authorization": "Bearer sk-acme", "content-type": "multipart/form-data; boundary=x"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60) as client:
        reply = await client.post("/v1/files", content=endless())
    assert reply.status_code == 413, reply.text
    assert "200" in reply.json()["error"]["message"]


async def test_a_store_that_is_gone_is_a_503_that_says_when_to_come_back(
    client: openai.AsyncOpenAI, jobs: Jobs, broken_store: None
) -> None:
    with pytest.raises(openai.InternalServerError) as down:
        await client.files.create(file=b"x", purpose="batch")
    assert down.value.status_code == 503
    assert down.value.response.headers["retry-after"] == "5"
    assert "nothing was lost" in down.value.message
    assert jobs.store not in down.value.message


@pytest.fixture
def broken_store(jobs: Jobs, store: ResultStore) -> Iterator[None]:
    """The store's folder is a file now: whatever is asked of it fails, also for root."""
    folder = Path(jobs.store)
    shutil.rmtree(folder)
    folder.touch()
    yield
    folder.unlink()


def _held(store: ResultStore) -> list[Path]:
    """Files that lie in the store, without the store's own."""
    folder = Path(store.url.removeprefix("file://"))
    return [path for path in folder.glob("[!_]*/**/*") if path.is_file()]


async def _noted(server: HttpServer, count: str) -> None:
    """Wait until the gateway's counts tell of it."""
    async with httpx.AsyncClient(base_url=server.url, headers={"authorization": "Bearer sk-acme"}) as client:
        while True:
            if count in (await client.get("/metrics")).text:
                return
            await asyncio.sleep(0.02)
