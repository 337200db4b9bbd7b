"""What the store keeps of jobs: results, bodies by reference, attempts, marks of cancellation.

Always true:

- A result object is created once, by a put-if-absent keyed by the job's identity, and never changed after. Of
  two racing writers one wins, and both go on with the winner's object.
- What a job *names* in the store (a body by reference) is looked up under its own tenant and by hash.
- Everything else here may be lost or late without a job being lost or done twice.

`keys` says where each thing lies.
"""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from cotenant.calls import Reply
from cotenant.errors import IdentityConflict, JobError, MalformedJob, StoreUnavailable
from cotenant.jobs.model import MAX_INLINE_BYTES, BodyRef, Identity, Job, ObjectRef, Result, digest
from cotenant.jobs.store import keys
from cotenant.jobs.store.keys import dead_key, result_key
from cotenant.jobs.store.objects import Objects, absolute_store, open_objects

__all__ = ["Attempt", "Marks", "ResultStore", "absolute_store", "dead_key", "open_store", "result_key"]


def open_store(url: str) -> ResultStore:
    """The store at `url`; see `objects.open_objects`. Raises EnvironmentFault."""
    return ResultStore(open_objects(url))


@dataclass(frozen=True)
class Attempt:
    """One failed attempt at a job; `at_s` is Unix time."""

    at_s: float
    outcome: str
    reason: str


@dataclass(frozen=True)
class Marks:
    """Which jobs are not wanted any more."""

    keys: frozenset[str] = frozenset()

    def __contains__(self, identity: object) -> bool:
        if not isinstance(identity, Identity) or not self.keys:
            return False
        whole = keys.cancelled_batch_key(identity.tenant, identity.batch)
        return whole in self.keys or keys.cancelled_job_key(identity) in self.keys


class ResultStore:
    """Everything about jobs that outlives a process. Every method may raise StoreUnavailable."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    @property
    def url(self) -> str:
        return self.objects.url

    # --- results ---

    async def result(self, identity: Identity) -> Result | None:
        """The visible result of a job, if it has one."""
        key = result_key(identity)
        data = await self.objects.get(key)
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
        if await self.objects.create(key, result.dump()):
            return result
        data = await self.objects.get(key)
        if data is None:
            raise StoreUnavailable(f"{key} was there and is gone; does something delete results while jobs run?")
        visible = self._load(result.identity, key, data)
        if visible.job_sha256 != result.job_sha256:
            raise IdentityConflict(f"{result.identity.custom_id} has the result of another body")
        return visible

    async def put_output(self, identity: Identity, reply: Reply) -> ObjectRef:
        """Store a large reply. Named by its content too, so a racing run never changes what another refers to."""
        suffix = mimetypes.guess_extension(reply.content_type.split(";")[0].strip()) or ".bin"
        key = keys.output_key(identity, digest(reply.body), suffix)
        await self.objects.create(key, reply.body)
        return ObjectRef(f"{self.url}/{key}", reply.content_type, len(reply.body))

    # --- bodies by reference ---

    async def put_body(self, tenant: str, body: bytes) -> BodyRef:
        """Store a large body for a job of `tenant`."""
        ref = BodyRef(digest(body), len(body))
        await self.objects.create(keys.input_key(tenant, ref), body)
        return ref

    async def by_reference(self, job: Job) -> Job:
        """The job as its message carries it: with a large body put into the store."""
        if job.body is None or len(job.body) <= MAX_INLINE_BYTES:
            return job
        return replace(job, body=None, body_ref=await self.put_body(job.identity.tenant, job.body))

    async def body(self, job: Job) -> bytes:
        """The body of a job, fetched if it lies here.

        Raises:
            MalformedJob: it is not here, or is not what its hash says.
        """
        if job.body_ref is None:
            return job.body or b""
        data = await self.objects.get(keys.input_key(job.identity.tenant, job.body_ref))
        if data is None:
            raise MalformedJob(f"the body {job.body_ref.sha256} is not in the store; submit the job again")
        if digest(data) != job.body_ref.sha256 or len(data) != job.body_ref.bytes:
            raise MalformedJob(f"the body {job.body_ref.sha256} in the store is not what its hash says")
        return data

    # --- attempts ---

    async def attempts(self, identity: Identity) -> tuple[Attempt, ...]:
        """The failed attempts at a job so far, the first one first."""
        data = await self.objects.get(keys.attempts_key(identity))
        if data is None:
            return ()
        try:
            return tuple(Attempt(**one) for one in json.loads(data))
        except (ValueError, TypeError) as error:
            raise JobError(f"{self.url}/{keys.attempts_key(identity)} is not a list of attempts; delete it") from error

    async def put_attempts(self, identity: Identity, attempts: Sequence[Attempt]) -> None:
        await self.objects.put(keys.attempts_key(identity), json.dumps([asdict(one) for one in attempts]).encode())

    async def forget_attempts(self, identity: Identity) -> None:
        """Let a job that was given up start anew."""
        await self.objects.delete([keys.attempts_key(identity), dead_key(identity)])

    # --- cancellation ---

    async def cancel(self, identity: Identity) -> None:
        """Mark a job as not wanted any more. What has a result by then keeps it."""
        await self.objects.put(keys.cancelled_job_key(identity), b"")

    async def cancel_batch(self, tenant: str, batch: str) -> None:
        """Mark all jobs of a batch as not wanted any more."""
        await self.objects.put(keys.cancelled_batch_key(tenant, batch), b"")

    async def forget_cancelled(self, identity: Identity) -> None:
        """The cancelled job has ended: its own mark goes; that of a whole batch stays while the batch does."""
        await self.objects.delete([keys.cancelled_job_key(identity)])

    async def forget_cancelled_batch(self, tenant: str, batch: str) -> None:
        """All jobs of the cancelled batch have ended."""
        await self.objects.delete([keys.cancelled_batch_key(tenant, batch)])

    async def cancelled(self) -> Marks:
        """All marks: one listing, cheap enough for once a second."""
        return Marks(frozenset([entry.key async for entry in self.objects.list(keys.CANCELLED)]))

    # --- batches ---

    async def create_manifest(self, tenant: str, batch: str, data: bytes) -> bytes:
        """Write the batch's manifest unless it has one; the one that is there is returned."""
        key = keys.manifest_key(tenant, batch)
        if await self.objects.create(key, data):
            return data
        return await self.objects.get(key) or data

    async def manifest(self, tenant: str, batch: str) -> bytes | None:
        return await self.objects.get(keys.manifest_key(tenant, batch))

    async def bury(self, identity: Identity, line: bytes) -> None:
        """Leave word of why a job was given up, as the error line of its batch's output. The last word counts."""
        await self.objects.put(dead_key(identity), line)

    async def buried(self, identity: Identity) -> bytes | None:
        """The error line that `bury` left, if any."""
        return await self.objects.get(dead_key(identity))

    async def settled(self, tenant: str, batch: str) -> tuple[set[str], set[str]]:
        """Keys of the batch's results and of its buried jobs (see `result_key`, `dead_key`): two listings."""
        prefix = keys.batch_prefix(tenant, batch)
        results = {entry.key async for entry in self.objects.list(f"{prefix}/results")}
        dead = {entry.key async for entry in self.objects.list(f"{prefix}/dead")}
        return results, dead

    def _load(self, identity: Identity, key: str, data: bytes) -> Result:
        try:
            return Result.load(identity, data)
        except ValueError as error:
            raise JobError(f"{self.url}/{key} is not a result object ({error}); move it away") from error
