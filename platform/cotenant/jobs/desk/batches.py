"""Batches: their records, how they are accepted, shown, listed and cancelled. OpenAI's Batches.

What is stored of a batch is written by many and undone by nobody:

    the record       once, when it is accepted: what was asked for
    progress         again and again, by the clerk that sees it through: counts, and how far it is published
    closing          once: how it ends (completed, cancelled, expired), whoever decides first
    ended            once: its last word

A clerk that was thought dead and comes back can only repeat what is decided, never undo it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cotenant.calls import BY_URL, ROUTES
from cotenant.calls.desk import Json, Page
from cotenant.config import Jobs
from cotenant.errors import IdentityConflict, JobError, MalformedJob, RequestRefused
from cotenant.jobs.desk.files import BATCH, Files, expiry_s
from cotenant.jobs.desk.paging import check_page, gathered, listed, page_of_keys
from cotenant.jobs.desk.params import (
    check_deadline,
    check_known,
    check_metadata,
    check_priority,
    check_webhook_url,
    required_text,
)
from cotenant.jobs.errand import Errand
from cotenant.jobs.model import check_name
from cotenant.jobs.queue.lanes import CLERK, topic_of
from cotenant.jobs.queue.source import Message
from cotenant.jobs.store import keys
from cotenant.jobs.store.objects import Objects

#: The endpoint of a batch whose lines may go to any route (only `submit` makes such).
ANY_ENDPOINT = "*"
WINDOW, WINDOW_S = "24h", 86_400
MAX_BATCHES_LISTED = 100
#: The kind of list that batches are in; see `keys.listed_key`.
LIST = "batches"
_PARAMS = frozenset(
    {
        *("input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"),
        *("priority", "deadline", "webhook_url"),
    }
)

PublishTo = Callable[[str, Sequence[Message]], Awaitable[object]]
"""Publishes messages to a topic by its short name, as `JobSource.publish` does."""


@dataclass(frozen=True)
class BatchRecord:
    """What was asked for; times are Unix time in whole seconds.

    `priority` is that of its lines; those that have not begun at `deadline_at_s` end as expired.
    """

    id: str
    tenant: str
    endpoint: str
    input_file_id: str
    created_at: int
    expires_at: int
    completion_window: str = WINDOW
    metadata: Mapping[str, str] | None = None
    output_expires_s: int | None = None
    priority: int = 0
    webhook: str | None = None
    input_sha256: str = ""
    deadline_at_s: float | None = None

    def dump(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def load(cls, data: bytes) -> BatchRecord:
        """The opposite of `dump`. Raises JobError."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError) as error:
            raise JobError(f"the record of a batch can't be read ({error})") from error


def new_batch_id() -> str:
    return f"batch_{secrets.token_hex(12)}"


