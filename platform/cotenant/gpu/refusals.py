"""Why something does not fit, in words: what it needs, what each pool has, and the smallest changes that would do.

A change is only named if it was tried on the pool as it is and the minimum then had room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cotenant.config import Workload
from cotenant.gpu.accelerators import ACCELERATORS
from cotenant.gpu.packing import Demand, pack
from cotenant.gpu.residency import floor_gib
from cotenant.gpu.shares import GPU_TICKS, share_ticks

if TYPE_CHECKING:
    from cotenant.gpu.assignment import PoolState

_KIB_PER_GIB = 2**20

#: Changes are looked for only so often in one plan: after that many, the rest have the same cause.
MOST_EXPLAINED = 5


def too_large(name: str, workload: Workload, allowed: Sequence[PoolState]) -> str:
    """Why a replica fits no GPU it may use."""
    largest = max(allowed, key=lambda state: state.usable_gib)
    enough = [one for one in ACCELERATORS.values() if one.usable_gib >= workload.gpu.gib]
    known = f" ({min(enough, key=lambda one: one.usable_gib).name} would do)" if enough else ""
    return (
        f"{name} needs {workload.gpu.gib:g} GiB, but the largest GPU it may use, {_device(largest)} of pool "
        f"{largest.name}, has {largest.usable_gib:g} usable GiB; lower vram_gib of {name} to {largest.usable_gib:g} or "
        f"give it a pool with a larger GPU{known}"
    )


def no_room(
    name: str,
    workload: Workload,
    states: Sequence[PoolState],
    rooms: Sequence[int],
    *,
    unfit: Sequence[PoolState] = (),
    explain: bool = True,
) -> str:
    """Why a workload's minimum has no room in `states`, and GPUs that are too small in `unfit`.

    The pool to change is the first: a replica costs least there.
    """
    pools = [_have(state, workload, room) for state, room in zip(states, rooms, strict=True)]
    pools += [f"the {_device(state)} of pool {state.name} has {state.usable_gib:g} GiB" for state in unfit]
    have = ", and ".join(pools)
    changes = _changes(name, workload, states[0], rooms[0]) if explain else []
    return f"{name} needs {_needs(workload, states[0])}, but {have}; {_either(changes or [_in_general(states[0])])}"


def too_small(state: PoolState, left: Mapping[str, int], nodes: int) -> str:
    """What of the maximum has no room in a pool that would have to grow to `nodes`."""
    counts = {name: workload.replicas.max for name, workload in state.members.items()}
    reach = ", ".join(f"{name} {counts[name] - missing} of {counts[name]}" for name, missing in left.items())
    return (
        f"pool {state.name} grows to {_nodes(state.pool.nodes.max)}, but all replicas at their maximum need {nodes}; "
        f"with everything busy there is room for {reach}; raise its nodes.max to {nodes} or lower replicas.max"
    )


def sleep_costs(state: PoolState, gpus: int) -> str | None:
    """A line if the room kept free for waking takes more GPUs (so many as `gpus`) than nobody sleeping would."""
    if not state.wake_kib:
        return None
    counts = {name: workload.replicas.max for name, workload in state.members.items()}
    demands = []
    for name, workload in state.members.items():
        kib = state.need(workload).full_kib
        demands.append(Demand(name, share_ticks(kib, state.kib), kib, workload.replicas.per_node))
    without, _ = pack(demands, counts, state.kib, None, state.gpus_per_node)
    if without.in_use >= gpus:
        return None
    names = " and ".join(name for name, workload in state.members.items() if state.need(workload).wake_kib)
    return (
        f"pool {state.name} needs {gpus} GPUs, since each keeps {_gib(state.wake_kib)} GiB free so that {names} can "
        f"wake; were nothing to sleep, {without.in_use} would do: drop residency of {names}, or give what sleeps a "
        "pool of its own"
    )


def _needs(workload: Workload, state: PoolState) -> str:
    replicas = workload.replicas
    times = "" if replicas.min == 1 else f"{replicas.min} x "
    needs = state.need(workload)
    text = f"{times}{workload.gpu.gib:g} GiB at minimum"
    if needs.wake_kib:
        text = f"{times}{_gib(needs.booked_kib)} GiB asleep and {_gib(needs.wake_kib)} GiB to wake"
    if replicas.per_node is not None and replicas.min > 1:
        text += f", no more than {replicas.per_node} to a node"
    return text


def _have(state: PoolState, workload: Workload, room: int) -> str:
    """What a pool has to offer to a workload of whose minimum `room` replicas found a place there."""
    needs = state.need(workload)
    base = state.kib - max(state.wake_kib, needs.wake_kib)
    if needs.wake_kib > state.wake_kib:
        crowded = [name for name, its in state.members.items() if state.need(its).booked_kib > base]
        if crowded:
            books = state.need(state.members[crowded[0]]).booked_kib
            return (
                f"with {_gib(needs.wake_kib)} of {state.usable_gib:.1f} GiB kept free to wake it, pool {state.name} "
                f"has no room for {crowded[0]}, which books {_gib(books)} GiB"
            )
        return f"pool {state.name} has no room for it beside what is there"
    if needs.booked_kib > base:
        waking = max(state.members, key=lambda name: state.need(state.members[name]).wake_kib)
        return (
            f"pool {state.name} keeps {_gib(state.wake_kib)} of {state.usable_gib:.1f} GiB free so that {waking} can "
            f"wake, and {_gib(base)} can be booked"
        )
    if room:
        return f"pool {state.name} has room for {room}"
    demand = state.demands_with("", workload)
    emptiest = max((ticks for ticks, _ in state.gpus.free_for(demand[""])), default=0) if demand else 0
    left_gib = emptiest / GPU_TICKS * base / _KIB_PER_GIB
    # Shares are rounded up, so budgets that fill a GPU to the last byte may miss it by a hair: show the hair.
    close = round(left_gib, 1) * _KIB_PER_GIB >= needs.booked_kib
    left = f"{left_gib - 0.0005:.3f}" if close else f"{left_gib:.1f}"
    kept = f", besides {_gib(state.wake_kib)} to wake in" if state.wake_kib else ""
    return (
        f"the emptiest {_device(state)} of pool {state.name} has {left} of {state.usable_gib:.1f} GiB left{kept}"
    )  # fmt: skip


def _changes(name: str, workload: Workload, state: PoolState, room: int) -> list[str]:
    """Changes to the file, each of which alone would give the minimum room in that pool."""
    found: list[str] = []
    nodes = _nodes_needed(name, workload, state)
    if nodes is not None:
        found.append(f"raise nodes.max of pool {state.name} from {state.pool.nodes.max} to {nodes}")
    smaller = _largest_that_fits(name, workload, state)
    if smaller is not None:
        found.append(f"lower vram_gib of {name} to {smaller:g}")
    if workload.residency == "always":
        sleeper = workload.model_copy(update={"residency": "sleep"})
        floor = floor_gib(sleeper, state.accelerator)
        if floor < workload.gpu.gib and _fits(name, sleeper, state):
            found.append(
                f"give {name} residency: sleep (it then books {floor:g} GiB, {workload.gpu.gib - floor:g} less)"
            )
    if room:
        found.append(f"lower replicas.min of {name} to {room}")
    return found


def _in_general(state: PoolState) -> str:
    return f"let pool {state.name} grow past {_nodes(state.pool.nodes.max)}, or lower vram_gib or replicas.min"


def _nodes_needed(name: str, workload: Workload, state: PoolState) -> int | None:
    """Nodes that hold the minimum of that workload beside those that are there; None if no number of them does."""
    demands = state.demands_with(name, workload)
    if demands is None:
        return None
    counts = {member: its.replicas.min for member, its in state.members.items()} | {name: workload.replicas.min}
    base = state.kib - max(state.wake_kib, state.need(workload).wake_kib)
    gpus, _ = pack(demands.values(), counts, base, None, state.gpus_per_node)
    return gpus.nodes_in_use if gpus.nodes_in_use > state.pool.nodes.max else None


def _largest_that_fits(name: str, workload: Workload, state: PoolState) -> float | None:
    """The largest budget, in tenths of a GiB, with which the minimum has room; None if that is under a tenth of it."""
    low, high = 0, int(workload.gpu.gib * 10 - 1e-6)
    while low < high:
        middle = (low + high + 1) // 2
        gpu = workload.gpu.model_copy(update={"vram_gib": middle / 10})
        if _fits(name, workload.model_copy(update={"gpu": gpu}), state):
            low = middle
        else:
            high = middle - 1
    return low / 10 if low >= workload.gpu.gib else None


def _fits(name: str, workload: Workload, state: PoolState) -> bool:
    trial = state.copy()
    return trial.add(name, workload) == workload.replicas.min and name in trial.members


def _either(changes: Sequence[str]) -> str:
    return changes[0] if len(changes) == 1 else ", ".join(changes[:-1]) + f", or {changes[-1]}"


def _device(state: PoolState) -> str:
    return f"{state.accelerator} {state.pool.mig}" if state.pool.mig else state.accelerator


def _gib(kib: int) -> str:
    return f"{kib / _KIB_PER_GIB:.4g}"


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"
