"""The plan: every workload in one pool, its VRAM budget as a share of that pool's GPU, every replica on a GPU.

Pure. Serve config, manifests, cost and forecast derive from it, so nothing can disagree. It is made twice, at
the workloads' minimum replicas and at their maximum. Always true of a plan:

- no GPU holds more than its shares or its bytes;
- the minimum fits the pools' nodes, and takes no more GPUs than the maximum;
- what of the maximum does not fit is said in `warnings`, and is not placed.

Each workload goes to the pool where a replica costs least (its share of the node's hourly price); where that one
has no room for the minimum, to the next. Within a pool GPUs are filled best-fit decreasing. Ray places replicas
by its own rules, so the figures are what the pool needs when packed well, not a promise of who lies where.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cotenant.config import Platform, Pool, Workload
from cotenant.errors import PlanError
from cotenant.gpu.accelerators import usable_gib
from cotenant.gpu.machines import MACHINES, mismatch, node_usd_per_h
from cotenant.gpu.packing import Demand, Gpus, grow, pack
from cotenant.gpu.shares import GPU_TICKS, budget_kib, share_ticks, usable_kib

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


@dataclass(frozen=True)
class GpuFill:
    """One GPU: replicas on it by workload, and what is left."""

    replicas: Mapping[str, int]
    free_share: float
    free_gib: float


@dataclass(frozen=True)
class PoolPlan:
    """A GPU pool: what one of its GPUs offers, and how its GPUs are filled at minimum and at maximum."""

    name: str
    accelerator: str
    usable_gib: float
    gpus_per_node: int
    nodes_at_min: int
    nodes_at_max: int
    gpus_at_min: tuple[GpuFill, ...]
    gpus_at_max: tuple[GpuFill, ...]


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

    def has_surge_room(self, workload: str) -> bool:
        """Whether one replica more than the maximum of `workload` finds room while all others are at theirs."""
        return workload in self._surge


@dataclass
class _PoolState:
    """A pool while workloads are assigned to it: `gpus` holds their minimum replicas."""

    name: str
    pool: Pool
    usable_gib: float
    usd_per_gpu_h: float | None
    gpus: Gpus
    demands: dict[str, Demand]

    @property
    def kib(self) -> int:
        return usable_kib(self.usable_gib)

    @property
    def limit(self) -> int:
        return self.pool.nodes.max * self.pool.gpus_per_node

    def demand(self, name: str, workload: Workload) -> Demand:
        kib = budget_kib(workload.gpu.vram_gib)
        return Demand(name, share_ticks(kib, self.kib), kib)

    def price(self, demand: Demand) -> tuple[float, float]:
        """Sorts pools for a workload: by a replica's price, unknown prices last; then by memory."""
        usd = float("inf") if self.usd_per_gpu_h is None else self.usd_per_gpu_h * demand.ticks
        return (usd, self.usable_gib)


def plan(platform: Platform) -> Plan:
    """The plan of a platform.

    Raises:
        PlanError: a replica fits no GPU of any pool it may use, the minimum does not fit the pools' nodes, or a
            pool's accelerator, machine and memory contradict each other. One line a problem.
    """
    pools = _pools(platform)
    _assign(platform, pools)
    warnings: list[str] = []
    bookings: dict[str, Booking] = {}
    pool_plans: dict[str, PoolPlan] = {}
    surge: set[str] = set()
    for state in pools.values():
        at_min, at_max, left = _fill(state, platform.workloads)
        pool_plans[state.name] = _pool_plan(state, at_min, at_max)
        surge |= {name for name, demand in state.demands.items() if at_max.has_room(demand)}
        if left:
            warnings.append(_too_small(state, platform.workloads, left))
        warnings += _short_of_cpus(state, platform.workloads, at_max)
        for name, demand in state.demands.items():
            replicas = platform.workloads[name].replicas
            bookings[name] = Booking(
                workload=name,
                pool=state.name,
                num_gpus=demand.ticks / GPU_TICKS,
                vram_gib=platform.workloads[name].gpu.vram_gib,
                replicas_min=replicas.min,
                replicas_max=replicas.max,
                placed_max=replicas.max - left.get(name, 0),
            )
    return Plan(
        environment=platform.environment,
        workloads={name: bookings[name] for name in platform.workloads},
        pools=pool_plans,
        warnings=tuple(warnings),
        _surge=frozenset(surge),
    )