class Batches:
    """The batches in a store. Every method may raise StoreUnavailable; `create` and `submit` SourceUnavailable."""

    def __init__(
        self,
        objects: Objects,
        publish: PublishTo,
        jobs: Jobs,
        *,
        check_webhook: Callable[[str, str], None] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`check_webhook` refuses a tenant's webhook URL by raising RequestRefused; without it none is taken."""
        self._objects = objects
        self._publish = publish
        self._jobs = jobs
        self._check_webhook = check_webhook
        self._now = now

    async def create(self, tenant: str, body: Mapping[str, Any]) -> Json:
        """Accept a batch as `POST /v1/batches` asks for it. Ours beside theirs: `priority`, `deadline`,
        `webhook_url`.

        Its file is looked at later, as theirs is: one that is not there, or not right, makes the batch `failed`.

        Raises:
            RequestRefused: 400, with the parameter that is wrong.
        """
        check_known(body, _PARAMS, "a batch")
        endpoint = required_text(body, "endpoint")
        if endpoint not in BY_URL:
            raise RequestRefused(
                f"endpoint needs one of {', '.join(route.url for route in ROUTES)}, got {endpoint[:80]!r}",
                param="endpoint",
                code="invalid_value",
            )
        window = required_text(body, "completion_window")
        if window != WINDOW:
            raise RequestRefused(
                f"completion_window needs {WINDOW!r}, got {window[:40]!r}",
                param="completion_window",
                code="invalid_value",
            )
        record = self._new(
            tenant,
            new_batch_id(),
            endpoint=endpoint,
            input_file_id=required_text(body, "input_file_id"),
            metadata=check_metadata(body.get("metadata")),
            output_expires_s=expiry_s(body.get("output_expires_after"), "output_expires_after"),
            priority=check_priority(body.get("priority")),
            webhook=self._webhook(tenant, body.get("webhook_url")),
            deadline_at_s=check_deadline(body.get("deadline"), self._now()),
        )
        return await self._accept(record)

    async def submit(
        self,
        tenant: str,
        chunks: AsyncIterator[bytes],
        *,
        filename: str,
        input_sha256: str,
        batch_id: str | None = None,
        metadata: Mapping[str, str] | None = None,
        priority: int = 0,
        webhook: str | None = None,
        deadline_at_s: float | None = None,
    ) -> Json:
        """Accept a file of jobs for any routes, as `cotenant submit` does: keeps the file, then makes the batch.

        The same `batch_id` and `input_sha256` (of the file's bytes) again is the same batch.

        Raises:
            IdentityConflict: the batch exists, with another file.
            MalformedJob: the tenant or the batch is no name that a message can carry.
            RequestRefused: the file is too large or empty; a priority, webhook or metadata that is none.
        """
        check_name("the tenant", tenant)
        check_name("the batch", batch_id or "new")
        checked = check_metadata(metadata), check_priority(priority), self._webhook(tenant, webhook)
        there = await self._find(tenant, batch_id) if batch_id is not None else None
        if there is not None:
            return await self._accept(_same(there, input_sha256))
        file = await Files(self._objects, now=self._now).create(tenant, filename=filename, purpose=BATCH, chunks=chunks)
        record = self._new(
            tenant,
            batch_id or new_batch_id(),
            endpoint=ANY_ENDPOINT,
            input_file_id=file.id,
            metadata=checked[0],
            priority=checked[1],
            webhook=checked[2],
            input_sha256=input_sha256,
            deadline_at_s=deadline_at_s,
        )
        return await self._accept(record)

    async def shown(self, tenant: str, batch_id: str) -> Json:
        """OpenAI's Batch object as it stands now. Raises RequestRefused (404)."""
        return await self._show(await self.record(tenant, batch_id))

    async def record(self, tenant: str, batch_id: str) -> BatchRecord:
        """What was asked for. Raises RequestRefused (404)."""
        found = await self._find(tenant, batch_id)
        if found is None:
            raise RequestRefused(f"there is no batch {batch_id[:80]!r}", status=404, code="batch_not_found")
        return found

    async def page(self, tenant: str, page: Page) -> Json:
        """OpenAI's list, at most 100 batches. Raises RequestRefused (400) for a page that there can't be."""
        check_page(page, MAX_BATCHES_LISTED)
        after = ""
        if page.after is not None:
            last = await self._find(tenant, page.after)
            if last is None:
                raise RequestRefused(f"after needs the id of a batch, got {page.after[:80]!r}", param="after")
            after = keys.listed_key(tenant, LIST, last.created_at, last.id)
        prefix = keys.listed_prefix(tenant, LIST)
        found, more = await page_of_keys(self._objects, prefix, page, after=after)
        folder, start = keys.batches_prefix(tenant), len(prefix) + 1 + len(keys.newest_first(0)) + 1
        records = await gathered(self._objects.get, (f"{folder}/{key[start:]}.json" for key in found))
        loaded = [BatchRecord.load(data) for data in records if data is not None]
        return listed(await gathered(self._show, loaded), more)

    async def cancel(self, tenant: str, batch_id: str) -> Json:
        """Cancel a batch; one that is cancelled already is shown as it is.

        Raises:
            RequestRefused: 404; 409 where it has ended or is about to.
        """
        record = await self.record(tenant, batch_id)
        shown = await self._show(record)
        if shown["status"] in ("cancelling", "cancelled"):
            return shown
        if shown["status"] not in ("validating", "in_progress"):
            raise RequestRefused(f"a batch that is {shown['status']} can't be cancelled", status=409)
        at = str(int(self._now())).encode()
        await self._objects.create(keys.cancelled_batch_key(tenant, batch_id), at)
        return await self._show(record)

    def _new(self, tenant: str, batch_id: str, **asked: Any) -> BatchRecord:
        now = int(self._now())
        return BatchRecord(id=batch_id, tenant=tenant, created_at=now, expires_at=now + WINDOW_S, **asked)

    async def _accept(self, record: BatchRecord) -> Json:
        """Once this returns the batch is seen through. Accepting it again does no harm."""
        tenant = record.tenant
        key = keys.batch_key(tenant, record.id)
        if not await self._objects.create(key, record.dump()):
            there = await self._find(tenant, record.id)
            record = _same(there, record.input_sha256) if there is not None else record
        shown = await self._show(record)
        if shown["status"] in ("completed", "failed", "cancelled", "expired"):
            return shown
        await self._publish(topic_of(self._jobs, CLERK), [Errand("batch", tenant, record.id).message()])
        await self._objects.put(keys.listed_key(tenant, LIST, record.created_at, record.id), b"")
        return shown

    async def _find(self, tenant: str, batch_id: str) -> BatchRecord | None:
        try:
            check_name("a batch", batch_id)
        except MalformedJob:
            return None
        data = await self._objects.get(keys.batch_key(tenant, batch_id))
        return None if data is None else BatchRecord.load(data)

    def _webhook(self, tenant: str, url: Any) -> str | None:
        return check_webhook_url(self._check_webhook, tenant, url)

    async def _show(self, record: BatchRecord) -> Json:
        get, tenant, batch = self._objects.get, record.tenant, record.id
        ended = await get(keys.ended_key(tenant, batch))
        if ended is not None:
            return shown_batch(record, ended=json.loads(ended), mark=await get(keys.cancelled_batch_key(tenant, batch)))
        closing, progress, mark = await asyncio.gather(
            get(keys.closing_key(tenant, batch)),
            get(keys.progress_key(tenant, batch)),
            get(keys.cancelled_batch_key(tenant, batch)),
        )
        noted = json.loads(progress) if progress is not None else None
        return shown_batch(record, closing=closing_of(closing), progress=noted, mark=mark)


def closing_of(data: bytes | None) -> Json | None:
    """How a batch closes: `{outcome, at_s, asked_at}`; None while that is open."""
    if data is None:
        return None
    closing: Json = json.loads(data)
    return closing


def shown_batch(
    record: BatchRecord,
    *,
    ended: Json | None = None,
    closing: Json | None = None,
    progress: Json | None = None,
    mark: bytes | None = None,
) -> Json:
    """OpenAI's Batch object from what is stored of a batch. Pure."""
    known = ended or progress or {}
    outcome = ended["status"] if ended is not None else (closing or {}).get("outcome")
    closed_at = (ended or {}).get("closed_at") or (int(closing["at_s"]) if closing is not None else None)
    asked_at = (ended or closing or {}).get("asked_at") or (_time(mark) if mark is not None else None)
    ended_at = int(ended["ended_at_s"]) if ended is not None else None
    if ended is not None:
        status = ended["status"]
    elif outcome == "cancelled" or (outcome is None and mark is not None):
        status = "cancelling"
    elif outcome is not None:
        status = "finalizing"
    else:
        status = "validating" if known.get("began_at") is None else "in_progress"
    errors = known.get("errors")
    return {
        "id": record.id,
        "object": "batch",
        "endpoint": record.endpoint,
        "errors": {"object": "list", "data": errors} if errors else None,
        "input_file_id": record.input_file_id,
        "completion_window": record.completion_window,
        "status": status,
        "output_file_id": known.get("output_file_id"),
        "error_file_id": known.get("error_file_id"),
        "created_at": record.created_at,
        "in_progress_at": known.get("began_at"),
        "expires_at": record.expires_at,
        "finalizing_at": closed_at if outcome in ("completed", "expired") else None,
        "completed_at": ended_at if status == "completed" else None,
        "failed_at": ended_at if status == "failed" else None,
        "expired_at": ended_at if status == "expired" else None,
        "cancelling_at": (asked_at or closed_at) if status in ("cancelling", "cancelled") else None,
        "cancelled_at": ended_at if status == "cancelled" else None,
        "request_counts": {name: known.get(name, 0) for name in ("total", "completed", "failed")},
        "metadata": dict(record.metadata) if record.metadata is not None else None,
    }


def _same(there: BatchRecord, input_sha256: str) -> BatchRecord:
    if there.input_sha256 != input_sha256:
        raise IdentityConflict(f"batch {there.id} exists with other jobs; submit these under another name")
    return there


def _time(mark: bytes) -> int | None:
    return int(mark) if mark.isdigit() else None
