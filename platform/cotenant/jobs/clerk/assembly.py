"""The two files that a batch leaves: what succeeded, and what did not. Both in the order of the batch's file.

Lines are fetched a few at a time and written as they come; neither file is ever whole in memory. The files' ids follow
from the batch and from when it closed, so whoever does this again finds them, or makes the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

from cotenant.jobs.clerk.manifest import Manifest
from cotenant.jobs.desk.batches import BatchRecord
from cotenant.jobs.desk.files import BATCH_OUTPUT, FileRecord, Files, new_file_id
from cotenant.jobs.desk.paging import AT_ONCE
from cotenant.jobs.endings import CANCELLED, EXPIRED, parsed, status_of
from cotenant.jobs.model import Identity, dump_line, error_line
from cotenant.jobs.store.results import ResultStore

_QUEUED_LINES = 64
_CHUNK_BYTES = 256 << 10


@dataclass(frozen=True)
class Written:
    """The files, where there was anything to write, and how many lines succeeded and failed by themselves."""

    output_file_id: str | None
    error_file_id: str | None
    completed: int
    failed: int


@dataclass(frozen=True)
class OutputLine:
    """A line of either file: whether it is a success, or a failure of the job's own."""

    data: bytes
    succeeded: bool
    failed: bool


class Lines:
    """The output lines of a batch that closes."""

    def __init__(
        self,
        store: ResultStore,
        record: BatchRecord,
        manifest: Manifest,
        published: bytearray,
        *,
        undone: tuple[str, str],
    ) -> None:
        """
        Args:
            published: for each line, whether it may have a result.
            undone: code and text of the error of lines that the batch left undone.
        """
        self._store = store
        self._record = record
        self._manifest = manifest
        self._published = published
        self._undone = undone

    async def in_order(self) -> AsyncIterator[OutputLine]:
        """All of them, in the order of the batch's file."""
        for start in range(0, len(self._manifest), AT_ONCE):
            some = range(start, min(start + AT_ONCE, len(self._manifest)))
            for line in await asyncio.gather(*(self._line(index) for index in some)):
                yield line

    async def _line(self, index: int) -> OutputLine:
        identity = Identity(self._record.tenant, self._record.id, self._manifest.custom_ids[index])
        if not self._published[index]:
            return self._called_off(identity)
        result = await self._store.result(identity)
        if result is not None and result.job_sha256 != self._manifest.sha256s[index]:
            text = "another job already has this batch and custom_id"
            return OutputLine(error_line(identity, "conflict", text), succeeded=False, failed=True)
        data = result.line if result is not None else await self._store.buried(identity)
        if data is None:
            return self._called_off(identity)
        line = parsed(data)
        status = status_of(line)
        code, text = self._undone
        if line["response"] is None and status in ("cancelled", "expired") and code.startswith("batch_"):
            if line["error"]["code"] in (CANCELLED, EXPIRED):
                data = dump_line({**line, "error": {"code": code, "message": text}})
            return OutputLine(data, succeeded=False, failed=False)
        return OutputLine(data, succeeded=status == "succeeded", failed=status != "succeeded")

    def _called_off(self, identity: Identity) -> OutputLine:
        return OutputLine(error_line(identity, *self._undone), succeeded=False, failed=False)


async def write_outputs(lines: Lines, files: Files, record: BatchRecord, closed_at_s: float) -> Written:
    """Write both files. One that would be empty is none.

    Raises:
        StoreUnavailable: do it again.
    """
    completed = failed = 0
    output = _Pipe(files, record, "output", closed_at_s)
    errors = _Pipe(files, record, "error", closed_at_s)
    try:
        async for line in lines.in_order():
            completed += line.succeeded
            failed += line.failed
            await (output if line.succeeded else errors).put(line.data + b"\n")
        written = [await pipe.finish() for pipe in (output, errors)]
    finally:
        output.abandon()
        errors.abandon()
    output_id, error_id = (file.id if file is not None else None for file in written)
    return Written(output_id, error_id, completed, failed)


class _Pipe:
    """One file on its way into the store: lines go in at one end while the other writes."""

    def __init__(self, files: Files, record: BatchRecord, kind: str, closed_at_s: float) -> None:
        unique = hashlib.sha256(json.dumps([record.tenant, record.id, kind]).encode()).hexdigest()[:12]
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue(_QUEUED_LINES)
        self._writing = asyncio.create_task(
            files.keep(
                record.tenant,
                new_file_id(BATCH_OUTPUT, closed_at_s, unique),
                filename=f"{record.id}_{kind}.jsonl",
                purpose=BATCH_OUTPUT,
                chunks=self._chunks(),
                expires_after_s=record.output_expires_s,
            )
        )

    async def put(self, line: bytes) -> None:
        """Hand over a line; raises what writing has raised."""
        if not self._lines.full():
            self._lines.put_nowait(line)
            return
        putting = asyncio.ensure_future(self._lines.put(line))
        await asyncio.wait({putting, self._writing}, return_when=asyncio.FIRST_COMPLETED)
        if not putting.done():
            putting.cancel()
            # Written before, by an earlier try: there is nobody to take the line, and nothing lost.
            await self._writing

    async def finish(self) -> FileRecord | None:
        await self.put(b"")
        return await self._writing

    def abandon(self) -> None:
        """Write no more. What writing has raised is looked at, or the loop would log it: another way it came out."""
        if not self._writing.cancel() and not self._writing.cancelled():
            self._writing.exception()

    async def _chunks(self) -> AsyncIterator[bytes]:
        held = bytearray()
        while line := await self._lines.get():
            held += line
            if len(held) >= _CHUNK_BYTES:
                yield bytes(held)
                held.clear()
        if held:
            yield bytes(held)