def _pools(platform: Platform) -> dict[str, _PoolState]:
    """The GPU pools, empty. Raises PlanError with a line for each that contradicts itself."""
    states: dict[str, _PoolState] = {}
    problems: list[str] = []
    for name, pool in platform.pools.items():
        if not pool.holds_workloads:
            continue
        try:
            usable = usable_gib(name, pool)
        except PlanError as error:
            problems.append(platform.wrong(str(error), "pools", name))
            continue
        wrong = mismatch(name, pool)
        if wrong:
            problems.append(platform.wrong(wrong, "pools", name))
        node_usd = node_usd_per_h(pool)
        states[name] = _PoolState(
            name=name,
            pool=pool,
            usable_gib=usable,
            usd_per_gpu_h=None if node_usd is None else node_usd / pool.gpus_per_node,
            gpus=Gpus(usable_kib(usable), pool.nodes.max * pool.gpus_per_node),
            demands={},
        )
    if problems:
        raise PlanError("\n".join(problems))
    return states


def _assign(platform: Platform, pools: Mapping[str, _PoolState]) -> None:
    """Give each workload its pool and place its minimum there, largest budget first. Raises PlanError."""
    problems: list[str] = []
    largest_first = sorted(platform.workloads.items(), key=lambda item: (-item[1].gpu.vram_gib, item[0]))
    for name, workload in largest_first:
        allowed = [pools[pool] for pool in workload.pools] or list(pools.values())
        fitting = [(state, state.demand(name, workload)) for state in allowed]
        fitting = [(state, demand) for state, demand in fitting if demand.kib <= state.kib]
        if not fitting:
            too_large = _too_large(name, workload, allowed)
            problems.append(platform.wrong(too_large, "workloads", name, "gpu", "vram_gib"))
            continue
        fitting.sort(key=lambda pair: pair[0].price(pair[1]))
        rooms = []
        for state, demand in fitting:
            rooms.append(state.gpus.place_all(demand, workload.replicas.min))
            if rooms[-1] == workload.replicas.min:
                state.demands[name] = demand
                break
        else:
            no_room = _no_room(name, workload, [state for state, _ in fitting], rooms)
            problems.append(platform.wrong(no_room, "workloads", name, "replicas", "min"))
    if problems:
        raise PlanError("\n".join(problems))


def _fill(state: _PoolState, workloads: Mapping[str, Workload]) -> tuple[Gpus, Gpus, dict[str, int]]:
    """GPUs at minimum, GPUs at maximum, and the replicas of the maximum that found no room.

    The maximum is packed afresh, which is tighter; if it does not all fit, it is grown from the minimum instead,
    so that no workload's minimum is ever what is left over.
    """
    at_min = state.gpus
    demands = state.demands.values()
    at_max, left = pack(demands, {name: workloads[name].replicas.max for name in state.demands}, state.kib, state.limit)
    if left:
        at_max = at_min.copy()
        more = {name: workloads[name].replicas.max - workloads[name].replicas.min for name in state.demands}
        left = grow(at_max, demands, more)
    elif at_max.in_use < at_min.in_use:
        at_min = _thinned(state, at_max, workloads)
    return at_min, at_max, left


def _thinned(state: _PoolState, at_max: Gpus, workloads: Mapping[str, Workload]) -> Gpus:
    """The minimum, laid as the maximum lies: for the rare case that best fit packed more replicas tighter."""
    gpus = Gpus(state.kib, state.limit)
    spare = {name: workloads[name].replicas.max - workloads[name].replicas.min for name in state.demands}
    for held in at_max.held:
        kept: dict[str, int] = {}
        for name, count in held.items():
            drop = min(count, spare[name])
            spare[name] -= drop
            if count > drop:
                kept[name] = count - drop
        gpus.add_filled([(state.demands[name], count) for name, count in kept.items()])
    return gpus


