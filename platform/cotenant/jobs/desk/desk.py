"""The desk: `cotenant.calls.desk.Desk` over files, batches and single jobs in the store."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from cotenant.calls import Directory
from cotenant.calls.desk import Content, Json, Page
from cotenant.config import Jobs
from cotenant.jobs.desk.batches import Batches, PublishTo
from cotenant.jobs.desk.files import Files
from cotenant.jobs.desk.singles import Singles
from cotenant.jobs.model import Job, Result
from cotenant.jobs.store.results import ResultStore


class Desk:
    """Implements `cotenant.calls.desk.Desk`. Lives in one event loop."""

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
            publish: publishes to a topic by its short name (`JobSource.publish`).
            directory: what the platform serves now.
            check_webhook: refuses a tenant's webhook URL by raising RequestRefused; without it none is taken.
            on_cancelled: told of a job that was cancelled before it ran and wants a webhook (`Clerk.job_ended`).
        """
        self._files = Files(store.objects, now=now)
        self._batches = Batches(store.objects, publish, jobs, check_webhook=check_webhook, now=now)
        self._singles = Singles(
            store, publish, jobs, directory, check_webhook=check_webhook, on_cancelled=on_cancelled, now=now
        )

    async def create_file(
        self,
        tenant: str,
        *,
        filename: str,
        purpose: str,
        chunks: AsyncIterator[bytes],
        expires_after: Mapping[str, Any] | None = None,
    ) -> Json:
        record = await self._files.create(
            tenant, filename=filename, purpose=purpose, chunks=chunks, expires_after=expires_after
        )
        return record.shown()

    async def files(self, tenant: str, page: Page, *, purpose: str | None = None) -> Json:
        return await self._files.page(tenant, page, purpose=purpose)

    async def file(self, tenant: str, file_id: str) -> Json:
        return (await self._files.record(tenant, file_id)).shown()

    async def file_content(self, tenant: str, file_id: str) -> Content:
        return await self._files.content(tenant, file_id)

    async def delete_file(self, tenant: str, file_id: str) -> Json:
        return await self._files.delete(tenant, file_id)

    async def create_batch(self, tenant: str, body: Mapping[str, Any]) -> Json:
        return await self._batches.create(tenant, body)

    async def batches(self, tenant: str, page: Page) -> Json:
        return await self._batches.page(tenant, page)

    async def batch(self, tenant: str, batch_id: str) -> Json:
        return await self._batches.shown(tenant, batch_id)

    async def cancel_batch(self, tenant: str, batch_id: str) -> Json:
        return await self._batches.cancel(tenant, batch_id)

    async def create_job(self, tenant: str, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> Json:
        return await self._singles.create(tenant, body, idempotency_key=idempotency_key)

    async def jobs(self, tenant: str, page: Page) -> Json:
        return await self._singles.page(tenant, page)

    async def job(self, tenant: str, job_id: str) -> Json:
        return await self._singles.shown(tenant, job_id)

    async def job_content(self, tenant: str, job_id: str) -> Content:
        return await self._singles.content(tenant, job_id)

    async def cancel_job(self, tenant: str, job_id: str) -> Json:
        return await self._singles.cancel(tenant, job_id)
