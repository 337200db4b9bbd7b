"""The answers of a trip as bytes, for the relay: a head in JSON, then the reply's body as it is.

What always holds: bytes that `encode` did not write are refused, and an error comes out as the class that went in,
so a settlement by type is the same on both sides.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator

from cotenant.calls.reply import Reply
from cotenant.calls.trip import Answer
from cotenant.errors import (
    BudgetExceeded,
    CallError,
    DeadlineExceeded,
    Overloaded,
    ReplicaDied,
    UnknownWorkload,
    WorkloadUnavailable,
)

#: Bytes of head and of body; then both.
_LENGTHS = struct.Struct("!IQ")
_ERRORS = {
    kind.__name__: kind
    for kind in (UnknownWorkload, Overloaded, DeadlineExceeded, ReplicaDied, BudgetExceeded, WorkloadUnavailable)
}


def encode(answer: Answer) -> bytes:
    """One answer. An error of a class that is not known on both sides becomes WorkloadUnavailable."""
    index, given = answer
    if isinstance(given, Reply):
        head = json.dumps([index, given.status, given.content_type, dict(given.headers)]).encode()
        return _LENGTHS.pack(len(head), len(given.body)) + head + given.body
    name = type(given).__name__ if type(given).__name__ in _ERRORS else WorkloadUnavailable.__name__
    head = json.dumps([index, name, str(given), getattr(given, "retry_after_s", None)]).encode()
    return _LENGTHS.pack(len(head), 0) + head


class Decoder:
    """Puts answers together again, however their bytes were cut."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Answer]:
        """The answers that are complete with `data`. Raises ValueError on anything that `encode` did not write."""
        self._buffer += data
        while len(self._buffer) >= _LENGTHS.size:
            head_bytes, body_bytes = _LENGTHS.unpack_from(self._buffer)
            body_at = _LENGTHS.size + head_bytes
            if len(self._buffer) < body_at + body_bytes:
                return
            head, body = self._buffer[_LENGTHS.size : body_at], self._buffer[body_at : body_at + body_bytes]
            answer = _decode(bytes(head), bytes(body))
            del self._buffer[: body_at + body_bytes]
            yield answer


def _decode(head: bytes, body: bytes) -> Answer:
    match json.loads(head):
        case [int(index), int(status), str(content_type), dict(headers)]:
            return index, Reply(status, body, content_type, headers)
        case [int(index), "Overloaded", str(message), int(retry_after_s) | float(retry_after_s)]:
            return index, Overloaded(message, retry_after_s=retry_after_s)
        case [int(index), str(name), str(message), _] if name in _ERRORS:
            error: CallError = _ERRORS[name](message)
            return index, error
    raise ValueError("not an answer")
