"""Nodes that will be needed, from what was needed before: a day's course, odd days, noise, and what it is worth."""

from __future__ import annotations

import builtins
import json
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.scaling.forecast import MOST_DAYS, STEP_S, Forecast, NeedHistory, needs_from
from cotenant.scaling.headroom import Kept, PoolTerms, decide

pytestmark = pytest.mark.unit

DAY_S, HOUR_S = 86_400.0, 3_600.0
#: A Monday, at midnight.
MONDAY = 4 * DAY_S + 20_000 * 7 * DAY_S
STEPS = int(DAY_S / STEP_S)


def working_day(nodes: int = 5) -> list[int]:
    """Nodes needed from nine to six."""
    return [nodes if 9 <= step * STEP_S / HOUR_S < 18 else 0 for step in range(STEPS)]


def told(days: list[list[int]]) -> NeedHistory:
    history = NeedHistory()
    for number, day in enumerate(days):
        for step, need in enumerate(day):
            history.saw(MONDAY + number * DAY_S + step * STEP_S, need)
    return history


def forecast_at(days: list[list[int]], hour: float, *, today: list[int] | None = None, horizon_s: float = 300) -> int:
    """The forecast at that hour of the day after `days`, which was as `today` so far."""
    until = MONDAY + len(days) * DAY_S + hour * HOUR_S
    so_far = (today or working_day())[: int(hour * HOUR_S // STEP_S)]
    return Forecast(horizon_s, told([*days, so_far])).peak(until)


@pytest.mark.parametrize("days", [2, 3, 8, 13])
def test_nodes_are_forecast_before_the_morning_rush_and_not_at_night(days: int) -> None:
    before = [working_day()] * days
    assert forecast_at(before, 3.0) == 0
    assert forecast_at(before, 8.8) == 0
    assert forecast_at(before, 8.95) == 5
    assert forecast_at(before, 17.8) == 5
    assert forecast_at(before, 18.1) == 0


@pytest.mark.parametrize("odd", [pytest.param([0] * STEPS, id="closed"), pytest.param([9] * STEPS, id="all day")])
@pytest.mark.parametrize("when", [2, 5, 7])
def test_one_odd_day_does_not_become_a_habit(odd: list[int], when: int) -> None:
    days = [odd if day == when else working_day() for day in range(8)]
    assert forecast_at(days, 3.0) == 0
    assert 5 <= forecast_at(days, 8.95) <= 6


def test_noise_is_not_forecast() -> None:
    dice = random.Random(7)

    def noisy(day: list[int]) -> list[int]:
        return [max(0, need + dice.choice([-1, 0, 0, 0, 0, 0, 1])) for need in day]

    days = [noisy(working_day()) for _ in range(10)]
    assert forecast_at(days, 3.0) <= 1
    assert 4 <= forecast_at(days, 8.95) <= 6


def test_weekends_are_told_apart_once_three_weeks_are_known() -> None:
    days = [working_day(0 if number % 7 > 4 else 5) for number in range(28)]
    assert forecast_at(days[:26], 8.95, today=[0] * STEPS) == 0
    assert forecast_at(days, 8.95) == 5
    closed_last_monday = [*days[:21], working_day(0), *days[22:]]
    assert forecast_at(closed_last_monday, 8.95) == 5


def test_a_rush_that_does_not_come_today_is_given_up() -> None:
    assert forecast_at([working_day()] * 8, 9.6, today=[0] * STEPS) <= 1


def test_too_little_history_gives_none() -> None:
    assert forecast_at([working_day()], 8.95) == 0
    assert Forecast(300).peak(MONDAY) == 0


def test_without_the_library_there_is_no_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("statsmodels"):
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    assert forecast_at([working_day()] * 8, 8.95) == 0


def test_what_the_library_can_not_do_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(known: list[int], steps: int) -> list[float]:
        raise ValueError("singular")

    monkeypatch.setattr("cotenant.scaling.forecast._continued", broken)
    assert forecast_at([working_day()] * 8, 8.95) == 0
    monkeypatch.setattr("cotenant.scaling.forecast._continued", lambda known, steps: [float("nan")])
    assert forecast_at([working_day()] * 8, 8.95) == 0


def test_history_that_ended_long_ago_gives_none() -> None:
    history = told([working_day()] * 8)
    begin = history.last + 10
    assert needs_from(history, begin, 2) == []


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-5_000, 3 * DAY_S), st.integers(0, 9)), max_size=40))
def test_history_is_bounded_and_survives_being_written_down(course: list[tuple[float, int]]) -> None:
    history, now = NeedHistory(), MONDAY
    for passed, need in course:
        now += passed
        history.saw(now, need)
        assert history.needs[-1] >= need
        assert len(history.needs) <= MOST_DAYS * STEPS
    assert NeedHistory.from_plain(json.loads(json.dumps(history.to_plain()))) == history


@pytest.mark.parametrize(
    "plain", [None, [], {}, {"step_s": 1.0}, {"step_s": STEP_S, "first": 0, "needs": [-1]}, {"step_s": STEP_S}]
)
def test_what_is_no_history_is_an_empty_one(plain: object) -> None:
    assert NeedHistory.from_plain(plain) == NeedHistory()


def test_an_hour_without_a_word_is_taken_from_the_day_before() -> None:
    history = told([working_day()])
    history.saw(MONDAY + DAY_S, 0)
    history.saw(MONDAY + DAY_S + 12 * HOUR_S, 5)
    assert history.needs[STEPS:] == working_day()[: 12 * 4 + 1]


def late_and_idle(*, forecasting: bool) -> tuple[float, float]:
    """Node-hours needed and not there, and node-hours there and not needed, of three days from eight to seven.

    Nodes take 240 s from being asked for until they serve and go ten minutes after they were last wanted. Each day's
    rush comes at nine give or take a quarter of an hour, with four to six nodes; ten such days are known.
    """
    dice = random.Random(3)
    pool = PoolTerms("shared", 0, 8, 0, "m", {"m": 1000.0})
    forecast = Forecast(360)
    late = idle = 0.0
    every_s = 60.0
    for day in range(13):
        begin, nodes = 9 * HOUR_S + dice.uniform(-900, 900), dice.choice([4, 5, 6])
        kept, ready, starting = Kept(), 0, dict[float, int]()
        wanted_at = [-math.inf] * pool.max
        for tick in range(int(DAY_S / every_s)):
            clock = tick * every_s
            now = MONDAY + day * DAY_S + clock
            need = nodes if begin <= clock < 18 * HOUR_S else 0
            forecast.history.saw(now, need)
            if day < 10 or not 8 * HOUR_S <= clock < 19 * HOUR_S:
                continue
            wanted, kept = decide(pool, need, forecast.peak(now) if forecasting else 0, kept, now=now)
            wanted_at = [now if number < wanted else at for number, at in enumerate(wanted_at)]
            ready += sum(count for at, count in starting.items() if at <= now)
            starting = {at: count for at, count in starting.items() if at > now}
            ready = min(ready, sum(1 for at in wanted_at if now - at <= 600))
            if wanted > ready + sum(starting.values()):
                starting[now + 240] = wanted - ready - sum(starting.values())
            late += max(0, need - ready) * every_s / HOUR_S
            idle += max(0, ready - need) * every_s / HOUR_S
    return late, idle


def test_a_forecast_has_fewer_nodes_late_at_a_stated_cost() -> None:
    late_without, idle_without = late_and_idle(forecasting=False)
    late_with, idle_with = late_and_idle(forecasting=True)
    assert late_with < late_without / 3
    # Of the node-hours that the three days need, about 135.
    assert idle_with - idle_without < 15
