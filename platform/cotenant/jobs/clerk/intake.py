"""A batch's file, read and checked line by line when its batch is taken up: what it consists of, or what is wrong."""

from __future__ import annotations

import asyncio
import dataclasses

from cotenant.calls import Directory
from cotenant.errors import RequestRefused
from cotenant.jobs.clerk.manifest import Manifest
from cotenant.jobs.desk.batches import ANY_ENDPOINT, BatchRecord
from cotenant.jobs.desk.files import BATCH, Files
from cotenant.jobs.desk.references import Known, check_files
from cotenant.jobs.lines import MAX_LINES, Checked, LineProblem, check_line, lines_of
from cotenant.jobs.store import keys
from cotenant.jobs.store.objects import Objects

#: Problems that a failed batch shows.
MAX_PROBLEMS = 100

_YIELD_EVERY_BYTES = 256 << 10
_TOO_LONG = LineProblem("line_too_long", "the line is too long; let its body refer to files instead")


async def take_in(
    record: BatchRecord, files: Files, objects: Objects, directory: Directory, now_s: float
) -> tuple[Manifest, list[LineProblem]]:
    """The batch's manifest, or the problems that its file has. Bodies are looked at one at a time.

    Raises:
        StoreUnavailable: do it again.
    """
    manifest = Manifest(int(now_s))
    file = await files.find(record.tenant, record.input_file_id)
    if file is None:
        text = f"there is no file {record.input_file_id!r}; upload one with purpose {BATCH}"
        return manifest, [LineProblem("invalid_request", text, "input_file_id")]
    if file.purpose != BATCH:
        text = f"{file.id} is for {file.purpose}; a batch reads a file that was uploaded with purpose {BATCH}"
        return manifest, [LineProblem("invalid_request", text, "input_file_id")]
    problems: list[LineProblem] = []
    first_line: dict[str, int] = {}
    known: Known = {}
    unyielded = 0
    async for line in lines_of(objects.read(keys.file_keys(record.tenant, file.id)[1])):
        unyielded += len(line.data)
        if unyielded > _YIELD_EVERY_BYTES:
            await asyncio.sleep(0)
            unyielded = 0
        if len(first_line) == MAX_LINES:
            text = f"the file has over {MAX_LINES} lines; split it"
            return manifest, [LineProblem("too_many_tasks", text, line=line.number)]
        checked = _TOO_LONG if line.too_long else await _checked(line.data, record, files, directory, known)
        if isinstance(checked, Checked):
            custom_id = checked.job.identity.custom_id
            first = first_line.setdefault(custom_id, line.number)
            if first == line.number:
                manifest.add(custom_id, checked.job.sha256, checked.workload or "", line.offset, len(line.data))
                continue
            text = f"custom_id {custom_id!r} was given on line {first}; each job of a file needs its own"
            checked = LineProblem("duplicate_custom_id", text, "custom_id")
        problems.append(dataclasses.replace(checked, line=line.number))
        if len(problems) == MAX_PROBLEMS:
            break
    if not len(manifest) and not problems:
        problems.append(LineProblem("empty_file", "the file has no jobs; give one a line"))
    return manifest, problems


async def _checked(
    data: bytes, record: BatchRecord, files: Files, directory: Directory, known: Known
) -> Checked | LineProblem:
    endpoint = None if record.endpoint == ANY_ENDPOINT else record.endpoint
    checked = check_line(data, tenant=record.tenant, batch=record.id, endpoint=endpoint, directory=directory)
    if isinstance(checked, Checked) and checked.body is not None and b'"file_id"' in data:
        try:
            await check_files(files, record.tenant, checked.body, known)
        except RequestRefused as error:
            return LineProblem(error.code or "invalid_request", str(error), f"body.{error.param}")
    return checked
