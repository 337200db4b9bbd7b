"""The edge to object storage: obstore in production, its in-memory twin in tests. The one file that knows obstore.

Always true of a store of objects:

- `create` writes an object only where there is none: of two racing writers one wins and both know which.
- `put` replaces an object whole: a reader sees the old one or the new one.
- Every method raises StoreUnavailable, and nothing else, when the store does not answer.
"""

from __future__ import annotations

import atexit
import functools
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import AzureStore, GCSStore, LocalStore, MemoryStore, S3Store, from_url

from cotenant.errors import EnvironmentFault, StoreUnavailable

#: Chunks in which an object is read as a stream, and the part size of one that is written as a stream.
CHUNK_BYTES = 1 << 20
_PART_BYTES = 8 << 20
#: Name of the file that marks a folder as a store.
_MARK = "_store"

#: obstore's threads hand a result over and then need Python for a moment more; a process that ends in that moment is
#: aborted (signal 6, seen in 3 of 10 processes that ended right after a call, in none after a pause).
_EXIT_PAUSE_S = 0.05

_FAILURES = (BaseError, OSError)
_RETRIES = {"max_retries": 3, "retry_timeout": timedelta(seconds=30)}


@dataclass(frozen=True)
class Entry:
    """An object in a listing; `modified_s` is Unix time."""

    key: str
    bytes: int
    modified_s: float


class Objects(Protocol):
    """Objects by key. `url` is where they are, without a slash at its end.

    `ordered`: `list` gives keys in their order, so who wants the first few may stop there.
    """

    url: str
    ordered: bool

    async def create(self, key: str, data: bytes) -> bool:
        """Put-if-absent; whether it was absent."""
        ...

    async def put(self, key: str, data: bytes) -> None: ...

    async def get(self, key: str) -> bytes | None: ...

    async def part(self, key: str, start: int, length: int) -> bytes | None:
        """`length` bytes from `start` on, fewer at the object's end; None if it is not there.

        `start` needs to lie within the object.
        """
        ...

    def read(self, key: str) -> AsyncIterator[bytes]:
        """The object in chunks; none if it is not there."""
        ...

    async def write(self, key: str, chunks: AsyncIterator[bytes]) -> int:
        """Write an object as it comes; its size in bytes. It appears whole, or not at all if `chunks` raises."""
        ...

    def list(self, prefix: str, *, after: str = "") -> AsyncIterator[Entry]:
        """What lies under the folder `prefix`; with `after`, keys that sort behind it (in any order)."""
        ...

    async def delete(self, keys: Iterable[str]) -> None:
        """Delete what is there of these."""
        ...

    async def sign(self, key: str, expires_s: float) -> str | None:
        """A URL that anybody may read the object at for a time; None where the store has none (a folder)."""
        ...


def absolute_store(url: str, base: Path) -> str:
    """`url` with a relative folder resolved against `base`, so that every process means the same folder."""
    if "://" in url and not url.startswith("file://"):
        return url
    return str((base / Path(url.removeprefix("file://")).expanduser()).resolve())


def open_objects(url: str) -> ObstoreObjects:
    """The objects at `url`: a folder (made if missing), file://, gs://bucket/prefix, s3://bucket/prefix or memory://.

    Raises:
        EnvironmentFault: it can't be opened, and why.
    """
    _pause_at_exit()
    try:
        if url.startswith("memory:"):
            return ObstoreObjects(MemoryStore(), "memory://")
        if "://" not in url or url.startswith("file://"):
            folder = Path(absolute_store(url, Path.cwd()))
            store = LocalStore(folder, mkdir=True)
            (folder / _MARK).touch()
            return ObstoreObjects(store, folder.as_uri(), mark=folder / _MARK)
        return ObstoreObjects(from_url(url, retry_config=_RETRIES), url.rstrip("/"))
    except (*_FAILURES, ValueError) as error:
        raise EnvironmentFault(f"jobs.store {url} can't be opened: {_first_line(error)}; name another one") from error


