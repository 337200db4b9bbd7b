"""An ingress whose jobs may spill: it pulls for the room elsewhere too, and every job ends once, wherever it is."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from cotenant.calls import Call, InMemoryBackend, Reply, WorkloadStatus
from cotenant.config import Jobs
from cotenant.errors import ReplicaDied, WorkloadUnavailable
from cotenant.jobs.ingress.grouping import Grouper
from cotenant.jobs.ingress.pump import Pump
from cotenant.jobs.queue.lanes import MAIN
from cotenant.jobs.queue.memory import MemoryLanes
from cotenant.upstream.spill import SpillingBackend
from tests.contracts.jobs_house import DIRECTORY, FlakyStore, chat, echo, eventually, message

pytestmark = pytest.mark.unit

JOBS = Jobs(lease_s=10, max_attempts=3, look_ahead=2)
TERMS: dict[str, Any] = {
    "workload": "writer",
    "kind": "llm",
    "url": "https://away",
    "after_wait_s": 0.02,
    "max_concurrency": 8,
    "start_s": 60.0,
    "jobs": True,
}


class Place(InMemoryBackend):
    """Where jobs are done, and how often each was."""

    host = "away"

    def __init__(self, seconds: float, *, breaks: bool = False) -> None:
        super().__init__({"writer": self._work, "mockups": echo}, slots=64)
        self.done: Counter[str] = Counter()
        self.seconds, self.breaks = seconds, breaks
        self.replicas = 1

    async def ask(self, path: str, *, within_s: float) -> Any:
        return {"data": [{"id": "tiny"}]}

    async def close(self) -> None:
        return None

    async def running(self, workload: str) -> int:
        return self.replicas

    async def status(self) -> Mapping[str, WorkloadStatus]:
        return dict.fromkeys(("writer", "mockups"), WorkloadStatus(True, self.replicas))

    async def _work(self, call: Call) -> Reply:
        if self.breaks:
            raise ReplicaDied("closed") if len(self.done) % 2 else WorkloadUnavailable("gone")
        await asyncio.sleep(self.seconds)
        self.done[json.loads(call.body)["n"]] += 1
        return echo(call)


async def run(cluster: Place, away: Place, jobs: int = 60) -> tuple[Pump, FlakyStore]:
    """All of them through one ingress."""
    spilling = SpillingBackend(
        cluster, served=DIRECTORY.named, connect=lambda terms: away, running=cluster.running, batch=True
    )
    spilling.spill([TERMS])
    lanes, store = MemoryLanes(JOBS), FlakyStore()
    caller = Grouper(spilling, lambda name: DIRECTORY.named(name).slots).call
    pump = Pump(JOBS, lanes, store, spilling, DIRECTORY, caller=caller)
    await lanes.open(MAIN).publish(JOBS.topic, [message(chat(f"c-{n}", n=f"{n}")) for n in range(jobs)])
    pump.start()
    await eventually(lambda: len(store.results) == jobs and lanes.unsettled == 0, within_s=30)
    await pump.drain(2)
    await spilling.close()
    return pump, store


async def test_jobs_are_done_in_both_places_and_each_once() -> None:
    cluster, away = Place(0.1), Place(0.01)
    await run(cluster, away)
    assert away.done
    assert cluster.done
    done = cluster.done + away.done
    assert len(done) == 60
    assert set(done.values()) == {1}


async def test_without_a_replica_they_are_all_done_elsewhere() -> None:
    cluster, away = Place(0.01), Place(0.01)
    cluster.replicas = 0
    await run(cluster, away, 20)
    assert (len(cluster.done), len(away.done)) == (0, 20)


async def test_a_place_that_is_gone_costs_no_job_an_attempt() -> None:
    cluster, away = Place(0.01), Place(0.01, breaks=True)
    cluster.replicas = 0
    pump, _ = await run(cluster, away, 20)
    assert len(cluster.done) == 20
    assert set(pump.stats().settled) <= {"done", "forwarded"}


async def test_what_was_done_elsewhere_does_not_tell_how_long_work_takes_here() -> None:
    cluster, away = Place(0.01), Place(0.01)
    cluster.replicas = 0
    pump, _ = await run(cluster, away, 10)
    asked = pump.asked()["writer"]
    assert (asked.arrived, asked.ended) == (10, ())
