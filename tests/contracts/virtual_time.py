"""An event loop whose time is a number: it jumps to the next timer as soon as nothing else is left to do.

So an hour of waiting takes no time, the same program runs the same way each time, and a program in which nothing can
ever happen again ends with `Deadlock` instead of hanging. It has no sockets, signals or threads.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Deadlock(AssertionError):
    """Tasks wait, and there is no timer left that could wake one."""


class Livelock(AssertionError):
    """The program goes on and on without time passing."""


class VirtualTimeLoop(asyncio.BaseEventLoop):
    def __init__(self, *, most_steps: int = 20_000) -> None:
        super().__init__()
        self._now = 0.0
        self._steps = 0
        self._most_steps = most_steps
        self._selector = self
        self.complaints: list[str] = []
        """What was reported to the loop's exception handler, such as exceptions that were never retrieved."""
        self.set_exception_handler(lambda _, context: self.complaints.append(repr(context)))

    def time(self) -> float:
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        """What BaseEventLoop asks a selector between two rounds: here, to let time pass."""
        if timeout is None:
            waiting = sorted(task.get_name() for task in asyncio.all_tasks(self))
            raise Deadlock(f"nothing can happen any more; these wait: {', '.join(waiting)}")
        self._steps = self._steps + 1 if timeout <= 0 else 0
        if self._steps > self._most_steps:
            raise Livelock(f"{self._steps} rounds without time passing, at {self._now} s")
        self._now += max(0.0, timeout)
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        return None

    def _write_to_self(self) -> None:
        return None


def run(main: Coroutine[Any, Any, _T], *, collect: bool = True) -> _T:
    """What `main` returns. Fails if it leaves tasks behind, or exceptions that nobody looked at."""
    loop = VirtualTimeLoop()
    try:
        asyncio.set_event_loop(loop)
        result = loop.run_until_complete(main)
        left = sorted(task.get_name() for task in asyncio.all_tasks(loop))
        assert not left, f"tasks are left: {left}"
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        for _ in range(20):
            loop.call_soon(loop.stop)
            loop.run_forever()
        asyncio.set_event_loop(None)
        if collect:
            gc.collect()
        loop.close()
    assert not loop.complaints, loop.complaints
    return result


def in_virtual_time(test: Callable[_P, Coroutine[Any, Any, _T]]) -> Callable[_P, _T]:
    """Make a plain test of an async one, run by a loop of its own."""

    @functools.wraps(test)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        return run(test(*args, **kwargs))

    wrapper.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
    return wrapper
