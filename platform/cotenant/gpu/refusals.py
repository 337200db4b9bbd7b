"""Why something does not fit, in words: what it needs and what each pool has. What would do is `advice`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cotenant.config import Workload
from cotenant.gpu.accelerators import ACCELERATORS
from cotenant.gpu.advice import Supposed
from cotenant.gpu.packing import Demand, pack
from cotenant.gpu.shares import GPU_TICKS, share_ticks

if TYPE_CHECKING:
    from cotenant.gpu.assignment import PoolState

_KIB_PER_GIB = 2**20


def largest(allowed: Sequence[PoolState]) -> PoolState:
    """The pool with the largest GPU."""
    return max(allowed, key=lambda state: state.usable_gib)


def too_large(name: str, workload: Workload, allowed: Sequence[PoolState]) -> str:
    """Why a replica fits no GPU it may use."""
    most = largest(allowed)
    return (
        f"{name} needs {workload.gpu.gib:g} GiB, but the largest GPU it may use, {_device(most)} of pool {most.name}, "
        f"has {most.usable_gib:g} usable GiB"
    )


def larger_gpu(workload: Workload) -> str:
    """What to do about a replica that fits no GPU."""
    enough = [one for one in ACCELERATORS.values() if one.usable_gib >= workload.gpu.gib]
    known = f" ({min(enough, key=lambda one: one.usable_gib).name} would do)" if enough else ""
    return f"give it a pool with a larger GPU{known}"


def no_room(
    name: str,
    workload: Workload,
    states: Sequence[PoolState],
    rooms: Sequence[int],
    unfit: Sequence[PoolState],
) -> str:
    """Why a workload's minimum has no room in `states`, and GPUs that are too small in `unfit`."""
    pools = [_have(state, workload, room) for state, room in zip(states, rooms, strict=True)]
    pools += [f"the {_device(state)} of pool {state.name} has {state.usable_gib:g} GiB" for state in unfit]
    have = ", and ".join(pools)
    return f"{name} needs {_needs(workload, states[0])}, but {have}"


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
        beside = " beside what is there" if state.members else ""
        return f"pool {state.name} has no room for {'so many' if workload.replicas.min > 1 else 'it'}{beside}"
    if needs.booked_kib > base:
        return (
            f"pool {state.name} keeps {_gib(state.wake_kib)} of {state.usable_gib:.1f} GiB free so that "
            f"{waking(state, '', workload)} can wake, and {_gib(base)} can be booked"
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


def in_general(workload: Workload, state: PoolState) -> str:
    """What may help, where no one change was found that does, or none was looked for."""
    lower = "its vram_gib" if isinstance(workload, Supposed) else "vram_gib or replicas.min"
    return f"let pool {state.name} grow past {_nodes(state.pool.nodes.max)}, or lower {lower}"


def waking(state: PoolState, name: str, workload: Workload) -> str | None:
    """The workload in a pool whose wake-up room lacks for that one: itself, or the one that needs most of it."""
    if state.need(workload).wake_kib > state.wake_kib:
        return name
    if not state.wake_kib:
        return None
    return max(state.members, key=lambda member: state.need(state.members[member]).wake_kib)


def _device(state: PoolState) -> str:
    return f"{state.accelerator} {state.pool.mig}" if state.pool.mig else state.accelerator


def _gib(kib: int) -> str:
    return f"{kib / _KIB_PER_GIB:.4g}"


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"
