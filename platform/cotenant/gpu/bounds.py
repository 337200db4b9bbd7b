"""How few GPUs any packing can take: a bound that needs no solver, and settles nearly every ordinary platform.

For each threshold t up to half a GPU (Martello and Toth's bound L2, "Knapsack Problems", 1990, section 8.3): what
books more than 1 - t of a GPU lies without anything of t or more beside it; what books more than a half lies alone
among its like; and what books from t to a half fills only what is left beside those. Taken for shares and for
bytes, and for workloads that allow a node only so many replicas. Whole numbers throughout, so it is exact.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import accumulate

from cotenant.gpu.packing import Demand
from cotenant.gpu.shares import GPU_TICKS


def fewest_possible(demands: Iterable[Demand], counts: Mapping[str, int], kib: int) -> int:
    """A number of GPUs of `kib` that no packing of `counts` replicas of each demand can go below."""
    placed = [(demand, counts[demand.workload]) for demand in demands if counts[demand.workload]]
    ticks: Counter[int] = Counter()
    bytes_: Counter[int] = Counter()
    bound = 0
    for demand, count in placed:
        ticks[demand.ticks] += count
        bytes_[demand.kib] += count
        if demand.per_node is not None:
            bound = max(bound, -(-count // demand.per_node))
    return max(bound, _l2(ticks, GPU_TICKS), _l2(bytes_, kib))


def _l2(sizes: Mapping[int, int], whole: int) -> int:
    """The bound for `sizes` (size: how many of it) into bins of `whole`."""
    ordered = sorted(sizes, reverse=True)
    number = [0, *accumulate(sizes[size] for size in ordered)]
    total = [0, *accumulate(size * sizes[size] for size in ordered)]
    halves = bisect_left(ordered, -whole / 2, key=lambda size: -size)
    best = huge = 0
    for at_least in [0, *reversed(ordered[halves:])]:
        while huge < halves and ordered[huge] > whole - at_least:
            huge += 1
        counted = bisect_right(ordered, -at_least, key=lambda size: -size)
        beside = (number[halves] - number[huge]) * whole - (total[halves] - total[huge])
        rest = total[counted] - total[halves]
        best = max(best, number[halves] + max(0, -(-(rest - beside) // whole)))
    return best
