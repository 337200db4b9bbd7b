"""Waits in bounded memory: a histogram whose bins are a hundredth wide."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

#: Shorter waits count as none.
_SHORTEST_S = 0.001
_BIN = math.log(1.01)


@dataclass
class Waits:
    """Seconds that calls waited until they were begun; one that had to be begun again counts again.

    Quantiles are right to a hundredth of their value.
    """

    count: int = 0
    total_s: float = 0.0
    longest_s: float = 0.0
    _none: int = 0
    _bins: dict[int, int] = field(default_factory=dict)

    def add(self, seconds: float) -> None:
        self.count += 1
        if seconds < _SHORTEST_S:
            self._none += 1
            return
        self.total_s += seconds
        self.longest_s = max(self.longest_s, seconds)
        at = int(math.log(seconds / _SHORTEST_S) / _BIN)
        self._bins[at] = self._bins.get(at, 0) + 1

    def merge(self, other: Waits) -> None:
        """Count what the other has counted as well."""
        self.count += other.count
        self.total_s += other.total_s
        self.longest_s = max(self.longest_s, other.longest_s)
        self._none += other._none
        for at, count in other._bins.items():
            self._bins[at] = self._bins.get(at, 0) + count

    @property
    def mean_s(self) -> float:
        return self.total_s / self.count if self.count else 0.0

    def quantile(self, part: float) -> float:
        """The wait that `part` of all calls did not exceed; 0 if there were none."""
        rank = part * self.count
        seen = self._none
        if seen >= rank:
            return 0.0
        for at in sorted(self._bins):
            seen += self._bins[at]
            if seen >= rank:
                return min(self.longest_s, _SHORTEST_S * math.exp((at + 1) * _BIN))
        return self.longest_s

    def longer_than(self, seconds: float) -> float:
        """The part of calls that waited longer."""
        if not self.count:
            return 0.0
        if seconds < _SHORTEST_S:
            return 1 - self._none / self.count
        at = int(math.log(seconds / _SHORTEST_S) / _BIN)
        return sum(count for one, count in self._bins.items() if one > at) / self.count
