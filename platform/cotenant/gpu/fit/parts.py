"""An estimate as a list of parts: each with its bytes, the formula they come from, and whose figures those are.

Always true of a `Fit`: its total is the sum of its parts, so a user can argue with any one of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True)
class Part:
    """One thing that takes memory. `asleep` says that it is still held while the replica sleeps."""

    name: str
    bytes: int
    formula: str
    source: str
    asleep: bool = False

    @property
    def gib(self) -> float:
        return self.bytes / GIB


@dataclass(frozen=True)
class Fit:
    """What one replica takes of one GPU (of a `cpu` pool: of the host's memory). `notes` are what it leaves out."""

    name: str
    accelerator: str
    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    @property
    def total_gib(self) -> float:
        return self.total_bytes / GIB

    @property
    def asleep_gib(self) -> float:
        """GiB still held while asleep."""
        return sum(part.bytes for part in self.parts if part.asleep) / GIB

    @property
    def floor_gib(self) -> float:
        """What to book while asleep: a tenth more than is estimated to be held, rounded up to a tenth of a GiB."""
        return rounded_up(self.asleep_gib * 1.1)

    @property
    def budget_gib(self) -> float:
        """The total as a budget: rounded up to a tenth of a GiB."""
        return rounded_up(self.total_gib)

    def in_words(self) -> str:
        """The parts in one line, largest first: `weights 7.5 + KV cache 1.1 + …`, those under 0.05 GiB together."""
        shown = sorted((part for part in self.parts if part.gib >= 0.05), key=lambda part: -part.bytes)
        rest = self.total_gib - sum(part.gib for part in shown)
        words = [f"{part.name} {part.gib:.2f}" for part in shown]
        return " + ".join([*words, f"other {rest:.2f}"] if rest >= 0.005 else words)


def rounded_up(gib: float) -> float:
    """A figure in GiB, rounded up to a tenth; at least one tenth."""
    return max(1, math.ceil(gib * 10 - 1e-9)) / 10
