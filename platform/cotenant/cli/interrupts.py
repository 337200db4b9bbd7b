"""Ctrl-C as a wish that is looked at between steps, so that none is cut in two.

Python raises KeyboardInterrupt wherever it happens to be, also while a write is under way whose end nobody then knows.
Here the first Ctrl-C only says that the command is not wanted any more; the second one cancels it where it stands.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Value = TypeVar("Value")


class Stopped(Exception):
    """The command was interrupted, and stopped between two steps."""


class Stop:
    """Whether the command is to stop."""

    def __init__(self, on_stop: Callable[[], object] = lambda: None) -> None:
        """`on_stop` is told of the first Ctrl-C, if something runs then."""
        self.wanted = False
        self._on_stop = on_stop
        self._running: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None

    def check(self) -> None:
        """Raises Stopped if the command is to stop: said where nothing is under way."""
        if self.wanted:
            raise Stopped

    def run(self, main: Coroutine[Any, Any, Value]) -> Value:
        """Run `main` to its end.

        Raises:
            KeyboardInterrupt: there was a second Ctrl-C, and `main` was cancelled.
        """
        try:
            return asyncio.run(self._watched(main))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None

    async def _watched(self, main: Coroutine[Any, Any, Value]) -> Value:
        task = asyncio.ensure_future(main)
        self._running = (asyncio.get_running_loop(), task)
        try:
            return await task
        finally:
            self._running = None

    def press(self, *_: object) -> None:
        """Take a Ctrl-C. When nothing runs any more it is too late for one."""
        first, self.wanted = not self.wanted, True
        if self._running is not None:
            loop, task = self._running
            loop.call_soon_threadsafe(self._on_stop if first else task.cancel)


@contextmanager
def stoppable(on_stop: Callable[[], object] = lambda: None) -> Iterator[Stop]:
    """Take every Ctrl-C of this block as a wish; outside the main thread, where that can't be, they are Python's."""
    stop = Stop(on_stop)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGINT, stop.press)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
