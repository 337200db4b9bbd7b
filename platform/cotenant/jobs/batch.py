"""A file of jobs: reading it strictly, publishing it. What the batch consists of is in its manifest, written before
the first job is published."""

from __future__ import annotations

import dataclasses
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

from cotenant.calls import Directory
from cotenant.errors import IdentityConflict, JobsFileError, Problem
from cotenant.jobs.collecting import Collected, Progress, collect
from cotenant.jobs.lines import MAX_LINES, LineProblem, check_line
from cotenant.jobs.model import MAX_INLINE_BYTES, Job, canonical, check_name
from cotenant.jobs.queue.source import Message
from cotenant.jobs.store.results import ResultStore

__all__ = ["MAX_PROBLEMS", "Collected", "Progress", "Publish", "collect", "new_batch_id", "read_jobs", "submit"]

#: Problems shown of one file.
MAX_PROBLEMS = 20

_PUBLISH_AT_ONCE = 500

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
        checked = check_line(line, tenant=tenant, batch=batch, directory=directory)
        if isinstance(checked, LineProblem):
            problems.append(Problem(file, number, checked.message))
            if len(problems) == MAX_PROBLEMS:
                break
            continue
        job = checked.job
        first = first_line.setdefault(job.identity.custom_id, number)
        if first != number:
            text = f"custom_id {job.identity.custom_id!r} was given on line {first}; each job of a file needs its own"
            problems.append(Problem(file, number, text))
        jobs.append(job)
    if len(jobs) > MAX_LINES:
        text = f"has {len(jobs):,} jobs, and a batch may have {MAX_LINES:,}; split it"
        problems.append(Problem(file, MAX_LINES + 1, text))
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
