"""Jobs that are submitted by themselves: accepted, shown, listed, cancelled.

What is listed was published: a job's record decides which of two requests with one Idempotency-Key counts, then its
message is published, then it is listed. Its status is never stored: its result decides, then the boards of the
ingresses tell whether it runs.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from cotenant.calls import Directory
from cotenant.calls.desk import Content, Json, Page
from cotenant.config import Jobs
from cotenant.errors import MalformedJob, RequestRefused, StoreUnavailable
from cotenant.jobs.desk.asked import check_job, request_sha256
from cotenant.jobs.desk.batches import PublishTo
from cotenant.jobs.desk.files import Files
from cotenant.jobs.desk.paging import check_page, gathered, listed, page_of_keys
from cotenant.jobs.endings import CANCELLED, error_of, output_of, parsed, status_of
from cotenant.jobs.model import (
    Identity,
    Job,
    Result,
    canonical,
    check_name,
    error_line,
)
from cotenant.jobs.queue.lanes import lane_of, topic_of
from cotenant.jobs.queue.source import Message
from cotenant.jobs.store import keys
from cotenant.jobs.store.records import Board, JobRecord, Records, WorkloadPace, pace_of
from cotenant.jobs.store.results import ResultStore

#: The kind of list that single jobs are in; see `keys.listed_key`.
LIST = "jobs"
MAX_JOBS_LISTED = 100
#: How long a signed URL of an output is good for.
SIGNED_S = 3600.0
#: How long what is known of queues and ingresses is believed.
_AGE_S = 1.0
#: A place in the queue that is as old as this is checked: is anybody still at it?
_SWEEP_AFTER_S = 3600.0
_MAX_KEY_CHARS = 255


def estimate_s(position: int, pace: WorkloadPace) -> float | None:
    """Seconds until a queued job is likely done; None where nothing is known.

    Args:
        position: jobs before it that have not ended, running ones too.
        pace: of its workload, all ingresses together.
    """
    if pace.slots <= 0 or pace.mean_s <= 0:
        return None
    return (position // pace.slots + 1) * pace.mean_s


class Singles:
    """The single jobs in a store. Every method may raise StoreUnavailable; `create` SourceUnavailable."""

    def __init__(
        self,
        store: ResultStore,
        publish: PublishTo,
        jobs: Jobs,
        directory: Callable[[], Directory],
        *,
        check_webhook: Callable[[str, str], None] | None = None,
        on_cancelled: Callable[[Job, Result], Awaitable[None]] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            check_webhook: refuses a tenant's webhook URL by raising RequestRefused; without it none is taken.
            on_cancelled: told at once of a job that was cancelled and wants a webhook (`Clerk.job_ended`); without it
                the ingress tells, when it comes to the job's message.
        """
        self._store = store
        self._objects = store.objects
        self._records = Records(store.objects)
        self._files = Files(store.objects, now=now)
        self._publish = publish
        self._jobs = jobs
        self._directory = directory
        self._check_webhook = check_webhook
        self._on_cancelled = on_cancelled
        self._now = now
        self._boards: tuple[float, tuple[Board, ...]] = (-math.inf, ())
        self._places: dict[str, tuple[float, Sequence[str]]] = {}
        self._lanes: set[str] = set()

    async def create(self, tenant: str, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> Json:
        """Accept a job: `{url, body, custom_id?, method?, priority?, deadline?, webhook_url?, metadata?}`.

        `deadline` is Unix time in seconds or RFC 3339 with a zone.

        Raises:
            RequestRefused: 400 with the parameter that is wrong, 404 for a model or template that nobody serves,
                409 for an Idempotency-Key that was used with another request, 413 for a body that is too large.
        """
        repeated = await self._claimed(tenant, body, idempotency_key)
        if repeated is not None and (record := await self._find(tenant, repeated.job_id)) is not None:
            # Its deadline may have passed since: what was accepted stays accepted.
            job = await self._job_again(record, body)
        else:
            asked = await check_job(
                tenant,
                body,
                directory=self._directory(),
                files=self._files,
                check_webhook=self._check_webhook,
                now_s=self._now(),
            )
            batch = f"single_{secrets.token_hex(12)}"
            identity = repeated or Identity(tenant, batch, asked.custom_id or batch)
            if idempotency_key is not None and repeated is None:
                identity = await self._claim(tenant, idempotency_key, identity, asked.sha256)
            job = await self._store.by_reference(Job(identity, asked.url, asked.body, wishes=asked.wishes))
            record = await self._records.create_job(
                JobRecord(
                    identity=identity,
                    url=asked.url,
                    workload=asked.workload,
                    created_at_s=asked.wishes.queued_at_s or self._now(),
                    sha256=job.sha256,
                    wishes=asked.wishes,
                    metadata=asked.metadata,
                    request_sha256=asked.sha256,
                )
            )
        if repeated is None or await self._line(record.identity) is None:
            await self._send(replace(job, wishes=record.wishes), record, keep=idempotency_key is not None)
        await self._objects.put(keys.listed_key(tenant, LIST, record.created_at_s, record.identity.job_id), b"")
        return await self._show(record, fresh=repeated is None)

    async def shown(self, tenant: str, job_id: str) -> Json:
        """The job object, see docs/jobs.md. Raises RequestRefused (404)."""
        return await self._show(await self.record(tenant, job_id))

    async def record(self, tenant: str, job_id: str) -> JobRecord:
        """What is kept of a job. Raises RequestRefused (404)."""
        found = await self._find(tenant, job_id)
        if found is None:
            raise RequestRefused(f"there is no job {job_id[:80]!r}", status=404, code="job_not_found")
        return found

    async def page(self, tenant: str, page: Page) -> Json:
        """A list of jobs as OpenAI lists, at most 100. Raises RequestRefused (400) for a page that there can't be."""
        check_page(page, MAX_JOBS_LISTED)
        after = ""
        if page.after is not None:
            last = await self._find(tenant, page.after)
            if last is None:
                raise RequestRefused(f"after needs the id of a job, got {page.after[:80]!r}", param="after")
            after = keys.listed_key(tenant, LIST, last.created_at_s, last.identity.job_id)
        prefix = keys.listed_prefix(tenant, LIST)
        found, more = await page_of_keys(self._objects, prefix, page, after=after)
        folder, start = keys.jobs_prefix(tenant), len(prefix) + 1 + len(keys.newest_first(0)) + 1
        records = await gathered(self._objects.get, (f"{folder}/{key[start:]}.json" for key in found))
        loaded = [JobRecord.load(data) for data in records if data is not None]
        return listed(await gathered(lambda record: self._show(record, whole=False), loaded), more)

    async def content(self, tenant: str, job_id: str) -> Content:
        """What a succeeded job made. Raises RequestRefused: 404 where it made nothing (yet)."""
        record = await self.record(tenant, job_id)
        line = await self._line(record.identity)
        output = output_of(line) if line is not None else None
        if output is None:
            status = "not done yet" if line is None else status_of(line)
            raise RequestRefused(f"job {job_id} has no output: it is {status}", status=404, code="no_output")
        if output.data is not None:
            return Content(output.content_type, _once(output.data), len(output.data))
        key = self._key_of(record, output.object_url or "")
        return Content(output.content_type, self._objects.read(key), output.size_bytes)

    async def cancel(self, tenant: str, job_id: str) -> Json:
        """End a job that has not ended: its status is `cancelled` when this returns, and what runs is stopped soon.

        One that is cancelled already is shown as it is.

        Raises:
            RequestRefused: 404; 409 where it has ended otherwise.
        """
        record = await self.record(tenant, job_id)
        identity = record.identity
        line = await self._line(identity)
        if line is None:
            await self._store.cancel(identity)
            ours = Result(identity, record.sha256, error_line(identity, CANCELLED, "the job was cancelled"))
            result = await self._store.create_result(ours)
            line = parsed(result.line)
            if record.wishes.queued_at_s is not None:
                await self._records.leave_queue(record.workload, identity, record.wishes.queued_at_s)
            if result.line == ours.line and record.wishes.webhook is not None and self._on_cancelled is not None:
                await self._on_cancelled(Job(identity, record.url, b"{}", wishes=record.wishes), result)
        if status_of(line) != "cancelled":
            raise RequestRefused(f"a job that has {status_of(line)} can't be cancelled", status=409)
        return await self._show(record)

    # --- accepting ---

    async def _claimed(self, tenant: str, body: Mapping[str, Any], key: str | None) -> Identity | None:
        """The job that an Idempotency-Key stands for already. Raises RequestRefused (409) if it is another."""
        if key is None:
            return None
        if not 0 < len(key) <= _MAX_KEY_CHARS or not key.isprintable():
            raise RequestRefused(
                f"an Idempotency-Key has 1 to {_MAX_KEY_CHARS} printable characters", code="invalid_idempotency_key"
            )
        data = await self._objects.get(keys.idempotency_key(tenant, key))
        if data is None:
            return None
        return _same(data, request_sha256(body))

    async def _claim(self, tenant: str, key: str, identity: Identity, sha256: str) -> Identity:
        """Have an Idempotency-Key stand for a job; the identity that it stands for."""
        where = keys.idempotency_key(tenant, key)
        ours = json.dumps({"identity": asdict(identity), "request_sha256": sha256}).encode()
        if await self._objects.create(where, ours):
            return identity
        there = await self._objects.get(where)
        return identity if there is None else _same(there, sha256)

    async def _job_again(self, record: JobRecord, body: Mapping[str, Any]) -> Job:
        inner = canonical(body["body"])
        return await self._store.by_reference(Job(record.identity, record.url, inner, wishes=record.wishes))

    async def _send(self, job: Job, record: JobRecord, *, keep: bool) -> None:
        """Publish a job. Where that fails and nobody could ask again, nothing is left of it."""
        try:
            if record.workload not in self._lanes:
                await self._records.remember_lane(record.workload)
                self._lanes.add(record.workload)
            topic = topic_of(self._jobs, lane_of(record.workload))
            await self._publish(topic, [Message(job.line(), job.attributes)])
        except Exception:
            identity, queued_at_s = record.identity, record.wishes.queued_at_s or 0.0
            with contextlib.suppress(StoreUnavailable):
                await self._records.leave_queue(record.workload, identity, queued_at_s)
                if not keep:
                    await self._objects.delete([keys.job_key(identity.tenant, identity.job_id)])
            raise

    # --- showing ---

    async def _find(self, tenant: str, job_id: str) -> JobRecord | None:
        try:
            check_name("a job", job_id)
        except MalformedJob:
            return None
        return await self._records.job(tenant, job_id)

    async def _line(self, identity: Identity) -> Json | None:
        """The line of a job that has ended."""
        result = await self._store.result(identity)
        data = result.line if result is not None else await self._store.buried(identity)
        return None if data is None else parsed(data)

    async def _show(self, record: JobRecord, *, whole: bool = True, fresh: bool = False) -> Json:
        """The job object.

        Args:
            whole: also what it made, where that is JSON.
            fresh: it was accepted just now, so it has neither ended nor failed.
        """
        identity, wishes = record.identity, record.wishes
        line = None if fresh else await self._line(identity)
        attempts = () if fresh else await self._store.attempts(identity)
        status, position, estimate = "queued", None, None
        if line is not None:
            status = status_of(line)
        else:
            boards = await self._living()
            if any(identity.job_id in board.running for board in boards):
                status = "running"
            elif wishes.queued_at_s is not None:
                position = await self._position(record)
                estimate = estimate_s(position, pace_of(boards, record.workload))
        return {
            "id": identity.job_id,
            "object": "job",
            "status": status,
            "created_at": int(record.created_at_s),
            "url": record.url,
            "workload": record.workload,
            "custom_id": identity.custom_id if identity.custom_id != identity.batch else None,
            "priority": wishes.priority,
            "deadline": wishes.deadline_at_s,
            "webhook_url": wishes.webhook,
            "position": position,
            "estimate_s": None if estimate is None else round(estimate, 3),
            "attempts": [{"outcome": a.outcome, "reason": a.reason, "at": int(a.at_s)} for a in attempts],
            "error": error_of(line) if line is not None else None,
            "output": await self._output(record, line, whole) if line is not None else None,
            "metadata": dict(record.metadata) if record.metadata is not None else None,
        }

    async def _output(self, record: JobRecord, line: Json, whole: bool) -> Json | None:
        output = output_of(line)
        if output is None:
            return None
        url = None
        if output.object_url is not None:
            # A store that can't sign (no key for it) is no reason not to show the job.
            with contextlib.suppress(StoreUnavailable):
                url = await self._objects.sign(self._key_of(record, output.object_url), SIGNED_S)
        shown: Json = {
            "content_type": output.content_type,
            "bytes": output.size_bytes,
            "url": url or f"/v1/jobs/{record.identity.job_id}/content",
        }
        return {**shown, "body": line["response"]["body"]} if whole and output.embedded else shown

    def _key_of(self, record: JobRecord, url: str) -> str:
        """The key of an output in the store. Raises RequestRefused for what does not lie in this one."""
        key = url.removeprefix(f"{self._objects.url}/")
        if not key.startswith(keys.batch_prefix(record.identity.tenant, record.identity.batch) + "/"):
            raise RequestRefused("the output lies in another store", status=404, code="no_output")
        return key

    async def _living(self) -> tuple[Board, ...]:
        now = self._now()
        if now - self._boards[0] >= _AGE_S:
            self._boards = (now, await self._records.boards(now))
        return self._boards[1]

    async def _position(self, record: JobRecord) -> int:
        """Jobs of its workload that were submitted by themselves before it and have not ended."""
        now, workload = self._now(), record.workload
        at_s, places = self._places.get(workload, (-math.inf, ()))
        if now - at_s >= _AGE_S:
            prefix = keys.queued_prefix(workload)
            places = sorted([entry.key async for entry in self._objects.list(prefix)])
            self._places[workload] = (now, places)
            if places:
                await self._sweep(places[0], now)
        mine = keys.queued_key(workload, record.wishes.queued_at_s or 0.0, record.identity.job_id)
        return bisect.bisect_left(places, mine)

    async def _sweep(self, place: str, now_s: float) -> None:
        """Give up the first place where it is old and its job has ended, or was never published."""
        at_s = int(place.rsplit("/", 1)[1].split("-", 1)[0]) / 1000
        if now_s - at_s < _SWEEP_AFTER_S:
            return
        identity = await self._records.at_place(place)
        if identity is not None and await self._line(identity) is None:
            record = await self._records.job(identity.tenant, identity.job_id)
            if record is not None and await self._is_listed(record):
                return
        await self._objects.delete([place])

    async def _is_listed(self, record: JobRecord) -> bool:
        key = keys.listed_key(record.identity.tenant, LIST, record.created_at_s, record.identity.job_id)
        return await self._objects.get(key) is not None


def _same(claim: bytes, sha256: str) -> Identity:
    claimed = json.loads(claim)
    if claimed["request_sha256"] != sha256:
        raise RequestRefused(
            "this Idempotency-Key was used with another request; use a new one", status=409, code="idempotency_conflict"
        )
    return Identity(**claimed["identity"])


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
