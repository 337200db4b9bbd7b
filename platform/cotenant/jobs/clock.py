"""Time as the pump and the in-memory twin see it, so that tests can own it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from typing import Protocol

#: The time of day at which a `ManualClock` begins: 2026-01-01.
EPOCH_S = 1_767_225_600.0


class Clock(Protocol):
    """Monotonic seconds, waiting for them, and the time of day."""

    def now(self) -> float: ...

    def unix_s(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's own."""

    def now(self) -> float:
        return time.monotonic()

    def unix_s(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class ManualClock:
    """Stands still until `advance`d; sleepers wake in the order of their time."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now = start_s
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self._now

    def unix_s(self) -> float:
        return EPOCH_S + self._now

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), woken))
        await woken

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass, stopping at each sleeper's time so that what it starts happens then."""
        end = self._now + seconds
        await _let_tasks_run()
        while self._sleepers and self._sleepers[0][0] <= end:
            self._now, _, woken = heapq.heappop(self._sleepers)
            if not woken.done():
                woken.set_result(None)
            await _let_tasks_run()
        self._now = end
        await _let_tasks_run()


async def _let_tasks_run() -> None:
    """Enough turns of the loop for what is ready, and for what that makes ready."""
    for _ in range(20):
        await asyncio.sleep(0)
