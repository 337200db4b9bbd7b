"""Who asks for jobs in a chaos run: publishes messages, hands in files and single jobs, repeats itself, lies.

Everything is tried until it worked, as a careful client would, so messages may be published twice.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from cotenant.calls import Directory
from cotenant.errors import SourceUnavailable, StoreUnavailable
from cotenant.jobs.desk.desk import Desk
from cotenant.jobs.model import Identity, Job, Wishes, parse_job, parse_line
from cotenant.jobs.queue.lanes import MAIN, topic_of
from cotenant.jobs.queue.pubsub import PubSubLanes
from cotenant.jobs.queue.source import Message
from cotenant.jobs.store.results import ResultStore, open_store
from tests.acceptance.chaos.load import Ask, Burst, data_of
from tests.acceptance.chaos.stage import Stage

_T = TypeVar("_T")

#: A deadline that has passed.
_PASSED = 1.0


@dataclass(frozen=True)
class Asked:
    """A job that was asked for: by a message, by a file, or by itself."""

    ask: Ask
    way: str
    identity: Identity | None
    job: Job | None = None
    message: Message | None = None
    at_s: float = field(default_factory=time.time)


@dataclass
class Clients:
    """Knows everything that was asked for. Lives in one event loop."""

    stage: Stage
    directory: Directory
    rng: random.Random
    asked: list[Asked] = field(default_factory=list)
    batches: list[tuple[str, str]] = field(default_factory=list)
    """Tenant and id of the batches that were accepted."""
    unsure_bare: int = 0
    """Publishes of messages without a name that may have worked though they failed."""
    again: int = 0

    def __post_init__(self) -> None:
        jobs = self.stage.jobs
        self.store: ResultStore = open_store(jobs.store)
        self._source = PubSubLanes(jobs).open(MAIN)
        self.desk = Desk(self.store, self._source.publish, jobs, lambda: self.directory)

    async def run(self, bursts: Sequence[Burst], began_s: float) -> None:
        """Ask for everything at its time. `began_s` is by `time.monotonic`."""

        async def one(burst: Burst) -> None:
            await asyncio.sleep(max(0.0, began_s + burst.at_s - time.monotonic()))
            if burst.batch:
                await self._hand_in(burst.batch)
            elif burst.single is not None:
                await self._ask_alone(burst.single)
            else:
                await self._publish(burst.messages)

        await asyncio.gather(*(one(burst) for burst in bursts))

    async def close(self) -> None:
        await self._source.close()

    # --- messages ---

    async def _publish(self, asks: Sequence[Ask]) -> None:
        by_lane: dict[str, list[Asked]] = {}
        for ask in asks:
            asked = await self._prepared(ask)
            if ask.bare:
                await self._publish_bare(asked)
            else:
                by_lane.setdefault(ask.lane, []).append(asked)
        for lane, some in by_lane.items():
            # Known before they are out: one may be done before the answer is here.
            self.asked += some
            await self._send(lane, some)
        for asked in (one for some in by_lane.values() for one in some if one.ask.kind == "cancelled"):
            identity = asked.identity
            assert identity is not None
            await self._until_done(lambda identity=identity: self.store.cancel(identity))

    async def _prepared(self, ask: Ask) -> Asked:
        data = data_of(ask)
        if ask.kind == "malformed":
            return Asked(ask, "message", None, message=Message(data, {"tenant": ask.tenant, "batch": ask.batch}))
        if ask.bare:
            return Asked(ask, "bare", None, message=Message(data))
        wishes = Wishes(deadline_at_s=_PASSED) if ask.kind == "expired" else Wishes()
        job = replace(parse_line(data, tenant=ask.tenant, batch=ask.batch), wishes=wishes)
        job = await self._until_done(lambda: self.store.by_reference(job))
        return Asked(ask, "message", job.identity, job, Message(job.line(), job.attributes))

    async def _publish_bare(self, asked: Asked) -> None:
        """A message without a name is its own batch, by an id that only a good answer tells."""
        assert asked.message is not None
        while True:
            try:
                (message_id,) = await self._source.publish(topic_of(self.stage.jobs, asked.ask.lane), [asked.message])
                break
            except SourceUnavailable:
                self.unsure_bare += 1
                await asyncio.sleep(1)
        job = parse_job(asked.message.data, {}, message_id)
        self.asked.append(replace(asked, identity=job.identity, job=job))

    async def _send(self, lane: str, some: Sequence[Asked]) -> None:
        messages = [one.message for one in some if one.message is not None]
        await self._until_done(lambda: self._source.publish(topic_of(self.stage.jobs, lane), messages))

    async def publish_again(self, which: int) -> int:
        """Some of what was published before, old and new, done or not, some of it several times at once."""
        rng = random.Random(which)
        # A job that can't succeed would be tried for minutes again.
        known = [one for one in self.asked if one.way == "message" and one.job and one.ask.kind != "hopeless"]
        if not known:
            return 0
        some = rng.choices(known, k=rng.randrange(1, 12))
        some += rng.choices(known[-20:], k=rng.randrange(1, 6)) * rng.randrange(1, 4)
        await asyncio.gather(
            *(self._send(lane, [one for one in some if rng.random() < 0.7]) for lane in (MAIN, some[0].ask.lane))
        )
        self.again += len(some)
        return len(some)

    async def take_identity(self, which: int) -> bool:
        """Ask for another job by a name that is taken."""
        known = [one for one in self.asked if one.way == "message" and one.ask.kind == "quick"]
        if not known:
            return False
        one = known[which % len(known)]
        line = {**one.ask.line, "body": {**one.ask.line["body"], "nonce": f"other than {one.ask.nonce}"}}
        ask = replace(one.ask, kind="another", line=line)
        asked = await self._prepared(ask)
        self.asked.append(asked)
        await self._send(ask.lane, [asked])
        return True

    # --- the desk ---

    async def _hand_in(self, asks: Sequence[Ask]) -> None:
        data = b"".join(json.dumps(ask.line).encode() + b"\n" for ask in asks)
        tenant = asks[0].tenant

        batch = asks[0].batch
        for ask in asks:
            job = parse_line(json.dumps(ask.line).encode(), tenant=tenant, batch=batch)
            self.asked.append(Asked(ask, "batch", job.identity, job))
        await self._until_done(
            lambda: self.desk._batches.submit(
                tenant, _once(data), filename="in.jsonl", input_sha256=batch, batch_id=batch
            )
        )
        self.batches.append((tenant, batch))

    async def _ask_alone(self, ask: Ask) -> None:
        key = f"key-{ask.custom_id}"
        shown = await self._until_done(lambda: self.desk.create_job(ask.tenant, ask.line, idempotency_key=key))
        record = await self._until_done(lambda: self.desk._singles.record(ask.tenant, str(shown["id"])))
        job = parse_line(json.dumps(ask.line).encode(), tenant=ask.tenant, batch=record.identity.batch)
        self.asked.append(Asked(ask, "single", record.identity, job))

    async def _until_done(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        while True:
            try:
                return await ask()
            except (SourceUnavailable, StoreUnavailable):
                await asyncio.sleep(1)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