class ObstoreObjects:
    """`Objects` in a folder, a bucket or this process's memory.

    `mark` is a file in a folder's root that was there when it was opened: without it the folder is not the same one
    any more (unmounted, moved away), and what would be written there would be lost.
    """

    def __init__(self, store: Any, url: str, *, mark: Path | None = None) -> None:
        self._open = store
        self._mark = mark
        self.url = url
        self.ordered = isinstance(store, (GCSStore, S3Store, MemoryStore))

    @property
    def _store(self) -> Any:
        if self._mark is not None and not self._mark.exists():
            raise FileExistsError("the folder is not the one that was opened; is its disk mounted?")
        return self._open

    async def create(self, key: str, data: bytes) -> bool:
        try:
            await obstore.put_async(self._store, key, data, mode="create")
        except AlreadyExistsError:
            return False
        except _FAILURES as error:
            raise self._unavailable(key, error) from error
        return True

    async def put(self, key: str, data: bytes) -> None:
        try:
            await obstore.put_async(self._store, key, data)
        except _FAILURES as error:
            raise self._unavailable(key, error) from error

    async def get(self, key: str) -> bytes | None:
        try:
            found = await obstore.get_async(self._store, key)
            return bytes(await found.bytes_async())
        except FileNotFoundError:
            return None
        except _FAILURES as error:
            raise self._unavailable(key, error) from error

    async def part(self, key: str, start: int, length: int) -> bytes | None:
        try:
            return bytes(await obstore.get_range_async(self._store, key, start=start, length=length))
        except FileNotFoundError:
            return None
        except _FAILURES as error:
            raise self._unavailable(key, error) from error

    async def read(self, key: str) -> AsyncIterator[bytes]:
        try:
            found = await obstore.get_async(self._store, key)
            async for chunk in found.stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(chunk)
        except FileNotFoundError:
            return
        except _FAILURES as error:
            raise self._unavailable(key, error) from error

    async def write(self, key: str, chunks: AsyncIterator[bytes]) -> int:
        size = 0
        try:
            async with obstore.open_writer_async(self._store, key, buffer_size=_PART_BYTES) as writer:
                async for chunk in _told_apart(chunks):
                    size += len(chunk)
                    await writer.write(chunk)
        except _BrokenOff as broken:
            assert broken.__cause__ is not None
            raise broken.__cause__ from None
        except _FAILURES as error:
            raise self._unavailable(key, error) from error
        return size

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[Entry]:
        try:
            async for chunk in obstore.list(self._store, prefix, offset=after or None):
                for meta in chunk:
                    yield Entry(meta["path"], meta["size"], meta["last_modified"].timestamp())
        except FileNotFoundError:
            return
        except _FAILURES as error:
            raise self._unavailable(prefix, error) from error

    async def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            try:
                await obstore.delete_async(self._store, key)
            except FileNotFoundError:
                continue
            except _FAILURES as error:
                raise self._unavailable(key, error) from error

    async def sign(self, key: str, expires_s: float) -> str | None:
        if not isinstance(self._open, (AzureStore, GCSStore, S3Store)):
            return None
        try:
            return str(await obstore.sign_async(self._store, "GET", key, timedelta(seconds=expires_s)))
        except _FAILURES as error:
            raise self._unavailable(key, error) from error

    def _unavailable(self, key: str, error: BaseException) -> StoreUnavailable:
        return StoreUnavailable(f"{self.url} did not answer for {key}: {_first_line(error)}")


class MemoryObjects:
    """The in-memory twin: a dict that no thread makes wait, so that tests can own the clock.

    `down` makes it fail as a store does that is out of reach; `created` holds the keys that `create` wrote, in order.
    """

    def __init__(self, url: str = "memory://") -> None:
        self.url = url
        self.ordered = False
        self.down = False
        self.objects: dict[str, bytes] = {}
        self.created: list[str] = []

    async def create(self, key: str, data: bytes) -> bool:
        self._check()
        if key in self.objects:
            return False
        self.objects[key] = data
        self.created.append(key)
        return True

    async def put(self, key: str, data: bytes) -> None:
        self._check()
        self.objects[key] = data

    async def get(self, key: str) -> bytes | None:
        self._check()
        return self.objects.get(key)

    async def part(self, key: str, start: int, length: int) -> bytes | None:
        self._check()
        data = self.objects.get(key)
        return None if data is None else data[start : start + length]

    async def read(self, key: str) -> AsyncIterator[bytes]:
        self._check()
        data = self.objects.get(key, b"")
        for start in range(0, len(data), CHUNK_BYTES):
            yield data[start : start + CHUNK_BYTES]

    async def write(self, key: str, chunks: AsyncIterator[bytes]) -> int:
        data = b"".join([chunk async for chunk in chunks])
        await self.put(key, data)
        return len(data)

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[Entry]:
        self._check()
        for key, data in list(self.objects.items()):
            if key.startswith(f"{prefix}/") and key > after:
                yield Entry(key, len(data), 0.0)

    async def delete(self, keys: Iterable[str]) -> None:
        self._check()
        for key in keys:
            self.objects.pop(key, None)

    async def sign(self, key: str, expires_s: float) -> str | None:
        del key, expires_s
        return None

    def _check(self) -> None:
        if self.down:
            raise StoreUnavailable("the store is down")


async def keys(objects: Objects, prefix: str) -> Sequence[str]:
    """The keys under the folder `prefix`."""
    return [entry.key async for entry in objects.list(prefix)]


@functools.cache
def _pause_at_exit() -> None:
    """Have this process wait a moment before it ends. Once."""
    atexit.register(time.sleep, _EXIT_PAUSE_S)


class _BrokenOff(Exception):
    """Whoever gave the chunks failed, not the store."""


async def _told_apart(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        async for chunk in chunks:
            yield chunk
    except Exception as error:
        raise _BrokenOff from error


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]
