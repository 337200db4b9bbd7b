"""The desk: what the gateway asks of jobs. Files, batches and single jobs, as OpenAI-shaped JSON objects.

The gateway turns HTTP into these calls and back; `jobs.desk.Desk` does what they say. Both know only this Protocol.
Every method is about one tenant: what belongs to another is not there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Json = dict[str, Any]


@dataclass(frozen=True)
class Content:
    """Bytes to be sent: their type, size if known, and themselves in chunks."""

    content_type: str
    chunks: AsyncIterator[bytes]
    bytes: int | None = None
    filename: str | None = None


@dataclass(frozen=True)
class Page:
    """Which part of a list is wanted, as OpenAI pages: `after` is the id of the last object of the page before."""

    limit: int = 20
    after: str | None = None
    order: str = "desc"


class Desk(Protocol):
    """Every method raises RequestRefused for what the caller did wrong (404 for what is not there), StoreUnavailable
    and SourceUnavailable when nothing could be done."""

    async def create_file(
        self,
        tenant: str,
        *,
        filename: str,
        purpose: str,
        chunks: AsyncIterator[bytes],
        expires_after: Mapping[str, Any] | None = None,
    ) -> Json:
        """Keep a file; OpenAI's File object. `expires_after` is `{anchor, seconds}`, numbers as text too."""
        ...

    async def files(self, tenant: str, page: Page, *, purpose: str | None = None) -> Json: ...

    async def file(self, tenant: str, file_id: str) -> Json: ...

    async def file_content(self, tenant: str, file_id: str) -> Content: ...

    async def delete_file(self, tenant: str, file_id: str) -> Json: ...

    async def create_batch(self, tenant: str, body: Mapping[str, Any]) -> Json:
        """Accept a batch: once this returns it is seen through, whoever dies. OpenAI's Batch object."""
        ...

    async def batches(self, tenant: str, page: Page) -> Json: ...

    async def batch(self, tenant: str, batch_id: str) -> Json: ...

    async def cancel_batch(self, tenant: str, batch_id: str) -> Json: ...

    async def create_job(self, tenant: str, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> Json:
        """Accept one job: once this returns it is seen through, whoever dies. See docs/jobs.md for the object.

        The same `idempotency_key` and body give the same job; with another body it is refused (409).
        """
        ...

    async def jobs(self, tenant: str, page: Page) -> Json: ...

    async def job(self, tenant: str, job_id: str) -> Json: ...

    async def job_content(self, tenant: str, job_id: str) -> Content:
        """What a succeeded job made, as its route would have answered it."""
        ...

    async def cancel_job(self, tenant: str, job_id: str) -> Json: ...
