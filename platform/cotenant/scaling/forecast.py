"""How many nodes will be needed by the time a node that is asked for now could serve: the day's course, continued.

What is known is a history of need: for each step of a quarter of an hour the most nodes that were needed in it. STL
(Cleveland et al., "STL: A Seasonal-Trend Decomposition Procedure Based on Loess", 1990, in statsmodels) takes it apart
into what recurs at the same time of day and the rest. The rest is continued at its level lately (exponential
smoothing), so on a day that is not like others the forecast follows what is seen. One odd day does not become a habit:
STL is the robust kind, and since that gives way where there are few days, the highest and the lowest are cut before.
Once three weeks are known, only days of the same weekday are looked at.

A forecast only makes nodes early, so none is no failure: too little history, or no statsmodels (the extra `forecast`),
gives 0. Times are seconds since the epoch, and a day has 24 hours: where clocks are put forward or back, the course is
an hour off until it is learned again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cotenant.telemetry.logs import event

LOG = logging.getLogger("cotenant.scaling")

STEP_S = 900.0
_DAY_S = 86_400.0
_WEEK_S = 7 * _DAY_S
#: History is of so many days at the most, and there is no forecast before so many are known.
MOST_DAYS, LEAST_DAYS = 28, 2
#: So many weeks are known before weekdays are told apart.
_WEEKS_FOR_WEEKDAYS = 3
#: Of what the latest step was off by, so much is believed to go on.
_FOLLOW = 0.6


@dataclass
class NeedHistory:
    """The most nodes needed in each step, and nothing older than four weeks."""

    first: int = 0
    """Number of the step that `needs` begins with, counted from the epoch."""
    needs: list[int] = field(default_factory=list)

    def saw(self, now: float, need: int) -> None:
        """So many nodes are needed now. Of a time without a word it is assumed that it was as a day before."""
        step = int(now // STEP_S)
        if not self.needs or step - self.last > MOST_DAYS * _steps(_DAY_S):
            self.first, self.needs = step, [need]
            return
        while self.last < step:
            a_day_before = len(self.needs) - _steps(_DAY_S)
            self.needs.append(self.needs[a_day_before] if a_day_before >= 0 and self.last + 1 < step else 0)
        # A clock that was put back counts towards the latest step.
        self.needs[-1] = max(self.needs[-1], need)
        spare = len(self.needs) - MOST_DAYS * _steps(_DAY_S)
        if spare > 0:
            del self.needs[:spare]
            self.first += spare

    @property
    def last(self) -> int:
        """Number of the latest step."""
        return self.first + len(self.needs) - 1

    def to_plain(self) -> dict[str, Any]:
        """What `from_plain` takes, fit for JSON."""
        return {"step_s": STEP_S, "first": self.first, "needs": self.needs}

    @classmethod
    def from_plain(cls, plain: object) -> NeedHistory:
        """A history that was kept; an empty one for what is none."""
        if not isinstance(plain, Mapping) or plain.get("step_s") != STEP_S:
            return cls()
        first, needs = plain.get("first"), plain.get("needs")
        if not isinstance(first, int) or not isinstance(needs, list):
            return cls()
        if not all(isinstance(need, int) and 0 <= need < 1 << 20 for need in needs):
            return cls()
        return cls(first, list(needs))


@dataclass
class Forecast:
    """The most nodes that will be needed within `horizon_s` from now. Thought out once a step: it takes a while."""

    horizon_s: float
    """As long as a node takes from being asked for until it serves, and some margin; a day at the most."""
    history: NeedHistory = field(default_factory=NeedHistory)
    _begin: int = -1
    _ahead: list[float] = field(default_factory=list)

    def peak(self, now: float) -> int:
        """Nodes; 0 where nothing can be told."""
        begin, end = int(now // STEP_S), int((now + self.horizon_s) // STEP_S)
        if begin != self._begin:
            self._begin = begin
            self._ahead = needs_from(self.history, begin, math.ceil(self.horizon_s / STEP_S) + 1)
        peak = max(self._ahead[: end - begin + 1], default=0.0)
        return max(0, math.floor(peak + 0.5))


def needs_from(history: NeedHistory, begin: int, steps: int) -> list[float]:
    """What will be needed in so many steps (a day's at the most), the first being `begin`; empty where that is unknown.

    That step may be under way and not over, so history counts up to the one before it.
    """
    known = history.needs[: max(0, begin - history.first)]
    if len(known) < LEAST_DAYS * _steps(_DAY_S) or history.first + len(known) < begin:
        return []
    try:
        ahead = _continued(known, min(steps, _steps(_DAY_S)))
    except ImportError:
        return []
    except Exception as error:
        # Whatever the library could not do with these figures, nodes are still made when they are needed.
        event(LOG, "forecast_failed", level=logging.WARNING, error=error)
        return []
    return ahead if all(map(math.isfinite, ahead)) else []


def _continued(known: list[int], steps: int) -> list[float]:
    # Lazily: an extra, and seconds to import.
    import numpy as np  # noqa: PLC0415
    from statsmodels.tsa.forecasting.stl import STLForecast  # noqa: PLC0415
    from statsmodels.tsa.holtwinters import SimpleExpSmoothing  # noqa: PLC0415

    day = _steps(_DAY_S)
    # Loess is worked out at every so many steps and drawn through between them, but for what recurs.
    jump = max(1, day // 10)
    model = STLForecast(
        np.asarray(_days_like_this(known, steps), dtype=float),
        SimpleExpSmoothing,
        model_kwargs={"initialization_method": "known", "initial_level": 0.0},
        period=day,
        robust=True,
        # A level rather than a slope from day to day, over about two weeks.
        seasonal=13,
        seasonal_deg=0,
        trend_jump=jump,
        low_pass_jump=jump,
    )
    fitted = model.fit(outer_iter=5, fit_kwargs={"smoothing_level": _FOLLOW, "optimized": False})
    return [float(value) for value in fitted.forecast(steps)]


def _days_like_this(known: list[int], steps: int) -> list[int]:
    """The days to go by, one after the other, and last the one under way, which lacks `steps`.

    Of three or more, the day that was highest or lowest at a time of day counts there as the next to it.
    """
    day, end = _steps(_DAY_S), len(known)
    apart = 7 * day if end >= _WEEKS_FOR_WEEKDAYS * 7 * day + day else day
    today = end + steps - day
    days = [known[begin : begin + day] for begin in range(today % apart, today, apart)]
    if len(days) > 2:
        ranked = [sorted(at) for at in zip(*days, strict=True)]
        days = [[min(max(need, r[1]), r[-2]) for need, r in zip(each, ranked, strict=True)] for each in days]
    return [need for each in days for need in each] + known[today:]


def _steps(seconds: float) -> int:
    return round(seconds / STEP_S)
