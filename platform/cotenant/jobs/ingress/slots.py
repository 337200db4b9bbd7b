"""Which workload has room for another job, whose job takes it, and how many messages that makes worth pulling.

A job takes a slot of its workload before its call, so its deadline runs while it is worked on, not while it
waits. Several ingresses share the slots of a workload evenly, so none holds what another could do at once. Of jobs
that take milliseconds a few more than the slots are sent, so that a slot that becomes free has its next job there.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Mapping

from cotenant.calls import Directory, WorkloadStatus
from cotenant.jobs.ingress.turns import FairShare, Turn

#: Jobs of one workload, beyond twice its room, that may be done and wait for their result to be kept and told of.
SETTLING_AT_MOST = 128

#: What is held ahead of the slots lasts so long, where jobs are short; but no more jobs than this.
AHEAD_S, AHEAD_AT_MOST = 0.25, 64

#: While a workload is scaled to zero, so many of its jobs are looked at: how many wait decides how many are started.
PEEK = 32

#: Jobs that ended and are not told of yet: a sample is enough.
_ENDED_AT_MOST = 64

#: From the end of a job in its replica to the arrival of the next one: 10 ms measured, through Serve and back; three
#: times as long covers its spread.
TRIP_S = 0.030


def on_the_way(*, slots: int, mean_s: float) -> int:
    """Jobs to send beyond the slots, to wait in the replica: as many as end while a reply and a call travel.

    None of jobs that last so long that a trip is nothing to them; never more than half of the slots.

    Args:
        mean_s: mean seconds of a job lately; 0 if unknown.
    """
    return min(slots // 2, round(slots * TRIP_S / mean_s)) if mean_s > 0 else 0


def ahead(*, slots: int, look_ahead: int, mean_s: float) -> int:
    """Jobs to hold beyond the slots: a fixed few, and where jobs take milliseconds enough to last while one pulls.

    Args:
        mean_s: mean seconds of a job lately; 0 if unknown.
    """
    short = min(AHEAD_AT_MOST, int(slots * AHEAD_S / mean_s)) if mean_s > 0 else 0
    return max(look_ahead, short)


def slot_limits(directory: Directory, status: Mapping[str, WorkloadStatus], *, ingresses: int = 1) -> dict[str, int]:
    """This ingress's slots by workload: its part of the running replicas' slots.

    One where nothing runs, or nothing would wake it.
    """
    limits = {}
    for served in directory.workloads:
        state = status.get(served.name)
        replicas = state.replicas if state is not None and state.ready else 0
        limits[served.name] = max(1, -(-replicas * served.slots // max(1, ingresses)))
    return limits


def room(*, slots: int, look_ahead: int, undone: int, held: int) -> int:
    """Jobs of one workload that may be taken on now.

    Args:
        slots: this ingress's.
        undone: jobs held whose workload has not replied yet; the others need no slot any more.
        held: all jobs held. With a store that is down they pile up, so they are bounded too.
    """
    most = slots + look_ahead
    return max(0, min(most - undone, 2 * most + SETTLING_AT_MOST - held))


class Slots:
    """The slots of each workload, taken in turn. Belongs to one event loop."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._limits: dict[str, int] = {}
        self._arrivals = itertools.count()

    @property
    def total(self) -> int:
        return sum(self._limits.values())

    @property
    def running(self) -> Counter[str]:
        """Jobs in slots, by workload; those that were sent ahead of a slot are not among them."""
        return Counter({name: min(line.sent, self.limit(name)) for name, line in self._lines.items()})

    def limit(self, workload: str) -> int:
        return self._limits.get(workload, 1)

    def waiting(self, workload: str) -> int:
        """Jobs that have no slot yet, here or in a replica."""
        line = self._line(workload)
        return len(line.waiting) + max(0, line.sent - self.limit(workload))

    def mean_s(self, workload: str) -> float:
        """Mean seconds of a job lately; 0 until one ended."""
        return self._line(workload).share.mean_s

    def arrived(self, workload: str) -> int:
        """Jobs that have asked for a slot, since the beginning."""
        return self._line(workload).arrived

    def take_ended(self, workload: str) -> tuple[tuple[float, float], ...]:
        """Cost and seconds of jobs that were answered since this was last asked."""
        line = self._line(workload)
        ended, line.ended = tuple(line.ended), []
        return ended

    def resize(self, limits: Mapping[str, int]) -> None:
        """New limits; jobs that run already keep their slots."""
        self._limits = dict(limits)
        for name, line in self._lines.items():
            line.wake(self.limit(name))

    async def take(self, workload: str, tenant: str, *, priority: int = 0, deadline_at_s: float | None = None) -> None:
        """Wait for a slot, or for one to be near. `give` it back afterwards."""
        line = self._line(workload)
        turn = Turn(tenant, priority, next(self._arrivals), deadline_at_s)
        line.share.arrived(tenant)
        line.arrived += 1
        if not line.waiting and line.sent < line.most(self.limit(workload)):
            line.begin(tenant)
            return
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.waiting.append((turn, mine))
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self.give(workload, tenant, 0.0, answered=False)
            else:
                line.waiting.remove((turn, mine))
                line.share.left(tenant)
            raise

    def give(
        self,
        workload: str,
        tenant: str,
        seconds: float,
        *,
        answered: bool = True,
        good: bool = True,
        units: float = 1.0,
    ) -> None:
        """The job that had the slot is over, having taken so long.

        `answered` is whether its workload replied, `good` whether that was no error: those take less than work does.
        """
        line = self._line(workload)
        if answered and good and len(line.ended) < _ENDED_AT_MOST:
            line.ended.append((units, seconds))
        line.sent -= 1
        line.share.ended(tenant, seconds, answered=answered)
        line.share.left(tenant)
        line.wake(self.limit(workload))

    def _line(self, workload: str) -> _Line:
        return self._lines.setdefault(workload, _Line())


class _Line:
    """Who was sent and who waits for one workload."""

    def __init__(self) -> None:
        self.sent = 0
        self.arrived = 0
        self.ended: list[tuple[float, float]] = []
        self.waiting: list[tuple[Turn, asyncio.Future[None]]] = []
        self.share = FairShare()

    def most(self, limit: int) -> int:
        return limit + on_the_way(slots=limit, mean_s=self.share.mean_s)

    def begin(self, tenant: str) -> None:
        self.sent += 1
        self.share.began(tenant)

    def wake(self, limit: int) -> None:
        while self.sent < self.most(limit):
            open_turns = [(turn, mine) for turn, mine in self.waiting if not mine.done()]
            if not open_turns:
                return
            turn, mine = open_turns[self.share.first([turn for turn, _ in open_turns])]
            self.waiting.remove((turn, mine))
            self.begin(turn.tenant)
            mine.set_result(None)
