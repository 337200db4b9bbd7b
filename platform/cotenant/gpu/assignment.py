"""Which pool each workload goes to, with room for its minimum there.

A workload goes to the pool where a replica costs least (its share of the node's hourly price), and where that one has
no room for the minimum, to the next. Those that sleep go first, the one that needs most to wake ahead, since wake-up
room is taken from everything else in the pool; the others by size. Where that order leaves one without room, two
others are tried before it is refused: those with the fewest pools first, and those that never sleep first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from cotenant.config import Platform, Pool, Workload
from cotenant.errors import PlanError
from cotenant.gpu import refusals
from cotenant.gpu.accelerators import gpus_per_node, usable_gib
from cotenant.gpu.advice import Supposed, Trials, changes, either, largest_gib
from cotenant.gpu.bounds import fewest_possible
from cotenant.gpu.fewest import fewest
from cotenant.gpu.machines import mismatch, node_usd_per_h
from cotenant.gpu.packing import Demand, Gpus
from cotenant.gpu.residency import Need, need
from cotenant.gpu.shares import share_ticks, usable_kib

#: A pool is packed afresh for a workload that best fit finds no room for, but only so often.
_REPACKS = 4
#: Changes are looked for only so often in one plan: after that many, the rest have the same cause.
_MOST_EXPLAINED = 5
#: With more workloads, changes are looked for among packings by best fit alone.
_MOST_REPACKED = 50


@dataclass
class PoolState:
    """A pool while workloads are assigned to it: `gpus` holds their minimum replicas."""

    name: str
    pool: Pool
    usable_gib: float
    gpus_per_node: int
    usd_per_gpu_h: float | None
    gpus: Gpus
    members: dict[str, Workload] = field(default_factory=dict)
    demands: dict[str, Demand] = field(default_factory=dict)
    #: Kept free on every GPU, so that any one sleeping replica can wake.
    wake_kib: int = 0
    _repacks: int = _REPACKS

    @property
    def accelerator(self) -> str:
        return str(self.pool.accelerator)

    @property
    def kib(self) -> int:
        """Memory of one GPU."""
        return usable_kib(self.usable_gib)

    @property
    def base_kib(self) -> int:
        """What may be booked of it."""
        return self.kib - self.wake_kib

    @property
    def limit(self) -> int:
        return self.pool.nodes.max * self.gpus_per_node

    def need(self, workload: Workload) -> Need:
        return need(workload, self.accelerator)

    def could_hold(self, workload: Workload) -> bool:
        """Whether a replica fits a GPU here, were the others not there."""
        return self.need(workload).full_kib <= self.kib

    def price(self, workload: Workload) -> tuple[float, float]:
        """Sorts pools for a workload: by a replica's price, unknown prices last; then by memory."""
        needs = self.need(workload)
        base = self.kib - max(self.wake_kib, needs.wake_kib)
        if self.usd_per_gpu_h is None or needs.booked_kib > base:
            return (float("inf"), self.usable_gib)
        return (self.usd_per_gpu_h * share_ticks(needs.booked_kib, base), self.usable_gib)

    def add(self, name: str, workload: Workload) -> int:
        """Take a workload in if its minimum finds room. How many of its replicas do."""
        least = workload.replicas.min
        wake = max(self.wake_kib, self.need(workload).wake_kib)
        room = 0
        if wake == self.wake_kib:
            demand = self._demand(name, workload, wake)
            if demand is None:
                return 0
            room = self.gpus.place_all(demand, least)
            if room == least:
                self.members[name], self.demands[name] = workload, demand
                return room
        return least if self._repacked(name, workload, wake) else room

    def copy(self) -> PoolState:
        """The same pool, to try things on."""
        return replace(self, gpus=self.gpus.copy(), members=dict(self.members), demands=dict(self.demands))

    def demands_with(self, name: str, workload: Workload) -> dict[str, Demand] | None:
        """What each replica would book with that workload in; None if one would find no GPU large enough."""
        wake = max(self.wake_kib, self.need(workload).wake_kib)
        found: dict[str, Demand] = {}
        for member, its in {**self.members, name: workload}.items():
            demand = self._demand(member, its, wake)
            if demand is None:
                return None
            found[member] = demand
        return found

    def _repacked(self, name: str, workload: Workload, wake: int) -> bool:
        """Take a workload in by packing the whole pool afresh, if the minimum of all has room then."""
        if wake == self.wake_kib and self._repacks <= 0:
            return False
        demands = self.demands_with(name, workload)
        if demands is None:
            return False
        members = {**self.members, name: workload}
        counts = {member: its.replicas.min for member, its in members.items()}
        base = self.kib - wake
        if fewest_possible(demands.values(), counts, base) > self.limit:
            return False
        self._repacks -= 1
        gpus = fewest(demands.values(), counts, base, self.gpus_per_node).gpus
        if gpus.nodes_in_use > self.pool.nodes.max:
            return False
        gpus.limit = self.limit
        self.gpus, self.members, self.demands, self.wake_kib = gpus, members, demands, wake
        return True

    def _demand(self, name: str, workload: Workload, wake_kib: int) -> Demand | None:
        needs, base = self.need(workload), self.kib - wake_kib
        if needs.booked_kib > base:
            return None
        return Demand(name, share_ticks(needs.booked_kib, base), needs.booked_kib, workload.replicas.per_node)


