"""Pub/Sub, real or emulated, as a source of jobs: what the two files beside it are for.

Unary pulls on the asynchronous client, not the streaming one: that one leases whatever it can hold, and a killed
ingress then delays by minutes what another could have done at once. The clients are made inside the running loop
(they belong to it), so nothing here connects before it is used.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

from google.api_core import exceptions as google_errors
from google.pubsub_v1 import types as pubsub_types

from cotenant.config import Jobs
from cotenant.jobs.queue.lanes import MAIN, lane_jobs
from cotenant.jobs.queue.pubsub_admin import PubSubAdmin
from cotenant.jobs.queue.pubsub_client import CALL_TIMEOUT_S, EMULATOR_ENV, FAILURES, Connection
from cotenant.jobs.queue.source import Delivery, Message, check_messages
from cotenant.jobs.queue.topology import Topology, kept_jobs, kept_topology, lane_topology

__all__ = ["EMULATOR_ENV", "PubSubLanes", "PubSubSource"]

#: Pub/Sub's limits on one request: 1,000 messages, 10 MB, 512 KiB of ack ids (one has about 200 bytes).
_MAX_MESSAGES = 1000
_MAX_PUBLISH_BYTES = 8_000_000
_MAX_ACK_IDS = 1000
_MAX_ACK_BYTES = 400_000
_MAX_NACK_DELAY_S = 600
#: Ordering keys that are published at the same time.
_KEYS_AT_ONCE = 8
#: Pauses before an ack that may succeed later is sent again, and before a pull that was told of nothing at once: each
#: twice as long as the one before, up to the last.
_FIRST_ACK_PAUSE_S, _LAST_ACK_PAUSE_S = 0.1, 2.0
_FIRST_PULL_PAUSE_S, _LAST_PULL_PAUSE_S = 0.05, 0.4
#: A pull that is answered after its deadline has leased messages that nobody has: they come again when the lease is
#: over. The emulator answers a second before the deadline, or at once where less is left: no pull has less than this.
_SHORTEST_PULL_S = 2.0


class PubSubSource:
    """A `JobSource` on one subscription. `pull_wait_s` is how long an empty pull takes, or up to 2 s longer.

    By itself it is the main lane, over a connection of its own; `PubSubLanes` opens the others.
    """

    def __init__(
        self,
        jobs: Jobs,
        *,
        emulator_host: str | None = None,
        pull_wait_s: float = 5.0,
        topology: Topology | None = None,
        connection: Connection | None = None,
    ) -> None:
        self._jobs = jobs
        self._pull_wait_s = pull_wait_s
        self._topology = topology or lane_topology(jobs, MAIN)
        self._connection = connection or Connection(jobs.project, emulator_host)
        self._connected = False
        self._subscription = f"projects/{jobs.project}/subscriptions/{jobs.subscription}"

    async def setup(self) -> None:
        """Create the topics and subscriptions where they are missing; what exists is left as it is."""
        await self._connect()
        await PubSubAdmin(self._jobs.project, connection=self._connection).ensure(self._topology)

    async def pull(self, limit: int) -> Sequence[Delivery]:
        await self._connect()
        end_s, pause_s = time.monotonic() + self._pull_wait_s, _FIRST_PULL_PAUSE_S
        while True:
            received = await self._pull(limit, max(_SHORTEST_PULL_S, end_s - time.monotonic()))
            if received or end_s - time.monotonic() <= pause_s:
                return [_delivery(one) for one in received]
            # Pub/Sub may say at once that there is nothing, and the emulator does while a message waits for its time.
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LAST_PULL_PAUSE_S)

    async def extend(self, ack_ids: Sequence[str]) -> None:
        await self._modify(ack_ids, self._jobs.lease_s)

    async def ack(self, ack_ids: Sequence[str]) -> None:
        await self._connect()

        async def send(some: list[str]) -> None:
            request = pubsub_types.AcknowledgeRequest(subscription=self._subscription, ack_ids=some)
            await self._connection.attempt(self._connection.subscriber.acknowledge, request)

        await self._settle("ack", ack_ids, send)

    async def nack(self, ack_ids: Sequence[str], delay_s: float = 0.0) -> None:
        """By a lease that ends after `delay_s`: Pub/Sub has no nack with a delay of its own.

        The subscription's retry policy puts a pause of its own on top, seconds at the most.
        """
        await self._modify(ack_ids, min(round(delay_s), _MAX_NACK_DELAY_S))

    async def publish(self, topic: str, messages: Sequence[Message]) -> Sequence[str]:
        check_messages(messages)
        await self._connect()
        ids = [""] * len(messages)
        turns = asyncio.Semaphore(_KEYS_AT_ONCE)

        async def in_order(numbers: Sequence[int]) -> None:
            async with turns:
                for some in _sized(messages, numbers):
                    await self._publish(topic, messages, some, ids)

        by_key: dict[str, list[int]] = {}
        for number, message in enumerate(messages):
            by_key.setdefault(message.ordering_key, []).append(number)
        published = await asyncio.gather(*map(in_order, by_key.values()), return_exceptions=True)
        for trouble in published:
            if isinstance(trouble, BaseException):
                raise trouble
        return ids

    async def close(self) -> None:
        if self._connected:
            self._connected = False
            await self._connection.release(self)

    async def _connect(self) -> None:
        if not self._connected:
            await self._connection.hold(self)
            self._connected = True

    async def _pull(self, limit: int, wait_s: float) -> Sequence[Any]:
        request = pubsub_types.PullRequest(subscription=self._subscription, max_messages=min(limit, _MAX_MESSAGES))
        try:
            response = await self._connection.puller.pull(request, timeout=wait_s, retry=None)
        except google_errors.DeadlineExceeded as error:
            if self._connection.reached:
                return ()
            raise self._connection.unavailable("pull", error) from error
        except FAILURES as error:
            raise self._connection.unavailable("pull", error) from error
        received: Sequence[Any] = response.received_messages
        return received

    async def _publish(self, topic: str, messages: Sequence[Message], numbers: Sequence[int], ids: list[str]) -> None:
        request = pubsub_types.PublishRequest(
            topic=f"projects/{self._jobs.project}/topics/{topic}",
            messages=[
                pubsub_types.PubsubMessage(
                    data=messages[number].data,
                    attributes=dict(messages[number].attributes),
                    ordering_key=messages[number].ordering_key,
                )
                for number in numbers
            ],
        )
        response = await self._connection.call(f"publish to {topic}", self._connection.publisher.publish, request)
        for number, message_id in zip(numbers, response.message_ids, strict=True):
            ids[number] = message_id

    async def _modify(self, ack_ids: Sequence[str], seconds: int) -> None:
        await self._connect()

        async def send(some: list[str]) -> None:
            request = pubsub_types.ModifyAckDeadlineRequest(
                subscription=self._subscription, ack_ids=some, ack_deadline_seconds=seconds
            )
            await self._connection.attempt(self._connection.subscriber.modify_ack_deadline, request)

        await self._settle("modify leases", ack_ids, send)

    async def _settle(self, what: str, ack_ids: Sequence[str], send: Callable[[list[str]], Awaitable[None]]) -> None:
        """Send ack ids so that one bad one fails no other. Those of lost leases are passed over in silence.

        A request that names its bad ids (exactly-once subscriptions do) is sent again without them, and without those
        whose failure will pass until a pause later. One that only says that there are bad ones is halved.

        Raises:
            SourceUnavailable: some could not be settled; it is safe to settle all of them again.
        """
        todo = list(_chunks(ack_ids))
        trouble: BaseException | None = None
        deadline_s, pause_s = time.monotonic() + CALL_TIMEOUT_S, _FIRST_ACK_PAUSE_S
        while todo:
            some = todo.pop()
            try:
                await send(some)
            except FAILURES as error:
                said = failures_by_id(error)
                named = {one: said[one] for one in some if one in said}
                if passing := [one for one, kind in named.items() if kind.startswith(_PASSING)]:
                    if time.monotonic() + pause_s > deadline_s:
                        trouble = error
                        continue
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _LAST_ACK_PAUSE_S)
                    todo.append(passing)
                if named:
                    rest = [one for one in some if one not in named]
                    todo += [rest] if rest else []
                elif not isinstance(error, google_errors.InvalidArgument):
                    trouble = error
                elif len(some) > 1:
                    todo += [some[: len(some) // 2], some[len(some) // 2 :]]
        if trouble is not None:
            raise self._connection.unavailable(what, trouble) from trouble


class PubSubLanes:
    """`lanes.Lanes` on Pub/Sub: every lane a source of its own, all over one connection."""

    def __init__(self, jobs: Jobs, emulator_host: str | None = None, *, pull_wait_s: float = 5.0) -> None:
        self._jobs = jobs
        self._pull_wait_s = pull_wait_s
        self._connection = Connection(jobs.project, emulator_host)

    def open(self, lane: str) -> PubSubSource:
        """A lane, not set up yet. To close it closes no other."""
        return self._source(lane_jobs(self._jobs, lane), lane_topology(self._jobs, lane))

    def dead_letters(self) -> PubSubSource:
        """The subscription that dead letters wait in; for `dead.DeadLetters`."""
        return self._source(kept_jobs(self._jobs), kept_topology(self._jobs))

    def _source(self, jobs: Jobs, topology: Topology) -> PubSubSource:
        return PubSubSource(jobs, pull_wait_s=self._pull_wait_s, topology=topology, connection=self._connection)


#: How an exactly-once subscription says that an id will do later. Anything else that it says of an id is for good.
_PASSING = "TRANSIENT_FAILURE"


def failures_by_id(error: BaseException) -> Mapping[str, str]:
    """Ack ids that a request's error names, with the kind of failure; empty where it names none."""
    named: dict[str, str] = {}
    for detail in getattr(error, "details", None) or ():
        metadata: Any = getattr(detail, "metadata", None)
        named.update({ack_id: kind for ack_id, kind in dict(metadata or {}).items() if "_FAILURE" in kind})
    return named


def _delivery(received: Any) -> Delivery:
    message = received.message
    return Delivery(
        ack_id=received.ack_id,
        message_id=message.message_id,
        data=bytes(message.data),
        attributes=dict(message.attributes),
        attempt=max(1, received.delivery_attempt),
        published_at_s=message.publish_time.timestamp(),
        ordering_key=message.ordering_key,
    )


def _chunks(ack_ids: Sequence[str]) -> Iterator[list[str]]:
    """Runs of ack ids that fit in one request."""
    some: list[str] = []
    size = 0
    for ack_id in ack_ids:
        if some and (len(some) == _MAX_ACK_IDS or size + len(ack_id) > _MAX_ACK_BYTES):
            yield some
            some, size = [], 0
        some.append(ack_id)
        size += len(ack_id)
    if some:
        yield some


def _sized(messages: Sequence[Message], numbers: Sequence[int]) -> Iterator[list[int]]:
    """Runs of those messages that fit in one request."""
    some: list[int] = []
    size = 0
    for number in numbers:
        length = messages[number].size_bytes + 64
        if some and (len(some) == _MAX_MESSAGES or size + length > _MAX_PUBLISH_BYTES):
            yield some
            some, size = [], 0
        some.append(number)
        size += length
    if some:
        yield some
