"""The in-memory twin of Pub/Sub: what serves where there is no emulator, and what the tests run on.

It keeps the same promises and has the same faults: messages come again after a nack or a lost lease, deliveries
are counted, and at the backstop a message goes to the dead-letter topic. What it cannot do is outlive its
process: jobs not yet done when the ingress ends are gone, and it says so when it starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from cotenant.config import Jobs
from cotenant.errors import SourceUnavailable
from cotenant.jobs.clock import Clock, SystemClock
from cotenant.jobs.lanes import lane_jobs
from cotenant.jobs.source import Delivery, Message, backstop_attempts

#: Topics that nobody subscribes to keep only their last messages.
_KEPT = 10_000


@dataclass
class _Queued:
    message: Message
    message_id: str
    published_at_s: float
    deliveries: int = 0
    not_before: float = 0.0


class MemorySource:
    """A `JobSource` in this process. `topics` shows what was published, by short name."""

    def __init__(self, jobs: Jobs, *, clock: Clock | None = None, pull_wait_s: float = 1.0) -> None:
        self._jobs = jobs
        self._clock = clock or SystemClock()
        self._pull_wait_s = pull_wait_s
        self._ids = itertools.count(1)
        self._queue: deque[_Queued] = deque()
        self._leased: dict[str, tuple[_Queued, float]] = {}
        self._news = asyncio.Event()
        self.topics: dict[str, deque[Message]] = defaultdict(lambda: deque(maxlen=_KEPT))
        self.down: set[str] = set()
        """Names of topics, or `subscription`, that do not answer: a fault to test with."""

    async def setup(self) -> None:
        for topic in (self._jobs.topic, self._jobs.results, self._jobs.dead_letter):
            self.topics[topic]
        self._check(self._jobs.subscription)

    async def pull(self, limit: int) -> Sequence[Delivery]:
        self._check(self._jobs.subscription)
        deadline = self._clock.now() + self._pull_wait_s
        while True:
            deliveries = self._take(limit)
            left = deadline - self._clock.now()
            if deliveries or left <= 0:
                return deliveries
            self._news.clear()
            await self._wait(min([left, *self._until_next()]))
            self._check(self._jobs.subscription)

    async def extend(self, ack_ids: Sequence[str]) -> None:
        self._check(self._jobs.subscription)
        self._expire()
        until = self._clock.now() + self._jobs.lease_s
        for ack_id in ack_ids:
            if ack_id in self._leased:
                self._leased[ack_id] = (self._leased[ack_id][0], until)

    async def ack(self, ack_ids: Sequence[str]) -> None:
        self._check(self._jobs.subscription)
        self._expire()
        for ack_id in ack_ids:
            self._leased.pop(ack_id, None)

    async def nack(self, ack_ids: Sequence[str], delay_s: float = 0.0) -> None:
        self._check(self._jobs.subscription)
        self._expire()
        for ack_id in ack_ids:
            if ack_id in self._leased:
                self._again(self._leased.pop(ack_id)[0], self._clock.now() + delay_s)

    async def publish(self, topic: str, messages: Sequence[Message]) -> Sequence[str]:
        self._check(topic)
        return [self._publish(topic, message) for message in messages]

    async def close(self) -> None:
        return None

    @property
    def unsettled(self) -> int:
        """Messages that are neither acked nor dead-lettered."""
        self._expire()
        return len(self._queue) + len(self._leased)

    def _publish(self, topic: str, message: Message) -> str:
        message_id = str(next(self._ids))
        self.topics[topic].append(message)
        if topic == self._jobs.topic:
            self._queue.append(_Queued(message, message_id, time.time()))
            self._news.set()
        return message_id

    def _take(self, limit: int) -> list[Delivery]:
        self._expire()
        now = self._clock.now()
        taken: list[Delivery] = []
        for _ in range(len(self._queue)):
            if len(taken) == limit:
                break
            queued = self._queue.popleft()
            if queued.not_before > now:
                self._queue.append(queued)
                continue
            queued.deliveries += 1
            ack_id = f"{queued.message_id}/{queued.deliveries}"
            self._leased[ack_id] = (queued, now + self._jobs.lease_s)
            taken.append(
                Delivery(
                    ack_id=ack_id,
                    message_id=queued.message_id,
                    data=queued.message.data,
                    attributes=dict(queued.message.attributes),
                    attempt=queued.deliveries,
                    published_at_s=queued.published_at_s,
                )
            )
        return taken

    def _expire(self) -> None:
        now = self._clock.now()
        for ack_id in [ack_id for ack_id, (_, until) in self._leased.items() if until <= now]:
            self._again(self._leased.pop(ack_id)[0], now)

    def _again(self, queued: _Queued, not_before: float) -> None:
        if queued.deliveries >= backstop_attempts(self._jobs):
            self._publish(self._jobs.dead_letter, queued.message)
            return
        queued.not_before = not_before
        self._queue.append(queued)
        self._news.set()

    def _until_next(self) -> list[float]:
        """Seconds until something happens by itself: a lease runs out, a delay passes."""
        now = self._clock.now()
        times = [until for _, until in self._leased.values()] + [queued.not_before for queued in self._queue]
        return [max(0.001, min(times) - now)] if times else []

    async def _wait(self, seconds: float) -> None:
        news = asyncio.ensure_future(self._news.wait())
        timer = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait((news, timer), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (news, timer):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    def _check(self, what: str) -> None:
        if what in self.down:
            raise SourceUnavailable(f"{what} does not answer")


class MemoryLanes:
    """Lanes in this process: what is published to a topic reaches the lane that subscribes to it."""

    def __init__(self, jobs: Jobs, *, clock: Clock | None = None, pull_wait_s: float = 1.0) -> None:
        self._jobs = jobs
        self._clock = clock or SystemClock()
        self._pull_wait_s = pull_wait_s
        self._lanes: dict[str, MemorySource] = {}
        self.topics: dict[str, deque[Message]] = defaultdict(lambda: deque(maxlen=_KEPT))
        self.down: set[str] = set()

    def open(self, lane: str) -> MemorySource:
        topic = f"{self._jobs.topic}{lane}"
        if topic not in self._lanes:
            source = MemorySource(lane_jobs(self._jobs, lane), clock=self._clock, pull_wait_s=self._pull_wait_s)
            source.topics, source.down, self._lanes[topic] = self.topics, self.down, source
            own = source.publish

            async def publish(to: str, messages: Sequence[Message]) -> Sequence[str]:
                if to == topic:
                    return await own(to, messages)
                if to in self._lanes:
                    return await self._lanes[to].publish(to, messages)
                return await own(to, messages)

            source.publish = publish
        return self._lanes[topic]

    @property
    def unsettled(self) -> int:
        return sum(source.unsettled for source in self._lanes.values())
