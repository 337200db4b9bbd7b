"""Two platforms, one of which spills to the other: real gateways on real ports, and clients that notice nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest

from cotenant.calls import Call, Directory, InMemoryBackend, Reply, Served, StreamedReply
from cotenant.calls.counted import CountedBackend
from cotenant.config import Platform
from cotenant.manifests.spill import spill_terms
from cotenant.upstream.spill import METRICS, SpillingBackend
from deployments.spilling import connect
from tests.contracts.upstream_house import Upstream, gateway_over, until, upstream

pytestmark = pytest.mark.integration
#: `scripts/test` runs it beside another.
WAITS_MORE_THAN_IT_COMPUTES = True

KEY = "COTENANT_TEST_SPILL_KEY"
ELSEWHERE = Directory(
    (
        Served("writer", "llm", models=("their-writer",), slots=8, deadline_s=20),
        Served("mockups", "mockup", templates=("mug",), slots=8, deadline_s=20),
    )
)


class Engine:
    """Answers with whose it is, at once or when it is let; streams where it is asked to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.free = asyncio.Event()
        self.free.set()
        self.calls: list[Call] = []
        self.cut = 0

    async def __call__(self, call: Call) -> Reply | StreamedReply:
        if call.method == "GET":
            return Reply(200, b'{"object": "list", "data": [{"id": "mug"}]}')
        self.calls.append(call)
        body = json.loads(call.body)
        if body.get("stream"):
            return StreamedReply(200, "text/event-stream", self._words(body["model"]))
        try:
            await self.free.wait()
        except asyncio.CancelledError:
            self.cut += 1
            raise
        if "template" in body:
            return Reply(200, self.name.encode() + call.files.get("artwork", b""), "image/png")
        choice = {"index": 0, "message": {"role": "assistant", "content": self.name}, "finish_reason": "stop"}
        return Reply(200, json.dumps({**_head(body["model"]), "choices": [choice]}).encode())

    async def _words(self, model: str) -> AsyncIterator[bytes]:
        for word in (self.name, " speaks"):
            choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
            head = {**_head(model), "object": "chat.completion.chunk"}
            yield b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"


def _head(model: str) -> dict[str, Any]:
    return {"id": "c-1", "object": "chat.completion", "created": 1, "model": model}


def a_platform(url: str, **spill: Any) -> Platform:
    away = {"url": url, "key_env": KEY, **spill}
    return Platform.model_validate(
        {
            "environment": "test",
            "workloads": {
                "writer": {
                    "llm": {"model": "our-writer"},
                    "gpu": {"vram_gib": 4},
                    "concurrency": 1,
                    "queue": 1,
                    "deadline_s": 20,
                    "spill": {**away, "model": "their-writer"},
                },
                "mockups": {
                    "mockup": {"templates": ["mug", "poster"]},
                    "gpu": {"vram_gib": 1},
                    "concurrency": 1,
                    "queue": 1,
                    "spill": away,
                },
            },
            "pools": {"shared": {"accelerator": "cpu", "vram_gib": 12}},
        }
    )


@dataclass
class House:
    """The platform that spills, and the one that it spills to."""

    here: Engine
    there: Engine
    cluster: InMemoryBackend
    spilling: SpillingBackend
    counted: CountedBackend
    door: Upstream
    away: Upstream

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.door.url, headers={"authorization": "Bearer sk-customer"}, timeout=20)

    @asynccontextmanager
    async def full(self) -> AsyncIterator[None]:
        """While entered, every slot and every place in the queue of both workloads is taken."""
        self.here.free.clear()
        calls = [
            asyncio.create_task(self.cluster.call(name, Call("/v1/x", body)))
            for name, body in (("writer", b'{"model": "x"}'), ("mockups", b'{"template": "mug"}'))
            for _ in range(2)
        ]
        await until(lambda: len(self.here.calls) >= 2)
        yield
        self.here.free.set()
        await asyncio.gather(*calls)


@asynccontextmanager
async def two_platforms(**spill: Any) -> AsyncIterator[House]:
    here, there = Engine("here"), Engine("there")
    cluster = InMemoryBackend({"writer": here, "mockups": here}, slots=1, queue=1)
    handlers: Any = {"writer": there, "mockups": there}
    async with upstream(handlers, ELSEWHERE, slots=8, keys="acme-prod:sk-spill") as away:
        platform = a_platform(away.url, **spill)
        directory = Directory.of(platform)
        spilling = SpillingBackend(cluster, served=directory.named, connect=connect)
        spilling.spill(spill_terms(platform))
        counted = CountedBackend(spilling)
        async with gateway_over(counted, directory, keys="customer:sk-customer") as door:
            door.metrics.show(METRICS, spilling.rows)
            yield House(here, there, cluster, spilling, counted, door, away)
        await spilling.close()


