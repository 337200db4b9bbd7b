"""The plan: every workload in one pool, its VRAM budget as a share of that pool's GPU, every replica on a GPU.

Pure. Serve config, manifests, cost and forecast derive from it, so nothing can disagree. It is made twice, at
the workloads' minimum replicas and at their maximum. Always true of a plan:

- no GPU holds more than its shares or its bytes, and every GPU has the wake-up room of its pool (`residency`);
- no node holds more replicas of a workload than its `per_node`;
- the minimum fits the pools' nodes, and takes no more GPUs than the maximum;
- what of the maximum does not fit is said in `warnings`, and is not placed;
- the same platform has the same plan.

Pools are chosen first (`assignment`), then each is packed into as few GPUs as can be found (`fewest`);
`gpus_lower_bound` says how few could do with pools as they were chosen. Ray places replicas by its own rules, so the
figures are what a pool needs when packed well, not a promise of who lies where; what is enforced is the shares, and
`per_node`. Replicas of a workload without `per_node` are not kept apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cotenant.config import Platform, Workload
from cotenant.gpu import refusals
from cotenant.gpu.assignment import PoolState, assigned
from cotenant.gpu.bounds import fewest_possible
from cotenant.gpu.fewest import fewest
from cotenant.gpu.machines import MACHINES
from cotenant.gpu.packing import Gpus, grow
from cotenant.gpu.residency import floor_gib
from cotenant.gpu.shares import GPU_TICKS
from cotenant.gpu.terms import Terms

_KIB_PER_GIB = 2**20


@dataclass(frozen=True)
class Booking:
    """What the plan gives a workload: its pool, and one replica's share of a GPU there (`num_gpus`)."""

    workload: str
    pool: str
    num_gpus: float
    vram_gib: float
    replicas_min: int
    replicas_max: int
    #: Replicas that find room when every workload is at its maximum.
    placed_max: int
    #: What a replica of it is told.
    terms: Terms


@dataclass(frozen=True)
class GpuFill:
    """One GPU: replicas on it by workload, and what of it can still be booked (besides its wake-up room)."""

    replicas: Mapping[str, int]
    free_share: float
    free_gib: float
    #: Number of its node within the pool, from 0.
    node: int
    #: How many of its replicas can be awake together, at the most.
    awake: int


@dataclass(frozen=True)
class PoolPlan:
    """A GPU pool: what one of its GPUs (or MIG slices) offers, and how its GPUs are filled at minimum and maximum."""

    name: str
    accelerator: str
    mig: str | None
    usable_gib: float
    #: Kept free on every GPU, so that any one replica that sleeps can wake.
    wake_gib: float
    #: MIG slices count.
    gpus_per_node: int
    nodes_at_min: int
    nodes_at_max: int
    gpus_at_min: tuple[GpuFill, ...]
    gpus_at_max: tuple[GpuFill, ...]
    #: No packing of what is placed at maximum takes fewer GPUs.
    gpus_lower_bound: int

    @property
    def at_home(self) -> int:
        """Replicas that are placed at maximum."""
        return sum(sum(gpu.replicas.values()) for gpu in self.gpus_at_max)

    @property
    def awake(self) -> int:
        """How many of those can be awake together, at the most."""
        return sum(gpu.awake for gpu in self.gpus_at_max)


@dataclass(frozen=True)
class Plan:
    """Where everything goes. `gpus_needed` is at maximum replicas, every one placed at once."""

    environment: str
    workloads: Mapping[str, Booking]
    pools: Mapping[str, PoolPlan]
    warnings: tuple[str, ...]
    _surge: frozenset[str]

    @property
    def gpus_needed(self) -> int:
        return sum(len(pool.gpus_at_max) for pool in self.pools.values())

    @property
    def gpus_needed_at_min(self) -> int:
        return sum(len(pool.gpus_at_min) for pool in self.pools.values())

    @property
    def gpus_lower_bound(self) -> int:
        """No packing takes fewer GPUs than this at maximum, the workloads' pools being what they are."""
        return sum(pool.gpus_lower_bound for pool in self.pools.values())

    @property
    def is_fewest(self) -> bool:
        """Whether `gpus_needed` is proven to be the fewest."""
        return self.gpus_needed == self.gpus_lower_bound

    def has_surge_room(self, workload: str) -> bool:
        """Whether one replica more than the maximum of `workload` finds room while all others are at theirs."""
        return workload in self._surge


def plan(platform: Platform) -> Plan:
    """The plan of a platform whose `auto` budgets were filled in.

    Raises:
        PlanError: a replica fits no GPU of any pool it may use, the minimum does not fit the pools' nodes, or a
            pool's accelerator, machine, MIG profile and memory contradict each other. One line a problem.
    """
    warnings: list[str] = []
    bookings: dict[str, Booking] = {}
    pool_plans: dict[str, PoolPlan] = {}
    surge: set[str] = set()
    for state in assigned(platform).values():
        filled = _fill(state)
        pool_plans[state.name] = _pool_plan(state, filled)
        surge |= {name for name, demand in state.demands.items() if filled.at_max.has_room(demand)}
        if filled.left:
            warnings.append(refusals.too_small(state, filled.left, filled.nodes_for_all))
        elif (costs := refusals.sleep_costs(state, filled.at_max.in_use)) is not None:
            warnings.append(costs)
        warnings += _short_of_cpus(state, filled.at_max)
        warnings += _sleeps_in_vain(state)
        for name, workload in state.members.items():
            bookings[name] = _booking(name, workload, state, filled.left.get(name, 0))
    return Plan(
        environment=platform.environment,
        workloads={name: bookings[name] for name in platform.workloads},
        pools=pool_plans,
        warnings=tuple(warnings),
        _surge=frozenset(surge),
    )


