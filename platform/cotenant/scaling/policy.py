"""How many replicas a workload is to have. Pure: the same function decides live and in the simulator.

Three things ask for replicas. What runs and comes steadily: so many that few calls wait over the target (Erlang's
formulas). What waits: so many that the waiting is over in time, counting how long each further replica takes until it
serves; one that would come when the others are about done helps nobody and is not asked for. And the file's
bounds.

A replica that is not needed any more is kept while keeping it is the cheaper bet: for as long as a multiple of the
time that it would take to have it back, since a start costs the node's time as much as idling does. That is the
ski-rental rule; at a multiple of 1 it never costs more than twice what was best in hindsight.

What always holds:

- Bounds are kept, and there is a replica while anything runs or waits.
- More waiting, or what waits being more urgent, never gives fewer replicas.
- Steady demand gives a steady target.
- A demand that is too old to be believed changes nothing but what the bounds and the last need ask for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cotenant.scaling.queueing import servers_for
from cotenant.scaling.terms import Bounds, Demand, Memory, Situation, Starts, Supply, Target


@dataclass(frozen=True)
class Aims:
    """What the policy is tuned by."""

    late: float = 0.05
    """The part of calls that may wait longer than the target while demand is steady."""
    patience: float = 2.0
    """A replica is kept for so many times what it takes to have it back."""
    stretch: float = 0.25
    """What waits may take longer than a start by this part of it before one more is started: so long it would work."""
    stale_s: float = 30.0
    """A demand that was seen longer ago is not believed."""


AIMS = Aims()


def decide(
    bounds: Bounds, situation: Situation, memory: Memory, now: float, aims: Aims = AIMS
) -> tuple[Target, Memory]:
    """The target now, and what to hand in with the next decision."""
    demand, supply, starts = situation.demand, situation.supply, situation.starts
    if now - demand.at_s > aims.stale_s:
        return _held(bounds, supply, demand), memory
    needed, why = _needed(bounds, demand, supply, starts, aims)
    needed_at = _remember(memory.needed_at_s, needed, now)
    back_s = _back_s(starts)
    replicas = bounds.clamp(max(needed, _kept(needed_at, now, aims.patience * back_s)))
    awake = replicas
    if bounds.can_sleep:
        # The file's min is of replicas that are there; it does not say that those without work be awake.
        awake = min(replicas, max(needed, _kept(needed_at, now, aims.patience * starts.wake_s)))
    if replicas > bounds.clamp(needed):
        why = f"{needed} needed ({why}), more kept for a while"
    elif replicas != needed:
        why = f"{needed} needed ({why}), {'min' if needed < replicas else 'max'} is {replicas}"
    return Target(awake, replicas - awake, needed, why), Memory(needed_at[: bounds.max])


def _held(bounds: Bounds, supply: Supply, demand: Demand) -> Target:
    """What is there, since nothing newer is known."""
    awake = supply.resident + len(supply.starting)
    replicas = bounds.clamp(max(supply.replicas, 1 if demand.busy else 0))
    resident = min(replicas, max(awake, 1 if demand.busy else 0)) if bounds.can_sleep else replicas
    return Target(resident, replicas - resident, awake, "nothing was heard of its demand for a while")


def _needed(bounds: Bounds, demand: Demand, supply: Supply, starts: Starts, aims: Aims) -> tuple[int, str]:
    """Replicas that demand asks for, whatever the bounds, and what asks for the most of them."""
    asked = [
        (math.ceil(demand.running / bounds.slots), f"{demand.running} calls run"),
        (_for_the_steady(bounds, demand, starts, aims), f"{demand.arriving_per_s:.3g} calls a second come"),
        (_for_the_waiting(bounds, demand, supply, starts, aims), f"{demand.waiting} calls wait"),
    ]
    return max(asked, key=lambda one: one[0])


def _for_the_steady(bounds: Bounds, demand: Demand, starts: Starts, aims: Aims) -> int:
    """Enough for what comes; none for so little that a replica would idle longer than its start is worth."""
    if demand.service_s <= 0 or demand.arriving_per_s * aims.patience * _back_s(starts) < 1:
        return 0
    load = demand.arriving_per_s * demand.service_s
    most = bounds.max * bounds.slots
    servers = servers_for(load, bounds.target_wait_s / demand.service_s, late=aims.late, step=bounds.slots, most=most)
    return servers // bounds.slots


def _for_the_waiting(bounds: Bounds, demand: Demand, supply: Supply, starts: Starts, aims: Aims) -> int:
    """The least number of replicas that begins everything that waits in time, or as soon as is reasonable."""
    if not demand.waiting:
        return 0
    delays = starts.delays(supply, max(0, bounds.max - supply.replicas))

    def slots_s(count: int, within_s: float) -> float:
        """Slot-seconds of the first replicas until the time is over, or until one more would have earned its start."""
        horizon_s = max(within_s, (1 + aims.stretch) * delays[count])
        return bounds.slots * sum(max(0.0, horizon_s - delay) for delay in delays[:count])

    # What runs is half done, on average.
    ahead_s = demand.running * demand.service_s / 2
    need = 1
    for queue in sorted(demand.queues, key=lambda one: one.within_s):
        ahead_s += queue.work_s
        while need < len(delays) and slots_s(need, queue.within_s) < ahead_s:
            need += 1
    return need


def _back_s(starts: Starts) -> float:
    """How long it takes to have a replica back that was stopped: its share is free then, its node may be gone."""
    return starts.share_s if starts.free_shares else starts.node_s


def _remember(needed_at: tuple[float, ...], needed: int, now: float) -> tuple[float, ...]:
    return (now,) * needed + needed_at[needed:]


def _kept(needed_at: tuple[float, ...], now: float, keep_s: float) -> int:
    """How many were needed within the last `keep_s`."""
    return sum(1 for at in needed_at if now - at <= keep_s)
