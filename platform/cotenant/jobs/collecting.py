"""Collecting what a batch gave: its output lines, in the order of its input or as its jobs settle.

Results are learnt from the *store*, not from the results topic: the object is the visible result, exactly one for
each job, while result messages come at least once, to one subscriber each, and only while somebody subscribes.
So a collector may start late, die and start again, or run twice, and needs no subscription of its own. What the
batch consists of is in its manifest. Waiting costs two listings a poll and holds names only; lines go from the store
to who collects a few at a time.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cotenant.errors import JobError, JobsFileError, Problem
from cotenant.jobs.clock import Clock, SystemClock
from cotenant.jobs.lines import lines_of
from cotenant.jobs.model import Identity
from cotenant.jobs.store import keys
from cotenant.jobs.store.keys import dead_key, result_key
from cotenant.jobs.store.objects import Objects
from cotenant.jobs.store.results import ResultStore

_FETCH_AT_ONCE = 16
_FIRST_POLL_S, _LAST_POLL_S = 0.2, 2.0


@dataclass(frozen=True)
class Progress:
    """How far a batch is: jobs with a result, and jobs that were given up. A batch that is being read has no total."""

    done: int
    given_up: int
    total: int | None


@dataclass(frozen=True)
class Collected:
    """Lines written, how many of them are no success, and the custom_ids that have none yet."""

    written: int
    failed: int
    missing: tuple[str, ...]


class Course(Protocol):
    """What is known of a batch beside its jobs' results. Every method may raise StoreUnavailable."""

    async def ended(self) -> str | None:
        """The status in which the batch has ended, if it has: no result will come any more.

        Raises:
            JobError: there is no such batch.
            JobsFileError: its file was refused, so it has no jobs; with what is wrong.
        """
        ...

    async def lines(self) -> Mapping[str, bytes]:
        """Lines of jobs that ended with the batch and have no result of their own, by custom_id."""
        ...