@dataclass(frozen=True)
class _Filled:
    """A pool's GPUs at minimum and at maximum, and what of the maximum was left over."""

    at_min: Gpus
    at_max: Gpus
    left: Mapping[str, int]
    bound: int
    nodes_for_all: int


def _fill(state: PoolState) -> _Filled:
    """Pack a pool. If the maximum does not all fit, it is grown from the minimum, so that no minimum is left over."""
    demands = list(state.demands.values())
    least = {name: workload.replicas.min for name, workload in state.members.items()}
    most = {name: workload.replicas.max for name, workload in state.members.items()}
    at_min = fewest(demands, least, state.base_kib, state.gpus_per_node).gpus
    if at_min.nodes_in_use > state.pool.nodes.max:
        at_min = state.gpus
    packing = fewest(demands, most, state.base_kib, state.gpus_per_node)
    at_max, bound, nodes = packing.gpus, packing.bound, packing.gpus.nodes_in_use
    at_min.limit = at_max.limit = state.limit
    left: dict[str, int] = {}
    if nodes > state.pool.nodes.max:
        at_max = at_min.copy()
        left = grow(at_max, demands, {name: most[name] - least[name] for name in most})
        bound = fewest_possible(demands, {name: most[name] - left.get(name, 0) for name in most}, state.base_kib)
    elif at_max.in_use < at_min.in_use or nodes < at_min.nodes_in_use:
        at_min = _thinned(state, at_max)
    return _Filled(at_min, at_max, left, bound, nodes)


def _thinned(state: PoolState, at_max: Gpus) -> Gpus:
    """The minimum, laid as the maximum lies: for the rare case that more replicas were packed tighter."""
    gpus = at_max.copy()
    for name, demand in state.demands.items():
        replicas = state.members[name].replicas
        on = [i for i, held in enumerate(gpus.held) for _ in range(held.get(name, 0))]
        for i in on[replicas.min :]:
            gpus.remove(i, demand)
    return gpus


def _pool_plan(state: PoolState, filled: _Filled) -> PoolPlan:
    return PoolPlan(
        name=state.name,
        accelerator=state.accelerator,
        mig=state.pool.mig,
        usable_gib=state.usable_gib,
        wake_gib=state.wake_kib / _KIB_PER_GIB,
        gpus_per_node=state.gpus_per_node,
        nodes_at_min=max(state.pool.nodes.min, filled.at_min.nodes_in_use),
        nodes_at_max=max(state.pool.nodes.min, filled.at_max.nodes_in_use),
        gpus_at_min=_fills(state, filled.at_min),
        gpus_at_max=_fills(state, filled.at_max),
        gpus_lower_bound=filled.bound,
    )


def _fills(state: PoolState, gpus: Gpus) -> tuple[GpuFill, ...]:
    wake = {name: state.need(workload).wake_kib for name, workload in state.members.items()}

    def awake(held: Mapping[str, int], free_kib: int) -> int:
        """The most that fit at once: those that never sleep, and of the others those that take least to wake."""
        room, count = free_kib + state.wake_kib, 0
        for name in sorted(held, key=lambda name: wake[name]):
            fit = held[name] if not wake[name] else min(held[name], room // wake[name])
            room -= fit * wake[name]
            count += fit
        return count

    return tuple(
        GpuFill(
            replicas=dict(held),
            free_share=gpus.free_ticks[i] / GPU_TICKS,
            free_gib=gpus.free_kib[i] / _KIB_PER_GIB,
            node=i // gpus.gpus_per_node,
            awake=awake(held, gpus.free_kib[i]),
        )
        for i, held in enumerate(gpus.held)
        if held
    )


def _booking(name: str, workload: Workload, state: PoolState, left: int) -> Booking:
    num_gpus = state.demands[name].ticks / GPU_TICKS
    return Booking(
        workload=name,
        pool=state.name,
        num_gpus=num_gpus,
        vram_gib=workload.gpu.gib,
        replicas_min=workload.replicas.min,
        replicas_max=workload.replicas.max,
        placed_max=workload.replicas.max - left,
        terms=Terms(
            workload=name,
            kind=workload.kind,
            pool=state.name,
            accelerator=state.accelerator,
            usable_gib=state.usable_gib,
            vram_gib=workload.gpu.gib,
            floor_gib=floor_gib(workload, state.accelerator),
            num_gpus=num_gpus,
            residency=workload.residency,
            idle_s=workload.idle_s,
            slots=workload.slots,
        ),
    )


def _short_of_cpus(state: PoolState, at_max: Gpus) -> list[str]:
    """A line if some GPU's replicas book more CPU cores than its part of the node has."""
    machine = MACHINES.get(state.pool.machine or "")
    if machine is None:
        return []
    have = machine.vcpus / state.gpus_per_node
    need = max((sum(state.members[name].cpus * n for name, n in held.items()) for held in at_max.held), default=0)
    if need <= have:
        return []
    return [
        f"pool {state.name}: the replicas of one GPU book up to {_cpus(need)} CPUs, but {machine.name} has "
        f"{_cpus(have)} for each; take a machine type with more, or lower cpus of its workloads"
    ]


def _cpus(count: float) -> str:
    return f"{count:.3g}" if count < 1000 else f"{count:.0f}"


def _sleeps_in_vain(state: PoolState) -> list[str]:
    """A line for each workload that may sleep and would hold as much asleep as awake."""
    return [
        f"{name} holds {workload.gpu.gib:g} GiB asleep, all of its budget, so residency: {workload.residency} saves "
        "nothing; raise its vram_gib, lower its asleep_gib, or drop residency"
        for name, workload in state.members.items()
        if workload.residency != "always" and not state.need(workload).wake_kib
    ]
