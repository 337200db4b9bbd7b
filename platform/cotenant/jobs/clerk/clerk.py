"""The clerk: sees batches through, and delivers webhooks. See `errand`.

It can be asked for any errand at any time by any ingress. What it holds in memory only saves it reading again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cotenant.calls import Directory
from cotenant.calls.demand import Line
from cotenant.calls.desk import Json
from cotenant.config import Jobs
from cotenant.errors import MalformedJob
from cotenant.jobs.clerk.course import Course, Surroundings
from cotenant.jobs.clerk.putting_off import PuttingOff
from cotenant.jobs.clerk.webhooks import Webhooks
from cotenant.jobs.desk.batches import BatchRecord, PublishTo, shown_batch
from cotenant.jobs.endings import Ended, parsed, shown_ending, status_of
from cotenant.jobs.errand import Errand
from cotenant.jobs.model import Job, Result
from cotenant.jobs.store import keys
from cotenant.jobs.store.records import Board, Records, WorkloadPace, pace_of
from cotenant.jobs.store.results import ResultStore
from cotenant.outbound.webhooks import Event

#: How long what is known of ingresses and of a tenant's batches is believed.
_BOARDS_AGE_S, _ACTIVES_AGE_S = 3.0, 5.0
#: Errands that wait longer than this are put off, and so are a tenant's batches beyond so many in one ingress.
HELD_S = 10.0
BATCHES_AT_ONCE = 16
_NEXT_BATCH_S = 30.0
#: A course that nobody asked about for so long is another clerk's now.
_FORGET_AFTER_S = 900.0
#: A course that is seen through here is asked about more often than this.
_SEEN_THROUGH_S = 60.0

_JOB_EVENTS: dict[Ended, Event] = {
    "succeeded": Event.JOB_SUCCEEDED,
    "failed": Event.JOB_FAILED,
    "cancelled": Event.JOB_CANCELLED,
    "expired": Event.JOB_EXPIRED,
}


@dataclass
class _Known:
    """A course in memory, and when it was last asked about."""

    course: Course
    asked_at_s: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Clerk:
    """Implements `errand.Clerk`. Lives in one event loop."""

    def __init__(
        self,
        store: ResultStore,
        publish: PublishTo,
        jobs: Jobs,
        directory: Callable[[], Directory],
        *,
        webhooks: Webhooks,
        now: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            publish: publishes to a topic by its short name (`JobSource.publish`).
            directory: what the platform serves now.
        """
        self._store = store
        self._records = Records(store.objects)
        self._webhooks = webhooks
        self._putting_off = PuttingOff(store.objects, publish, jobs, now)
        self._now = now
        self._courses: dict[tuple[str, str], _Known] = {}
        self._boards: tuple[float, tuple[Board, ...]] = (-_BOARDS_AGE_S, ())
        self._actives: dict[str, tuple[float, int]] = {}
        self._around = Surroundings(
            store=store,
            publish=publish,
            jobs=jobs,
            directory=directory,
            now=now,
            pace=self._pace,
            actives=self._active_batches,
            on_ended=self._batch_ended,
        )

    async def advance(self, errand: Errand) -> float | None:
        if errand.kind == "webhook":
            again_s = await self._webhooks.advance(errand.tenant, errand.id)
            if again_s is None or again_s <= HELD_S:
                return again_s
            await self._putting_off.put_off(errand, again_s)
            return None
        known = await self._known(errand)
        if known is None:
            await self._putting_off.put_off(errand, _NEXT_BATCH_S)
            return None
        async with known.lock:
            again_s = await known.course.advance()
        if again_s is None:
            self._courses.pop((errand.tenant, errand.id), None)
            self._actives.pop(errand.tenant, None)
        return again_s

    def behind(self) -> list[tuple[str, Line]]:
        now = self._now()
        courses = [known.course for known in self._courses.values() if now - known.asked_at_s <= _SEEN_THROUGH_S]
        return [line for course in courses for line in course.behind().items()]

    async def tick(self) -> None:
        await self._putting_off.bring_back()

    async def job_ended(self, job: Job, result: Result) -> None:
        if job.wishes.webhook is None:
            return
        identity = job.identity
        line = parsed(result.line)
        record = await self._records.job(identity.tenant, identity.job_id)
        data = {
            **shown_ending(identity.job_id, line),
            "url": job.url,
            "batch": identity.batch if record is None else None,
            "custom_id": identity.custom_id if identity.custom_id != identity.batch else None,
            "metadata": record.metadata if record is not None else None,
        }
        event = _JOB_EVENTS[status_of(line)]
        await self._webhooks.tell(identity.tenant, job.wishes.webhook, event, data, identity.batch, identity.custom_id)

    async def _batch_ended(self, record: BatchRecord, ended: Json) -> None:
        if record.webhook is not None:
            event = Event(f"batch.{ended['status']}")
            await self._webhooks.tell(record.tenant, record.webhook, event, shown_batch(record, ended=ended), record.id)

    async def _known(self, errand: Errand) -> _Known | None:
        """The course of a batch; None where this ingress sees enough of the tenant's batches through already."""
        now = self._now()
        for key in [key for key, known in self._courses.items() if now - known.asked_at_s > _FORGET_AFTER_S]:
            if not self._courses[key].lock.locked():
                del self._courses[key]
        key = (errand.tenant, errand.id)
        known = self._courses.get(key)
        if known is None:
            data = await self._store.objects.get(keys.batch_key(*key))
            if data is None:
                raise MalformedJob(f"there is no batch {errand.id} of tenant {errand.tenant}")
            if sum(tenant == errand.tenant for tenant, _ in self._courses) >= BATCHES_AT_ONCE:
                return None
            known = self._courses.setdefault(key, _Known(Course(BatchRecord.load(data), self._around), now))
        known.asked_at_s = now
        return known

    async def _pace(self, workload: str) -> WorkloadPace:
        at_s, boards = self._boards
        now = self._now()
        if now - at_s >= _BOARDS_AGE_S:
            boards = await self._records.boards(now)
            self._boards = (now, boards)
        return pace_of(boards, workload)

    async def _active_batches(self, tenant: str) -> int:
        at_s, count = self._actives.get(tenant, (-_ACTIVES_AGE_S, 1))
        now = self._now()
        if now - at_s >= _ACTIVES_AGE_S:
            prefix = keys.active_prefix(tenant)
            count = sum([1 async for _ in self._store.objects.list(prefix)])
            self._actives = {
                **{t: known for t, known in self._actives.items() if now - known[0] < 60},
                tenant: (now, count),
            }
        return count
