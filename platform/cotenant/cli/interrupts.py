"""Ctrl-C as a wish that is looked at between steps, so that none is cut in two.

Python raises KeyboardInterrupt wherever it happens to be, also while a write is under way whose end nobody then knows.
Here the first Ctrl-C only says that the command is not wanted any more; the second one cancels it where it stands.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Value = TypeVar("Value")


class Stopped(Exception):
    """The command was interrupted, and stopped between two steps."""


class Stop:
    """Whether the command is to stop."""

    def __init__(self) -> None:
        self.wanted = False

    def check(self) -> None:
        """Raises Stopped if the command is to stop: said where nothing is under way."""
        if self.wanted:
            raise Stopped


def run(main: Callable[[Stop], Coroutine[Any, Any, Value]], on_stop: Callable[[], object] = lambda: None) -> Value:
    """Run `main` to its end. Where no handler can be set (outside the main thread) Ctrl-C is Python's.

    Args:
        on_stop: told of the first Ctrl-C.

    Raises:
        KeyboardInterrupt: there was a second one, and `main` was cancelled.
    """

    async def watched() -> Value:
        stop = Stop()
        task = asyncio.ensure_future(main(stop))

        def interrupted() -> None:
            if stop.wanted:
                task.cancel()
                return
            stop.wanted = True
            on_stop()

        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupted)
        return await task

    try:
        return asyncio.run(watched())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
