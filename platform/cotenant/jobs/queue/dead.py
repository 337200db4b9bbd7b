"""Dead letters: looked at, published again, thrown away.

They wait in a subscription of their own, and a queue can't be read without leasing what one reads. So every command
walks through all of it with leases in hand: what it does not consume it gives back at the end, which costs nothing
but a delivery that nobody counts. Always true:

- A letter goes only by being retried or purged; whatever a command does besides, or dies of, it comes back.
- A retry publishes first and lets go of the letter after, so a retry that dies half way is one that can be repeated.
  A job that is published twice is done once.
- What is published again is what the publisher sent: our attributes are off, the ordering key is on.

Two walks at the same time see a part each.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from cotenant.config import Jobs
from cotenant.errors import MalformedJob, SourceUnavailable
from cotenant.jobs.clock import Clock, SystemClock
from cotenant.jobs.model import (
    ATTEMPTS,
    BATCH,
    BURIAL_ATTRIBUTES,
    CUSTOM_ID,
    HISTORY,
    MESSAGE_ID,
    ORIGIN,
    OUTCOME,
    QUEUE_ATTRIBUTES,
    QUEUE_COUNT,
    QUEUE_SUBSCRIPTION,
    REASON,
    SOURCE_TOPIC,
    TENANT,
    Identity,
    canonical,
    digest,
    parse_job,
)
from cotenant.jobs.queue.lanes import CLERK
from cotenant.jobs.queue.source import Delivery, JobSource, Message

#: What a dead letter is called that the queue made, of a message that was delivered too often without an end.
FORWARDED_BY_QUEUE = "delivered_too_often"

_PULL_AT_ONCE = 500
_BEFORE_AT_ONCE = 16
#: Unary pulls may bring nothing although there is something: so many in a row are believed.
_EMPTY_PULLS = 2

Publish: TypeAlias = Callable[[str, Sequence[Message]], Awaitable[object]]
"""Publishes to a topic by its short name: all, or it raises."""


@dataclass(frozen=True)
class DeadLetter:
    """One dead letter.

    `id` names it here; `message_id` is that of the message it was made of ("" where the queue made it). `attempts`
    counts failed attempts, or deliveries where the queue made it. `attempt_history` is JSON as it was written,
    perhaps "". `buried_at_s` is Unix time. `attributes` are the publisher's own, `topic` is where it came from, by
    its short name.
    """

    id: str
    data: bytes
    attributes: Mapping[str, str]
    ordering_key: str
    topic: str
    outcome: str
    reason: str
    attempts: int
    attempt_history: str
    message_id: str
    buried_at_s: float

    @property
    def message(self) -> Message:
        """What a retry publishes. A job without a batch keeps the one that it had: its first message's id."""
        attributes = dict(self.attributes)
        if BATCH not in attributes and ORIGIN not in attributes and self.message_id:
            attributes[ORIGIN] = self.message_id
        return Message(self.data, attributes, self.ordering_key)

    @property
    def tenant(self) -> str:
        return self.attributes.get(TENANT, "")

    @property
    def batch(self) -> str:
        return self.attributes.get(BATCH, "")

    @property
    def custom_id(self) -> str:
        """As far as the attributes say: "" for what came without."""
        return self.attributes.get(CUSTOM_ID, "")

    @property
    def fingerprint(self) -> str:
        """The same for letters of the same message."""
        message = self.message
        return digest(canonical([digest(message.data), dict(message.attributes), message.ordering_key, self.topic]))

    @property
    def identity(self) -> Identity | None:
        """Which job it is; None for what is no job."""
        try:
            return parse_job(self.data, self.message.attributes, self.message_id).identity
        except MalformedJob:
            return None


Chosen: TypeAlias = Callable[[DeadLetter], bool]