class Collection:
    """One batch, as it is collected."""

    def __init__(
        self,
        store: ResultStore,
        tenant: str,
        batch: str,
        *,
        course: Course | None = None,
        clock: Clock | None = None,
        on_progress: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        """`course` is for a batch that is seen through by a clerk: its manifest may be to come."""
        self._store = store
        self._tenant = tenant
        self._batch = batch
        self._course = course
        self._clock = clock or SystemClock()
        self._on_progress = on_progress
        self.identities: tuple[Identity, ...] = ()
        self.missing: tuple[str, ...] = ()
        """The custom_ids that had no line when `lines` ended."""

    async def open(self, timeout_s: float) -> bool:
        """Learn what the batch consists of, waiting for it at most `timeout_s`. Whether it is known.

        Raises:
            JobError: there is no such batch, or it has no jobs.
        """
        deadline, pause_s = self._clock.now() + timeout_s, _FIRST_POLL_S
        while True:
            status = await self._course.ended() if self._course is not None else None
            manifest = await self._store.manifest(self._tenant, self._batch)
            if manifest is not None:
                jobs = json.loads(manifest)["jobs"]
                self.identities = tuple(Identity(self._tenant, self._batch, custom_id) for custom_id, _ in jobs)
                return True
            if self._course is None:
                raise no_batch(self._tenant, self._batch, self._store.url)
            if status is not None:
                raise JobError(f"batch {self._batch} was {status} before any of its jobs began; it has no results")
            self._on_progress(Progress(0, 0, None))
            left = deadline - self._clock.now()
            if left <= 0:
                return False
            await self._clock.sleep(min(pause_s, left))
            pause_s = min(pause_s * 1.5, _LAST_POLL_S)

    async def lines(
        self, timeout_s: float, *, in_order: bool = True, without: Container[str] = ()
    ) -> AsyncIterator[tuple[Identity, bytes]]:
        """The jobs and their lines, as they settle or, `in_order`, when all have; at the timeout those that are there.

        Args:
            without: job ids whose lines are not wanted again.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        deadline, pause_s, before = self._clock.now() + timeout_s, _FIRST_POLL_S, -1
        given: set[Identity] = {identity for identity in self.identities if identity.job_id in without}
        while True:
            status = await self._course.ended() if self._course is not None else None
            results, dead = await self._store.settled(self._tenant, self._batch)
            done = {identity for identity in self.identities if result_key(identity) in results}
            given_up = {identity for identity in self.identities if dead_key(identity) in dead} - done
            settled = done | given_up
            self._on_progress(Progress(len(done), len(given_up), len(self.identities)))
            left = deadline - self._clock.now()
            last = len(settled) == len(self.identities) or status is not None or left <= 0
            ended_with_batch: Mapping[str, bytes] = {}
            if status is not None and self._course is not None and len(settled) < len(self.identities):
                ended_with_batch = await self._course.lines()
            if last or not in_order:
                fresh = [
                    identity
                    for identity in self.identities
                    if identity not in given and (identity in settled or identity.custom_id in ended_with_batch)
                ]
                for start in range(0, len(fresh), _FETCH_AT_ONCE):
                    some = fresh[start : start + _FETCH_AT_ONCE]
                    for identity, line in zip(some, await self._lines(some, settled, ended_with_batch), strict=True):
                        given.add(identity)
                        yield identity, line
            if last:
                there = settled | given
                lines = ended_with_batch
                self.missing = tuple(
                    i.custom_id for i in self.identities if i not in there and i.custom_id not in lines
                )
                return
            pause_s = _FIRST_POLL_S if len(settled) > before else min(pause_s * 1.5, _LAST_POLL_S)
            before = len(settled)
            await self._clock.sleep(min(pause_s, left))

    async def _lines(
        self, some: Sequence[Identity], settled: Container[Identity], ended_with_batch: Mapping[str, bytes]
    ) -> Sequence[bytes]:
        async def line(identity: Identity) -> bytes:
            if identity not in settled:
                return ended_with_batch[identity.custom_id]
            return await settled_line(self._store, identity)

        return await asyncio.gather(*(line(identity) for identity in some))


class StoredCourse:
    """The `Course` of a batch that is seen through by a clerk, as it lies in the store."""

    def __init__(self, objects: Objects, tenant: str, batch: str) -> None:
        self._objects = objects
        self._tenant = tenant
        self._batch = batch
        self._is_there = False

    async def ended(self) -> str | None:
        word = await self._last_word()
        if word is None:
            return None
        errors = word.get("errors")
        if errors:
            raise JobsFileError([_Refused(f"batch {self._batch}", one["line"] or 0, one["message"]) for one in errors])
        return str(word["status"])

    async def lines(self) -> Mapping[str, bytes]:
        file_id = ((await self._last_word()) or {}).get("error_file_id")
        if not file_id:
            return {}
        chunks = self._objects.read(keys.file_keys(self._tenant, file_id)[1])
        return {json.loads(line.data)["custom_id"]: line.data async for line in lines_of(chunks)}

    async def _last_word(self) -> dict[str, Any] | None:
        if not self._is_there:
            record = await self._objects.get(keys.batch_key(self._tenant, self._batch))
            manifest = keys.manifest_key(self._tenant, self._batch)
            if record is None and await self._objects.part(manifest, 0, 1) is None:
                raise no_batch(self._tenant, self._batch, self._objects.url)
            self._is_there = True
        data = await self._objects.get(keys.ended_key(self._tenant, self._batch))
        word: dict[str, Any] | None = None if data is None else json.loads(data)
        return word


@dataclass(frozen=True)
class _Refused(Problem):
    """A problem of a batch's file; line 0 is the file as a whole."""

    def __str__(self) -> str:
        return f"{self.file}: {f'line {self.line}: ' if self.line else ''}{self.message}"


async def collect(
    store: ResultStore,
    write: Callable[[bytes], object],
    *,
    tenant: str,
    batch: str,
    timeout_s: float,
    clock: Clock | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Collected:
    """Wait until every job of a batch is settled, at most `timeout_s`, then write the output lines in input order.

    Raises:
        JobError: there is no such batch.
        StoreUnavailable: the store does not answer.
    """
    collection = Collection(store, tenant, batch, clock=clock, on_progress=on_progress)
    await collection.open(timeout_s)
    written = failed = 0
    async for _, line in collection.lines(timeout_s):
        write(line + b"\n")
        written += 1
        failed += is_failure(line)
    return Collected(written, failed, collection.missing)


async def settled_line(store: ResultStore, identity: Identity) -> bytes:
    """The output line of a settled job. One that was given up and done after all counts as done."""
    result = await store.result(identity)
    if result is not None:
        return result.line
    line = await store.buried(identity)
    if line is None:
        raise JobError(f"the result of {identity.custom_id} was in {store.url} and is gone; does something delete it?")
    return line


def no_batch(tenant: str, batch: str, url: str) -> JobError:
    return JobError(f"no batch {batch} of tenant {tenant} in {url}; `cotenant submit` prints the batch's name")


def is_failure(line: bytes) -> bool:
    """Whether an output line is no success."""
    response = json.loads(line)["response"]
    return response is None or response["status_code"] >= 400
