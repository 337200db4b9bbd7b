"""What a door sees of the demand for one workload: told by gateways and ingresses, and what scaling goes by. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Line:
    """Calls that wait at a door for a slot and are about equally urgent."""

    waiting: int
    units: float | None = None
    """Their cost together (`calls.cost`); None if it is not known."""
    oldest_s: float = 0.0
    """How long the one that waits longest has waited."""
    left_s: float | None = None
    """Seconds until the nearest of their deadlines, where they have one; below zero where it has passed."""
    exact: bool = False
    """Whether these are all that there are, and not what the door happens to hold."""


@dataclass(frozen=True)
class Asked:
    """One workload's calls, as one door sees them."""

    sent: int = 0
    """Calls that were sent to the replicas and have not ended; some may wait there for a slot."""
    ages_s: tuple[float, ...] = ()
    """How long ago those came that came last, the youngest first."""
    lines: tuple[Line, ...] = ()
    more: bool = False
    """Whether more may wait behind what the door sees: its last pull came back full."""
    full_pulls: int = 0
    """Pulls that came back full since the door opened."""
    arrived: int = 0
    """Calls that have come since the door opened."""
    ended: tuple[tuple[float, float], ...] = ()
    """Cost and seconds in a slot of calls that have ended since the door last told; a sample where they are many."""

    @property
    def waiting(self) -> int:
        return sum(line.waiting for line in self.lines)


@dataclass
class Pace:
    """One workload's calls at a door that sends all it has: how many are under way, what ended lately."""

    keep: int = 64
    """Ages and endings told at once, at the most."""
    arrived: int = 0
    _sent: dict[int, float] = field(default_factory=dict)
    _ended: list[tuple[float, float]] = field(default_factory=list)

    @property
    def sent(self) -> int:
        return len(self._sent)

    def began(self, now: float) -> int:
        """A call was sent. Its number."""
        self.arrived += 1
        self._sent[self.arrived] = now
        return self.arrived

    def over(self, number: int, now: float, units: float | None) -> None:
        """That call has ended. `units` is its cost, or None where its time says nothing: it waited, or failed."""
        began = self._sent.pop(number)
        if units is not None and len(self._ended) < self.keep:
            self._ended.append((units, now - began))

    def asked(self, now: float) -> Asked:
        """How it stands, once: what ended is told one time only."""
        latest = list(self._sent.values())[: -self.keep - 1 : -1]
        ended, self._ended = tuple(self._ended), []
        return Asked(self.sent, tuple(max(0.0, now - at) for at in latest), arrived=self.arrived, ended=ended)
