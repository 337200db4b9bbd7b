"""Where the agents of this machine and their users meet: a folder that belongs to this user alone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from pathlib import Path

from cotenant.errors import EnvironmentFault

#: Longest path a Unix socket can have, less its terminator (sun_path in unix(7)).
_SOCKET_PATH_BYTES = 107
_NODE_ID_LENGTH = 16
#: Start locks are named after a node by so much of its id.
_PREFIX_LENGTH = 12
_KEPT_S = 3600.0


def agent_dir() -> Path:
    """`$COTENANT_AGENT_DIR`, by default /tmp/cotenant-<uid>; it need not exist yet."""
    return Path(os.environ.get("COTENANT_AGENT_DIR") or f"/tmp/cotenant-{os.getuid()}").absolute()  # noqa: S108


def ensure_agent_dir() -> Path:
    """The folder, made if it was missing.

    Raises:
        EnvironmentFault: it belongs to somebody else, or others may look into it.
    """
    folder = agent_dir()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise EnvironmentFault(
            f"the GPU agent needs the folder {folder} ({error.strerror}); set COTENANT_AGENT_DIR to one it can make"
        ) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise EnvironmentFault(
            f"{folder} must be a folder of this user that nobody else can open; remove it, or chmod 700 it, or set "
            "COTENANT_AGENT_DIR to another"
        )
    return folder


def socket_path(node_id: str) -> Path:
    """The socket of that node's agent.

    Raises:
        EnvironmentFault: COTENANT_AGENT_DIR is too long for a socket.
    """
    path = agent_dir() / f"{plain(node_id)[:_NODE_ID_LENGTH]}.sock"
    if len(os.fsencode(path)) > _SOCKET_PATH_BYTES:
        raise EnvironmentFault(
            f"{path} is longer than a socket's path can be ({_SOCKET_PATH_BYTES} bytes); "
            "set COTENANT_AGENT_DIR to a shorter one"
        )
    return path


def lock_path(gpu: str) -> Path:
    """The file whose lock is the turn to start on that GPU."""
    return agent_dir() / f"{plain(gpu)}.start"


def sockets() -> list[Path]:
    """Sockets of agents that run, or ran, on this machine."""
    return sorted(agent_dir().glob("*.sock"))


def sweep(now: float, *, besides: str) -> None:
    """Remove what the agents of other nodes than `besides` left, dead for an hour: such a node never comes back."""
    ours = f"{socket_path(besides).name}.lock"
    for lock in agent_dir().glob("*.sock.lock"):
        with contextlib.suppress(OSError):
            if lock.name == ours or now - lock.stat().st_mtime < _KEPT_S:
                continue
            file = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for left in agent_dir().glob(f"{lock.name.removesuffix('.sock.lock')[:_PREFIX_LENGTH]}*"):
                    left.unlink()
            finally:
                os.close(file)


def plain(name: str) -> str:
    """`name` as part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)