def read(delivery: Delivery, jobs: Jobs) -> DeadLetter:
    """The dead letter that a delivery from the kept subscription is."""
    given = delivery.attributes
    by_queue = QUEUE_SUBSCRIPTION in given and OUTCOME not in given
    count = given.get(QUEUE_COUNT if by_queue else ATTEMPTS, "")
    return DeadLetter(
        id=delivery.message_id,
        data=delivery.data,
        attributes={k: v for k, v in given.items() if k not in BURIAL_ATTRIBUTES | QUEUE_ATTRIBUTES},
        ordering_key=delivery.ordering_key,
        topic=_came_from(given, jobs),
        outcome=FORWARDED_BY_QUEUE if by_queue else given.get(OUTCOME, ""),
        reason="Pub/Sub gave it up: no ingress settled it in so many deliveries" if by_queue else given.get(REASON, ""),
        attempts=int(count) if count.isdecimal() else 0,
        attempt_history=given.get(HISTORY, ""),
        message_id=given.get(MESSAGE_ID, ""),
        buried_at_s=delivery.published_at_s,
    )


def _came_from(given: Mapping[str, str], jobs: Jobs) -> str:
    """The lane's topic that it came by; the main one where nothing says which, or something says another topic.

    Attributes of what the queue itself forwarded are its publisher's: they may name any topic, and we publish to ours.
    """
    topic = given.get(SOURCE_TOPIC, "").rsplit("/", 1)[-1]
    if QUEUE_SUBSCRIPTION in given and OUTCOME not in given:
        subscription = given[QUEUE_SUBSCRIPTION].rsplit("/", 1)[-1]
        suffix = subscription.removeprefix(jobs.subscription) if subscription.startswith(jobs.subscription) else ""
        topic = f"{jobs.topic}{suffix}"
    ours = topic in (jobs.topic, f"{jobs.topic}{CLERK}") or topic.startswith(f"{jobs.topic}.")
    return topic if ours else jobs.topic


def with_ids(ids: Collection[str]) -> Chosen:
    """Letters called so: by their own id, their message's, or their job's."""
    wanted = frozenset(ids)

    def chosen(letter: DeadLetter) -> bool:
        if letter.id in wanted or letter.message_id in wanted:
            return True
        identity = letter.identity
        return identity is not None and identity.job_id in wanted

    return chosen


def older_than(age_s: float, now_s: float) -> Chosen:
    """Letters that were buried longer ago; `now_s` is Unix time."""
    return lambda letter: now_s - letter.buried_at_s > age_s


def everything(letter: DeadLetter) -> bool:
    return True


@dataclass(frozen=True)
class Listing:
    """Letters, the oldest first; `complete` is False where there are, or may be, more than were asked for."""

    letters: tuple[DeadLetter, ...]
    complete: bool


