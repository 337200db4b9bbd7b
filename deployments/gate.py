"""Where calls wait for a workload that has no replica: here, not in Serve, whose own scaling would decide for them.

A call that Serve's router holds for a deployment without replicas makes Serve start one and ask no policy until it
runs, however many calls wait. So while the scaler hears what this door sees, a call goes to Serve when there is a
replica; where it does not hear, Serve does as it always does.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from cotenant.errors import Overloaded

_LOOK_EVERY_S = 0.02


class Gate:
    """For one door. Belongs to one event loop."""

    def __init__(self, heard: Callable[[], bool], queue_of: Callable[[str], int]) -> None:
        """`heard` says whether the scaler knows what this door sees, `queue_of` how many calls may wait."""
        self._heard = heard
        self._queue_of = queue_of
        self._waiting: Counter[str] = Counter()
        self._opening: dict[str, asyncio.Task[None]] = {}

    async def passed(self, workload: str, serving: Callable[[], bool], calls: int = 1) -> None:
        """Return when a replica serves, or nobody but Serve would start one.

        Raises:
            Overloaded: as many calls as may wait here already do.
        """
        if serving() or not self._heard():
            return
        most = self._queue_of(workload)
        if self._waiting[workload] + calls > most:
            raise Overloaded(f"{workload} has no replica yet and {most} requests waiting; come back in a few seconds")
        self._waiting[workload] += calls
        try:
            opening = self._opening.get(workload)
            if opening is None or opening.done():
                opening = self._opening[workload] = asyncio.create_task(self._open(workload, serving))
            await asyncio.shield(opening)
        finally:
            self._waiting[workload] -= calls

    async def _open(self, workload: str, serving: Callable[[], bool]) -> None:
        while self._waiting[workload] and not serving() and self._heard():  # noqa: ASYNC110 - Serve's router tells nobody when it hears of one
            await asyncio.sleep(_LOOK_EVERY_S)
