"""Whose job is next: among jobs that wait for one workload. Pure.

A higher priority goes first, always. Among equals the tenant goes first that has had the least of the workload's time
lately, so that ten jobs of one tenant do not wait behind ten thousand of another; within a tenant the job whose
deadline is nearer, then the one that came first.

Time is counted as in fair queueing: a tenant is charged the seconds that its jobs took, and for those that still run
what a job takes on average. One that was away joins at the level of the least served who is here: being idle earns
nothing, and costs nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

#: Tenants whose share is remembered while they are away.
_REMEMBERED = 1000
#: Weight of the latest job in the mean.
_LATEST = 0.1


@dataclass(frozen=True)
class Turn:
    """A job that waits. `arrived` counts up; `deadline_at_s` is Unix time."""

    tenant: str
    priority: int
    arrived: int
    deadline_at_s: float | None = None


class FairShare:
    """What each tenant has had of one workload. `mean_s` is the mean time of a job lately; 0 until one ended."""

    def __init__(self) -> None:
        self._used_s: dict[str, float] = {}
        self._here: Counter[str] = Counter()
        self._running: Counter[str] = Counter()
        self.mean_s = 0.0

    def arrived(self, tenant: str) -> None:
        """A job of the tenant has come."""
        if not self._here[tenant]:
            least = min((self._used_s[other] for other in self._here), default=0.0)
            self._used_s[tenant] = max(self._used_s.pop(tenant, 0.0), least)
            while len(self._used_s) > _REMEMBERED + len(self._here):
                away = next(other for other in self._used_s if other not in self._here and other != tenant)
                del self._used_s[away]
        self._here[tenant] += 1

    def left(self, tenant: str) -> None:
        """A job of the tenant has ended, or does not wait any more."""
        self._here[tenant] -= 1
        if not self._here[tenant]:
            del self._here[tenant]

    def began(self, tenant: str) -> None:
        self._running[tenant] += 1

    def ended(self, tenant: str, seconds: float, *, answered: bool = True) -> None:
        """A job that had begun is over, having taken so long; one that was not answered says nothing of the mean."""
        self._running[tenant] -= 1
        if not self._running[tenant]:
            del self._running[tenant]
        self._used_s[tenant] = self._used_s.get(tenant, 0.0) + seconds
        if answered:
            self.mean_s = seconds if not self.mean_s else (1 - _LATEST) * self.mean_s + _LATEST * seconds

    def first(self, waiting: Sequence[Turn]) -> int:
        """Index of the turn that is next. `waiting` must not be empty."""
        had_s = {tenant: self._had_s(tenant) for tenant in {turn.tenant for turn in waiting}}

        def rank(index: int) -> tuple[float, float, float, int]:
            turn = waiting[index]
            deadline = math.inf if turn.deadline_at_s is None else turn.deadline_at_s
            return (-turn.priority, had_s[turn.tenant], deadline, turn.arrived)

        return min(range(len(waiting)), key=rank)

    def _had_s(self, tenant: str) -> float:
        return self._used_s.get(tenant, 0.0) + self._running[tenant] * (self.mean_s or 1.0)
