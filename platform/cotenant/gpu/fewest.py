"""The packing that plans are made of: best fit first, and more effort only where it is known that less could do.

Best-fit decreasing is compared with `bounds.fewest_possible`. Where it meets that, it takes the fewest GPUs there
can be, and of several packings into as many GPUs the one is preferred that leaves the most free in one piece
(`_gathered`). Where it doesn't, HiGHS looks for fewer GPUs and for a better bound (`solver`): exactly up to
`_MOST_SIZES` distinct sizes; beyond, with neighbouring sizes rounded up to one, and only if best fit is not near the
bound anyway. Never more GPUs than best-fit decreasing takes, never fewer than the bound; same input, same packing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from cotenant.gpu.bounds import fewest_possible
from cotenant.gpu.packing import Demand, Gpus, largest_first, pack
from cotenant.gpu.shares import GPU_TICKS
from cotenant.gpu.solver import Pattern, Size, Solution, fewest_gpus

_MOST_SIZES = 80
#: With more sizes than that, best fit is left alone within this of the bound.
_NEAR = 1.005
#: Beyond so many replicas the room left over is not gathered: one GPU's rest is no matter then.
_MOST_GATHERED = 2_000
#: The room left over is gathered to within this part of a GPU.
_GATHERED_TICKS = GPU_TICKS // 100
#: Stands for the room to be kept free; no workload's name has a blank.
_ROOM = "room left"


@dataclass(frozen=True)
class Packing:
    """GPUs that hold every replica, and a number of GPUs that no packing can go below."""

    gpus: Gpus
    bound: int


def fewest(demands: Iterable[Demand], counts: Mapping[str, int], kib: int, gpus_per_node: int = 1) -> Packing:
    """`counts` replicas of each demand on as few GPUs of `kib` as can be found.

    Raises:
        ValueError: a demand is larger than a GPU.
    """
    ordered = largest_first(demand for demand in demands if counts[demand.workload])
    gpus, left = pack(ordered, counts, kib, None, gpus_per_node)
    if left:
        raise ValueError(f"larger than a GPU: {', '.join(left)}")
    bound = fewest_possible(ordered, counts, kib)
    if gpus.in_use > bound:
        return _solved(ordered, counts, Packing(gpus, bound))
    if sum(counts[demand.workload] for demand in ordered) <= _MOST_GATHERED:
        gpus = _gathered(ordered, counts, gpus)
    return Packing(gpus, bound)


def _solved(demands: Sequence[Demand], counts: Mapping[str, int], packed: Packing) -> Packing:
    """At most as many GPUs as `packed`, and at least as high a bound, by way of the solver."""
    gpus = packed.gpus
    groups = _alike(demands)
    if len(groups) > _MOST_SIZES:
        return _solved_rounded(groups, counts, packed)
    sizes = [_size(group, counts, gpus.kib) for group in groups]
    index = {demand.workload: i for i, group in enumerate(groups) for demand in group}
    start = Counter(_pattern(held, index) for held in gpus.held if held)
    solution = fewest_gpus(sizes, gpus.kib, Solution(tuple(start.items()), packed.bound))
    if solution.gpus < gpus.in_use:
        laid = _laid(groups, counts, _without_surplus(solution, sizes), gpus)
        gpus = laid if laid.nodes_in_use <= gpus.nodes_in_use else gpus
    return Packing(gpus, solution.bound)


def _alike(demands: Iterable[Demand]) -> list[list[Demand]]:
    """Demands that book alike, together. What a node may hold few of is a size of its own: so may a GPU."""
    groups: defaultdict[tuple[int, int, str], list[Demand]] = defaultdict(list)
    for demand in demands:
        groups[demand.ticks, demand.kib, demand.workload if demand.per_node else ""].append(demand)
    return list(groups.values())


def _solved_rounded(groups: Sequence[list[Demand]], counts: Mapping[str, int], packed: Packing) -> Packing:
    """The same with few enough sizes: neighbours, as the groups come by size, are rounded up to the largest."""
    gpus = packed.gpus
    shared = [group for group in groups if not group[0].per_node]
    width = -(-len(shared) // _MOST_SIZES)
    if gpus.in_use <= _NEAR * packed.bound or len(groups) - len(shared) > _MOST_SIZES:
        return packed
    rounded = {group[0].workload: group[0] for group in groups if group[0].per_node}
    for at in range(0, len(shared), max(1, width)):
        near = [demand for group in shared[at : at + width] for demand in group]
        ticks, kib = max(demand.ticks for demand in near), max(demand.kib for demand in near)
        rounded |= {demand.workload: replace(demand, ticks=ticks, kib=kib) for demand in near}
    ordered = largest_first(rounded.values())
    start, _ = pack(ordered, counts, gpus.kib, None, gpus.gpus_per_node)
    found = _solved(ordered, counts, Packing(start, packed.bound)).gpus
    if found.in_use >= gpus.in_use:
        return packed
    true = {demand.workload: demand for group in groups for demand in group}
    laid = Gpus(gpus.kib, None, gpus.gpus_per_node)
    for held in found.held:
        if held:
            laid.add_filled([(true[name], number) for name, number in held.items()])
    # The bound found for sizes rounded up is none for the true ones.
    return Packing(laid if laid.nodes_in_use <= gpus.nodes_in_use else gpus, packed.bound)


def _size(group: Sequence[Demand], counts: Mapping[str, int], kib: int) -> Size:
    one = group[0]
    count = sum(counts[demand.workload] for demand in group)
    per_gpu = min(GPU_TICKS // one.ticks, kib // one.kib, count)
    return Size(one.ticks, one.kib, count, min(per_gpu, one.per_node or per_gpu))


def _pattern(held: Mapping[str, int], index: Mapping[str, int]) -> Pattern:
    content: Counter[int] = Counter()
    for name, number in held.items():
        content[index[name]] += number
    return tuple(sorted(content.items()))


def _without_surplus(solution: Solution, sizes: Sequence[Size]) -> list[Pattern]:
    """What each GPU holds, without the replicas too many, which are dropped so that most comes free in one piece."""
    times = Counter(dict(solution.used))
    surplus = Counter({i: -size.count for i, size in enumerate(sizes)})
    for pattern, number in times.items():
        for i, n in pattern:
            surplus[i] += n * number
    surplus = +surplus

    def droppable(pattern: Pattern) -> int:
        return sum(min(n, surplus[i]) * sizes[i].ticks for i, n in pattern)

    def kept(pattern: Pattern) -> int:
        return sum(n * sizes[i].ticks for i, n in pattern) - droppable(pattern)

    while surplus:
        pattern = min((p for p in times if droppable(p)), key=lambda p: (kept(p), p))
        rest = tuple((i, n - min(n, surplus[i])) for i, n in pattern if n > surplus[i])
        surplus -= Counter(dict(pattern))
        times -= Counter([pattern])
        if rest:
            times[rest] += 1
    return [pattern for pattern in sorted(times) for _ in range(times[pattern])]


def _laid(
    groups: Sequence[Sequence[Demand]], counts: Mapping[str, int], patterns: Iterable[Pattern], like: Gpus
) -> Gpus:
    """GPUs that hold `patterns`, whose sizes stand for the demands in `groups`."""
    gpus = Gpus(like.kib, None, like.gpus_per_node)
    waiting = [[(demand, counts[demand.workload]) for demand in reversed(group)] for group in groups]
    for pattern in patterns:
        content: list[tuple[Demand, int]] = []
        for i, number in pattern:
            missing = number
            while missing:
                demand, there = waiting[i].pop()
                taken = min(there, missing)
                missing -= taken
                content.append((demand, taken))
                if there > taken:
                    waiting[i].append((demand, there - taken))
        gpus.add_filled(content)
    return gpus


def _gathered(demands: Sequence[Demand], counts: Mapping[str, int], gpus: Gpus) -> Gpus:
    """As many GPUs and nodes, with as much of one of them free as best fit can leave: found by trying a replica so big.

    Best fit may find room for a large one where it finds none for a smaller one, so the search is no proof.
    """
    shares = sum(demand.ticks * counts[demand.workload] for demand in demands)
    low = max((free for free, held in zip(gpus.free_ticks, gpus.held, strict=True) if held), default=GPU_TICKS)
    high = min(GPU_TICKS, gpus.in_use * GPU_TICKS - shares)
    best = gpus
    while high - low > _GATHERED_TICKS:
        middle = (low + high + 1) // 2
        room = Demand(_ROOM, middle, middle * gpus.kib // GPU_TICKS)
        tried, _ = pack([*demands, room], {**counts, _ROOM: 1}, gpus.kib, None, gpus.gpus_per_node)
        if tried.in_use > gpus.in_use or tried.nodes_in_use > gpus.nodes_in_use:
            high = middle - 1
            continue
        tried.remove(next(i for i, held in enumerate(tried.held) if _ROOM in held), room)
        low, best = middle, tried
    return best
