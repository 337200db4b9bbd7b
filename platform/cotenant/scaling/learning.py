"""What the policy is told, learned as calls and starts go by: how long a call takes, how many come, how long a start.

Nothing here looks at a clock: each observation is handed in with its time. What is learned is bounded, so one strange
observation can't send the policy astray for long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

#: Of what was learned so much is left when as many further calls have ended.
_FORGET = 0.98
#: An observation counts as no more than so many times what was expected, and no less than that part of it.
_OUTLIER = 8.0
#: A start takes no more and no less than so many times what was assumed, whatever was seen.
_START_BOUNDS = (0.1, 5.0)
_START_WEIGHT = 0.3


@dataclass
class ServiceTimes:
    """Seconds that a call has a slot, as a fixed part and a part that grows with its cost.

    A straight line by least squares in which older calls count less and less; neither part is below zero. The cost of
    a call is in any unit that its time grows with: pixels times samples, tokens, steps times pixels.
    """

    _weight: float = 0.0
    _units: float = 0.0
    _seconds: float = 0.0
    _units_units: float = 0.0
    _units_seconds: float = 0.0

    @property
    def known(self) -> bool:
        return self._weight > 0

    @property
    def mean_s(self) -> float:
        """Of calls lately; 0 until one ended."""
        return self._seconds / self._weight if self.known else 0.0

    def ended(self, units: float, seconds: float) -> None:
        """A call of that cost took that long."""
        if self.known and (expected := self.of(units)) > 0:
            seconds = min(max(seconds, expected / _OUTLIER), expected * _OUTLIER)
        keep = _FORGET
        self._weight = keep * self._weight + 1
        self._units = keep * self._units + units
        self._seconds = keep * self._seconds + seconds
        self._units_units = keep * self._units_units + units * units
        self._units_seconds = keep * self._units_seconds + units * seconds

    def of(self, units: float) -> float:
        """Expected seconds of a call of that cost; 0 until one ended."""
        if not self.known:
            return 0.0
        fixed, each = self._line()
        return fixed + each * units

    def _line(self) -> tuple[float, float]:
        units, seconds = self._units / self._weight, self.mean_s
        spread = self._units_units / self._weight - units * units
        if spread <= 1e-9 * max(1.0, units * units):
            return seconds, 0.0
        each = max(0.0, (self._units_seconds / self._weight - units * seconds) / spread)
        fixed = seconds - each * units
        if fixed < 0:  # the best line through nothing
            return 0.0, self._units_seconds / self._units_units
        return fixed, each


@dataclass
class Rate:
    """How many come in a second: an average in which what came longer ago than `window_s` hardly counts."""

    window_s: float = 60.0
    _level: float = 0.0
    _at_s: float = -math.inf
    _began_s: float = math.inf

    def came(self, count: float, now: float) -> None:
        self._level = self._now(now) + count / self.window_s
        self._at_s = max(self._at_s, now)
        self._began_s = min(self._began_s, now)

    def per_s(self, now: float) -> float:
        """The rate; while less than the window has been seen, of what has been seen."""
        seen = 1 - math.exp(-max(0.0, now - self._began_s) / self.window_s) if self._began_s < math.inf else 0.0
        # A tenth of a window at least: one call alone tells no rate.
        return self._now(now) / max(seen, 0.1)

    def _now(self, now: float) -> float:
        return self._level * math.exp(-max(0.0, now - self._at_s) / self.window_s) if self._level else 0.0


@dataclass
class StartTime:
    """Seconds of one kind of start: what was assumed, moved by what was seen, within bounds around the assumption."""

    assumed_s: float
    _log_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._log_s = math.log(self.assumed_s)

    @property
    def seconds(self) -> float:
        return math.exp(self._log_s)

    def took(self, seconds: float) -> None:
        least, most = (self.assumed_s * bound for bound in _START_BOUNDS)
        seen = math.log(min(max(seconds, least), most))
        self._log_s += _START_WEIGHT * (seen - self._log_s)
