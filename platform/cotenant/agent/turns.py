"""Starts on one GPU, one at a time: a turn that a dead process cannot keep.

It is a POSIX record lock on a file. The kernel gives it back when its process ends, however it ends, and a child
does not inherit it. Such a lock belongs to the process, not to who took it there, so turns within one process are
kept apart here.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import ClassVar

from typing_extensions import Self

from cotenant.agent.paths import ensure_agent_dir, lock_path

_POLL_S = 0.05
_NAME_BYTES = 200


class StartTurn:
    """The turn to start on a GPU: `with` or `async with` waits for it and keeps it meanwhile.

    Args:
        gpu: the GPU's key, the same for all that start on it.
        who: what those who wait are told of this one.
        on_wait: told once for each holder waited for, in words.

    Raises (on entry):
        EnvironmentFault: the agents' folder can't be used.
    """

    #: By file, the process that has its turn: a forked child inherits this and not the lock.
    _here: ClassVar[dict[Path, int]] = {}
    _guard: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, gpu: str, who: str, on_wait: Callable[[str], None] | None = None) -> None:
        self._gpu = gpu
        self._who = who
        self._on_wait = on_wait
        self._path = lock_path(gpu)
        self._file: int | None = None
        self._waited_for = ""

    def __enter__(self) -> Self:
        ensure_agent_dir()
        while not self._take():
            self._tell()
            time.sleep(_POLL_S)
        return self

    async def __aenter__(self) -> Self:
        ensure_agent_dir()
        while not self._take():
            self._tell()
            await asyncio.sleep(_POLL_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()

    def _take(self) -> bool:
        with self._guard:
            if self._mine():
                return False
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(file)
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    return False
                raise
            os.ftruncate(file, 0)
            os.pwrite(file, f"{self._who} (pid {os.getpid()})".encode()[:_NAME_BYTES], 0)
            self._file = file
            self._here[self._path] = os.getpid()
            return True

    def _give_back(self) -> None:
        """The file stays: removing it could part those who wait into two queues."""
        with self._guard:
            if self._file is not None:
                os.ftruncate(self._file, 0)
                # Closing any descriptor of the file gives up all of this process's locks on it.
                os.close(self._file)
                self._file = None
                self._here.pop(self._path, None)

    def _tell(self) -> None:
        holder = self._holder()
        if self._on_wait is not None and holder != self._waited_for:
            self._waited_for = holder
            self._on_wait(f"{self._who} waits for {holder} to finish starting on {self._gpu}")

    def _mine(self) -> bool:
        """Whether this process has the turn."""
        return self._here.get(self._path) == os.getpid()

    def _holder(self) -> str:
        """Who has the turn, by its own words. Not read while this process has it: closing would give it up."""
        with self._guard:
            if self._mine():
                return f"another in this process (pid {os.getpid()})"
            try:
                return self._path.read_text(errors="replace") or "another"
            except OSError:
                return "another"