class DeadLetters:
    """The dead letters that wait in `source`, which is over the kept subscription.

    Every method raises SourceUnavailable when the queue does not answer; what was not consumed comes back then, too.
    """

    def __init__(self, jobs: Jobs, source: JobSource, publish: Publish, *, clock: Clock | None = None) -> None:
        self._jobs = jobs
        self._source = source
        self._publish = publish
        self._clock = clock or SystemClock()

    async def list(self, limit: int = 1000, chosen: Chosen = everything) -> Listing:
        """Up to `limit` of the chosen letters. All of them stay."""
        letters: dict[str, DeadLetter] = {}

        async def visit(some: Sequence[DeadLetter]) -> Collection[str]:
            letters.update({letter.id: letter for letter in some if chosen(letter)})
            return ()

        complete = await self._walk(visit, lambda: len(letters) >= limit)
        oldest_first = sorted(letters.values(), key=lambda letter: letter.buried_at_s)
        return Listing(tuple(oldest_first[:limit]), complete and len(letters) <= limit)

    async def show(self, name: str) -> DeadLetter | None:
        """The letter of that id, message id or job id; the latest, if a job has several."""
        found = (await self.list(limit=10_000, chosen=with_ids([name]))).letters
        return found[-1] if found else None

    async def retry(
        self,
        chosen: Chosen,
        *,
        before: Callable[[DeadLetter], Awaitable[object]] | None = None,
        enough: int | None = None,
    ) -> tuple[DeadLetter, ...]:
        """Publish the chosen letters' messages again where they came from, and let go of the letters.

        A letter that is the same message as one retried in the same call stays: it may be what became of that.

        Args:
            before: awaited for each before it is published, to have its job's failed attempts and the word of its
                death forgotten (`ResultStore.forget_attempts`); else the first failure would bury it again.
            enough: end after so many; for a choice by ids, their number.

        Returns:
            The letters that went, without their data.

        Raises:
            SourceUnavailable: some may be published and still be here; a second retry does them no harm.
        """
        retried: dict[str, DeadLetter] = {}
        seen: set[str] = set()

        async def visit(some: Sequence[DeadLetter]) -> Collection[str]:
            mine: list[DeadLetter] = []
            for letter in some:
                full = enough is not None and len(seen) >= enough
                if not full and chosen(letter) and letter.fingerprint not in seen:
                    seen.add(letter.fingerprint)
                    mine.append(letter)
            if before is not None:
                for start in range(0, len(mine), _BEFORE_AT_ONCE):
                    await asyncio.gather(*map(before, mine[start : start + _BEFORE_AT_ONCE]))
            by_topic: dict[str, list[DeadLetter]] = {}
            for letter in mine:
                by_topic.setdefault(letter.topic, []).append(letter)
            for topic, letters in by_topic.items():
                await self._publish(topic, [letter.message for letter in letters])
                retried.update({letter.id: replace(letter, data=b"") for letter in letters})
            return retried.keys()

        await self._walk(visit, lambda: enough is not None and len(seen) >= enough)
        return tuple(retried.values())

    async def purge(self, chosen: Chosen, *, enough: int | None = None) -> tuple[DeadLetter, ...]:
        """Throw the chosen letters away, for good; those that went, without their data. `enough` as for `retry`."""
        purged: dict[str, DeadLetter] = {}

        async def visit(some: Sequence[DeadLetter]) -> Collection[str]:
            for letter in some:
                if (enough is None or len(purged) < enough) and chosen(letter):
                    purged[letter.id] = replace(letter, data=b"")
            return purged.keys()

        await self._walk(visit, lambda: enough is not None and len(purged) >= enough)
        return tuple(purged.values())

    async def _walk(
        self, visit: Callable[[Sequence[DeadLetter]], Awaitable[Collection[str]]], enough: Callable[[], bool]
    ) -> bool:
        """Show all letters to `visit`, a page at a time, until `enough`; whether the end was reached.

        `visit` returns ids of letters to let go of. All others are given back when the walk ends, however it ends.
        """
        held: dict[str, str] = {}
        renewing = asyncio.create_task(self._renew(held))
        empty = 0
        try:
            while empty < _EMPTY_PULLS:
                if enough():
                    return False
                page = await self._pull(held)
                empty = 0 if page else empty + 1
                if page:
                    gone = set(await visit([read(delivery, self._jobs) for delivery in page]))
                    acks = [ack_id for ack_id, letter_id in held.items() if letter_id in gone]
                    await self._source.ack(acks)
                    for ack_id in acks:
                        del held[ack_id]
            return True
        finally:
            renewing.cancel()
            with contextlib.suppress(SourceUnavailable):
                await self._source.nack(list(held))

    async def _pull(self, held: dict[str, str]) -> Sequence[Delivery]:
        """A page, noted in `held`: ids of letters by ack id.

        A pull is seen to its end even where the walk is broken off: it may have leased letters.
        """
        pull = asyncio.ensure_future(self._source.pull(_PULL_AT_ONCE))
        try:
            page = await asyncio.shield(pull)
        except asyncio.CancelledError:
            with contextlib.suppress(SourceUnavailable):
                held.update({delivery.ack_id: delivery.message_id for delivery in await pull})
            raise
        held.update({delivery.ack_id: delivery.message_id for delivery in page})
        return page

    async def _renew(self, held: Mapping[str, str]) -> None:
        """Keep the leases of what is held, whatever the walk waits for meanwhile."""
        while True:
            await self._clock.sleep(self._jobs.lease_s / 4)
            if held:
                with contextlib.suppress(SourceUnavailable):
                    await self._source.extend(list(held))
