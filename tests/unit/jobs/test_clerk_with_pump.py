"""The clerk in a pump: files, batches and webhooks go their whole way through queue, ingress and store."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from cotenant.calls import Call, Reply
from cotenant.calls.desk import Json
from cotenant.config import Jobs
from cotenant.jobs.clerk.clerk import Clerk
from cotenant.jobs.clerk.webhooks import Webhooks, webhook_check
from cotenant.jobs.desk.desk import Desk
from cotenant.jobs.queue.lanes import CLERK, MAIN, lane_of
from cotenant.outbound.delivery import InMemoryDeliver
from cotenant.outbound.webhooks import Answered
from tests.contracts.desk_house import HOOK, SECRETS, chunks
from tests.contracts.jobs_house import DIRECTORY, chat, echo
from tests.contracts.pump_house import JOBS, World, kill

pytestmark = pytest.mark.unit


class Office(World):
    """A pump whose clerk is the real one, and a desk before it."""

    def __init__(self, handlers: Any = None, jobs: Jobs = JOBS) -> None:
        super().__init__(handlers, jobs)
        self.deliver = InMemoryDeliver({HOOK: lambda headers, body: Answered(200)})
        # As `setup` has them: what is published to a topic without a subscription is nobody's.
        for lane in (CLERK, *(lane_of(served.name) for served in DIRECTORY.workloads)):
            self.lanes.open(lane)
        self.clerk = self.new_clerk()
        self.pump = self.new_pump()
        self.desk = Desk(
            self.store,
            self.source.publish,
            jobs,
            lambda: DIRECTORY,
            check_webhook=webhook_check(SECRETS),
            now=self.clock.unix_s,
        )

    def new_clerk(self) -> Clerk:
        publish, now = self.lanes.open(MAIN).publish, self.clock.unix_s
        webhooks = Webhooks(self.store.objects, publish, self.jobs, self.deliver, SECRETS, now=now, jitter=lambda: 0.0)
        return Clerk(self.store, publish, self.jobs, lambda: DIRECTORY, webhooks=webhooks, now=now)

    async def batch(self, *lines: Json, **asked: Any) -> str:
        data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        file = await self.desk.create_file("acme", filename="in.jsonl", purpose="batch", chunks=chunks(data))
        body = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h", **asked}
        return str((await self.desk.create_batch("acme", body))["id"])

    async def status(self, batch: str) -> str:
        return str((await self.desk.batch("acme", batch))["status"])

    async def ended(self, batch: str, within_s: float = 600) -> Json:
        end = self.clock.now() + within_s
        while (shown := await self.desk.batch("acme", batch))["status"] in ("validating", "in_progress", "finalizing"):
            assert self.clock.now() < end, shown
            await self.clock.advance(0.25)
        return shown

    async def lines(self, file_id: str) -> list[Json]:
        content = await self.desk.file_content("acme", file_id)
        return [json.loads(line) for line in b"".join([c async for c in content.chunks]).splitlines()]


async def test_a_batch_of_a_thousand_goes_through_and_its_webhook_is_told() -> None:
    office = Office()
    batch = await office.batch(*[chat(f"c{n}", n=n) for n in range(1000)], webhook_url=HOOK)
    office.pump.start()
    shown = await office.ended(batch)
    assert (shown["status"], shown["request_counts"]) == (
        "completed",
        {"total": 1000, "completed": 1000, "failed": 0},
    )
    output = await office.lines(shown["output_file_id"])
    assert [line["response"]["body"]["echo"]["n"] for line in output] == list(range(1000))
    await office.until(lambda: office.deliver.posted)
    assert json.loads(office.deliver.posted[0].body)["type"] == "batch.completed"
    await office.settled()
    await kill()


async def test_a_batch_outlives_the_ingress_that_saw_it_through() -> None:
    ran: list[str] = []

    async def slow(call: Call) -> Reply:
        ran.append(call.request_id)
        await office.clock.sleep(2)
        return echo(call)

    office = Office({"writer": slow})
    batch = await office.batch(*[chat(f"c{n}", n=n) for n in range(200)])
    for _ in range(3):
        office.pump.start()
        enough = len(ran) + 30
        while len(ran) < enough:
            await office.clock.advance(1)
        await kill()
        office.clerk = office.new_clerk()
        office.pump = office.new_pump()
    office.pump.start()
    shown = await office.ended(batch, within_s=3000)
    assert shown["request_counts"] == {"total": 200, "completed": 200, "failed": 0}
    assert len(await office.lines(shown["output_file_id"])) == 200
    assert len(ran) <= 200 + 3 * 8, "only what ran when an ingress was killed ran again"
    await office.settled()
    await kill()


async def test_a_cancelled_batch_frees_its_slots_and_ends_at_once() -> None:
    async def endless(call: Call) -> Reply:
        await office.clock.sleep(1e6)
        return echo(call)

    office = Office({"writer": endless})
    batch = await office.batch(*[chat(f"c{n}") for n in range(500)])
    office.pump.start()
    await office.until(lambda: office.pump.stats().running == 4)
    await office.desk.cancel_batch("acme", batch)
    await office.until(lambda: not office.pump.stats().running, within_s=30)
    for _ in range(200):
        await office.clock.advance(0.25)
    shown = await office.desk.batch("acme", batch)
    assert (shown["status"], shown["request_counts"]["completed"]) == ("cancelled", 0)
    assert len(await office.lines(shown["error_file_id"])) == 500
    await office.settled()
    assert not (await office.store.cancelled()).keys
    await kill()


async def test_a_single_job_is_cancelled_while_it_runs_and_its_mark_goes() -> None:
    async def endless(call: Call) -> Reply:
        await office.clock.sleep(1e6)
        return echo(call)

    office = Office({"writer": endless})
    asked = {"url": "/v1/chat/completions", "body": {"model": "tiny", "messages": []}, "webhook_url": HOOK}
    job = await office.desk.create_job("acme", asked)
    office.pump.start()
    await office.until(lambda: office.pump.stats().running == 1)
    assert (await office.desk.cancel_job("acme", job["id"]))["status"] == "cancelled"
    await office.until(lambda: not office.pump.stats().running, within_s=10)
    await office.until(lambda: office.deliver.posted, within_s=30)
    assert json.loads(office.deliver.posted[0].body)["data"]["id"] == job["id"]
    await office.settled()
    assert not (await office.store.cancelled()).keys
    await kill()


async def test_jobs_of_many_batches_of_one_tenant_and_a_single_one_of_another() -> None:
    """Windows keep the queue short, so whoever comes later is not behind ten thousand."""

    async def second(call: Call) -> Reply:
        await office.clock.sleep(1)
        return echo(call)

    office = Office({"writer": second})
    for b in range(3):
        await office.batch(*[chat(f"c{b}-{n}") for n in range(2000)])
    office.pump.start()
    await office.until(lambda: office.pump.settled.total() > 50)
    asked = {"url": "/v1/chat/completions", "body": {"model": "tiny", "messages": []}}
    job = await office.desk.create_job("bolt", asked)
    began = office.clock.now()
    while (await office.desk.job("bolt", job["id"]))["status"] != "succeeded":
        assert office.clock.now() - began < 60
        await office.clock.advance(1)
    await kill()


async def test_a_batch_tells_how_many_of_its_lines_are_still_to_be_published() -> None:
    go = asyncio.Event()

    async def wait(call: Call) -> Reply:
        await go.wait()
        return echo(call)

    office = Office({"writer": wait})
    await office.batch(*[chat(f"c{n}") for n in range(1000)])
    office.pump.start()
    await office.until(lambda: office.pump.asked()["writer"].waiting > 900)
    behind = dict(office.clerk.behind())["writer"]
    assert behind.waiting == 1000 - 64
    assert behind.units is None and behind.left_s is None
    go.set()
    await office.settled()
    assert office.clerk.behind() == []
