"""Where the dead letters are: in the subscription that keeps them or, without Pub/Sub, in the words that the store has.

Where the ingress holds jobs in memory nothing keeps their letters. But the store has word of every job that was given
up, and of a batch's jobs the lines too, so those can be listed, shown and tried again all the same.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from typing import Protocol

from cotenant.calls.desk import Json, Page
from cotenant.cli import job_desk, jobs_door
from cotenant.config import Platform
from cotenant.errors import JobError
from cotenant.jobs.clerk.manifest import Manifest
from cotenant.jobs.desk.batches import PublishTo
from cotenant.jobs.endings import parsed
from cotenant.jobs.ingress.settlement import Outcome
from cotenant.jobs.model import DEFAULT_TENANT, Identity, Wishes, canonical, digest
from cotenant.jobs.queue.dead import Chosen, DeadLetter, DeadLetters, Listing, everything
from cotenant.jobs.queue.lanes import MAIN, lane_of, topic_of
from cotenant.jobs.queue.source import Message
from cotenant.jobs.store import keys
from cotenant.jobs.store.keys import dead_key, result_key
from cotenant.jobs.store.results import Attempt, ResultStore

_PAGE = 100
#: Jobs submitted by themselves that are looked through for those that were given up.
_SINGLES_LOOKED_AT = 1000


class Letters(Protocol):
    """What the commands do with dead letters; see `jobs.dead.DeadLetters`."""

    async def list(self, limit: int = 1000, chosen: Chosen = everything) -> Listing: ...

    async def show(self, name: str) -> DeadLetter | None: ...

    async def retry(
        self,
        chosen: Chosen,
        *,
        before: Callable[[DeadLetter], Awaitable[object]] | None = None,
        enough: int | None = None,
    ) -> tuple[DeadLetter, ...]: ...

    async def purge(self, chosen: Chosen, *, enough: int | None = None) -> tuple[DeadLetter, ...]: ...


@dataclass(frozen=True)
class Opened:
    """The letters, and what has the store forget the attempts at their jobs."""

    letters: Letters
    forgetting: Forgetting


@asynccontextmanager
async def opened(platform: Platform, tenant: str | None) -> AsyncIterator[Opened]:
    """The dead letters of a platform's environment; without Pub/Sub those of one tenant (None: the default one).

    Raises:
        EnvironmentFault: nothing takes jobs here, or the store can't be read from here.
    """
    door = jobs_door.door_of(platform)
    if not door.is_there:
        raise jobs_door.nothing_there(platform)
    if not door.has_pubsub:
        async with job_desk.opened(platform) as desk:
            forgetting = Forgetting(desk.store, desk.publish)
            yield Opened(StoredLetters(desk, platform, tenant or DEFAULT_TENANT, forgetting.publish), forgetting)
        return
    store = jobs_door.existing_store(platform, door.state)
    async with jobs_door.publisher(door) as publish, jobs_door.dead_letters(door) as source:
        forgetting = Forgetting(store, publish)
        yield Opened(DeadLetters(platform.jobs, source, forgetting.publish), forgetting)


class StoredLetters:
    """What the store says of a tenant's jobs that were given up: `Letters` where no queue keeps any."""

    def __init__(self, desk: job_desk.Desk, platform: Platform, tenant: str, publish: PublishTo) -> None:
        self._desk = desk
        self._store = desk.store
        self._platform = platform
        self._tenant = tenant
        self._publish = publish

    async def list(self, limit: int = 1000, chosen: Chosen = everything) -> Listing:
        letters: list[DeadLetter] = []
        async for letter in self._all():
            if chosen(letter):
                letters.append(letter)
            if len(letters) > limit:
                break
        oldest_first = sorted(letters, key=lambda letter: letter.buried_at_s)
        return Listing(tuple(oldest_first[:limit]), len(letters) <= limit)

    async def show(self, name: str) -> DeadLetter | None:
        async for letter in self._all():
            if letter.id == name:
                return letter
        return None

    async def retry(
        self,
        chosen: Chosen,
        *,
        before: Callable[[DeadLetter], Awaitable[object]] | None = None,
        enough: int | None = None,
    ) -> tuple[DeadLetter, ...]:
        """As of `DeadLetters`.

        Raises:
            JobError: a job was submitted by itself, so its body is nowhere any more.
        """
        retried: list[DeadLetter] = []
        async for letter in self._all():
            if enough is not None and len(retried) == enough:
                break
            if not chosen(letter):
                continue
            if not letter.data:
                raise JobError(
                    f"{letter.id} was submitted by itself, and without Pub/Sub nothing keeps its body; submit it again"
                )
            if before is not None:
                await before(letter)
            await self._publish(letter.topic, [letter.message])
            retried.append(replace(letter, data=b""))
        return tuple(retried)

    async def purge(self, chosen: Chosen, *, enough: int | None = None) -> tuple[DeadLetter, ...]:
        """Raises EnvironmentFault: what the store says of a job is its end, and stays."""
        del chosen, enough
        door = jobs_door.door_of(self._platform)
        raise jobs_door.no_pubsub(door, "no dead letters wait, and there is nothing to purge")

    async def _all(self) -> AsyncIterator[DeadLetter]:
        async for batch in _every(self._desk.batches.page, self._tenant):
            async for letter in self._of_batch(batch["id"]):
                yield letter
        looked_at = 0
        async for job in _every(self._desk.singles.page, self._tenant):
            looked_at += 1
            if looked_at > _SINGLES_LOOKED_AT:
                return
            if job["status"] == "failed" and (single := await self._of_single(job)) is not None:
                yield single

    async def _of_batch(self, batch: str) -> AsyncIterator[DeadLetter]:
        results, dead = await self._store.settled(self._tenant, batch)
        data = await self._store.manifest(self._tenant, batch) if dead else None
        manifest = Manifest.load(data) if data is not None else None
        if manifest is None:
            return
        record = await self._desk.batches.record(self._tenant, batch)
        wishes = Wishes(priority=record.priority, deadline_at_s=record.deadline_at_s)
        file_key = keys.file_keys(self._tenant, record.input_file_id)[1]
        for index, custom_id in enumerate(manifest.custom_ids):
            identity = Identity(self._tenant, batch, custom_id)
            if dead_key(identity) not in dead or result_key(identity) in results:
                continue
            line = await self._store.objects.part(file_key, manifest.offsets[index], manifest.lengths[index])
            workload = manifest.workloads[manifest.which[index]]
            buried = await self._letter(identity, line or b"", wishes, workload)
            if buried is not None:
                yield buried

    async def _of_single(self, job: Json) -> DeadLetter | None:
        record = await self._desk.singles.record(self._tenant, job["id"])
        if await self._store.result(record.identity) is not None:
            return None
        return await self._letter(record.identity, b"", record.wishes, record.workload)

    async def _letter(self, identity: Identity, data: bytes, wishes: Wishes, workload: str) -> DeadLetter | None:
        line = await self._store.buried(identity)
        if line is None:
            return None
        error = parsed(line)["error"] or {}
        attempts = await self._store.attempts(identity)
        return DeadLetter(
            id=identity.job_id,
            data=data,
            attributes={**identity.attributes, **wishes.attributes},
            ordering_key="",
            topic=topic_of(self._platform.jobs, lane_of(workload) if workload else MAIN),
            outcome=str(error.get("code", "")),
            reason=str(error.get("message", "")),
            attempts=len(attempts),
            attempt_history=json.dumps([asdict(attempt) for attempt in attempts]),
            message_id="",
            buried_at_s=attempts[-1].at_s if attempts else 0.0,
        )


