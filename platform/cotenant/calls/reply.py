"""What a front door and an engine say to each other: a `Call` goes in, a `Reply` comes out.

Both are plain values that pickle, so the same ones cross a Serve handle, feed a job and fill a test. An engine
answers *every* call with a reply, errors included (OpenAI's error body); an exception means that there was no
engine to answer.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

JSON_TYPE = "application/json"


@dataclass(frozen=True)
class Call:
    """One request to a workload, from whichever door.

    `body` is the JSON text as the client sent it (empty for GET). `files` are uploads that the body refers to
    by name, as bytes. `accept` is the Accept header, `tenant` the owner of the API key, `deadline_s` the seconds
    that the caller will still wait, `batch` says that nobody is waiting at the other end: a job. `priority` is a job's
    among jobs, from -10 to 10: a higher one goes first. `units` is its cost (`calls.cost`). `spilled` says that another
    platform sent it on to this one, which does not send it further.
    """

    url: str
    body: bytes = b""
    method: str = "POST"
    accept: str = JSON_TYPE
    files: Mapping[str, bytes] = field(default_factory=dict)
    request_id: str = ""
    tenant: str = ""
    deadline_s: float | None = None
    batch: bool = False
    priority: int = 0
    units: float = 1.0
    spilled: bool = False


@dataclass(frozen=True)
class Reply:
    """What came of a call: an HTTP status, its content type, its bytes, further headers (lower-case names)."""

    status: int
    body: bytes
    content_type: str = JSON_TYPE
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    def json(self) -> Any:
        """The body parsed as JSON. Raises ValueError if it isn't."""
        return json.loads(self.body)


@dataclass(frozen=True)
class StreamedReply:
    """A reply whose body arrives in chunks. Close `chunks` (`aclose`) to cancel the work behind it."""

    status: int
    content_type: str
    chunks: AsyncIterator[bytes]
    headers: Mapping[str, str] = field(default_factory=dict)


#: OpenAI's `type` for a status, where it differs from `invalid_request_error`.
_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
    507: "insufficient_memory_error",
}


def error_body(status: int, message: str, *, param: str | None = None, code: str | None = None) -> bytes:
    """An error as the OpenAI API words it: `{"error": {message, type, param, code}}`."""
    kind = _ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}}).encode()


def error_reply(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """A reply that carries `error_body`."""
    return Reply(status, error_body(status, message, param=param, code=code), headers=dict(headers or {}))
