"""Service times, rates and start times as they are learned."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.scaling.learning import Rate, ServiceTimes, StartTime

pytestmark = pytest.mark.unit


def test_nothing_is_known_before_a_call_has_ended() -> None:
    times = ServiceTimes()
    assert (times.known, times.mean_s, times.of(5)) == (False, 0.0, 0.0)


def test_a_fixed_and_a_growing_part_are_told_apart() -> None:
    times, rng = ServiceTimes(), random.Random(3)
    for _ in range(500):
        units = rng.uniform(1, 20)
        times.ended(units, (0.5 + 0.2 * units) * rng.uniform(0.9, 1.1))
    assert times.of(0) == pytest.approx(0.5, abs=0.1)
    assert times.of(10) == pytest.approx(2.5, rel=0.05)
    assert times.of(100) == pytest.approx(20.5, rel=0.1)


def test_calls_of_one_size_teach_their_mean() -> None:
    times = ServiceTimes()
    for _ in range(10):
        times.ended(7, 1.5)
    assert times.of(7) == times.of(70) == times.mean_s == pytest.approx(1.5)


def test_a_machine_that_became_twice_as_fast_is_noticed() -> None:
    times = ServiceTimes()
    for _ in range(200):
        times.ended(1, 2.0)
    for _ in range(200):
        times.ended(1, 1.0)
    assert times.mean_s == pytest.approx(1.0, rel=0.05)


def test_one_that_hung_for_an_hour_is_not_believed() -> None:
    times = ServiceTimes()
    for _ in range(100):
        times.ended(1, 1.0)
    times.ended(1, 3600.0)
    assert times.mean_s < 1.2


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e4)), min_size=1, max_size=50), st.floats(0, 1e6))
def test_no_estimate_is_below_zero_and_more_never_takes_less(seen: list[tuple[float, float]], units: float) -> None:
    times = ServiceTimes()
    for cost, seconds in seen:
        times.ended(cost, seconds)
    assert 0 <= times.of(units) <= times.of(units * 2 + 1)
    assert math.isfinite(times.of(units))


def test_a_steady_stream_has_its_rate_from_early_on() -> None:
    rate = Rate(60)
    for number in range(1, 1200):
        rate.came(1, number * 0.25)
        if number > 40:
            assert rate.per_s(number * 0.25) == pytest.approx(4.0, rel=0.25)


def test_a_rate_fades_when_nothing_comes() -> None:
    rate = Rate(10)
    for second in range(100):
        rate.came(2, second)
    assert rate.per_s(99) == pytest.approx(2.0, rel=0.1)
    assert rate.per_s(109) == pytest.approx(2.0 / math.e, rel=0.1)
    assert rate.per_s(400) < 1e-9


def test_one_call_alone_tells_no_rate() -> None:
    rate = Rate(60)
    assert rate.per_s(0) == 0.0
    rate.came(1, 100.0)
    assert rate.per_s(100.0) <= 1 / 6


def test_starts_are_learned_within_bounds() -> None:
    start = StartTime(40.0)
    assert start.seconds == pytest.approx(40.0)
    for _ in range(20):
        start.took(25.0)
    assert start.seconds == pytest.approx(25.0, rel=0.05)
    for _ in range(50):
        start.took(1e6)
    assert start.seconds == pytest.approx(200.0, rel=0.01)
    for _ in range(50):
        start.took(0.0)
    assert start.seconds == pytest.approx(4.0, rel=0.01)
