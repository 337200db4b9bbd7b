"""A call as an HTTP request, and a body's files as a form. Pure.

A body that refers to uploads becomes the form that the other gateway makes the same body of; where no form can say
what the body says, the pictures go inside the JSON, as data URLs.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from cotenant.calls import JSON_TYPE, Call
from cotenant.calls.forms import FILE_KEY, LIST_SUFFIX, TEXT_FIELDS
from cotenant.calls.hops import BATCH, DEADLINE_S, SPILLED_FROM

_MAGIC = ((b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"RIFF", "image/webp"))

#: A field's name, then a text, or a file as its name, bytes and type.
Part = tuple[str, tuple[str | None, str | bytes, str] | tuple[None, str]]


@dataclass(frozen=True)
class Sent:
    """What is sent: `content` with its type among `headers`, or `parts` of a form."""

    headers: Mapping[str, str]
    content: bytes = b""
    parts: tuple[Part, ...] = ()


def request_of(call: Call, *, model: str | None = None, spilled_from: str = "") -> Sent:
    """The request that carries `call`.

    Args:
        model: what the other server calls the model, where that differs.
        spilled_from: the platform that sends it on instead of serving it; empty where this is its way.
    """
    headers = {"accept": call.accept, "accept-encoding": "identity"}
    if call.request_id:
        headers["x-request-id"] = call.request_id
    if spilled_from:
        headers[SPILLED_FROM] = spilled_from
    if call.batch:
        headers[BATCH] = str(call.priority)
        if call.deadline_s is not None:
            headers[DEADLINE_S] = f"{call.deadline_s:g}"
    if call.method == "GET":
        return Sent(headers)
    raw = call.body
    if model is not None or call.files:
        body = _parsed(raw)
        if body is not None:
            if model is not None and body.get("model") not in (None, model):
                body = {**body, "model": model}
                raw = orjson.dumps(body)
            if call.files:
                parts = form_of(body, call.files)
                if parts is not None:
                    return Sent(headers, parts=parts)
                raw = orjson.dumps(_inlined(body, call.files))
    return Sent({**headers, "content-type": JSON_TYPE}, raw)


def form_of(body: Mapping[str, Any], files: Mapping[str, bytes]) -> tuple[Part, ...] | None:
    """The form that stands for `body`, files included; None if none does. Files that it does not name are left out."""
    parts: list[Part] = []
    for field, value in body.items():
        if field.endswith(LIST_SUFFIX):
            return None
        if (name := _file_of(value, files)) is not None:
            parts.append(_file_part(field, name, files[name]))
        elif isinstance(value, list) and any(_file_of(one, files) is not None for one in value):
            for one in value:
                name = _file_of(one, files)
                if name is not None:
                    parts.append(_file_part(field + LIST_SUFFIX, name, files[name]))
                elif isinstance(one, str):
                    parts.append((field + LIST_SUFFIX, (None, one)))
                else:
                    return None
        elif _names_a_file(value, files):
            return None
        elif isinstance(value, str):
            parts.append((field, (None, value if field in TEXT_FIELDS or not _reads_as_json(value) else _json(value))))
        elif field in TEXT_FIELDS:
            return None
        else:
            parts.append((field, (None, _json(value))))
    return tuple(parts)


def _file_part(field: str, name: str, data: bytes) -> Part:
    filename = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)[:100] or "file"
    return field, (filename, data, _type_of(data))


def _file_of(value: Any, files: Mapping[str, bytes]) -> str | None:
    """The name of the upload that `value` is, if it is one."""
    if isinstance(value, dict) and value.keys() == {FILE_KEY}:
        name = value[FILE_KEY]
        if isinstance(name, str) and name in files:
            return name
    return None


def _names_a_file(value: Any, files: Mapping[str, bytes]) -> bool:
    if _file_of(value, files) is not None:
        return True
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(_names_a_file(one, files) for one in inner)


def _inlined(value: Any, files: Mapping[str, bytes]) -> Any:
    """`value` with every upload inside it as a data URL."""
    name = _file_of(value, files)
    if name is not None:
        return f"data:{_type_of(files[name])};base64,{base64.b64encode(files[name]).decode()}"
    if isinstance(value, dict):
        return {key: _inlined(one, files) for key, one in value.items()}
    return [_inlined(one, files) for one in value] if isinstance(value, list) else value


def _type_of(data: bytes) -> str:
    return next((kind for magic, kind in _MAGIC if data.startswith(magic)), "application/octet-stream")


def _parsed(raw: bytes) -> dict[str, Any] | None:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return body if isinstance(body, dict) else None


def _reads_as_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()
