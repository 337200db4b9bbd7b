"""A submission, whole or not at all: pictures stored, file stored, batch created, its one errand published.

Until the batch's record is there, nothing was submitted: who stops, or fails, takes back what was stored (a store that
fails just then may keep the file, which nobody refers to and which expires). From then on it is submitted, and Ctrl-C
is too late. What can't be told (a second Ctrl-C, a queue that does not answer) is mended by the same submission under
the same name, which repeats no work.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cotenant.calls.desk import Json
from cotenant.cli.designs import Design, Wrong, content_of
from cotenant.cli.interrupts import Stop
from cotenant.errors import IdentityConflict, JobError, JobsFileError, Problem, RequestRefused
from cotenant.jobs.desk.batches import Batches, BatchRecord
from cotenant.jobs.desk.files import VISION, Files, new_file_id
from cotenant.jobs.desk.references import Known, check_files
from cotenant.jobs.model import Job, digest, parse_body
from cotenant.jobs.reading import MAX_PROBLEMS
from cotenant.jobs.store import keys
from cotenant.jobs.store.objects import Objects

#: Pictures of a submission are for its batch alone, and outlive it by far.
_PICTURES_EXPIRE_S = 2_592_000
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Submission:
    """What is submitted, checked. `lines` gives the file's lines as often as it is called, always the same."""

    tenant: str
    batch: str
    filename: str
    jobs: Sequence[Job]
    lines: Callable[[], Iterable[bytes]]
    pictures: Sequence[Design] = ()
    priority: int = 0
    deadline_at_s: float | None = None
    webhook: str | None = None

    def sha256(self) -> str:
        """Hash of the file's bytes."""
        digested = hashlib.sha256()
        for line in self.lines():
            digested.update(line + b"\n")
        return digested.hexdigest()

    @property
    def bytes(self) -> int:
        """What is stored of it."""
        return sum(len(line) + 1 for line in self.lines()) + sum(picture.bytes for picture in self.pictures)


def picture_id(tenant: str, batch: str, sha256: str) -> str:
    """Id of the file that holds a batch's picture: the same for the same picture, and no other batch's."""
    return new_file_id(VISION, 0.0, digest(f"{tenant}/{batch}/{sha256}".encode())[:12])


async def submit(
    submission: Submission,
    objects: Objects,
    batches: Batches,
    stop: Stop,
    on_stored: Callable[[int], object] = lambda _: None,
) -> Json:
    """Submit it; OpenAI's Batch object. `on_stored` is told of bytes as they are stored.

    Raises:
        Stopped: it was interrupted, and nothing was submitted.
        IdentityConflict: the batch exists, with other jobs.
        JobsFileError: a picture is not what was checked any more, or a file that a job refers to is not there.
        RequestRefused, SourceUnavailable, StoreUnavailable: and whether the batch was created, in words.
    """
    files = Files(objects)
    stored: list[str] = []
    sha256 = submission.sha256()
    await check_references(submission, objects)
    if not await exists(submission, objects, sha256):
        try:
            for picture in submission.pictures:
                stop.check()
                file_id = picture_id(submission.tenant, submission.batch, picture.sha256)
                stored.append(file_id)
                await files.keep(
                    submission.tenant,
                    file_id,
                    filename=picture.path.name,
                    purpose=VISION,
                    chunks=_once(content_of(picture)),
                    expires_after_s=_PICTURES_EXPIRE_S,
                )
                on_stored(picture.bytes)
            stop.check()
        except BaseException:
            await _take_back(submission, objects, stored)
            raise
    try:
        return await batches.submit(
            submission.tenant,
            _chunks(submission.lines(), stop, on_stored),
            filename=submission.filename,
            input_sha256=sha256,
            batch_id=submission.batch,
            priority=submission.priority,
            webhook=submission.webhook,
            deadline_at_s=submission.deadline_at_s,
        )
    except BaseException as error:
        created = await _take_back(submission, objects, stored)
        if created and isinstance(error, JobError) and not isinstance(error, IdentityConflict):
            again = f"`cotenant submit --batch {submission.batch}` with the same jobs, which repeats no work"
            raise type(error)(f"batch {submission.batch} is kept and not on its way yet: {error}; {again}") from error
        raise


async def check_references(submission: Submission, objects: Objects) -> None:
    """Look for the files that jobs refer to and that are not pictures of this submission. Raises JobsFileError."""
    if submission.pictures:
        return
    files = Files(objects)
    known: Known = {}
    problems: list[Problem] = []
    for job in submission.jobs:
        if job.body is None or b'"file_id"' not in job.body:
            continue
        try:
            await check_files(files, submission.tenant, parse_body(job.body), known)
        except RequestRefused as error:
            problems.append(Wrong(submission.filename, 1, f"job {job.identity.custom_id!r}: {error}"))
            if len(problems) == MAX_PROBLEMS:
                break
    if problems:
        raise JobsFileError(problems)


async def exists(submission: Submission, objects: Objects, sha256: str) -> bool:
    """Whether this very batch was created before. Raises IdentityConflict if it was with other jobs."""
    data = await objects.get(keys.batch_key(submission.tenant, submission.batch))
    if data is None:
        return False
    if BatchRecord.load(data).input_sha256 != sha256:
        raise IdentityConflict(
            f"batch {submission.batch} exists with other jobs; submit these under another name (--batch)"
        )
    return True


async def _take_back(submission: Submission, objects: Objects, stored: Iterable[str]) -> bool:
    """Delete what was stored of a batch that was not created. Whether it was created, as far as can be told."""
    with suppress(JobError):
        if await objects.get(keys.batch_key(submission.tenant, submission.batch)) is not None:
            return True
        for file_id in stored:
            await objects.delete(keys.file_keys(submission.tenant, file_id))
    return False


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _chunks(lines: Iterable[bytes], stop: Stop, on_stored: Callable[[int], Any]) -> AsyncIterator[bytes]:
    """The file, a chunk at a time. Raises Stopped between two of them, which leaves no file."""
    held = bytearray()
    for line in lines:
        held += line + b"\n"
        if len(held) >= _CHUNK_BYTES:
            stop.check()
            yield bytes(held)
            on_stored(len(held))
            held.clear()
    stop.check()
    if held:
        yield bytes(held)
        on_stored(len(held))
