"""Pictures that a job's body names instead of carrying: `{"file_id": "file-…"}` for artwork, image, images and mask.

A job keeps the reference, so its message stays small and its hash is that of what was asked for. The bytes are
fetched when the job is worked on, and go to the engine as an upload does: beside the body, by name.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from cotenant.calls.desk import Json
from cotenant.errors import RequestRefused
from cotenant.jobs.desk.files import USER_DATA, VISION, FileRecord, Files
from cotenant.jobs.model import canonical, parse_body
from cotenant.jobs.store.objects import Objects

#: Fields of a body that hold a picture, or several.
PICTURE_FIELDS = ("artwork", "image", "images", "mask")
#: What the engines take of one picture; looked at here so that a submission learns it at once.
MAX_PICTURE_BYTES = 20 << 20

_REFERENCE = "file_id"

Known = dict[str, FileRecord]


async def resolve_files(
    objects: Objects, tenant: str, body: bytes, *, now: Callable[[], float] = time.time
) -> tuple[bytes, dict[str, bytes]]:
    """A job's body with references made into uploads, and those uploads' bytes by name (`Call.files`).

    Raises:
        RequestRefused: 400, a file that is not there (any more) or is no picture for a job.
        StoreUnavailable: the store does not answer.
    """
    if b'"file_id"' not in body:
        return body, {}
    parsed = parse_body(body)
    files: dict[str, bytes] = {}
    store = Files(objects, now=now)
    async for param, file_id, record in _records(store, tenant, parsed):
        if file_id not in files:
            data = await store.whole(tenant, record)
            if data is None:
                raise _missing(file_id, param)
            files[file_id] = data
    if not files:
        return body, {}
    return canonical({field: _as_uploads(field, value) for field, value in parsed.items()}), files


async def check_files(files: Files, tenant: str, body: Mapping[str, Any], known: Known | None = None) -> None:
    """Refuses a body that refers to a file which is not there.

    Args:
        known: files that were looked up before, for who checks many bodies; it grows.

    Raises:
        RequestRefused: 400, and which parameter.
        StoreUnavailable: the store does not answer.
    """
    async for _ in _records(files, tenant, body, known):
        pass


def references(body: Mapping[str, Any]) -> dict[str, str]:
    """The ids of files that a body refers to, by parameter: `artwork`, `images[1]`."""
    found: dict[str, str] = {}
    for field in PICTURE_FIELDS:
        value = body.get(field)
        if isinstance(value, list):
            found |= {f"{field}[{n}]": one[_REFERENCE] for n, one in enumerate(value) if _is_reference(one)}
        elif isinstance(value, dict) and _is_reference(value):
            found[field] = value[_REFERENCE]
    return found


async def _records(
    files: Files, tenant: str, body: Mapping[str, Any], known: Known | None = None
) -> AsyncIterator[tuple[str, str, FileRecord]]:
    known = {} if known is None else known
    for param, file_id in references(body).items():
        record = known.get(file_id) or await files.find(tenant, file_id)
        if record is None:
            raise _missing(file_id, param)
        if record.purpose not in (VISION, USER_DATA):
            raise RequestRefused(
                f"{param}: {file_id} is for {record.purpose}; upload the picture with purpose {VISION} or {USER_DATA}",
                param=param,
                code="invalid_file_purpose",
            )
        if record.size_bytes > MAX_PICTURE_BYTES:
            raise RequestRefused(
                f"{param}: {file_id} has {record.size_bytes} bytes; a picture may have {MAX_PICTURE_BYTES >> 20} MB",
                param=param,
                code="file_too_large",
            )
        known[file_id] = record
        yield param, file_id, record


def _missing(file_id: str, param: str) -> RequestRefused:
    return RequestRefused(
        f"{param}: there is no file {file_id[:80]!r}; upload it to /v1/files first", param=param, code="file_not_found"
    )


def _as_uploads(field: str, value: Any) -> Any:
    if field not in PICTURE_FIELDS:
        return value
    if isinstance(value, list):
        return [_as_upload(one) for one in value]
    return _as_upload(value)


def _as_upload(value: Any) -> Any:
    return _upload(value) if _is_reference(value) else value


def _upload(value: Json) -> Json:
    return {"file": value[_REFERENCE]}


def _is_reference(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {_REFERENCE} and isinstance(value[_REFERENCE], str)
