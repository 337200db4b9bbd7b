"""Who wants jobs done in the chaos tests: publishers of messages, and callers of the desk. Both try until it works."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from cotenant.calls import Directory
from cotenant.config import Jobs
from cotenant.errors import RequestRefused, SourceUnavailable, StoreUnavailable
from cotenant.jobs.clerk.webhooks import webhook_check
from cotenant.jobs.clock import Clock
from cotenant.jobs.desk.desk import Desk
from cotenant.jobs.errand import Errand
from cotenant.jobs.model import Identity, Wishes, parse_job
from cotenant.jobs.queue.lanes import CLERK, MAIN, topic_of
from cotenant.jobs.queue.memory import MemoryLanes
from cotenant.jobs.store.results import ResultStore, result_key
from cotenant.outbound.webhooks import Secret, Secrets
from tests.contracts.chaos_jobs import ACCEPTED, KINDS, Sent, line_of, sent_of
from tests.contracts.chaos_wires import Wire, WiredLanes, WiredObjects

HOOK = "https://hooks.example.com/jobs"
SECRETS = Secrets({"acme": (Secret(b"k" * 32),), "globex": (Secret(b"g" * 32),)})

_T = TypeVar("_T")


@dataclass(frozen=True)
class Accepted:
    """A batch that the desk has accepted, with the kinds and lines of its jobs by custom_id."""

    tenant: str
    id: str
    lines: Mapping[str, tuple[str, Mapping[str, Any]]]
    webhook: bool


@dataclass(frozen=True)
class Single:
    """A job that the desk has accepted."""

    tenant: str
    id: str
    kind: str
    webhook: bool


class Clients:
    """What was asked for so far, by whom and how."""

    def __init__(
        self,
        jobs: Jobs,
        lanes: MemoryLanes,
        store: ResultStore,
        directory: Callable[[], Directory],
        *,
        wire: Wire,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self.sent: list[Sent] = []
        self.batches: list[Accepted] = []
        self.singles: list[Single] = []
        self.cancelled_at_s: dict[str, float] = {}
        """When a job, or all of `tenant/batch`, was cancelled."""
        self.key_of: dict[str, str] = {}
        """Keys of results by job id, as far as they are known."""
        self._jobs = jobs
        self._lanes = lanes
        self._store = store
        self._clock = clock
        self._rng = rng
        self._numbers = itertools.count(1)
        self._desk = Desk(
            ResultStore(WiredObjects(store.objects, wire)),
            WiredLanes(lanes, wire).open(MAIN).publish,
            jobs,
            directory,
            check_webhook=webhook_check(SECRETS),
            now=clock.unix_s,
        )
        self.desk = Desk(store, lanes.open(MAIN).publish, jobs, directory, now=clock.unix_s)
        """One that the weather does not reach."""

    # --- messages ---

    async def publish(
        self,
        kind: str,
        count: int = 1,
        *,
        own_lane: bool = False,
        tenant: str = "acme",
        batch: str = "b1",
        bare: bool = False,
        wishes: Wishes | None = None,
        key: str = "",
    ) -> None:
        """`bare` messages say nothing but the line; `own_lane` ones go to their workload's lane; with a `key` they are
        worked on one after the other."""
        for _ in range(count):
            attributes = {} if bare else {"tenant": tenant, "batch": batch, **(wishes or Wishes()).attributes}
            number = next(self._numbers)
            await self._publish(sent_of(kind, number, self._rng, attributes, own_lane=own_lane, key=key))

    async def _publish(self, sent: Sent) -> None:
        at = len(self.sent)
        self.sent.append(sent)
        if sent.job is not None:
            self._know(sent.job.identity)
        topic, message = topic_of(self._jobs, sent.lane), [sent.message]
        (message_id,) = await self._until_done(lambda: self._lanes.open(sent.lane).publish(topic, message))
        if sent.job is None and sent.kind in KINDS and sent.kind != "malformed":
            # A message without a batch is its own batch, by its id.
            job = parse_job(sent.message.data, sent.message.attributes, message_id)
            self.sent[at] = replace(sent, job=job)
            self._know(job.identity)

    def _know(self, identity: Identity) -> None:
        self.key_of[identity.job_id] = result_key(identity)

    async def publish_again(self, which: Sequence[int], *, at_once: bool = False) -> None:
        """Duplicates of what was published before, by its own lane or another."""
        known = self._named
        for index in which if known else ():
            one = known[index % len(known)]
            for _ in range(3 if at_once else 1):
                await self._publish(replace(one, lane=self._rng.choice([MAIN, one.lane])))

    async def publish_another_body(self, index: int) -> None:
        """Another job under an identity that is taken."""
        if not self._named:
            return
        one = self._named[index % len(self._named)]
        line = json.loads(one.message.data)
        line["body"] = {**line["body"], "nonce": next(self._numbers)}
        data = json.dumps(line).encode()
        job = parse_job(data, one.message.attributes, "")
        await self._publish(Sent(replace(one.message, data=data), one.lane, one.kind, job))

    @property
    def _named(self) -> list[Sent]:
        """Messages that say whose jobs they are, and have no place in an order."""
        return [
            sent
            for sent in self.sent
            if sent.job is not None and sent.message.attributes and not sent.message.ordering_key
        ]

    # --- the desk ---

    async def submit_batch(self, kinds: Sequence[str], tenant: str, *, webhook: bool) -> None:
        """A file of jobs as `cotenant submit` brings it: the same batch however often it has to ask."""
        lines = [(kind, line_of(kind, next(self._numbers), self._rng)) for kind in kinds]
        data = b"".join(json.dumps(line).encode() + b"\n" for _, line in lines)
        batch = f"batch{next(self._numbers)}"
        for _, line in lines:
            self._know(Identity(tenant, batch, line["custom_id"]))
        await self._until_done(
            lambda: self._desk._batches.submit(
                tenant,
                _once(data),
                filename="jobs.jsonl",
                input_sha256=batch,
                batch_id=batch,
                webhook=HOOK if webhook else None,
            )
        )
        self.batches.append(Accepted(tenant, batch, {line["custom_id"]: (kind, line) for kind, line in lines}, webhook))

    async def submit_single(self, kind: str, tenant: str, *, webhook: bool) -> None:
        """One job, asked for with an Idempotency-Key."""
        line = line_of(kind if kind in ACCEPTED else "quick", next(self._numbers), self._rng)
        asked = {**line, "webhook_url": HOOK} if webhook else line
        key = f"key{next(self._numbers)}"
        try:
            shown = await self._until_done(lambda: self._desk.create_job(tenant, asked, idempotency_key=key))
        except RequestRefused:
            return  # its workload is not served just now
        self.singles.append(Single(tenant, str(shown["id"]), kind if kind in ACCEPTED else "quick", webhook))

    async def repeat_errand(self, index: int) -> None:
        """The errand of a batch comes a second time."""
        if self.batches:
            batch = self.batches[index % len(self.batches)]
            await self._publish(Sent(Errand("batch", batch.tenant, batch.id).message(), CLERK, "errand"))

    async def cancel(self, index: int) -> None:
        """A job or batch, by its desk or by a mark in the store."""
        batches = [lambda one=one: self._cancel_batch(one) for one in self.batches]
        singles = [lambda one=one: self._cancel_single(one) for one in self.singles]
        jobs = [lambda one=one: self._mark(one.job.identity) for one in self._named if one.job is not None]
        all_of_them = [*jobs, *singles, *batches]
        if all_of_them:
            await all_of_them[index % len(all_of_them)]()

    async def cancel_latest(self) -> None:
        if self._named and (job := self._named[-1].job) is not None:
            await self._mark(job.identity)

    async def _mark(self, identity: Identity) -> None:
        await self._until_done(lambda: self._store.cancel(identity))
        self.cancelled_at_s.setdefault(identity.job_id, self._clock.now())

    async def _cancel_batch(self, batch: Accepted) -> None:
        try:
            await self._until_done(lambda: self._desk.cancel_batch(batch.tenant, batch.id))
        except RequestRefused:
            return
        self.cancelled_at_s.setdefault(f"{batch.tenant}/{batch.id}", self._clock.now())

    async def _cancel_single(self, single: Single) -> None:
        try:
            await self._until_done(lambda: self._desk.cancel_job(single.tenant, single.id))
        except RequestRefused:
            return
        self.cancelled_at_s.setdefault(single.id, self._clock.now())

    async def _until_done(self, ask: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        while True:
            try:
                return await ask()
            except (SourceUnavailable, StoreUnavailable):
                await asyncio.sleep(1)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
