"""Jobs on the real Pub/Sub emulator: the source's contract, and the pump with a source that is not ours."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from cotenant.calls import Call, InMemoryBackend, Reply, error_reply
from cotenant.config import Jobs
from cotenant.errors import EnvironmentFault
from cotenant.jobs.collecting import collect
from cotenant.jobs.desk.batches import new_batch_id
from cotenant.jobs.errand import Errand
from cotenant.jobs.ingress.pump import Pump
from cotenant.jobs.ingress.settlement import Outcome
from cotenant.jobs.queue import emulator
from cotenant.jobs.queue.lanes import CLERK, lane_of
from cotenant.jobs.queue.pubsub import PubSubLanes, PubSubSource
from cotenant.jobs.queue.source import Delivery
from cotenant.jobs.reading import read_jobs
from cotenant.jobs.store.results import open_store
from deployments.desk import open_desk
from tests.contracts.job_source import contract_jobs
from tests.contracts.jobs_house import DIRECTORY, FlakyStore, chat, echo, eventually, message, picture, render
from tests.contracts.published_batch import publish_batch

pytestmark = pytest.mark.integration
#: `scripts/test` runs it beside another.
WAITS_MORE_THAN_IT_COMPUTES = True

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def emulator_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    found = emulator.find_emulator()
    if isinstance(found, str):
        pytest.skip(found)
    running = found.start(tmp_path_factory.mktemp("emulator"))
    yield running.host_port
    emulator.stop(running.pid)
    assert not Path(f"/proc/{running.pid}").exists()


async def open_source(jobs: Jobs, host: str) -> PubSubSource:
    source = PubSubSource(jobs, emulator_host=host, pull_wait_s=1.0)
    await source.setup()
    return source


def lanes(jobs: Jobs, host: str) -> PubSubLanes:
    return PubSubLanes(jobs, emulator_host=host)


async def drain_topic(jobs: Jobs, subscription: str, host: str) -> list[Delivery]:
    """What waits in a subscription, acked."""
    source = PubSubSource(jobs.model_copy(update={"subscription": subscription}), emulator_host=host, pull_wait_s=1.0)
    try:
        got: list[Delivery] = []
        while some := await source.pull(1000):
            got += some
            await source.ack([delivery.ack_id for delivery in some])
        return got
    finally:
        await source.close()


@pytest.fixture
async def jobs(emulator_host: str) -> Jobs:
    return contract_jobs(f"-pump{next(_numbers)}").model_copy(update={"max_attempts": 3})


async def test_two_hundred_mixed_messages_all_end_and_each_result_is_created_once(
    jobs: Jobs, emulator_host: str
) -> None:
    calls: Counter[str] = Counter()

    async def writer(call: Call) -> Reply:
        calls[call.request_id] += 1
        await asyncio.sleep(0.005)
        if b"refuse" in call.body:
            return error_reply(400, "no")
        if b"flaky" in call.body and calls[call.request_id] == 1:
            return error_reply(500, "a hiccup")
        return echo(call)

    store = FlakyStore()
    source = await open_source(jobs, emulator_host)
    results = await open_source(jobs.model_copy(update={"topic": jobs.results, "subscription": "seen"}), emulator_host)
    good = [chat(f"chat-{n}") if n % 2 else render(f"render-{n}") for n in range(120)]
    refused = [chat(f"refused-{n}", refuse=True) for n in range(20)]
    flaky = [chat(f"flaky-{n}", flaky=True) for n in range(20)]
    malformed = [b"{not json", b"[]", b'{"custom_id": 1}', b"\xff\xfe"] * 5
    messages = [message(line) for line in [*good, *refused, *flaky, *malformed]]
    duplicates = [message(line) for line in good[:20]]
    await source.publish(jobs.topic, [*messages, *duplicates])

    pump = Pump(
        jobs,
        lanes(jobs, emulator_host),
        store,
        InMemoryBackend({"writer": writer, "mockups": picture}, slots=4),
        DIRECTORY,
    )
    pump.start()
    expected = 120 + 20 + 20 + 20 + 20
    settled = (Outcome.DONE, Outcome.REFUSED, Outcome.ALREADY_DONE, Outcome.MALFORMED)
    await eventually(lambda: sum(pump.settled[outcome] for outcome in settled) == expected, within_s=90)
    await pump.drain(5)

    assert pump.settled[Outcome.DONE] == 140
    assert pump.settled[Outcome.REFUSED] == 20
    assert pump.settled[Outcome.ALREADY_DONE] == 20
    assert pump.settled[Outcome.MALFORMED] == 20
    assert pump.settled[Outcome.ENGINE_ERROR] == 20
    assert len(store.results) == len(set(store.results)) == 160
    assert all(calls[job_id] <= 2 for job_id in calls)

    dead = await drain_topic(jobs, f"{jobs.dead_letter}-kept", emulator_host)
    assert len(dead) == 20
    assert {delivery.attributes["outcome"] for delivery in dead} == {"malformed"}
    assert any("is not JSON" in delivery.attributes["reason"] for delivery in dead)
    assert all(delivery.attributes["tenant"] == "acme" for delivery in dead)

    announced = await drain_topic(jobs, "seen", emulator_host)
    assert {d.attributes["custom_id"] for d in announced} == {line["custom_id"] for line in [*good, *refused, *flaky]}
    assert len(announced) == 180

    await asyncio.sleep(jobs.lease_s + 1)
    assert list(await source.pull(10)) == []
    await source.close()
    await results.close()


async def test_what_a_killed_pump_held_is_done_by_the_next_one(jobs: Jobs, emulator_host: str) -> None:
    store = FlakyStore()
    forever = asyncio.Event()

    async def hang(call: Call) -> Reply:
        await forever.wait()
        return echo(call)

    first_source = await open_source(jobs, emulator_host)
    await first_source.publish(jobs.topic, [message(chat(f"c{n}")) for n in range(6)])
    first = Pump(
        jobs,
        lanes(jobs, emulator_host),
        store,
        InMemoryBackend({"writer": hang, "mockups": picture}, slots=4),
        DIRECTORY,
    )
    first.start()
    await eventually(lambda: first.stats().running == 4)
    for task in [task for task in asyncio.all_tasks() if task.get_name().startswith(("job-", "jobs-"))]:
        task.cancel()
    await first_source.close()

    second_source = await open_source(jobs, emulator_host)
    second = Pump(
        jobs,
        lanes(jobs, emulator_host),
        store,
        InMemoryBackend({"writer": echo, "mockups": picture}),
        DIRECTORY,
    )
    second.start()
    await eventually(lambda: second.settled[Outcome.DONE] == 6, within_s=jobs.lease_s + 15)
    await second.drain(1)
    await second_source.close()
    assert len(store.results) == 6


async def test_work_longer_than_the_lease_is_done_once(jobs: Jobs, emulator_host: str) -> None:
    runs = 0

    async def slow(call: Call) -> Reply:
        nonlocal runs
        runs += 1
        await asyncio.sleep(jobs.lease_s * 1.8)
        return echo(call)

    source = await open_source(jobs, emulator_host)
    await source.publish(jobs.topic, [message(chat("slow"))])
    pump = Pump(
        jobs,
        lanes(jobs, emulator_host),
        FlakyStore(),
        InMemoryBackend({"writer": slow, "mockups": picture}),
        DIRECTORY,
    )
    pump.start()
    await eventually(lambda: pump.settled[Outcome.DONE] == 1, within_s=jobs.lease_s * 3)
    await pump.drain(1)
    await source.close()
    assert runs == 1
    assert sum(pump.settled.values()) == 1


async def test_a_drain_hands_back_what_has_not_begun(jobs: Jobs, emulator_host: str) -> None:
    go_on = asyncio.Event()

    async def patient(call: Call) -> Reply:
        await go_on.wait()
        return echo(call)

    source = await open_source(jobs, emulator_host)
    await source.publish(jobs.topic, [message(chat(f"c{n}")) for n in range(10)])
    pump = Pump(
        jobs,
        lanes(jobs, emulator_host),
        FlakyStore(),
        InMemoryBackend({"writer": patient, "mockups": picture}, slots=4),
        DIRECTORY,
    )
    pump.start()
    await eventually(lambda: pump.stats().running == 4 and pump.stats().waiting >= 2)
    draining = asyncio.create_task(pump.drain(10))
    await asyncio.sleep(0.1)
    go_on.set()
    await draining
    assert pump.settled[Outcome.DONE] == 4
    lane = lanes(jobs, emulator_host).open(lane_of("writer"))
    again: set[str] = set()
    for _ in range(5):
        again |= {json.loads(d.data)["custom_id"] for d in [*await source.pull(10), *await lane.pull(10)]}
    assert len(again) == 6
    await source.close()


async def test_a_file_goes_out_and_its_results_come_back_in_order(
    jobs: Jobs, emulator_host: str, tmp_path: Path
) -> None:
    source = await open_source(jobs, emulator_host)
    store = open_store(str(tmp_path / "results"))
    pump = Pump(
        jobs,
        lanes(jobs, emulator_host),
        store,
        InMemoryBackend({"writer": echo, "mockups": picture}),
        DIRECTORY,
    )
    pump.start()
    batch = new_batch_id()
    lines = [json.dumps(chat(f"c{n}") if n % 2 else render(f"r{n}")).encode() for n in range(20)]
    lines.append(json.dumps(chat("large", padding="x" * (2 << 20))).encode())
    submitted = read_jobs(lines, "jobs.jsonl", tenant="acme", batch=batch, directory=DIRECTORY)
    await publish_batch(submitted, store, lambda messages: source.publish(jobs.topic, messages))
    output: list[bytes] = []
    collected = await collect(store, output.append, tenant="acme", batch=batch, timeout_s=60)
    await pump.drain(5)
    await source.close()
    assert (collected.written, collected.failed, collected.missing) == (21, 0, ())
    parsed = [json.loads(line) for line in output]
    assert [line["custom_id"] for line in parsed] == [job.identity.custom_id for job in submitted]
    large = parsed[-1]["response"]["body"]
    assert large["bytes"] > 2 << 20
    assert len(Path(large["object"].removeprefix("file://")).read_bytes()) == large["bytes"]


async def test_the_gateways_desk_publishes_and_tells_the_webhook_of_a_job_cancelled_in_the_queue(
    jobs: Jobs, emulator_host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "whsec_" + base64.b64encode(b"k" * 32).decode()
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", emulator_host)
    monkeypatch.setenv("COTENANT_WEBHOOK_SECRETS", f"acme:{secret}")
    jobs = jobs.model_copy(update={"store": str(tmp_path), "ingresses": 1})
    source = await open_source(jobs, emulator_host)
    clerks = lanes(jobs, emulator_host).open(CLERK)
    await clerks.setup()
    opened = open_desk(jobs, lambda: DIRECTORY)
    assert opened.desk is not None, opened.why_none
    body = {"model": "writer", "messages": [{"role": "user", "content": "hi"}]}
    asked = {"url": "/v1/chat/completions", "body": body, "webhook_url": "https://hooks.acme.example/jobs"}
    job = await opened.desk.create_job("acme", asked)
    cancelled = await opened.desk.cancel_job("acme", job["id"])
    assert cancelled["status"] == "cancelled"
    errands = [Errand.of(delivery) for delivery in await clerks.pull(10)]
    assert [(errand.kind, errand.tenant) for errand in errands] == [("webhook", "acme")]
    await opened.close()
    await clerks.close()
    await source.close()


def test_an_emulator_that_cannot_start_says_what_it_said(tmp_path: Path) -> None:
    jar = tmp_path / "broken.jar"
    jar.write_text("not a jar")
    found = emulator.find_emulator()
    if isinstance(found, str):
        pytest.skip(found)
    with pytest.raises(EnvironmentFault, match="jarfile"):
        emulator.EmulatorCommand(found.java, jar).start(tmp_path)
