"""A caller's mistake as one exception, which turns into OpenAI's error body."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from pydantic import BaseModel, ValidationError

from cotenant.calls import Reply, error_reply


class BadRequest(Exception):
    """The caller's mistake: an HTTP status, a text to show, the field at fault and a code for programs."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status

    def reply(self) -> Reply:
        return error_reply(self.status, str(self), param=self.param, code=self.code)


def translated(error: ValidationError, model: type[BaseModel], takes: Mapping[str, str]) -> BadRequest:
    """The first thing wrong with a body, in words that name the field, what it takes and what it got.

    `takes` says in words what a field takes whose type pydantic would describe badly.
    """
    first = error.errors(include_url=False, include_context=False)[0]
    kind, message = first["type"], first["msg"].removeprefix("Value error, ")
    param = str(first["loc"][0]) if first["loc"] else None
    if kind == "json_invalid":
        return BadRequest(f"the body is not JSON: {message.removeprefix('Invalid JSON: ')}", code="invalid_json")
    if param is None:
        return BadRequest(f"the body needs to be an object: {message}" if kind == "model_type" else message)
    if kind == "missing" and len(first["loc"]) == 1:
        return BadRequest(f"the body needs {param}", param=param, code="missing_required_parameter")
    if kind == "extra_forbidden" and len(first["loc"]) == 1:
        near = difflib.get_close_matches(param[:64], model.model_fields, n=1)
        known = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(model.model_fields)}"
        return BadRequest(f"unknown parameter {param[:64]!r}; {known}", param=param[:64], code="unknown_parameter")
    if param in takes:
        return BadRequest(f"{param} takes {takes[param]}", param=param, code="invalid_value")
    got = first["input"]
    seen = (
        f", got {str(got)[:40]!r}" if isinstance(got, str) else f", got {got}" if isinstance(got, int | float) else ""
    )
    return BadRequest(f"{param}: {message[:1].lower()}{message[1:]}{seen}", param=param, code="invalid_value")
