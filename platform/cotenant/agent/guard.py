"""Who holds too much: from what a replica holds and may hold to a warning, a stop, or nothing. Pure; KiB, seconds.

- Past its budget, one sample suffices to stop it: a peak must not reach its neighbours.
- Without a lease on its budget it may hold its floor. Above that it is warned at once and stopped after `grace_s`,
  since giving memory back, and a first load, take a moment, and since floors are estimates.
- From `warn_part` of its budget on it is warned, once, until it has come down again by a little.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """When to warn and when to stop."""

    warn_part: float = 0.90
    calm_part: float = 0.85
    """Under this part of what it may hold, a replica can be warned anew."""
    slack_part: float = 0.02
    slack_kib: int = 64 * 1024
    """Past the budget by more than the greater of these two, where figures are NVML's or an allocator's: a CUDA
    context comes in steps, and NVML counts in pages of 2 MiB and more. Process memory has no slack."""
    floor_slack_part: float = 0.10
    floor_slack_kib: int = 64 * 1024
    """The same for floors, wherever measured."""
    grace_s: float = 10.0


@dataclass(frozen=True)
class Holding:
    """What a replica holds, and may hold."""

    held_kib: int | None
    budget_kib: int
    floor_kib: int
    full: bool
    """Whether its lease is for the budget; else it is for the floor."""
    exact: bool = False
    """Whether the figure is of process memory."""


@dataclass(frozen=True)
class Watch:
    """What is remembered of a replica from sample to sample."""

    warned: bool = False
    over_floor_since: float | None = None


@dataclass(frozen=True)
class Warn:
    held_kib: int
    may_kib: int


@dataclass(frozen=True)
class Stop:
    held_kib: int
    may_kib: int
    past_budget: bool
    """Past its budget; else it kept more than its floor without a lease."""


def judge(holding: Holding, watch: Watch, now: float, limits: Limits) -> tuple[Warn | Stop | None, Watch]:
    """What is to be done about one sample of a replica, and what to remember for the next."""
    held, budget, floor = holding.held_kib, holding.budget_kib, holding.floor_kib
    if held is None:
        return None, watch
    slack = 0 if holding.exact else max(limits.slack_kib, int(budget * limits.slack_part))
    if held > budget + slack:
        return Stop(held, budget, past_budget=True), watch
    if holding.full or floor >= budget:
        if held >= limits.warn_part * budget:
            return (None if watch.warned else Warn(held, budget)), Watch(warned=True)
        return None, Watch(warned=watch.warned and held >= limits.calm_part * budget)
    if held <= floor + max(limits.floor_slack_kib, int(floor * limits.floor_slack_part)):
        return None, Watch()
    since = now if watch.over_floor_since is None else watch.over_floor_since
    if now - since > limits.grace_s:
        return Stop(held, floor, past_budget=False), watch
    # A warning about the budget, given while it was awake, is not one about the floor.
    first = watch.over_floor_since is None
    return (Warn(held, floor) if first else None), Watch(warned=True, over_floor_since=since)
