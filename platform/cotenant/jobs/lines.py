"""Lines of a batch file, read as they come and checked one by one. What is wrong with one is a value, not an error.

The codes and parameters of problems are those that OpenAI's batches report, and ours where theirs have none.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from cotenant.calls import BY_URL, Directory
from cotenant.calls.desk import Json
from cotenant.errors import MalformedJob, UnknownWorkload
from cotenant.jobs.model import MAX_BODY_BYTES, Job, parse_body, parse_line

#: OpenAI's limit on the lines of a batch.
MAX_LINES = 50_000
#: A line that is longer is passed over unread: its body could not be taken.
MAX_LINE_BYTES = MAX_BODY_BYTES + (1 << 20)

_BOM = b"\xef\xbb\xbf"
_REQUIRED = ("custom_id", "method", "url", "body")


@dataclass(frozen=True)
class Line:
    """One line of a file: its number from 1, where it begins, and its bytes; none where it is too long to be read."""

    number: int
    offset: int
    data: bytes
    too_long: bool = False


@dataclass(frozen=True)
class LineProblem:
    """One thing wrong with a batch's file; `line` is 1-based, None for the file as a whole."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None

    def shown(self) -> Json:
        """An entry of a batch's `errors`."""
        return {"code": self.code, "line": self.line, "message": self.message, "param": self.param}


@dataclass(frozen=True)
class Checked:
    """A line that is a job, and the workload that takes it; none where its body lies elsewhere."""

    job: Job
    body: Json | None
    workload: str | None


async def lines_of(chunks: AsyncIterator[bytes]) -> AsyncIterator[Line]:
    """The lines of a file that comes in chunks, without their ends; lines of blanks alone are left out."""
    number, offset, held, dropped = 0, 0, bytearray(), 0
    async for chunk in chunks:
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            held += chunk[start:end]
            start = end + 1
            number += 1
            length = dropped + len(held)
            if (line := _line(number, offset, bytes(held), dropped)) is not None:
                yield line
            offset += length + 1
            held.clear()
            dropped = 0
        held += chunk[start:]
        if len(held) > MAX_LINE_BYTES:
            dropped += len(held)
            held.clear()
    if (line := _line(number + 1, offset, bytes(held), dropped)) is not None:
        yield line


def check_line(
    data: bytes, *, tenant: str, batch: str, endpoint: str | None = None, directory: Directory | None = None
) -> Checked | LineProblem:
    """The job that a line describes, or what is wrong with it.

    Args:
        endpoint: the only route it may name; any if None.
        directory: what the platform serves; with it, what nobody serves is a problem.
    """
    try:
        job = parse_line(data, tenant=tenant, batch=batch)
    except MalformedJob as error:
        return _diagnosis(data, str(error))
    if endpoint is not None and job.url != endpoint:
        return LineProblem("invalid_url", f"url is {job.url}, and the batch's endpoint is {endpoint}", "url")
    if job.body is None:
        return Checked(job, None, None)
    body = parse_body(job.body)
    if body.get("stream"):
        return LineProblem(
            "streaming_unsupported", "a job has nobody to stream to; leave stream out", "body.stream"
        )  # fmt: skip
    if directory is None:
        return Checked(job, body, None)
    try:
        return Checked(job, body, directory.route(job.url, body).name)
    except UnknownWorkload as error:
        return _unserved(job.url, body, str(error))


def _line(number: int, offset: int, data: bytes, dropped: int) -> Line | None:
    if dropped or len(data) > MAX_LINE_BYTES:
        return Line(number, offset, b"", too_long=True)
    if number == 1 and data.startswith(_BOM):
        data, offset = data[len(_BOM) :], offset + len(_BOM)
    return Line(number, offset, data) if data.strip() else None


def _unserved(url: str, body: Json, message: str) -> LineProblem:
    route = BY_URL.get(url)
    if route is None:
        return LineProblem("invalid_url", message, "url")
    chooser = "template" if route.kind == "mockup" else "model"
    named = isinstance(body.get(chooser), str) and body[chooser]
    return LineProblem(f"{chooser}_not_found" if named else "invalid_request", message, f"body.{chooser}")


def _diagnosis(data: bytes, message: str) -> LineProblem:
    """Code and parameter of a line that is no job; `message` says why in words."""
    try:
        line: Any = json.loads(data)
    except (ValueError, RecursionError):
        return LineProblem("invalid_json_line", message)
    if not isinstance(line, dict) or message.startswith("is "):
        return LineProblem("invalid_json_line", message)
    wanted = {*_REQUIRED[:3], "body_ref"} if "body_ref" in line else set(_REQUIRED)
    for key in _REQUIRED:
        if key in wanted and key not in line:
            return LineProblem("missing_required_parameter", message, key)
    unknown = next((key for key in line if key not in wanted), None)
    if unknown is not None:
        return LineProblem("unknown_parameter", message, unknown[:80])
    if line["method"] != "POST":
        return LineProblem("invalid_method", message, "method")
    culprit = next((key for key in ("custom_id", "url", "body_ref") if message.startswith(key)), None)
    return LineProblem("invalid_url" if culprit == "url" else "invalid_request", message, culprit or "body")
