"""A file of jobs in, OpenAI's output file out: reading it strictly, publishing it, collecting its results.

Results are learnt from the *store*, not from the results topic: the object is the visible result, exactly one for
each job, while result messages come at least once, to one subscriber each, and only while somebody subscribes.
So a collector may start late, die and start again, or run twice, and needs no subscription of its own. What the
batch consists of is in its manifest, written before the first job is published.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from cotenant.calls import Directory
from cotenant.errors import IdentityConflict, JobError, JobsFileError, MalformedJob, Problem, UnknownWorkload
from cotenant.jobs.clock import Clock, SystemClock
from cotenant.jobs.model import MAX_INLINE_BYTES, Identity, Job, canonical, check_name, parse_body, parse_line
from cotenant.jobs.source import Message
from cotenant.jobs.store import ResultStore, dead_key, result_key

#: Problems shown of one file.
MAX_PROBLEMS = 20

_PUBLISH_AT_ONCE = 500
_FETCH_AT_ONCE = 16
_FIRST_POLL_S, _LAST_POLL_S = 0.2, 2.0

Publish = Callable[[Sequence[Message]], Awaitable[object]]
"""Publishes messages to the jobs topic: all, or it raises."""


def new_batch_id() -> str:
    return f"batch_{secrets.token_hex(12)}"


def read_jobs(
    lines: Iterable[bytes], file: str, *, tenant: str, batch: str, directory: Directory | None = None
) -> list[Job]:
    """The jobs of a batch file, all of them or none. Empty lines are passed over.

    Args:
        file: its name, for messages.
        directory: what the platform serves; with it, a route, model or template that nobody serves is refused.

    Raises:
        JobsFileError: lines that are no jobs, a custom_id given twice, or no job at all; with line numbers.
        MalformedJob: the tenant or the batch is no name that a message can carry.
    """
    check_name("the tenant", tenant)
    check_name("the batch", batch)
    jobs: list[Job] = []
    problems: list[Problem] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            job = parse_line(line, tenant=tenant, batch=batch)
            if directory is not None and job.body is not None:
                directory.route(job.url, parse_body(job.body))
        except (MalformedJob, UnknownWorkload) as error:
            problems.append(Problem(file, number, str(error)))
            if len(problems) == MAX_PROBLEMS:
                break
            continue
        first = first_line.setdefault(job.identity.custom_id, number)
        if first != number:
            text = f"custom_id {job.identity.custom_id!r} was given on line {first}; each job of a file needs its own"
            problems.append(Problem(file, number, text))
        jobs.append(job)
    if not jobs and not problems:
        problems.append(Problem(file, 1, "has no jobs; give one a line: {custom_id, method, url, body}"))
    if problems:
        raise JobsFileError(problems)
    return jobs


async def submit(
    jobs: Sequence[Job], store: ResultStore, publish: Publish, on_published: Callable[[int], None] = lambda _: None
) -> None:
    """Publish the jobs of one batch. Doing it again, after an error too, repeats no work and loses none.

    `on_published` is told how many are published by now.

    Raises:
        IdentityConflict: the batch exists, with other jobs.
        SourceUnavailable, StoreUnavailable: a part may be published; submit the same batch again.
    """
    tenant, batch = jobs[0].identity.tenant, jobs[0].identity.batch
    ours = [[job.identity.custom_id, job.sha256] for job in jobs]
    manifest = {"batch": batch, "tenant": tenant, "created_at": int(time.time()), "jobs": ours}
    there = await store.create_manifest(tenant, batch, canonical(manifest))
    if json.loads(there)["jobs"] != ours:
        raise IdentityConflict(f"batch {batch} exists with other jobs; submit these under another name")
    for start in range(0, len(jobs), _PUBLISH_AT_ONCE):
        some = [await _slimmed(job, store) for job in jobs[start : start + _PUBLISH_AT_ONCE]]
        await publish([Message(job.line(), job.identity.attributes) for job in some])
        on_published(start + len(some))


async def _slimmed(job: Job, store: ResultStore) -> Job:
    """The job with a large body put into the store."""
    if job.body is None or len(job.body) <= MAX_INLINE_BYTES:
        return job
    return dataclasses.replace(job, body=None, body_ref=await store.put_body(job.identity.tenant, job.body))


@dataclass(frozen=True)
class Progress:
    """How far a batch is: jobs with a result, and jobs that were given up."""

    done: int
    given_up: int
    total: int


@dataclass(frozen=True)
class Collected:
    """Lines written, how many of them are no success, and the custom_ids that have none yet."""

    written: int
    failed: int
    missing: tuple[str, ...]


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

    Waiting costs two listings a poll and holds names only; lines go from store to `write` a few at a time.

    Raises:
        JobError: there is no such batch.
        StoreUnavailable: the store does not answer.
    """
    clock = clock or SystemClock()
    manifest = await store.manifest(tenant, batch)
    if manifest is None:
        raise JobError(f"no batch {batch} of tenant {tenant} in {store.url}; `cotenant submit` prints the batch's name")
    identities = [Identity(tenant, batch, custom_id) for custom_id, _ in json.loads(manifest)["jobs"]]
    deadline, pause_s, before = clock.now() + timeout_s, _FIRST_POLL_S, -1
    while True:
        results, dead = await store.settled(tenant, batch)
        done = {identity for identity in identities if result_key(identity) in results}
        given_up = {identity for identity in identities if dead_key(identity) in dead} - done
        on_progress(Progress(len(done), len(given_up), len(identities)))
        settled = len(done) + len(given_up)
        left = deadline - clock.now()
        if settled == len(identities) or left <= 0:
            break
        pause_s = _FIRST_POLL_S if settled > before else min(pause_s * 1.5, _LAST_POLL_S)
        before = settled
        await clock.sleep(min(pause_s, left))
    written = failed = 0
    wanted = [identity for identity in identities if identity in done or identity in given_up]
    for start in range(0, len(wanted), _FETCH_AT_ONCE):
        for line in await asyncio.gather(*(_line(store, i) for i in wanted[start : start + _FETCH_AT_ONCE])):
            write(line + b"\n")
            written += 1
            failed += _is_failure(line)
    missing = tuple(i.custom_id for i in identities if i not in done and i not in given_up)
    return Collected(written, failed, missing)


async def _line(store: ResultStore, identity: Identity) -> bytes:
    """The output line of a settled job. One that was given up and done after all counts as done."""
    result = await store.result(identity)
    if result is not None:
        return result.line
    line = await store.buried(identity)
    if line is None:
        raise JobError(f"the result of {identity.custom_id} was in {store.url} and is gone; does something delete it?")
    return line


def _is_failure(line: bytes) -> bool:
    response = json.loads(line)["response"]
    return response is None or response["status_code"] >= 400