def assigned(platform: Platform) -> dict[str, PoolState]:
    """The GPU pools with every workload in one of them, its minimum placed.

    Raises:
        PlanError: a replica fits no GPU of any pool it may use, the minimum does not fit the pools' nodes, or a
            pool's accelerator, machine, MIG profile and memory contradict each other. One line a problem.
    """
    states, refused = _solved(platform, describe=True)
    if states is None:
        raise PlanError("\n".join(_explained(platform, refused)))
    return states


@dataclass(frozen=True)
class _Refused:
    """A workload without room: why, the pool to change, and the workload whose wake-up room lacks there, if so."""

    name: str
    why: str
    state: PoolState
    waking: str | None = None
    #: No GPU it may use is large enough, whatever else is there.
    too_large: bool = False


def _solved(
    platform: Platform, *, describe: bool, repacks: int = _REPACKS
) -> tuple[dict[str, PoolState] | None, list[_Refused]]:
    """The GPU pools with every workload in one, or None and what had no room in the order tried first.

    Where that is not to be described, at most one workload is named, without a reason.
    """
    pools = _pools(platform)

    def fitting(workload: Workload) -> int:
        return sum(1 for state in _allowed(workload, pools) if state.could_hold(workload))

    def sleepers_first(item: tuple[str, Workload]) -> tuple[float, float, str]:
        wake = max(state.need(item[1]).wake_kib for state in pools.values())
        return (-wake, -item[1].gpu.gib, item[0])

    orders: list[Callable[[tuple[str, Workload]], tuple[float, float, str]]] = [
        sleepers_first,
        lambda item: (fitting(item[1]), *sleepers_first(item)[1:]),
        lambda item: (item[1].residency != "always", -item[1].gpu.gib, item[0]),
    ]
    first: list[_Refused] = []
    for order in orders:
        states = {name: replace(state.copy(), _repacks=repacks) for name, state in pools.items()}
        in_order = sorted(platform.workloads.items(), key=order)
        refused = _assign(states, in_order, describe=describe and not first)
        if not refused:
            return states, []
        first = first or refused
        if any(one.too_large for one in refused):
            break
    return None, first


def _explained(platform: Platform, refused: list[_Refused]) -> list[str]:
    """A line for each workload without room: why, and what would do. Of many, only the first are told what would."""
    return [_line(platform, one, refused, explain=i < _MOST_EXPLAINED) for i, one in enumerate(refused)]


