"""What a scaling decision is made from, and what it says.

Times are seconds; `now`, where a function takes it, is on any clock that does not go back. Work is in slot-seconds:
what one slot of a replica does in a second.
"""

from __future__ import annotations

from dataclasses import dataclass, field

#: What has a deadline should be begun within this part of the time that is left: the estimates may be wrong.
OF_THE_TIME_LEFT = 0.5


@dataclass(frozen=True)
class Bounds:
    """What the platform file says of a workload's replicas."""

    slots: int
    min: int = 1
    max: int = 1
    target_wait_s: float = 5.0
    """A call should wait no longer than this before it is worked on."""
    can_sleep: bool = False

    def clamp(self, replicas: int) -> int:
        return max(self.min, min(self.max, replicas))


@dataclass(frozen=True)
class Queue:
    """Calls that wait and are equally urgent."""

    waiting: int
    work_s: float
    """Their work together, in slot-seconds."""
    within_s: float
    """How long from now they should be begun at the latest; below zero where that is past."""


@dataclass(frozen=True)
class Demand:
    """What is asked of a workload, as it was seen at `at_s`."""

    at_s: float
    running: int = 0
    """Calls in slots."""
    queues: tuple[Queue, ...] = ()
    arriving_per_s: float = 0.0
    """Calls that come in a second, lately."""
    service_s: float = 0.0
    """Mean seconds that a call has a slot; 0 if unknown."""

    @property
    def waiting(self) -> int:
        return sum(queue.waiting for queue in self.queues)

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return self.running > 0 or self.waiting > 0


@dataclass(frozen=True)
class Supply:
    """A workload's replicas."""

    resident: int = 0
    asleep: int = 0
    starting: tuple[float, ...] = ()
    """Of each that starts or wakes: in how many seconds it serves, as far as can be told."""

    @property
    def replicas(self) -> int:
        return self.resident + self.asleep + len(self.starting)


@dataclass(frozen=True)
class Starts:
    """How long a replica takes to serve, by where it comes from, and what there is to come from."""

    wake_s: float = 2.0
    """From sleep."""
    share_s: float = 45.0
    """On a node that is there and has a free share."""
    node_s: float = 180.0
    """With a node that has to be made first."""
    free_shares: int = 0
    """Replicas that fit on the nodes that are there, beside what runs."""

    def delays(self, supply: Supply, more: int) -> list[float]:
        """Seconds until each replica serves: those of `supply`, then `more` new ones, each the quickest way left."""
        there = [0.0] * supply.resident + sorted([*supply.starting, *[self.wake_s] * supply.asleep])
        shares = min(more, self.free_shares)
        return there + [self.share_s] * shares + [self.node_s] * (more - shares)


@dataclass(frozen=True)
class Situation:
    """How it stands with one workload."""

    demand: Demand
    supply: Supply = Supply()
    starts: Starts = Starts()


@dataclass(frozen=True)
class Memory:
    """What a decision leaves to the next one."""

    needed_at_s: tuple[float, ...] = ()
    """When so many replicas were last needed: the first entry for one, the second for two. Never rises."""


@dataclass(frozen=True)
class Target:
    """What should be: replicas that can work, and beside them those that sleep."""

    resident: int
    asleep: int = 0
    needed: int = 0
    """What demand alone asks for, before anything is kept for what may come."""
    why: str = field(default="", compare=False)

    @property
    def replicas(self) -> int:
        return self.resident + self.asleep
