"""Files of tenants: what batches read, what they leave, and pictures that jobs refer to. OpenAI's Files.

A file is two objects: its content, and its record, which is written after it and deleted before it. So a file that is
there is there whole. Its id begins with its time, the newest first, and says its purpose, so that a list reads no
more records than it shows.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mimetypes
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cotenant.calls.desk import Content, Json, Page
from cotenant.errors import JobError, RequestRefused, StoreUnavailable
from cotenant.jobs.desk.paging import check_page, gathered, listed, page_of_keys
from cotenant.jobs.store import keys
from cotenant.jobs.store.objects import Objects

#: OpenAI's limits on a batch's file and on any other.
MAX_BATCH_FILE_BYTES = 200 << 20
MAX_FILE_BYTES = 512 << 20
MAX_FILES_LISTED = 10_000
#: OpenAI's bounds on `expires_after`, and what files for batches get if nothing is said.
MIN_EXPIRY_S, MAX_EXPIRY_S = 3600, 2_592_000
BATCH_EXPIRY_S = 2_592_000

BATCH, BATCH_OUTPUT, VISION, USER_DATA = "batch", "batch_output", "vision", "user_data"
#: What a file may be uploaded for.
PURPOSES = (BATCH, VISION, USER_DATA)

_LETTERS: Mapping[str, str] = {BATCH: "a", BATCH_OUTPUT: "b", VISION: "c", USER_DATA: "d"}
_ID = re.compile(r"file-[0-9a-f]{24}")
_LETTER_AT = len("file-") + 11
_MAX_FILENAME_CHARS = 255


@dataclass(frozen=True)
class FileRecord:
    """What is kept of a file; times are Unix time in whole seconds."""

    id: str
    filename: str
    purpose: str
    size_bytes: int
    created_at: int
    sha256: str
    expires_at: int | None = None

    def shown(self) -> Json:
        """OpenAI's File object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.size_bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }

    def dump(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def load(cls, data: bytes) -> FileRecord:
        """The opposite of `dump`. Raises JobError."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError) as error:
            raise JobError(f"the record of a file can't be read ({error})") from error


def new_file_id(purpose: str, at_s: float, unique: str | None = None) -> str:
    """An id that says when and what for. `unique` are twelve hex digits; random ones if not given."""
    when = 10**13 - 1 - round(at_s * 1000)
    return f"file-{when:011x}{_LETTERS[purpose]}{unique or secrets.token_hex(6)}"


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
        if purpose not in PURPOSES:
            raise RequestRefused(
                f"purpose needs one of {', '.join(PURPOSES)}, got {purpose[:40]!r}",
                param="purpose",
                code="invalid_value",
            )
        seconds = expiry_s(expires_after, "expires_after")
        if seconds is None and purpose == BATCH:
            seconds = BATCH_EXPIRY_S
        file_id = new_file_id(purpose, self._now())
        record = await self.keep(
            tenant, file_id, filename=filename, purpose=purpose, chunks=chunks, expires_after_s=seconds
        )
        if record is None:
            raise RequestRefused("the file is empty; send one with content", param="file", code="empty_file")
        return record

    async def keep(
        self,
        tenant: str,
        file_id: str,
        *,
        filename: str,
        purpose: str,
        chunks: AsyncIterator[bytes],
        expires_after_s: int | None = None,
    ) -> FileRecord | None:
        """Keep a file under an id; None, and no file, if nothing comes. A file that is there is kept as it is.

        Raises:
            RequestRefused: 413, it is too large for its purpose.
        """
        record_key, data_key = keys.file_keys(tenant, file_id)
        there = await self._objects.get(record_key)
        if there is not None:
            return FileRecord.load(there)
        counted = _Counted(chunks, MAX_BATCH_FILE_BYTES if purpose == BATCH else MAX_FILE_BYTES)
        first = await anext(counted, None)
        if first is None:
            return None
        await self._objects.write(data_key, _after(first, counted))
        now = int(self._now())
        record = FileRecord(
            id=file_id,
            filename=_clean(filename) or file_id,
            purpose=purpose,
            size_bytes=counted.bytes,
            created_at=now,
            sha256=counted.digest.hexdigest(),
            expires_at=None if expires_after_s is None else now + expires_after_s,
        )
        await self._objects.put(record_key, record.dump())
        return record

    async def record(self, tenant: str, file_id: str) -> FileRecord:
        """Raises RequestRefused (404): there is no such file, or it has expired."""
        found = await self.find(tenant, file_id)
        if found is None:
            raise RequestRefused(f"there is no file {file_id[:80]!r}", status=404, param="id", code="file_not_found")
        return found

    async def find(self, tenant: str, file_id: str) -> FileRecord | None:
        """The record, or None where there is no such file (any more)."""
        if not _ID.fullmatch(file_id):
            return None
        data = await self._objects.get(keys.file_keys(tenant, file_id)[0])
        if data is None:
            return None
        record = FileRecord.load(data)
        if record.expires_at is not None and record.expires_at <= self._now():
            with contextlib.suppress(StoreUnavailable):
                await self._objects.delete(keys.file_keys(tenant, file_id))
            return None
        return record

    async def content(self, tenant: str, file_id: str) -> Content:
        """The file's bytes. Raises RequestRefused (404)."""
        record = await self.record(tenant, file_id)
        return Content(
            content_type=content_type(record.filename),
            chunks=self._objects.read(keys.file_keys(tenant, file_id)[1]),
            bytes=record.size_bytes,
            filename=record.filename,
        )

    async def whole(self, tenant: str, record: FileRecord) -> bytes | None:
        """All bytes of a file, for one that is known to be small; None if it is gone."""
        return await self._objects.get(keys.file_keys(tenant, record.id)[1])

    async def delete(self, tenant: str, file_id: str) -> Json:
        """OpenAI's answer to a deletion. A batch that still reads the file fails what it has not read.

        Raises:
            RequestRefused: 404.
        """
        await self.record(tenant, file_id)
        await self._objects.delete(keys.file_keys(tenant, file_id))
        return {"id": file_id, "object": "file", "deleted": True}

    async def page(self, tenant: str, page: Page, *, purpose: str | None = None) -> Json:
        """OpenAI's list, at most 10,000 files. Raises RequestRefused (400) for a page that there can't be."""
        check_page(page, MAX_FILES_LISTED)
        if purpose is not None and purpose not in _LETTERS:
            return listed([], has_more=False)
        after = ""
        if page.after is not None:
            if not _ID.fullmatch(page.after):
                raise RequestRefused(f"after needs the id of a file, got {page.after[:80]!r}", param="after")
            after = keys.file_keys(tenant, page.after)[0]
        letter = None if purpose is None else _LETTERS[purpose]
        prefix = keys.files_prefix(tenant)
        at = len(prefix) + 1 + _LETTER_AT

        def wanted(key: str) -> bool:
            return key.endswith(".json") and (letter is None or key[at] == letter)

        found, more = await page_of_keys(self._objects, prefix, page, after=after, wanted=wanted)
        records = [FileRecord.load(data) for data in await gathered(self._objects.get, found) if data is not None]
        now = self._now()
        shown = [record.shown() for record in records if record.expires_at is None or record.expires_at > now]
        return listed(shown, more)


def expiry_s(value: Mapping[str, Any] | None, param: str) -> int | None:
    """The seconds of an OpenAI `expires_after`; None if there is none. Raises RequestRefused."""
    if value is None:
        return None
    if not isinstance(value, Mapping) or value.get("anchor") != "created_at" or set(value) - {"anchor", "seconds"}:
        raise RequestRefused(
            f'{param} needs {{"anchor": "created_at", "seconds": …}}', param=param, code="invalid_value"
        )
    given = value.get("seconds")
    seconds = int(given) if isinstance(given, str) and re.fullmatch(r"[0-9]{1,9}", given) else given
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not MIN_EXPIRY_S <= seconds <= MAX_EXPIRY_S:
        raise RequestRefused(
            f"{param}.seconds needs {MIN_EXPIRY_S} to {MAX_EXPIRY_S}, got {repr(given)[:40]}",
            param=f"{param}.seconds",
            code="invalid_value",
        )
    return seconds


def content_type(filename: str) -> str:
    """The type that a file's name tells."""
    if filename.endswith(".jsonl"):
        return "application/jsonl"
    return mimetypes.guess_type(filename)[0] or "application/octet-stream"


class _Counted:
    """Chunks on their way, counted and hashed; empty ones are left out. Raises RequestRefused past the limit."""

    def __init__(self, chunks: AsyncIterator[bytes], limit_bytes: int) -> None:
        self._chunks = chunks
        self._limit_bytes = limit_bytes
        self.bytes = 0
        self.digest = hashlib.sha256()

    def __aiter__(self) -> _Counted:
        return self

    async def __anext__(self) -> bytes:
        chunk = b""
        while not chunk:
            chunk = await anext(self._chunks)
        self.bytes += len(chunk)
        if self.bytes > self._limit_bytes:
            raise RequestRefused(
                f"the file is over {self._limit_bytes >> 20} MB; split it", status=413, param="file",
                code="file_too_large",
            )  # fmt: skip
        self.digest.update(chunk)
        return chunk


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk


def _clean(filename: str) -> str:
    """A name that fits a header and a record: no folders, nothing that can't be printed."""
    stem = filename.replace("\\", "/").rsplit("/", 1)[-1]
    text = stem.encode("utf-8", "replace").decode()
    return "".join(c for c in text if c.isprintable())[:_MAX_FILENAME_CHARS]