def _tried(platform: Platform) -> dict[str, PoolState] | None:
    """The pools if the platform fits. Of a large one, what fits only packed afresh is passed over: it takes long."""
    if len(platform.workloads) > _MOST_REPACKED and _solved(platform, describe=False, repacks=0)[0] is None:
        return None
    return _solved(platform, describe=False)[0]


def _line(platform: Platform, one: _Refused, refused: list[_Refused], *, explain: bool) -> str:
    workload = platform.workloads[one.name]
    others = {other.name for other in refused} - {one.name}
    rest = {name: its for name, its in platform.workloads.items() if name not in others}
    trials = Trials(platform.model_copy(update={"workloads": rest}), one.name, _tried)
    if one.too_large:
        gib = largest_gib(trials, one.state.usable_gib) if explain else None
        lower = [] if gib is None else [f"lower vram_gib of {one.name} to {gib:g}"]
        found, key = [*lower, refusals.larger_gpu(workload)], ("gpu", "vram_gib")
    else:
        found = changes(trials, one.state, one.waking) if explain else []
        found, key = found or [refusals.in_general(workload, one.state)], ("replicas", "min")
    message = f"{one.why}; {either(found)}"
    if isinstance(workload, Supposed):
        return f"{workload.source}: {message}"
    return platform.wrong(message, "workloads", one.name, *key)


def _pools(platform: Platform) -> dict[str, PoolState]:
    """The GPU pools, empty. Raises PlanError with a line for each that contradicts itself."""
    states: dict[str, PoolState] = {}
    problems: list[str] = []
    for name, pool in platform.pools.items():
        if not pool.holds_workloads:
            continue
        try:
            usable, per_node = usable_gib(name, pool), gpus_per_node(name, pool)
        except PlanError as error:
            problems.append(platform.wrong(str(error), "pools", name))
            continue
        wrong = mismatch(name, pool)
        if wrong:
            problems.append(platform.wrong(wrong, "pools", name))
        node_usd = node_usd_per_h(pool)
        states[name] = PoolState(
            name=name,
            pool=pool,
            usable_gib=usable,
            gpus_per_node=per_node,
            usd_per_gpu_h=None if node_usd is None else node_usd / per_node,
            gpus=Gpus(usable_kib(usable), pool.nodes.max * per_node, per_node),
        )
    if problems:
        raise PlanError("\n".join(problems))
    return states


def _allowed(workload: Workload, pools: Mapping[str, PoolState]) -> list[PoolState]:
    return [pools[name] for name in workload.pools] or list(pools.values())


def _assign(pools: Mapping[str, PoolState], order: list[tuple[str, Workload]], *, describe: bool) -> list[_Refused]:
    """Give each workload its pool, in that order. Those that have none; if not to be described, only the first."""
    refused: list[_Refused] = []
    for name, workload in order:
        allowed = _allowed(workload, pools)
        able = [state for state in allowed if state.could_hold(workload)]
        if not able:
            why = refusals.too_large(name, workload, allowed)
            refused.append(_Refused(name, why, refusals.largest(allowed), too_large=True))
        else:
            able.sort(key=lambda state: state.price(workload))
            rooms = _rooms(name, workload, able)
            if rooms is None:
                continue
            unfit = [state for state in allowed if not state.could_hold(workload)]
            why = refusals.no_room(name, workload, able, rooms, unfit) if describe else ""
            waking = refusals.waking(able[0], name, workload) if describe else None
            refused.append(_Refused(name, why, able[0], waking))
        if not describe:
            break
    return refused


def _rooms(name: str, workload: Workload, able: list[PoolState]) -> list[int] | None:
    """Put a workload into the first pool that takes its minimum. If none does: of how many replicas each had room."""
    rooms: list[int] = []
    for state in able:
        rooms.append(state.add(name, workload))
        if rooms[-1] == workload.replicas.min and name in state.members:
            return None
    return rooms
