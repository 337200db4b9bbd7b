"""Fewer GPUs than best fit finds: column generation over the distinct sizes, then whole numbers (Gilmore, Gomory 1961).

A *pattern* is what one GPU holds: so many replicas of each size, within its ticks and its KiB. The linear program
"use patterns as often as needed to hold all replicas" is solved by HiGHS over a few patterns; its prices say which
further patterns would help most (a knapsack); those are added, until none helps. Then the patterns are used a whole
number of times each. Always true of what comes out:

- the bound is proven: prices are taken as whole numbers, and what no pattern's price exceeds is computed exactly, so
  no rounding inside the solver can make it too high; where there are few enough patterns to list them all, it is
  what the solver proves over all of them;
- the answer holds at least as many replicas as asked, and takes no more GPUs than the packing it was given;
- it is the same for the same input: one thread, a fixed seed, effort counted in steps. (The clock only stops a
  solve that is out of all proportion, `_PATIENCE_S`; the packing given is the answer then.)

HiGHS (and numpy, which it needs) are imported on the first use, since most platforms are settled without.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cotenant.gpu.shares import GPU_TICKS

#: What one GPU holds: (index of the size, replicas of it), by index.
Pattern = tuple[tuple[int, int], ...]

#: Prices are multiples of 1 / _UNIT, so that sums of them are exact.
_UNIT = 10**9
#: Table cells of all knapsacks together: about half a second of them.
_KNAPSACK_CELLS = 300_000_000
#: Branches of the search in whole numbers, over the patterns that helped, and over every pattern there is.
_BRANCH_NODES = 50
_BRANCH_NODES_OF_ALL = 500
#: Every pattern is listed for no more GPUs than this, and in no more steps.
_SMALL_GPUS = 100
_MOST_STEPS = 20_000
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Size:
    """Replicas that book alike: each one's share and bytes, how many, and how many of them one GPU may hold."""

    ticks: int
    kib: int
    count: int
    per_gpu: int


@dataclass(frozen=True)
class Solution:
    """Patterns and how often each is used, and a number of GPUs that no packing can go below."""

    used: tuple[tuple[Pattern, int], ...]
    bound: int

    @property
    def gpus(self) -> int:
        return sum(times for _, times in self.used)


