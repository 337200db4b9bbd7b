"""Files of tenants: what batches read, what they leave, and pictures that jobs refer to. OpenAI's Files.

A file is two objects: its content, and its record, which is written after it and deleted before it. So a file that is
there is there whole. Its id begins with its time, the newest first, and says its purpose, so that a list reads no
more records than it shows.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cotenant.calls.desk import Content, Json, Page
from cotenant.jobs.objects import Objects


@dataclass(frozen=True)
class FileRecord:
    """What is kept of a file; times are Unix time in whole seconds."""

    id: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    sha256: str
    expires_at: int | None = None

    def shown(self) -> Json:
        """OpenAI's File object."""
        raise NotImplementedError


class Files:
    """The files in a store. Every method may raise StoreUnavailable."""

    def __init__(self, objects: Objects, *, now: Callable[[], float] = time.time) -> None:
        self._objects = objects
        self._now = now

    async def create(
        self,
        tenant: str,
        *,
        filename: str,
        purpose: str,
        chunks: AsyncIterator[bytes],
        expires_after: Mapping[str, Any] | None = None,
    ) -> FileRecord:
        """Keep a file as it comes, never whole in memory.

        Args:
            purpose: batch, vision or user_data.
            expires_after: `{"anchor": "created_at", "seconds": 3600 to 2592000}`; numbers as text too. Files for
                batches expire after 30 days if nothing is said.

        Raises:
            RequestRefused: 400 for another purpose, an expiry out of range or an empty file, 413 for one too large.
        """
        raise NotImplementedError

    async def record(self, tenant: str, file_id: str) -> FileRecord:
        """Raises RequestRefused (404): there is no such file, or it has expired."""
        raise NotImplementedError

    async def content(self, tenant: str, file_id: str) -> Content:
        """The file's bytes. Raises RequestRefused (404)."""
        raise NotImplementedError

    async def delete(self, tenant: str, file_id: str) -> Json:
        """OpenAI's answer to a deletion. Raises RequestRefused (404)."""
        raise NotImplementedError

    async def page(self, tenant: str, page: Page, *, purpose: str | None = None) -> Json:
        """OpenAI's list, at most 10,000 files. Raises RequestRefused (400) for a page that there can't be."""
        raise NotImplementedError
