"""Request bodies: read within the limit, parsed once, refused with a reply that says what to change.

The body's own bytes are passed on to the engine; the parsed form only decides where it goes. Nothing touches a
disk: uploads are artwork of customers.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import orjson
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from cotenant.calls import JSON_TYPE, error_reply
from cotenant.calls.forms import FILE_KEY, LIST_SUFFIX, TEXT_FIELDS
from cotenant.gateway.answers import ClientGone, Refused

MULTIPART = "multipart/form-data"

_MAX_FILES = 17
_MAX_FIELDS = 64


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The whole body, refused with 413 as soon as it is known to be longer than `limit_bytes`.

    Raises: Refused, ClientGone.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit_bytes:
        raise _too_large(limit_bytes)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(error_reply(415, "compressed bodies are not accepted; send the body without Content-Encoding"))
    parts: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > limit_bytes:
            raise _too_large(limit_bytes)
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def media_type(headers: Headers) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def parse_json(headers: Headers, raw: bytes, *, accepted: str = JSON_TYPE) -> dict[str, Any]:
    """The JSON object in `raw`. Raises Refused: 415 for another content type, 400 for what is no JSON object."""
    kind = media_type(headers)
    if kind not in ("", JSON_TYPE) and not kind.endswith("+json"):
        raise Refused(error_reply(415, f"the Content-Type is {kind}; send {accepted}"))
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise Refused(
            error_reply(400, f"the body is not JSON ({where}); send a JSON object", code="invalid_json")
        ) from None
    if not isinstance(body, dict):
        raise Refused(
            error_reply(400, f"the body is a JSON {_json_name(body)}; send a JSON object", code="invalid_json")
        )
    return body


async def parse_multipart(headers: Headers, raw: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A form as the JSON body it stands for, and its files by name.

    A file becomes `{"file": <its field's name>}`; a text field that reads as JSON (a number, true, an object)
    becomes that value, any other stays text. Fields named `image[]` become a list under `image`, their files
    `image[0]`, `image[1]`, …. Raises Refused.
    """
    parser = MultiPartParser(headers, _whole(raw), max_files=_MAX_FILES, max_fields=_MAX_FIELDS, max_part_size=len(raw))
    parser.spool_max_size = len(raw) + 1
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Refused(error_reply(400, f"the form can't be read: {error.message}")) from None
    body: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    try:
        for field, value in form.multi_items():
            name = field.removesuffix(LIST_SUFFIX)
            listed = body.setdefault(name, []) if field != name else None
            if name in body and not isinstance(listed, list):
                raise Refused(error_reply(400, f"the form has {name} twice; send it once", param=name[:64]))
            if isinstance(value, UploadFile):
                file = name if listed is None else f"{name}[{len(listed)}]"
                files[file] = await value.read()
                entry: Any = {FILE_KEY: file}
            else:
                entry = value if name in TEXT_FIELDS else _typed(value)
            if listed is None:
                body[name] = entry
            else:
                listed.append(entry)
    finally:
        await form.close()
    return body, files


def form_json(body: dict[str, Any]) -> bytes:
    """The JSON text of a parsed form. Raises Refused for a field that has none: nested too deeply, or no Unicode."""
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise Refused(error_reply(400, f"the form has a field that can't be written as JSON: {error}")) from None


def _typed(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


async def _whole(raw: bytes) -> AsyncGenerator[bytes, None]:
    yield raw


def _too_large(limit_bytes: int) -> Refused:
    return Refused(
        error_reply(
            413,
            f"the body is over {round(limit_bytes / 2**20, 2):g} MiB; send less, or raise gateway.max_body_mib",
            code="body_too_large",
        )
    )


def _json_name(value: Any) -> str:
    names = {list: "array", str: "string", int: "number", float: "number", bool: "boolean"}
    return names.get(type(value), "null")
