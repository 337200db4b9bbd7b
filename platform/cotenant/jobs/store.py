"""Where results live: object storage by obstore (a folder, gs://, s3://, memory://), the one file that knows it.

Always true:

- A result object is created once, by a put-if-absent keyed by the job's identity, and never changed after. Of
  two racing writers one wins, and both go on with the winner's object.
- Keys are safe whatever a tenant, batch or custom_id is called: each becomes a readable stem plus 128 bits of its
  hash, so no name reaches a path, and different names never meet.
- What a job *names* in the store (a body by reference) is looked up under its own tenant and by hash.

    <tenant>/inputs/<sha256>                     a large body, put there by who submits
    <tenant>/<batch>/manifest.json               what the batch consists of
    <tenant>/<batch>/results/<custom_id>.json    the visible result
    <tenant>/<batch>/outputs/<custom_id>-<hash>  a large reply, before the result that refers to it
    <tenant>/<batch>/dead/<custom_id>.json       why a job was given up; a result, if one comes, counts more
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, MemoryStore, from_url

from cotenant.calls import Reply
from cotenant.errors import EnvironmentFault, IdentityConflict, JobError, MalformedJob, StoreUnavailable
from cotenant.jobs.model import BodyRef, Identity, Job, ObjectRef, Result, digest

_FAILURES = (BaseError, OSError)
_RETRIES = {"max_retries": 3, "retry_timeout": timedelta(seconds=30)}


def absolute_store(url: str, base: Path) -> str:
    """`url` with a relative folder resolved against `base`, so that every process means the same folder."""
    if "://" in url and not url.startswith("file://"):
        return url
    return str((base / Path(url.removeprefix("file://")).expanduser()).resolve())


def open_store(url: str) -> ResultStore:
    """The store at `url`: a folder (made if missing), file://, gs://bucket/prefix, s3://bucket/prefix or memory://.

    Raises:
        EnvironmentFault: it can't be opened, and why.
    """
    try:
        if url.startswith("memory:"):
            return ResultStore(MemoryStore(), "memory://")
        if "://" not in url or url.startswith("file://"):
            folder = Path(absolute_store(url, Path.cwd()))
            return ResultStore(LocalStore(folder, mkdir=True), folder.as_uri())
        return ResultStore(from_url(url, retry_config=_RETRIES), url.rstrip("/"))
    except (*_FAILURES, ValueError) as error:
        raise EnvironmentFault(f"jobs.store {url} can't be opened: {_first_line(error)}; name another one") from error


class ResultStore:
    """Everything about jobs that outlives a process. Every method may raise StoreUnavailable."""

    def __init__(self, store: Any, url: str) -> None:
        self._store = store
        self.url = url

    # --- results ---

    async def result(self, identity: Identity) -> Result | None:
        """The visible result of a job, if it has one."""
        key = result_key(identity)
        data = await self._get(key)
        return None if data is None else self._load(identity, key, data)

    async def result_of(self, job: Job) -> Result | None:
        """The visible result of exactly this job.

        Raises:
            IdentityConflict: there is one, but of another job under the same identity.
        """
        result = await self.result(job.identity)
        if result is not None and result.job_sha256 != job.sha256:
            raise IdentityConflict(
                f"{job.identity.custom_id} of batch {job.identity.batch} already has the result of another body; "
                "give this job another custom_id or batch"
            )
        return result

    async def create_result(self, result: Result) -> Result:
        """Make `result` visible, unless the identity has one already: the visible one is returned.

        Raises:
            IdentityConflict: the visible one answers another job.
        """
        key = result_key(result.identity)
        if await self._create(key, result.dump()):
            return result
        data = await self._get(key)
        if data is None:
            raise StoreUnavailable(f"{key} was there and is gone; does something delete results while jobs run?")
        visible = self._load(result.identity, key, data)
        if visible.job_sha256 != result.job_sha256:
            raise IdentityConflict(f"{result.identity.custom_id} has the result of another body")
        return visible

    async def put_output(self, identity: Identity, reply: Reply) -> ObjectRef:
        """Store a large reply. Named by its content too, so a racing run never changes what another refers to."""
        suffix = mimetypes.guess_extension(reply.content_type.split(";")[0].strip()) or ".bin"
        key = f"{_batch(identity)}/outputs/{_segment(identity.custom_id)}-{digest(reply.body)[:16]}{suffix}"
        await self._create(key, reply.body)
        return ObjectRef(f"{self.url}/{key}", reply.content_type, len(reply.body))

    # --- bodies by reference ---

    async def put_body(self, tenant: str, body: bytes) -> BodyRef:
        """Store a large body for a job of `tenant`."""
        ref = BodyRef(digest(body), len(body))
        await self._create(_input_key(tenant, ref), body)
        return ref

    async def body(self, job: Job) -> bytes:
        """The body of a job, fetched if it lies here.

        Raises:
            MalformedJob: it is not here, or is not what its hash says.
        """
        if job.body_ref is None:
            return job.body or b""
        data = await self._get(_input_key(job.identity.tenant, job.body_ref))
        if data is None:
            raise MalformedJob(f"the body {job.body_ref.sha256} is not in the store; submit the job again")
        if digest(data) != job.body_ref.sha256 or len(data) != job.body_ref.bytes:
            raise MalformedJob(f"the body {job.body_ref.sha256} in the store is not what its hash says")
        return data

    # --- batches ---

    async def create_manifest(self, tenant: str, batch: str, data: bytes) -> bytes:
        """Write the batch's manifest unless it has one; the one that is there is returned."""
        key = _manifest_key(tenant, batch)
        if await self._create(key, data):
            return data
        return await self._get(key) or data

    async def manifest(self, tenant: str, batch: str) -> bytes | None:
        return await self._get(_manifest_key(tenant, batch))

    async def bury(self, identity: Identity, line: bytes) -> None:
        """Leave word of why a job was given up, as the error line of its batch's output. The last word counts."""
        await self._put(dead_key(identity), line)

    async def buried(self, identity: Identity) -> bytes | None:
        """The error line that `bury` left, if any."""
        return await self._get(dead_key(identity))

    async def settled(self, tenant: str, batch: str) -> tuple[set[str], set[str]]:
        """Keys of the batch's results and of its buried jobs (see `result_key`, `dead_key`): two listings."""
        prefix = f"{_segment(tenant)}/{_segment(batch)}"
        results = {key async for key in self._list(f"{prefix}/results")}
        dead = {key async for key in self._list(f"{prefix}/dead")}
        return results, dead

    # --- the edge ---

    async def _create(self, key: str, data: bytes) -> bool:
        """Put-if-absent; whether it was absent."""
        try:
            await obstore.put_async(self._store, key, data, mode="create")
        except AlreadyExistsError:
            return False
        except _FAILURES as error:
            raise self._unavailable(key, error) from error
        return True

    async def _put(self, key: str, data: bytes) -> None:
        try:
            await obstore.put_async(self._store, key, data)
        except _FAILURES as error:
            raise self._unavailable(key, error) from error

    async def _get(self, key: str) -> bytes | None:
        try:
            found = await obstore.get_async(self._store, key)
            return bytes(await found.bytes_async())
        except FileNotFoundError:
            return None
        except _FAILURES as error:
            raise self._unavailable(key, error) from error

    async def _list(self, prefix: str) -> AsyncIterator[str]:
        try:
            async for chunk in obstore.list(self._store, prefix):
                for entry in chunk:
                    yield entry["path"]
        except FileNotFoundError:
            return
        except _FAILURES as error:
            raise self._unavailable(prefix, error) from error

    def _load(self, identity: Identity, key: str, data: bytes) -> Result:
        try:
            return Result.load(identity, data)
        except ValueError as error:
            raise JobError(f"{self.url}/{key} is not a result object ({error}); move it away") from error

    def _unavailable(self, key: str, error: BaseException) -> StoreUnavailable:
        return StoreUnavailable(f"{self.url} did not answer for {key}: {_first_line(error)}")


def result_key(identity: Identity) -> str:
    """Key of a job's visible result."""
    return f"{_batch(identity)}/results/{_segment(identity.custom_id)}.json"


def dead_key(identity: Identity) -> str:
    """Key of the word that a given-up job left."""
    return f"{_batch(identity)}/dead/{_segment(identity.custom_id)}.json"


def _batch(identity: Identity) -> str:
    return f"{_segment(identity.tenant)}/{_segment(identity.batch)}"


def _manifest_key(tenant: str, batch: str) -> str:
    return f"{_segment(tenant)}/{_segment(batch)}/manifest.json"


def _input_key(tenant: str, ref: BodyRef) -> str:
    return f"{_segment(tenant)}/inputs/{ref.sha256}"


def _segment(name: str) -> str:
    """One path segment for any name: what is readable of it, and its hash, which makes it unique."""
    stem = re.sub(r"[^A-Za-z0-9_]+", "-", name)[:40].strip("-")
    return f"{stem}-{digest(name.encode())[:32]}".lstrip("-")


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]