@pytest.fixture
async def house(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setenv(KEY, "sk-spill")
    async with two_platforms() as found:
        yield found


MUG: Any = {"template": "mug"}
CHAT: Any = {"model": "our-writer", "messages": [{"role": "user", "content": "Hello"}]}


async def test_a_full_cluster_sends_on_and_an_idle_one_does_not(house: House) -> None:
    async with house.client() as client:
        before = await client.post("/v1/mockups", json=MUG)
        async with house.full():
            during = await client.post("/v1/mockups", json=MUG)
        after = await client.post("/v1/mockups", json=MUG)
        metrics = (await client.get("/metrics")).text
    assert [reply.content for reply in (before, during, after)] == [b"here", b"there", b"here"]
    where = httpx.URL(house.away.url).netloc.decode()
    assert [r.headers["x-cotenant-served-by"] for r in (before, during, after)] == ["cluster", where, "cluster"]
    assert 'cotenant_spilled_total{reason="queue_full",workload="mockups"} 1.0' in metrics
    assert 'cotenant_spilled_now{workload="mockups"} 0.0' in metrics
    assert house.there.calls[0].tenant == "acme-prod"
    assert house.there.calls[0].request_id == during.headers["x-request-id"]
    assert house.counted.asked()["mockups"].arrived == 3


async def test_an_uploaded_picture_goes_along(house: House) -> None:
    async with house.client() as client, house.full():
        files = {"artwork": ("a.png", b"\x89PNG" + bytes(1 << 20), "image/png")}
        reply = await client.post("/v1/mockups", data=MUG, files=files)
    assert reply.content == b"there\x89PNG" + bytes(1 << 20)


async def test_a_template_that_only_we_have_waits_here(house: House) -> None:
    async with house.client() as client:
        async with house.full():
            refused = await client.post("/v1/mockups", json={"template": "poster"})
        served = await client.post("/v1/mockups", json={"template": "poster"})
    assert (refused.status_code, served.content) == (429, b"here")
    assert house.there.calls == []


async def test_the_openai_client_streams_from_elsewhere_under_the_name_it_knows(house: House) -> None:
    customer = openai.AsyncOpenAI(base_url=f"{house.door.url}/v1", api_key="sk-customer", max_retries=0)
    async with customer as client, house.full():
        whole = await client.chat.completions.create(**CHAT)
        stream = await client.chat.completions.create(**CHAT, stream=True)
        words = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert (whole.choices[0].message.content, words) == ("there", ["there", " speaks"])
    assert [json.loads(call.body)["model"] for call in house.there.calls] == ["their-writer"] * 2


async def test_a_client_that_leaves_ends_the_work_elsewhere(house: House) -> None:
    house.there.free.clear()
    async with house.full(), house.client() as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/v1/mockups", json=MUG, timeout=0.5)
        await until(lambda: house.there.cut == 1)
    house.there.free.set()


async def test_when_the_other_platform_is_gone_what_it_would_have_had_is_served_here(house: House) -> None:
    async with house.client() as client:
        async with house.full():
            assert (await client.post("/v1/mockups", json=MUG)).content == b"there"
            await house.away.server.stop()
            assert (await client.post("/v1/mockups", json=MUG)).status_code == 429
        assert (await client.post("/v1/mockups", json=MUG)).content == b"here"
        metrics = (await client.get("/metrics")).text
    assert 'cotenant_spill_failed_total{error="WorkloadUnavailable",workload="mockups"} 1.0' in metrics


async def test_a_wrong_key_is_told_to_the_operator_and_not_to_the_customer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "sk-wrong")
    async with two_platforms() as house, house.client() as client:
        async with house.full():
            assert (await client.post("/v1/mockups", json=MUG)).status_code == 429
        assert (await client.post("/v1/mockups", json=MUG)).content == b"here"


async def test_two_platforms_that_spill_to_each_other_pass_a_request_on_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "sk-spill")
    full = InMemoryBackend({"mockups": Engine("nobody")}, slots=1, queue=1)
    directory = Directory((Served("mockups", "mockup", templates=("mug",), slots=1, queue=1, deadline_s=5),))

    async def nobody_serves(workload: str) -> int:
        return 0

    backends = [SpillingBackend(full, served=directory.named, connect=connect, running=nobody_serves) for _ in "ab"]
    async with (
        gateway_over(backends[0], directory, keys="x:sk-spill") as a,
        gateway_over(backends[1], directory, keys="x:sk-spill") as b,
    ):
        for backend, other in zip(backends, (b, a), strict=True):
            terms = spill_terms(a_platform(other.url))
            backend.spill([one for one in terms if one["workload"] == "mockups"])
        async with httpx.AsyncClient(base_url=a.url, headers={"api-key": "sk-spill"}, timeout=20) as client:
            reply = await client.post("/v1/mockups", json=MUG)
        assert reply.content == b"nobody"
        counts = [sum(r.value for r in one.rows() if r.name == "cotenant_spilled_total") for one in backends]
        assert counts == [1, 0]
        for backend in backends:
            await backend.close()