def fewest_gpus(sizes: Sequence[Size], kib: int, start: Solution) -> Solution:
    """As few GPUs of `kib` as can be found for `sizes`, from a packing and a bound that are known already.

    Every size must fit a GPU. Patterns may hold more replicas than there are; who places them drops the surplus.
    """
    master = _Master(sizes, [pattern for pattern, _ in start.used])
    knapsack = _Knapsack(sizes, kib, _KNAPSACK_CELLS)
    bound = start.bound
    while bound < start.gpus and knapsack.cells > 0:
        prices = master.prices()
        pattern, most = knapsack.best(prices)
        # No pattern is worth more than `most`, so what all replicas are worth needs so many of them (Farley's bound).
        needed = sum(price * size.count for price, size in zip(prices, sizes, strict=True))
        bound = max(bound, -(-needed // max(_UNIT, most)))
        if not _add_improving(master, knapsack, pattern, prices):
            break
    if bound >= start.gpus:
        return Solution(start.used, bound)
    best, _ = master.whole(Solution(start.used, bound), _BRANCH_NODES)
    every = _every_pattern(sizes, kib) if bound < best.gpus <= _SMALL_GPUS else None
    if every is None:
        return best
    # Few enough patterns to take all: what the solver then says is the fewest is so.
    for pattern in every:
        master.add(pattern)
    best, least = master.whole(best, _BRANCH_NODES_OF_ALL)
    return Solution(best.used, max(bound, least))


def _every_pattern(sizes: Sequence[Size], kib: int) -> list[Pattern] | None:
    """All patterns that nothing can be added to, or None if there are too many of them."""
    found: list[Pattern] = []
    # Sizes yet to be looked at, what is free, what is held; the most of each first.
    open_: list[tuple[int, int, int, Pattern]] = [(0, GPU_TICKS, kib, ())]
    for _ in range(_MOST_STEPS):
        if not open_:
            return found
        i, ticks, free, held = open_.pop()
        if i == len(sizes):
            numbers = dict(held)
            if not any(
                one.ticks <= ticks and one.kib <= free and numbers.get(row, 0) < one.per_gpu
                for row, one in enumerate(sizes)
            ):
                found.append(held)
            continue
        size = sizes[i]
        for number in range(min(ticks // size.ticks, free // size.kib, size.per_gpu) + 1):
            more = ((i, number),) if number else ()
            open_.append((i + 1, ticks - number * size.ticks, free - number * size.kib, held + more))
    return None


def _add_improving(master: _Master, knapsack: _Knapsack, pattern: Pattern, prices: list[int]) -> bool:
    """Add `pattern`, then the best one without its sizes, and so on, while they improve. Whether there was one."""
    left = list(prices)
    added = False
    while sum(left[i] * number for i, number in pattern) > _UNIT and pattern not in master.patterns:
        master.add(pattern)
        added = True
        for i, _ in pattern:
            left[i] = 0
        pattern, _ = knapsack.best(left)
    return added


class _Master:
    """The linear program over the patterns so far, and the same in whole numbers."""

    def __init__(self, sizes: Sequence[Size], patterns: Sequence[Pattern]) -> None:
        import highspy  # noqa: PLC0415 - a tenth of a second, and seldom needed

        self._sizes = sizes
        self.patterns: dict[Pattern, None] = {}
        library: Any = highspy
        self._highs = library.Highs()
        self._integer = library.HighsVarType.kInteger
        self._known = library.HighsSolution()
        options = {"output_flag": False, "parallel": "off", "threads": 1, "random_seed": 0, "time_limit": _PATIENCE_S}
        for option, value in options.items():
            self._highs.setOptionValue(option, value)
        for size in sizes:
            self._highs.addRow(size.count, self._highs.inf, 0, [], [])
        for pattern in patterns:
            self.add(pattern)

    def add(self, pattern: Pattern) -> None:
        if pattern in self.patterns:
            return
        self.patterns[pattern] = None
        rows, numbers = [row for row, _ in pattern], [float(number) for _, number in pattern]
        self._highs.addCol(1.0, 0.0, self._highs.inf, len(rows), rows, numbers)

    def prices(self) -> list[int]:
        """What each size is worth at the optimum over the patterns so far, in multiples of 1 / _UNIT."""
        self._highs.run()
        return [max(0, round(dual * _UNIT)) for dual in self._highs.getSolution().row_dual]

    def whole(self, start: Solution, nodes: int) -> tuple[Solution, int]:
        """Each pattern a whole number of times: the best found within so many branches, `start` if that is no better.

        With it the fewest GPUs that these patterns can do with, as far as the search came.
        """
        for column in range(len(self.patterns)):
            self._highs.changeColIntegrality(column, self._integer)
        self._highs.setOptionValue("mip_max_nodes", nodes)
        self._highs.setOptionValue("objective_target", start.bound + 0.5)
        times = dict(start.used)
        self._known.col_value = [float(times.get(pattern, 0)) for pattern in self.patterns]
        self._highs.setSolution(self._known)
        self._highs.run()
        values = self._highs.getSolution().col_value
        used = tuple((p, round(value)) for p, value in zip(self.patterns, values, strict=False) if round(value))
        found = Solution(used, start.bound)
        reached = self._highs.getInfo().mip_dual_bound
        least = math.ceil(reached - 1e-6) if math.isfinite(reached) else start.bound
        return found if found.gpus < start.gpus and self._holds_all(found) else start, least

    def _holds_all(self, solution: Solution) -> bool:
        held: Counter[int] = Counter()
        for pattern, times in solution.used:
            for row, number in pattern:
                held[row] += number * times
        return all(held[row] >= size.count for row, size in enumerate(self._sizes))


class _Knapsack:
    """What one GPU can hold that is worth most, by dynamic programming over its ticks. `cells` is the effort left."""

    def __init__(self, sizes: Sequence[Size], kib: int, cells: int) -> None:
        self._sizes = sizes
        self._kib = kib
        self._step = math.gcd(GPU_TICKS, *(size.ticks for size in sizes))
        self.cells = cells

    def best(self, prices: Sequence[int]) -> tuple[Pattern, int]:
        """A pattern worth as much as any, and a sum of prices that none exceeds.

        Bytes are looked at last: shares follow from bytes, so what fits in ticks fits in KiB but for a hair where
        shares were rounded down. There the pattern loses a replica, and the sum stays, on the safe side.
        """
        import numpy as np  # noqa: PLC0415 - HiGHS needs it

        room = GPU_TICKS // self._step
        worth = np.zeros(room + 1, np.int64)
        tried: list[tuple[int, int, int, Any]] = []
        for row, (size, price) in enumerate(zip(self._sizes, prices, strict=True)):
            left = size.per_gpu if price else 0
            number = 1
            # Any number up to `left` is a sum of 1, 2, 4, … and a rest, each of which is taken or not.
            while left:
                number = min(number, left)
                left -= number
                width = number * size.ticks // self._step
                taken_worth = worth[: room + 1 - width] + price * number
                better = taken_worth > worth[width:]
                worth[width:][better] = taken_worth[better]
                tried.append((row, number, width, better))
                self.cells -= room
                number *= 2
        held: Counter[int] = Counter()
        at = room
        for row, number, width, better in reversed(tried):
            if at >= width and better[at - width]:
                held[row] += number
                at -= width
        while sum(self._sizes[row].kib * number for row, number in held.items()) > self._kib:
            held -= Counter([max(held)])
        return tuple(sorted(held.items())), int(worth[room])
