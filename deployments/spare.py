"""A spare process: it does its heavy imports while its parent still does its own, and then becomes a child of it.

vLLM starts its engine as a child by multiprocessing's *spawn*, when the parent has imported all there is; the child
then imports the same again, one after the other. A spare is that child, made early: it imports, waits, and is handed
the process object when multiprocessing would have spawned. Nothing else differs: it is spawned, not forked, so it
shares no state with its parent, and it is a child like any other (pid, sentinel, exit code).

Always true: where there is no spare, or it can't take what it is handed, multiprocessing spawns as ever; a spare whose
parent ends, ends too.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import struct
import sys
from collections.abc import Iterator, Sequence
from multiprocessing import context, popen_spawn_posix, reduction, resource_tracker, spawn, util
from typing import Any

_LENGTH = struct.Struct("!I")


class Spare:
    """One process that waits. Made with this process's environment as it is; what changes later is handed on.

    Args:
        modules: imported there in this order; what can't be imported is left to who needs it.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        self._ended = False
        tracker = resource_tracker.getfd()
        assert tracker is not None
        self.sentinel, child_w = os.pipe()
        child_r, self.to_child = os.pipe()
        command = f"from deployments.spare import wait; wait({tracker}, {child_r}, {list(modules)!r})"
        arguments = [*util._args_from_interpreter_flags(), "-c", command, "--multiprocessing-fork"]  # type: ignore[attr-defined]
        try:
            python = os.fsencode(spawn.get_executable())
            self.pid: int | None = util.spawnv_passfds(
                python, [python, *map(os.fsencode, arguments)], [tracker, child_r, child_w]
            )
        finally:
            os.close(child_r)
            os.close(child_w)

    @property
    def waits(self) -> bool:
        """Whether it is there and can be had."""
        if self.pid is None or self._ended:
            return False
        try:
            self._ended = os.waitpid(self.pid, os.WNOHANG) != (0, 0)
        except ChildProcessError:
            self._ended = True
        return not self._ended

    @contextlib.contextmanager
    def standing_in_for(self, name: str) -> Iterator[None]:
        """While entered, the first process of that name that multiprocessing spawns here is this one."""
        spawned = context.SpawnProcess.__dict__["_Popen"]

        def popen(process: Any) -> Any:
            if process.name.startswith(name) and self.pid is not None:
                return _Popen(process, self)
            return spawned.__func__(process)

        setattr(context.SpawnProcess, "_Popen", staticmethod(popen))  # noqa: B010 - no attribute to its types
        try:
            yield
        finally:
            setattr(context.SpawnProcess, "_Popen", spawned)  # noqa: B010

    def hand_over(self) -> int:
        """Its pid; from now on it is somebody else's to wait for."""
        assert self.pid is not None
        pid, self.pid = self.pid, None
        return pid

    def close(self) -> None:
        """End it, if nobody took it."""
        if self.pid is None:
            return
        pid = self.hand_over()
        os.close(self.to_child)
        os.close(self.sentinel)
        if self._ended:  # its pid may be somebody else's by now
            return
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


class _Popen(popen_spawn_posix.Popen):
    """multiprocessing's handle of a spawned process, where the process is there already."""

    _fds: list[int]

    def __init__(self, process: Any, spare: Spare) -> None:
        self._spare = spare
        super().__init__(process)

    def _launch(self, process_obj: Any) -> None:
        frame = io.BytesIO()
        context.set_spawning_popen(self)
        try:
            reduction.dump(spawn.get_preparation_data(process_obj._name), frame)
            reduction.dump(process_obj, frame)
        finally:
            context.set_spawning_popen(None)
        if self._fds or not self._spare.waits:
            # A descriptor can only be inherited, and this process is older than that.
            self._fds = []
            self._spare.close()
            super()._launch(process_obj)  # type: ignore[misc]
            return
        environment = json.dumps(dict(os.environ)).encode()
        self.pid = self._spare.hand_over()
        self.sentinel = self._spare.sentinel
        self.finalizer = util.Finalize(self, _close, (self._spare.sentinel, self._spare.to_child))
        with open(self._spare.to_child, "wb", closefd=False) as to_child:
            to_child.write(_LENGTH.pack(len(environment)) + environment)
            to_child.write(frame.getbuffer())


def wait(tracker: int, from_parent: int, modules: Sequence[str]) -> None:
    """The spare's life: import, wait for what it is to be, be it."""
    for module in modules:
        with contextlib.suppress(Exception):
            __import__(module)
    length = _read(from_parent, _LENGTH.size)
    if length is None:
        sys.exit(0)
    environment = _read(from_parent, _LENGTH.unpack(length)[0])
    if environment is None:
        sys.exit(0)
    told: dict[str, str] = json.loads(environment)
    for name in set(os.environ) - set(told):
        del os.environ[name]
    os.environ.update(told)
    spawn.spawn_main(tracker_fd=tracker, pipe_handle=from_parent)


def _read(file: int, size: int) -> bytes | None:
    """So many bytes, and no more of what follows; None if the other end is closed."""
    found = b""
    while len(found) < size:
        part = os.read(file, size - len(found))
        if not part:
            return None
        found += part
    return found


def _close(*files: int) -> None:
    for file in files:
        os.close(file)