def _pool_plan(state: _PoolState, at_min: Gpus, at_max: Gpus) -> PoolPlan:
    fills_min, fills_max = _fills(at_min), _fills(at_max)

    def nodes(gpus: int) -> int:
        return max(state.pool.nodes.min, -(-gpus // state.pool.gpus_per_node))

    return PoolPlan(
        name=state.name,
        accelerator=str(state.pool.accelerator),
        usable_gib=state.usable_gib,
        gpus_per_node=state.pool.gpus_per_node,
        nodes_at_min=nodes(len(fills_min)),
        nodes_at_max=nodes(len(fills_max)),
        gpus_at_min=fills_min,
        gpus_at_max=fills_max,
    )


def _fills(gpus: Gpus) -> tuple[GpuFill, ...]:
    return tuple(
        GpuFill(dict(held), gpus.free_ticks[i] / GPU_TICKS, gpus.free_kib[i] / _KIB_PER_GIB)
        for i, held in enumerate(gpus.held)
        if held
    )


def _too_large(name: str, workload: Workload, allowed: list[_PoolState]) -> str:
    largest = max(allowed, key=lambda state: state.usable_gib)
    return (
        f"{name} needs {workload.gpu.vram_gib:g} GiB, but the largest GPU it may use, {largest.pool.accelerator} of "
        f"pool {largest.name}, has {largest.usable_gib:g} usable GiB; lower vram_gib of {name} or give it a pool with "
        "a larger GPU"
    )


def _no_room(name: str, workload: Workload, states: list[_PoolState], rooms: list[int]) -> str:
    """Why a workload's minimum has no room. The pool to change is the first: a replica costs least there."""
    state, need = states[0], workload.replicas.min
    have = f"pool {state.name} has room for {rooms[0]}"
    if not rooms[0]:
        left_gib = state.gpus.emptiest_free_ticks() / GPU_TICKS * state.usable_gib
        # Shares are rounded up, so budgets that fill a GPU to the last byte may miss it by a hair: show the hair.
        left = f"{left_gib:.1f}" if round(left_gib, 1) < workload.gpu.vram_gib else f"{left_gib - 0.0005:.3f}"
        have = (
            f"the emptiest {state.pool.accelerator} of pool {state.name} has {left} of {state.usable_gib:.1f} GiB left"
        )
    nor = f" (nor does {' or '.join(s.name for s in states[1:])} have room)" if len(states) > 1 else ""
    times = "" if need == 1 else f"{need} x "
    return (
        f"{name} needs {times}{workload.gpu.vram_gib:g} GiB at minimum, but {have}{nor}; lower its vram_gib or "
        f"replicas.min, or let pool {state.name} grow past {_nodes(state.pool.nodes.max)}"
    )


def _too_small(state: _PoolState, workloads: Mapping[str, Workload], left: Mapping[str, int]) -> str:
    """What of the maximum has no room in a pool, and how many nodes would have it."""
    counts = {name: workloads[name].replicas.max for name in state.demands}
    unlimited, _ = pack(state.demands.values(), counts, state.kib, None)
    nodes = -(-unlimited.in_use // state.pool.gpus_per_node)
    reach = ", ".join(f"{name} {counts[name] - missing} of {counts[name]}" for name, missing in left.items())
    return (
        f"pool {state.name} grows to {_nodes(state.pool.nodes.max)}, but all replicas at their maximum need {nodes}; "
        f"with everything busy there is room for {reach}; raise its nodes.max to {nodes} or lower replicas.max"
    )


def _short_of_cpus(state: _PoolState, workloads: Mapping[str, Workload], at_max: Gpus) -> list[str]:
    """A line if some GPU's replicas book more CPU cores than its part of the node has."""
    machine = MACHINES.get(state.pool.machine or "")
    if machine is None:
        return []
    have = machine.vcpus / state.pool.gpus_per_node
    need = max((sum(workloads[name].cpus * n for name, n in held.items()) for held in at_max.held), default=0)
    if need <= have:
        return []
    return [
        f"pool {state.name}: the replicas of one GPU book up to {need:g} CPUs, but {machine.name} has {have:g} for "
        "each; take a machine type with more, or lower cpus of its workloads"
    ]


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"
