"""The in-memory twin of Pub/Sub: what serves where there is no emulator, and what the tests run on.

It keeps the same promises and has the same faults: messages come again after a nack or a lost lease, deliveries
are counted, at the backstop a message goes to the dead-letter topic, and a topic without a subscription drops what it
is sent. Three things differ. Where order is kept, an acked message does not come again because one before it does.
There is no pause before a message comes again but the one that was asked for. And it does not filter, as the emulator
does not.

What it cannot do is outlive its process: jobs not yet done when the ingress ends are gone, and it says so when it
starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone

from cotenant.config import Jobs
from cotenant.errors import SourceUnavailable
from cotenant.jobs.clock import Clock, SystemClock
from cotenant.jobs.model import QUEUE_COUNT, QUEUE_PROJECT, QUEUE_SUBSCRIPTION, QUEUE_TIME
from cotenant.jobs.queue.lanes import MAIN, lane_jobs
from cotenant.jobs.queue.source import Delivery, Message, check_messages
from cotenant.jobs.queue.topology import KEPT, Subscription, Topology, kept_jobs, kept_topology, lane_topology

#: Topics that nobody subscribes to keep only their last messages, and so do dead letters that nobody looks at.
_KEPT = 10_000


@dataclass
class _Queued:
    message: Message
    message_id: str
    published_at_s: float
    deliveries: int = 0
    not_before: float = 0.0


class _Waiting:
    """What one subscription holds: messages in line, and those that are leased, by ack id."""

    def __init__(self, spec: Subscription, broker: MemoryBroker) -> None:
        self.spec = spec
        self.news = asyncio.Event()
        self._broker = broker
        self._line: deque[_Queued] = deque(maxlen=_KEPT if spec.name.endswith(KEPT) else None)
        self._leased: dict[str, tuple[_Queued, float]] = {}

    def __len__(self) -> int:
        self.expire()
        return len(self._line) + len(self._leased)

    def add(self, queued: _Queued) -> None:
        self._line.append(queued)
        self.news.set()

    def take(self, limit: int) -> list[Delivery]:
        self.expire()
        now = self._broker.clock.now()
        busy = {queued.message.ordering_key for queued, _ in self._leased.values()} if self.spec.ordering else set()
        taken: list[Delivery] = []
        passed_over: list[_Queued] = []
        while self._line and len(taken) < limit:
            queued = self._line.popleft()
            key = queued.message.ordering_key if self.spec.ordering else ""
            if queued.not_before > now or (key and key in busy):
                passed_over.append(queued)
                busy.add(key)
            else:
                taken.append(self._lease(queued, now))
        self._line.extendleft(reversed(passed_over))
        return taken

    def extend(self, ack_ids: Sequence[str]) -> None:
        self.expire()
        until = self._broker.clock.now() + self.spec.lease_s
        for ack_id in ack_ids:
            if ack_id in self._leased:
                self._leased[ack_id] = (self._leased[ack_id][0], until)

    def ack(self, ack_ids: Sequence[str]) -> None:
        self.expire()
        for ack_id in ack_ids:
            if self._leased.pop(ack_id, None) is not None and self.spec.ordering:
                self.news.set()

    def nack(self, ack_ids: Sequence[str], delay_s: float) -> None:
        self.expire()
        for ack_id in ack_ids:
            if ack_id in self._leased:
                self._again(self._leased.pop(ack_id)[0], self._broker.clock.now() + delay_s)

    def expire(self) -> None:
        now = self._broker.clock.now()
        for ack_id in [ack_id for ack_id, (_, until) in self._leased.items() if until <= now]:
            self._again(self._leased.pop(ack_id)[0], now)

    def until_next(self) -> list[float]:
        """Seconds until something happens by itself: a lease runs out, a delay passes."""
        now = self._broker.clock.now()
        times = [until for _, until in self._leased.values()]
        times += [queued.not_before for queued in self._line if queued.not_before > now]
        return [max(0.001, min(times) - now)] if times else []

    def _lease(self, queued: _Queued, now: float) -> Delivery:
        queued.deliveries += 1
        ack_id = f"{self.spec.name}/{queued.message_id}/{queued.deliveries}"
        self._leased[ack_id] = (queued, now + self.spec.lease_s)
        return Delivery(
            ack_id=ack_id,
            message_id=queued.message_id,
            data=queued.message.data,
            attributes=dict(queued.message.attributes),
            attempt=queued.deliveries if self.spec.dead_letter is not None else 1,
            published_at_s=queued.published_at_s,
            ordering_key=queued.message.ordering_key,
        )

    def _again(self, queued: _Queued, not_before: float) -> None:
        if self.spec.dead_letter is not None and queued.deliveries >= self.spec.max_deliveries:
            self._broker.publish(self.spec.dead_letter, self._forwarded(queued))
            self.news.set()
            return
        queued.not_before = not_before
        self._line.insert(self._place(queued), queued)
        self.news.set()

    def _place(self, queued: _Queued) -> int:
        """Where it goes in line: before those of its key that were published after it, else at the end."""
        if self.spec.ordering and queued.message.ordering_key:
            for place, other in enumerate(self._line):
                same_key = other.message.ordering_key == queued.message.ordering_key
                if same_key and int(other.message_id) > int(queued.message_id):
                    return place
        return len(self._line)

    def _forwarded(self, queued: _Queued) -> Message:
        published_at = datetime.fromtimestamp(queued.published_at_s, timezone.utc)
        ours = {
            QUEUE_COUNT: str(queued.deliveries),
            QUEUE_SUBSCRIPTION: self.spec.name,
            QUEUE_PROJECT: self._broker.project,
            QUEUE_TIME: published_at.isoformat(timespec="milliseconds"),
        }
        return replace(queued.message, attributes={**queued.message.attributes, **ours})


class MemoryBroker:
    """Topics and subscriptions of one process: what the sources over it share."""

    def __init__(self, *, clock: Clock | None = None, project: str = "memory") -> None:
        self.clock = clock or SystemClock()
        self.project = project
        self.topics: dict[str, deque[Message]] = defaultdict(lambda: deque(maxlen=_KEPT))
        self.down: set[str] = set()
        self._ids = itertools.count(1)
        self._subscriptions: dict[str, _Waiting] = {}

    def ensure(self, topology: Topology) -> None:
        """Create what is missing of it."""
        for topic in topology.topics:
            self.topics[topic.name]
        for spec in topology.subscriptions:
            if spec.name not in self._subscriptions:
                self._subscriptions[spec.name] = _Waiting(spec, self)

    def subscription(self, name: str) -> _Waiting:
        return self._subscriptions[name]

    def publish(self, topic: str, message: Message) -> str:
        message_id = str(next(self._ids))
        self.topics[topic].append(message)
        for waiting in self._subscriptions.values():
            if waiting.spec.topic == topic:
                waiting.add(_Queued(message, message_id, self.clock.unix_s()))
        return message_id

    def check(self, name: str) -> None:
        if name in self.down:
            raise SourceUnavailable(f"{name} does not answer")

    @property
    def unsettled(self) -> int:
        """Messages in all lanes that are neither acked nor dead-lettered."""
        return sum(len(waiting) for name, waiting in self._subscriptions.items() if not name.endswith(KEPT))


class MemorySource:
    """A `JobSource` in this process: by itself the main lane, over a broker of its own."""

    def __init__(
        self,
        jobs: Jobs,
        *,
        clock: Clock | None = None,
        pull_wait_s: float = 1.0,
        topology: Topology | None = None,
        broker: MemoryBroker | None = None,
    ) -> None:
        self._jobs = jobs
        self._broker = broker or MemoryBroker(clock=clock, project=jobs.project)
        self._pull_wait_s = pull_wait_s
        self._topology = topology or lane_topology(jobs, MAIN)
        self._broker.ensure(self._topology)
        self._waiting = self._broker.subscription(jobs.subscription)

    @property
    def topics(self) -> dict[str, deque[Message]]:
        """What was published, by short name of the topic; of each the last 10,000."""
        return self._broker.topics

    @property
    def down(self) -> set[str]:
        """Names of topics and subscriptions that do not answer: a fault to test with."""
        return self._broker.down

    @property
    def unsettled(self) -> int:
        """Messages of this subscription that are neither acked nor dead-lettered."""
        return len(self._waiting)

    async def setup(self) -> None:
        self._check()
        self._broker.ensure(self._topology)

    async def pull(self, limit: int) -> Sequence[Delivery]:
        self._check()
        clock = self._broker.clock
        deadline = clock.now() + self._pull_wait_s
        while True:
            deliveries = self._waiting.take(limit)
            left = deadline - clock.now()
            if deliveries or left <= 0:
                return deliveries
            self._waiting.news.clear()
            await self._wait(min([left, *self._waiting.until_next()]))
            self._check()

    async def extend(self, ack_ids: Sequence[str]) -> None:
        self._check()
        self._waiting.extend(ack_ids)

    async def ack(self, ack_ids: Sequence[str]) -> None:
        self._check()
        self._waiting.ack(ack_ids)

    async def nack(self, ack_ids: Sequence[str], delay_s: float = 0.0) -> None:
        self._check()
        self._waiting.nack(ack_ids, delay_s)

    async def publish(self, topic: str, messages: Sequence[Message]) -> Sequence[str]:
        check_messages(messages)
        self._broker.check(topic)
        return [self._broker.publish(topic, message) for message in messages]

    async def close(self) -> None:
        return None

    async def _wait(self, seconds: float) -> None:
        news = asyncio.ensure_future(self._waiting.news.wait())
        timer = asyncio.ensure_future(self._broker.clock.sleep(seconds))
        try:
            await asyncio.wait((news, timer), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (news, timer):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    def _check(self) -> None:
        self._broker.check(self._jobs.subscription)


class MemoryLanes:
    """`lanes.Lanes` in this process: what is published to a lane's topic reaches that lane once it is open."""

    def __init__(self, jobs: Jobs, *, clock: Clock | None = None, pull_wait_s: float = 1.0) -> None:
        self._jobs = jobs
        self._pull_wait_s = pull_wait_s
        self._broker = MemoryBroker(clock=clock, project=jobs.project)
        self._lanes: dict[str, MemorySource] = {}

    @property
    def topics(self) -> dict[str, deque[Message]]:
        """What was published, by short name of the topic; of each the last 10,000."""
        return self._broker.topics

    @property
    def down(self) -> set[str]:
        """Names of topics and subscriptions that do not answer: a fault to test with."""
        return self._broker.down

    @property
    def unsettled(self) -> int:
        """Messages in all lanes that are neither acked nor dead-lettered."""
        return self._broker.unsettled

    def open(self, lane: str) -> MemorySource:
        """A lane; the same one each time. To close it closes no other."""
        if lane not in self._lanes:
            self._lanes[lane] = self._source(lane_jobs(self._jobs, lane), lane_topology(self._jobs, lane))
        return self._lanes[lane]

    def dead_letters(self) -> MemorySource:
        """The subscription that dead letters wait in; for `dead.DeadLetters`."""
        return self._source(kept_jobs(self._jobs), kept_topology(self._jobs))

    def _source(self, jobs: Jobs, topology: Topology) -> MemorySource:
        return MemorySource(jobs, pull_wait_s=self._pull_wait_s, topology=topology, broker=self._broker)
