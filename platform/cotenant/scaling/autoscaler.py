"""The policy for all workloads of a running platform: told what doors and Serve see, asked how many there are to be.

Pure: whoever hosts it tells it the time. What it is told is kept as it was told; each decision looks at everything
anew. A door that has not told anything for a while is taken to be gone, and with it what it saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cotenant.calls.demand import Asked
from cotenant.scaling.coming import Coming
from cotenant.scaling.depth import Depth
from cotenant.scaling.learning import Rate, ServiceTimes, StartTime
from cotenant.scaling.policy import AIMS, Aims, decide
from cotenant.scaling.terms import OF_THE_TIME_LEFT, Bounds, Demand, Memory, Queue, Situation, Supply, Target

#: A door that has said nothing for so long is gone. Doors tell at least once a second.
DOOR_GONE_S = 10.0
#: A workload that Serve has not spoken of for so long is gone.
WORKLOAD_GONE_S = 60.0
#: A call that nothing is known of is taken to need so much work.
_UNKNOWN_S = 1.0


@dataclass(frozen=True)
class Scaled:
    """What the autoscaler is told of a workload once: its bounds, and the seconds that starts are assumed to take."""

    bounds: Bounds
    wake_s: float = 2.0
    share_s: float = 45.0
    node_s: float = 180.0


@dataclass(frozen=True)
class Decision:
    """A target, and what it was made from."""

    target: Target
    demand: Demand
    supply: Supply


@dataclass
class _Door:
    """What one door told last."""

    at_s: float
    asked: Mapping[str, Asked]
    arrived: dict[str, int] = field(default_factory=dict)
    depths: dict[str, Depth] = field(default_factory=dict)


@dataclass
class _Workload:
    scaled: Scaled
    coming: Coming
    times: ServiceTimes = field(default_factory=ServiceTimes)
    rate: Rate = field(default_factory=Rate)
    memory: Memory = field(default_factory=Memory)
    running: int = 0
    spoken_of_s: float = 0.0
    heard_of: bool = False
    """Whether Serve has told how many replicas there are."""


class Autoscaler:
    """Decides for each workload by itself; none knows of another."""

    def __init__(self, aims: Aims = AIMS) -> None:
        self._aims = aims
        self._doors: dict[str, _Door] = {}
        self._heard_s = float("-inf")
        self._workloads: dict[str, _Workload] = {}

    @property
    def workloads(self) -> list[str]:
        return list(self._workloads)

    def scale(self, name: str, scaled: Scaled, now: float) -> None:
        """Decide for this workload from now on; one that is known keeps what was learned of it."""
        known = self._workloads.get(name)
        if known is None:
            self._workloads[name] = _Workload(scaled, _coming(scaled), spoken_of_s=now)
            return
        if _starts(known.scaled) != _starts(scaled):
            known.coming = _coming(scaled)
        if known.scaled.bounds != scaled.bounds:
            known.memory = Memory(known.memory.needed_at_s[: scaled.bounds.max])
        known.scaled, known.spoken_of_s = scaled, now

    def told(self, door: str, asked: Mapping[str, Asked], now: float) -> None:
        """What a door sees now. A workload that it leaves out it sees nothing of."""
        self._heard_s = now
        known = self._doors.get(door)
        if known is None:
            # What came before it was heard for the first time came at no time that is known.
            known = self._doors[door] = _Door(now, asked, {name: one.arrived for name, one in asked.items()})
        known.at_s, known.asked = now, asked
        for name, one in asked.items():
            workload = self._workloads.get(name)
            if workload is None:
                continue
            came = one.arrived - known.arrived.get(name, 0)
            if came > 0:
                workload.rate.came(came, now)
            known.arrived[name] = one.arrived
            for units, seconds in one.ended:
                workload.times.ended(units, seconds)

    def serve_has(self, name: str, running: int, target: int, now: float) -> None:
        """So many replicas of the workload serve, so many are asked of Serve."""
        workload = self._workloads[name]
        if not workload.heard_of:
            # Whatever is there was needed until now: the doors may not have said yet what for.
            workload.heard_of = True
            workload.memory = Memory((now,) * min(workload.scaled.bounds.max, max(running, target)))
        workload.spoken_of_s = now
        workload.coming.saw(running, target, now)
        workload.running = running

    def room_for(self, name: str, shares: int) -> None:
        """So many more replicas of the workload fit on the nodes that are there."""
        self._workloads[name].coming.free_shares = shares

    def tidy(self, now: float) -> None:
        """Forget doors and workloads that are gone."""
        for door in [name for name, one in self._doors.items() if now - one.at_s > DOOR_GONE_S]:
            del self._doors[door]
        for name in [name for name, one in self._workloads.items() if now - one.spoken_of_s > WORKLOAD_GONE_S]:
            del self._workloads[name]

    def decide(self, name: str, now: float) -> Decision:
        """How many replicas the workload is to have now."""
        workload = self._workloads[name]
        demand = self._demand(name, workload, now)
        supply = Supply(workload.running, 0, workload.coming.starting(now))
        situation = Situation(demand, supply, workload.coming.starts)
        target, workload.memory = decide(workload.scaled.bounds, situation, workload.memory, now, self._aims)
        return Decision(target, demand, supply)

    # --- demand ---

    def _demand(self, name: str, workload: _Workload, now: float) -> Demand:
        bounds, times = workload.scaled.bounds, workload.times
        sent, ages, queues = 0, list[float](), list[Queue]()
        for door in self._doors.values():
            asked = door.asked.get(name)
            if asked is None:
                continue
            since_s = now - door.at_s
            sent += asked.sent
            ages += [age + since_s for age in asked.ages_s]
            seen = [line for line in asked.lines if not line.exact]
            count, oldest_s = sum(line.waiting for line in seen), max((line.oldest_s for line in seen), default=0.0)
            depth = door.depths.setdefault(name, Depth())
            times_more = depth.saw(count, oldest_s, asked.full_pulls if asked.more else None, now)
            for line in asked.lines:
                within_s = bounds.target_wait_s - line.oldest_s
                if line.left_s is not None:
                    within_s = OF_THE_TIME_LEFT * line.left_s
                more = 1.0 if line.exact else times_more
                work_s = more * _work_s(times, line.waiting, line.units)
                queues.append(Queue(round(more * line.waiting), work_s, within_s - since_s))
        running = min(sent, bounds.slots * workload.running)
        if sent > running:
            # First come, first served: those that were sent last are the ones that wait in the replicas.
            waiting = sent - running
            oldest_s = max(sorted(ages)[:waiting], default=0.0)
            queues.append(Queue(waiting, waiting * (times.mean_s or _UNKNOWN_S), bounds.target_wait_s - oldest_s))
        return Demand(self._heard_s, running, tuple(queues), workload.rate.per_s(now), times.mean_s)


def _work_s(times: ServiceTimes, count: int, units: float | None) -> float:
    """Slot-seconds of so many calls that cost so many units together."""
    if not times.known or not count:
        return count * _UNKNOWN_S
    return count * (times.mean_s if units is None else times.of(units / count))


def _coming(scaled: Scaled) -> Coming:
    return Coming(StartTime(scaled.wake_s), StartTime(scaled.share_s), StartTime(scaled.node_s))


def _starts(scaled: Scaled) -> tuple[float, float, float]:
    return scaled.wake_s, scaled.share_s, scaled.node_s
