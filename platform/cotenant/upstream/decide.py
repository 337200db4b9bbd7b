"""Whether a request is sent elsewhere, from what its door knows. Pure.

A request that would begin here within `after_wait_s` stays. Where the wait is what decides, it has to fall to half of
that before requests stay again, so that a load on the edge does not change sides with every call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reason = Literal["no_replica", "queue_full", "wait"]

#: Of `after_wait_s`: below this part of it a workload that spills keeps its requests again.
_KEEPS_AGAIN = 0.5


@dataclass(frozen=True)
class Bounds:
    """What the platform file says. `slots` and `queue` are those of one replica and of one door."""

    after_wait_s: float
    slots: int
    queue: int
    start_s: float
    """Seconds until a replica serves where none does."""
    doors: int = 1
    """Doors of this kind, which share the replicas evenly."""


@dataclass(frozen=True)
class Seen:
    """What a door sees of one workload."""

    replicas: int
    calls: int = 0
    """Calls that it sent to the replicas and that have not ended, those that wait among them."""
    units: float = 0.0
    """Their cost together (`calls.cost`)."""
    s_per_unit: float | None = None
    """Seconds in a slot for each unit of cost, lately; None until one ended."""
    oldest_s: float = 0.0
    """How long the oldest of them has been there."""
    starting_s: float = 0.0
    """How long somebody has been waiting for a first replica."""


def why_elsewhere(bounds: Bounds, seen: Seen, *, spilling: bool = False) -> Reason | None:
    """Why the next call is to be sent elsewhere; None if it stays. `spilling`: whether the last one was sent there."""
    if seen.replicas < 1:
        return "no_replica" if start_left_s(bounds.start_s, seen.starting_s) > bounds.after_wait_s else None
    slots = slots_here(bounds, seen.replicas)
    if seen.calls - slots >= bounds.queue:
        return "queue_full"
    limit_s = bounds.after_wait_s * (_KEEPS_AGAIN if spilling else 1.0)
    return "wait" if wait_s(seen, slots) > limit_s else None


def slots_here(bounds: Bounds, replicas: int) -> float:
    """This door's part of the slots."""
    return max(1.0, replicas * bounds.slots / max(1, bounds.doors))


def wait_s(seen: Seen, slots: float) -> float:
    """Seconds that the next call would wait for a slot, if slots come free evenly.

    Until a call has ended, one is taken to last as long as the oldest has been there.
    """
    ahead = seen.calls - slots + 1
    if ahead <= 0 or not seen.calls:
        return 0.0
    each_s = seen.oldest_s if seen.s_per_unit is None else seen.s_per_unit * seen.units / seen.calls
    return ahead * each_s / slots


def start_left_s(start_s: float, starting_s: float) -> float:
    """Seconds until the first replica serves. One that is overdue is taken to need as long again as it has taken."""
    return start_s - starting_s if starting_s < start_s else starting_s
