"""`up --foreground`: stay with what was started, and take it down when the process is told to end. For containers.

What always holds: whatever ends the process but SIGKILL, nothing that it started outlives it, and what ran before it
and was not its to join goes on. Told to end while it serves it exits with 0; told so while it starts, with 128 and the
signal's number, as a shell has it; with 1 if Ray ended by itself, or something did not start.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

from cotenant.cli.machine.state import RunState
from cotenant.errors import EnvironmentFault

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOOK_EVERY_S = 1.0
#: A container's first process inherits whatever its parents left.
_INIT = 1


class Told(BaseException):
    """The process was told to end while it was starting something."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


class Ending:
    """Signals as an exception while something starts, and as a wish after that. Use it in the main thread."""

    def __init__(self) -> None:
        self.wanted = threading.Event()
        self._serving = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Ending:
        self._before = {number: signal.signal(number, self._take) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def serving(self) -> None:
        """Everything runs: from now on a signal is a wish."""
        self._serving = True

    def _take(self, number: int, frame: FrameType | None) -> None:
        again = self.wanted.is_set()
        self.wanted.set()
        if not self._serving and not again:
            raise Told(number)


def run(
    bring_up: Callable[[], RunState], *, find: Callable[[], RunState | None], down: Callable[[RunState], object]
) -> int:
    """Bring it up, stay, take it down; the exit code.

    Args:
        find: what is on record as running, whether or not `bring_up` got to its end.

    Raises:
        What `bring_up` does, and EnvironmentFault if Ray ended by itself; what had been started is down then too.
    """
    before, joined = find(), False
    with Ending() as ending:
        try:
            state = bring_up()
            joined = True
            ending.serving()
            if not _stay(state, ending):
                raise EnvironmentFault(f"Ray ended by itself; its logs are in {state.ray_dir}")
            return 0
        except Told as told:
            return told.exit_code
        finally:
            # A further signal while it drains changes nothing: whoever can't wait sends SIGKILL.
            ending.serving()
            left = find()
            if left is not None and (joined or left != before):
                down(left)


def _stay(state: RunState, ending: Ending) -> bool:
    """Return True when it is to end, False when Ray is gone."""
    while not ending.wanted.wait(_LOOK_EVERY_S):
        if os.getpid() == _INIT:
            _reap()
        if state.ray is not None and state.ray.find() is None:
            return False
    return True


def _reap() -> None:
    """Wait for children that have ended: in a container without an init nobody else does."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
