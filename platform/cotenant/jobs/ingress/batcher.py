"""Many small requests made into few: acks and result messages of about the same moment travel together.

A request to Pub/Sub costs its sender as much CPU as a small job, so a moment's wait is worth it where nobody waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from cotenant.jobs.clock import Clock, SystemClock

T = TypeVar("T")


class Batcher(Generic[T]):
    """Flushes what was added, `linger_s` after the first of it came. While one flush is on its way the next gathers.

    `add` returns when its item was flushed and raises what that flush raised.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[T]], Awaitable[object]],
        *,
        max_items: int = 500,
        linger_s: float = 0.0,
        clock: Clock | None = None,
    ) -> None:
        self._flush = flush
        self._max_items = max_items
        self._linger_s = linger_s
        self._clock = clock or SystemClock()
        self._pending: list[tuple[T, asyncio.Future[None]]] = []
        self._flusher: asyncio.Task[None] | None = None

    async def add(self, item: T) -> None:
        flushed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append((item, flushed))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._run())
        await flushed

    async def _run(self) -> None:
        while self._pending:
            if self._linger_s > 0 and len(self._pending) < self._max_items:
                await self._clock.sleep(self._linger_s)
            batch = [entry for entry in self._pending[: self._max_items] if not entry[1].done()]
            del self._pending[: self._max_items]
            if not batch:
                continue
            try:
                await self._flush([item for item, _ in batch])
            except Exception as error:
                for _, flushed in batch:
                    if not flushed.done():
                        flushed.set_exception(error)
            else:
                for _, flushed in batch:
                    if not flushed.done():
                        flushed.set_result(None)
