"""Which workload has room for another job, and how many messages that makes worth pulling.

A job takes a slot of its workload before its call, so its deadline runs while it is worked on, not while it
waits, and jobs of one workload go in the order they came.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Mapping

from cotenant.calls import Directory, WorkloadStatus


def slot_limits(directory: Directory, status: Mapping[str, WorkloadStatus]) -> dict[str, int]:
    """Slots by workload: running replicas times the slots of one. One where nothing runs, or nothing would wake it."""
    limits = {}
    for served in directory.workloads:
        state = status.get(served.name)
        replicas = state.replicas if state is not None and state.ready else 0
        limits[served.name] = max(1, replicas * served.slots)
    return limits


def wanted(*, slots: int, look_ahead: int, undone: int, held: int) -> int:
    """Messages to pull now.

    Args:
        slots: the sum over the workloads.
        undone: jobs held whose workload has not replied yet; the others need no slot any more.
        held: all messages held. With a store that is down they pile up, so they are bounded too.
    """
    room = slots + look_ahead
    return max(0, min(room - undone, 2 * room - held))


class Slots:
    """The slots of each workload, taken in turn. Belongs to one event loop."""

    def __init__(self) -> None:
        self._limits: dict[str, int] = {}
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}
        self.running: Counter[str] = Counter()
        self.changed = asyncio.Event()
        """Set whenever there may be more room than before."""

    @property
    def total(self) -> int:
        return sum(self._limits.values())

    def waiting(self, workload: str) -> int:
        return sum(not turn.done() for turn in self._queues.get(workload, ()))

    def resize(self, limits: Mapping[str, int]) -> None:
        """New limits; jobs that run already keep their slots."""
        self._limits = dict(limits)
        for workload in list(self._queues):
            self._wake(workload)
        self.changed.set()

    async def take(self, workload: str) -> None:
        queue = self._queues.setdefault(workload, deque())
        if not queue and self.running[workload] < self._limits.get(workload, 1):
            self.running[workload] += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(workload)
            raise

    def give(self, workload: str) -> None:
        self.running[workload] -= 1
        self._wake(workload)
        self.changed.set()

    def _wake(self, workload: str) -> None:
        queue = self._queues.get(workload, deque())
        while queue and (queue[0].done() or self.running[workload] < self._limits.get(workload, 1)):
            turn = queue.popleft()
            if not turn.done():
                self.running[workload] += 1
                turn.set_result(None)
