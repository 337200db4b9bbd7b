"""Asking the agents of this machine what they know."""

from __future__ import annotations

import socket
from pathlib import Path

from cotenant.agent.paths import sockets
from cotenant.agent.protocol import (
    MAX_ANSWER_BYTES,
    ProtocolError,
    SnapshotAnswer,
    SnapshotRequest,
    decode_answer,
    encode,
)
from cotenant.agent.snapshot import Snapshot
from cotenant.errors import EnvironmentFault

_TIMEOUT_S = 2.0


def snapshots() -> list[Snapshot]:
    """Of every agent that answers here; sockets that dead ones left are passed over.

    Raises:
        EnvironmentFault: an agent answers what this version can't read.
    """
    found = [ask(path) for path in sockets()]
    return [snapshot for snapshot in found if snapshot is not None]


def ask(path: Path) -> Snapshot | None:
    """What the agent behind that socket knows; None if none is there or it does not answer in time.

    Raises:
        EnvironmentFault: it answers what this version can't read.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(_TIMEOUT_S)
            line.connect(str(path))
            line.sendall(encode(SnapshotRequest()))
            with line.makefile("rb") as answers:
                frame = answers.readline(MAX_ANSWER_BYTES)
    except OSError:
        return None
    if not frame.endswith(b"\n"):
        return None
    try:
        answer = decode_answer(frame)
    except ProtocolError as error:
        raise EnvironmentFault(
            f"the agent at {path} answers in a way that this cotenant can't read ({error}); run the same version"
        ) from None
    return answer.snapshot if isinstance(answer, SnapshotAnswer) else None
