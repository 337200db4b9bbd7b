"""A batch published line by line to a topic, with its manifest before it: what a system of one's own might do."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Awaitable, Callable, Sequence

from cotenant.jobs.model import MAX_INLINE_BYTES, Job, canonical
from cotenant.jobs.queue.source import Message
from cotenant.jobs.store.results import ResultStore

Publish = Callable[[Sequence[Message]], Awaitable[object]]


async def publish_batch(jobs: Sequence[Job], store: ResultStore, publish: Publish) -> None:
    tenant, batch = jobs[0].identity.tenant, jobs[0].identity.batch
    ours = [[job.identity.custom_id, job.sha256] for job in jobs]
    manifest = {"batch": batch, "tenant": tenant, "created_at": int(time.time()), "jobs": ours}
    await store.create_manifest(tenant, batch, canonical(manifest))
    await publish([Message((slim := await _slimmed(job, store)).line(), slim.attributes) for job in jobs])


async def _slimmed(job: Job, store: ResultStore) -> Job:
    if job.body is None or len(job.body) <= MAX_INLINE_BYTES:
        return job
    return dataclasses.replace(job, body=None, body_ref=await store.put_body(job.identity.tenant, job.body))