async def _every(page: Callable[[str, Page], Awaitable[Json]], tenant: str) -> AsyncIterator[Json]:
    """All of a list, page by page."""
    after: str | None = None
    while True:
        listed = await page(tenant, Page(_PAGE, after))
        for one in listed["data"]:
            yield one
        if not listed["has_more"]:
            return
        after = listed["last_id"]


class Picked:
    """A choice of letters that remembers which it has met: letters that were let go of have no data to tell by."""

    def __init__(self, *choices: Chosen | None) -> None:
        self._choices: Sequence[Chosen] = [choice for choice in choices if choice is not None]
        self._names: dict[str, set[str]] = {}

    def __call__(self, letter: DeadLetter) -> bool:
        if not all(choice(letter) for choice in self._choices):
            return False
        identity = letter.identity
        self._names[letter.id] = {letter.id, letter.message_id, identity.job_id if identity is not None else ""}
        return True

    @property
    def met(self) -> frozenset[str]:
        """Ids of the letters that were meant."""
        return frozenset(self._names)

    def missed(self, ids: Iterable[str], letters: Iterable[DeadLetter]) -> list[str]:
        """Which of `ids` name none of `letters`."""
        named = {name for letter in letters for name in self._names.get(letter.id, ())}
        return [name for name in ids if name not in named]


def of_tenant(tenant: str | None) -> Chosen | None:
    return None if tenant is None else lambda letter: (letter.tenant or DEFAULT_TENANT) == tenant


class Forgetting:
    """Has the store forget the attempts at jobs that are tried again, and remember them if that came to nothing.

    Without it the first failure would bury a job again; and a job whose word is gone and whose message is not out
    would be waited for in vain.
    """

    def __init__(self, store: ResultStore, publish: PublishTo) -> None:
        self._store = store
        self._publish = publish
        self._forgotten: dict[bytes, tuple[Identity, bytes | None, tuple[Attempt, ...]]] = {}

    async def forget(self, letter: DeadLetter) -> None:
        """What was refused for having another job's identity has no attempts: they are the other's."""
        identity = letter.identity
        if identity is None or letter.outcome == Outcome.CONFLICT.value:
            return
        word, attempts = await self._store.buried(identity), await self._store.attempts(identity)
        self._forgotten[_name(letter.message)] = (identity, word, attempts)
        await self._store.forget_attempts(identity)

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        """Publish messages; those of letters are out then, and what was forgotten of them stays forgotten."""
        await self._publish(topic, messages)
        for message in messages:
            self._forgotten.pop(_name(message), None)

    async def remember(self) -> None:
        """Put back what was forgotten of jobs that are not known to be out. One that is all the same ends as it ends:
        its result counts more.
        """
        for identity, word, attempts in self._forgotten.values():
            if attempts:
                await self._store.put_attempts(identity, attempts)
            if word is not None:
                await self._store.bury(identity, word)


def _name(message: Message) -> bytes:
    return canonical([digest(message.data), dict(message.attributes)])
