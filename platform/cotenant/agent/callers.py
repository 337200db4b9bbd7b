"""The calls of one replica: those at work, and those that wait to be let in. No tasks, no clock, no engine.

Always true: whoever waits is either let in, and then counts as at work until it ends, or is told why not. `changed`
is told of the most urgent priority at work (None: no work) whenever that is another one, and only then.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from cotenant.gpu.terms import Priority


class Callers:
    """Belongs to one event loop."""

    def __init__(self, changed: Callable[[Priority | None], None]) -> None:
        self._changed = changed
        self._at_work: Counter[Priority] = Counter()
        self._waiters: dict[asyncio.Future[None], Priority] = {}

    @property
    def running(self) -> int:
        return self._at_work.total()

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    @property
    def wanted(self) -> Priority | None:
        """The most urgent of those that wait; None if nobody does, or only callers that are going away."""
        return max((priority for turn, priority in self._waiters.items() if not turn.done()), default=None)

    def wait(self, priority: Priority) -> asyncio.Future[None]:
        """A turn: to be awaited, and handed to `leave` if that was cancelled."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[turn] = priority
        return turn

    def leave(self, turn: asyncio.Future[None]) -> bool:
        """Its caller went away. Whether it had just been let in: then it counts as at work, and is to `end`."""
        self._waiters.pop(turn, None)
        return turn.done() and not turn.cancelled() and turn.exception() is None

    def begin(self, priority: Priority) -> None:
        """One is at work."""
        before = self._urgency
        self._at_work[priority] += 1
        self._tell(before)

    def end(self, priority: Priority) -> None:
        """One has ended."""
        before = self._urgency
        self._at_work[priority] -= 1
        self._tell(before)

    def admit(self) -> None:
        """Let in all that wait, as one change."""
        before = self._urgency
        for turn, priority in self._waiters.items():
            if not turn.done():
                self._at_work[priority] += 1
                turn.set_result(None)
        self._waiters.clear()
        self._tell(before)

    def refuse(self, error: Exception) -> None:
        """All that wait raise this."""
        for turn in self._waiters:
            if not turn.done():
                turn.set_exception(error)
        self._waiters.clear()

    @property
    def _urgency(self) -> Priority | None:
        return max((priority for priority, calls in self._at_work.items() if calls > 0), default=None)

    def _tell(self, before: Priority | None) -> None:
        now = self._urgency
        if now is not before:
            self._changed(now)
