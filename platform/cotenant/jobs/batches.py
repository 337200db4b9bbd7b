"""Batches: their records, how they are accepted, shown, listed and cancelled. OpenAI's Batches.

What is stored of a batch is written by many and undone by nobody:

    the record       once, when it is accepted: what was asked for
    progress         again and again, by the clerk that sees it through: counts, and how far it is published
    closing          once: how it ends (completed, cancelled, expired), whoever decides first
    ended            once: its last word

A clerk that was thought dead and comes back can only repeat what is decided, never undo it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cotenant.calls.desk import Json, Page
from cotenant.config import Jobs
from cotenant.jobs.objects import Objects
from cotenant.jobs.source import Message

#: The endpoint of a batch whose lines may go to any route (only `submit` makes such).
ANY_ENDPOINT = "*"

PublishTo = Callable[[str, Sequence[Message]], Awaitable[object]]
"""Publishes messages to a topic by its short name, as `JobSource.publish` does."""


@dataclass(frozen=True)
class BatchRecord:
    """What was asked for; times are Unix time in whole seconds. `priority` is that of its lines."""

    id: str
    tenant: str
    endpoint: str
    input_file_id: str
    created_at: int
    expires_at: int
    completion_window: str = "24h"
    metadata: Mapping[str, str] | None = None
    output_expires_s: int | None = None
    priority: int = 0
    webhook: str | None = None
    input_sha256: str = ""


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
        """Accept a batch as `POST /v1/batches` asks for it. Ours beside theirs: `priority`, `webhook_url`.

        Its file is looked at later, as theirs is: one that is not there, or not right, makes the batch `failed`.

        Raises:
            RequestRefused: 400, with the parameter that is wrong.
        """
        raise NotImplementedError

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
    ) -> Json:
        """Accept a file of jobs for any routes, as `cotenant submit` does: keeps the file, then makes the batch.

        The same `batch_id` and `input_sha256` (of the file's bytes) again is the same batch.

        Raises:
            IdentityConflict: the batch exists, with another file.
            RequestRefused: the file is too large or empty; a name, priority or webhook that is none.
        """
        raise NotImplementedError

    async def shown(self, tenant: str, batch_id: str) -> Json:
        """OpenAI's Batch object as it stands now. Raises RequestRefused (404)."""
        raise NotImplementedError

    async def page(self, tenant: str, page: Page) -> Json:
        """OpenAI's list, at most 100 batches. Raises RequestRefused (400) for a page that there can't be."""
        raise NotImplementedError

    async def cancel(self, tenant: str, batch_id: str) -> Json:
        """Cancel a batch; one that is cancelled already is shown as it is.

        Raises:
            RequestRefused: 404; 409 where it has ended or is about to.
        """
        raise NotImplementedError
