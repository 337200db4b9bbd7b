"""What replicas and their agent say to each other: one JSON object a line, over a Unix socket.

A replica says `hello` first and keeps the connection for its life. Always true: a frame has at most so many bytes, a
field that a newer version added is ignored, and a frame that can't be understood is answered by `error` and does not
end the connection. Memory is in bytes where it is an allocator's own figure.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from cotenant.agent.snapshot import Snapshot
from cotenant.gpu.terms import Priority, Terms, Tier
from cotenant.telemetry.starts import Start

VERSION = 1
#: Longest frame that an agent takes, and that it sends (a snapshot of a large node).
MAX_REQUEST_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 4 * 1024 * 1024


class ProtocolError(ValueError):
    """The other side said what can't be understood; the text is fit to be told to it."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Identity(_Message):
    """Which replica it is."""

    application: str
    deployment: str
    replica: str = Field(min_length=1, max_length=200)
    actor_id: str = ""
    node_id: str = ""
    pid: int = 0


Pids = Annotated[tuple[int, ...], Field(max_length=256)]


def _known(said: object) -> object:
    """Terms as said, less what a newer version added: `Terms` itself is strict."""
    return {key: value for key, value in said.items() if key in Terms.model_fields} if isinstance(said, dict) else said


class Hello(_Message):
    """First frame of a replica. Said again, with what it holds by then, to an agent that came anew."""

    type: Literal["hello"] = "hello"
    version: int = VERSION
    terms: Annotated[Terms, BeforeValidator(_known)]
    identity: Identity
    gpu: str | None = Field(None, description="UUID (or its start) or index of its GPU; None if it does not know.")
    tier: Tier = Tier.COLD
    holds_full: bool = Field(False, description="It was granted its budget and did not give it back.")
    pids: Pids = Field((), description="Processes of its own outside its process tree (vLLM's worker actor).")
    wake_s: float = Field(5.0, ge=0, description="Seconds it takes to wake.")


class Report(_Message):
    """How the replica is, when that has changed."""

    type: Literal["report"] = "report"
    tier: Tier
    allocated_bytes: int | None = Field(None, ge=0, description="What its allocators hold of the GPU; None if unknown.")
    running: int = Field(0, ge=0, description="Requests in work.")
    waiting: int = Field(0, ge=0, description="Requests that wait.")
    pids: Pids = ()
    gpu: str | None = None


class Ask(_Message):
    type: Literal["ask"] = "ask"
    priority: Priority = Priority.INTERACTIVE


class Withdraw(_Message):
    type: Literal["withdraw"] = "withdraw"


class Busy(_Message):
    type: Literal["busy"] = "busy"
    priority: Priority = Priority.INTERACTIVE


class Idle(_Message):
    type: Literal["idle"] = "idle"


class Slept(_Message):
    """It gave its memory back."""

    type: Literal["slept"] = "slept"


class Started(_Message):
    """A start of this replica: when it is ready, again with its first result, and again to an agent that came anew."""

    type: Literal["started"] = "started"
    start: Start


class SnapshotRequest(_Message):
    """Anybody may ask, without `hello`."""

    type: Literal["snapshot"] = "snapshot"


class Bye(_Message):
    """It holds nothing any more and goes. A connection that ends without it is a lease kept until the process ends."""

    type: Literal["bye"] = "bye"


class Welcome(_Message):
    """Answer to `hello`, and again when its GPU has been found. `gpu` is None while it is not known."""

    type: Literal["welcome"] = "welcome"
    node_id: str
    gpu: str | None
    interval_s: float


class Granted(_Message):
    """It may hold its budget from now on."""

    type: Literal["granted"] = "granted"


class Recalled(_Message):
    """Finish what is in work, sleep, then say `slept`."""

    type: Literal["recall"] = "recall"
    wanted_by: str


class Error(_Message):
    """What was said could not be done. Where `final`, saying hello again as before would not help."""

    type: Literal["error"] = "error"
    message: str
    about: str = Field("", description="The type of the frame it answers.")
    passing: bool = Field(False, description="It may pass by itself: others come, go and are replaced.")
    final: bool = False


class SnapshotAnswer(_Message):
    type: Literal["snapshot"] = "snapshot"
    snapshot: Snapshot


_T = TypeVar("_T")
Request = Hello | Report | Ask | Withdraw | Busy | Idle | Slept | Started | SnapshotRequest | Bye
Answer = Welcome | Granted | Recalled | Error | SnapshotAnswer

_requests: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="type")])
_answers: TypeAdapter[Answer] = TypeAdapter(Annotated[Answer, Field(discriminator="type")])


def encode(message: Request | Answer) -> bytes:
    """The frame, its newline included."""
    return message.model_dump_json().encode() + b"\n"


def decode_request(frame: bytes) -> Request:
    """What a replica said. Raises ProtocolError."""
    return _decode(frame, _requests)


def decode_answer(frame: bytes) -> Answer:
    """What an agent said. Raises ProtocolError."""
    return _decode(frame, _answers)


def _decode(frame: bytes, adapter: TypeAdapter[_T]) -> _T:
    try:
        return adapter.validate_json(frame)
    except ValidationError as error:
        raise ProtocolError(_explain(error)) from None


def type_of(frame: bytes) -> str:
    """What type a frame says it is, for an error about it; empty if it can't be told."""
    try:
        said = json.loads(frame)
    except ValueError:
        return ""
    kind = said.get("type") if isinstance(said, dict) else None
    return kind[:40] if isinstance(kind, str) else ""


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]
