"""A pump with its in-memory edges, in a world whose time passes only when a test says so."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cotenant.calls import Call, InMemoryBackend, Reply
from cotenant.calls.backend import Handler
from cotenant.config import Jobs
from cotenant.errors import (
    SourceUnavailable,
)
from cotenant.jobs.clock import ManualClock
from cotenant.jobs.errand import Clerk, Errand
from cotenant.jobs.ingress.pump import Pump
from cotenant.jobs.model import Job, Result
from cotenant.jobs.queue.lanes import MAIN
from cotenant.jobs.queue.memory import MemoryLanes
from cotenant.jobs.queue.source import Message
from tests.contracts.jobs_house import DIRECTORY, FlakyStore, echo, message, picture

JOBS = Jobs(lease_s=10, max_attempts=3, look_ahead=2)


class World:
    """One pump with its edges, and time that passes only in `until` and `pass_time`."""

    def __init__(self, handlers: Mapping[str, Handler] | None = None, jobs: Jobs = JOBS) -> None:
        self.clock = ManualClock()
        self.jobs = jobs
        self.lanes = MemoryLanes(jobs, clock=self.clock)
        self.source = self.lanes.open(MAIN)
        self.store = FlakyStore()
        self.calls: Counter[str] = Counter()
        self.events: list[str] = []
        self.backend = InMemoryBackend({"writer": echo, "mockups": picture, **(handlers or {})}, slots=64)
        self.clerk: Clerk | None = None
        self._watch()
        self.pump = self.new_pump()

    def new_pump(self) -> Pump:
        return Pump(self.jobs, self.lanes, self.store, self.backend, DIRECTORY, clerk=self.clerk, clock=self.clock)

    async def publish(self, *lines: Mapping[str, Any] | bytes) -> None:
        await self.source.publish(self.jobs.topic, [message(line) for line in lines])

    async def until(self, condition: Callable[[], object], within_s: float = 600) -> None:
        end = self.clock.now() + within_s
        while not condition():
            assert self.clock.now() < end, f"not true after {within_s} s: {self.pump.stats()}"
            await self.clock.advance(0.25)

    async def settled(self, within_s: float = 600) -> None:
        await self.until(lambda: self.lanes.unsettled == 0 and not self.pump.stats().settling, within_s)

    def line(self, custom_id: str) -> Any:
        """The output line of a job's visible result."""
        (key,) = [key for key in self.store.results if f"/{custom_id}-" in key]
        return json.loads(self.store.objects.objects[key])["line"]

    @property
    def dead(self) -> list[Message]:
        return list(self.lanes.topics[self.jobs.dead_letter])

    @property
    def announced(self) -> list[str]:
        return [m.attributes["custom_id"] for m in self.lanes.topics[self.jobs.results]]

    def _watch(self) -> None:
        """Keep the order of what becomes visible."""
        create, publish, ack = self.store.objects.create, self.source.publish, self.source.ack

        async def created(key: str, data: bytes) -> bool:
            done = await create(key, data)
            if "/results/" in key and done:
                self.events.append("object")
            return done

        async def published(topic: str, messages: Sequence[Message]) -> Sequence[str]:
            ids = await publish(topic, messages)
            self.events += ["message"] * len(messages) if topic == self.jobs.results else []
            return ids

        async def acked(ack_ids: Sequence[str]) -> None:
            await ack(ack_ids)
            self.events += ["ack"] * len(ack_ids)

        self.store.objects.create = created  # type: ignore[method-assign]
        self.source.publish = published  # type: ignore[method-assign]
        self.source.ack = acked  # type: ignore[method-assign]


def failing(*endings: Reply | Exception, then: Callable[[Call], Reply] = echo) -> tuple[Handler, Counter[str]]:
    """An engine whose first calls of each job end as given. And how often each job was called."""
    calls: Counter[str] = Counter()

    def handler(call: Call) -> Reply:
        calls[call.request_id] += 1
        if calls[call.request_id] > len(endings):
            return then(call)
        ending = endings[calls[call.request_id] - 1]
        if isinstance(ending, Exception):
            raise ending
        return ending

    return handler, calls


def wish(line: Mapping[str, Any], *, tenant: str = "acme", batch: str = "b1", **attributes: str) -> Message:
    return Message(json.dumps(line).encode(), {"tenant": tenant, "batch": batch, **attributes})


class Office:
    """A clerk that takes three looks at each errand, and is told of jobs."""

    def __init__(self) -> None:
        self.looks: Counter[str] = Counter()
        self.told: list[tuple[str, int]] = []
        self.fails = 0

    async def advance(self, errand: Errand) -> float | None:
        self.looks[errand.id] += 1
        return None if self.looks[errand.id] == 3 else 20.0

    async def tick(self) -> None:
        return None

    async def job_ended(self, job: Job, result: Result) -> None:
        self.fails -= 1
        if self.fails >= 0:
            raise SourceUnavailable("down")
        self.told.append((job.identity.custom_id, result.status))


async def kill() -> None:
    """End every task of the pump without a word, as SIGKILL does."""
    tasks = [task for task in asyncio.all_tasks() if task.get_name().startswith(("job-", "jobs-"))]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
