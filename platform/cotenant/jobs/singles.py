"""Jobs that are submitted by themselves: accepted, shown, listed, cancelled.

What is listed was published: a job's record decides which of two requests with one Idempotency-Key counts, then its
message is published, then it is listed. Its status is never stored: the result decides, then the boards of the
ingresses tell whether it runs.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from cotenant.calls import Directory
from cotenant.calls.desk import Content, Json, Page
from cotenant.config import Jobs
from cotenant.jobs.model import Job, Result
from cotenant.jobs.records import WorkloadPace
from cotenant.jobs.source import Message
from cotenant.jobs.store import ResultStore

PublishTo = Callable[[str, Sequence[Message]], Awaitable[object]]


def estimate_s(position: int, pace: WorkloadPace) -> float | None:
    """Seconds until a queued job is likely done; None where nothing is known.

    Args:
        position: jobs before it, without those that run.
        pace: of its workload, all ingresses together.
    """
    raise NotImplementedError


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
            on_cancelled: told of a job that was cancelled before it ran and wants a webhook (`Clerk.job_ended`).
        """
        raise NotImplementedError

    async def create(self, tenant: str, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> Json:
        """Accept a job: `{url, body, custom_id?, method?, priority?, deadline?, webhook_url?, metadata?}`.

        `deadline` is Unix time in seconds or RFC 3339 with a zone.

        Raises:
            RequestRefused: 400 with the parameter that is wrong, 404 for a model or template that nobody serves,
                409 for an Idempotency-Key that was used with another request, 413 for a body that is too large.
        """
        raise NotImplementedError

    async def shown(self, tenant: str, job_id: str) -> Json:
        """The job object, see docs/jobs.md. Raises RequestRefused (404)."""
        raise NotImplementedError

    async def page(self, tenant: str, page: Page) -> Json:
        """A list of jobs as OpenAI lists, at most 100. Raises RequestRefused (400) for a page that there can't be."""
        raise NotImplementedError

    async def content(self, tenant: str, job_id: str) -> Content:
        """What a succeeded job made. Raises RequestRefused: 404 where it made nothing (yet)."""
        raise NotImplementedError

    async def cancel(self, tenant: str, job_id: str) -> Json:
        """End a job that has not ended: its status is `cancelled` when this returns, and what runs is stopped soon.

        One that is cancelled already is shown as it is.

        Raises:
            RequestRefused: 404; 409 where it has ended otherwise.
        """
        raise NotImplementedError
