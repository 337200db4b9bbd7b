"""When a request goes elsewhere: a table of what a door can see."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.upstream.decide import Bounds, Reason, Seen, start_left_s, wait_s, why_elsewhere

pytestmark = pytest.mark.unit

BOUNDS = Bounds(after_wait_s=5, slots=2, queue=16, start_s=60)
IDLE = Seen(replicas=1)
#: Two slots busy, one waits, each call takes 4 s: the next waits 2 calls over 2 slots, 4 s.
EDGE = Seen(replicas=1, calls=3, units=3.0, s_per_unit=4.0)


@pytest.mark.parametrize(
    ("seen", "spilling", "reason"),
    [
        pytest.param(IDLE, False, None, id="a free slot"),
        pytest.param(replace(IDLE, calls=1, units=1, s_per_unit=999), False, None, id="the last free slot"),
        pytest.param(EDGE, False, None, id="a wait below the limit"),
        pytest.param(replace(EDGE, calls=4, units=4.0), False, "wait", id="a wait above it"),
        pytest.param(EDGE, True, "wait", id="on the edge a workload that spills goes on"),
        pytest.param(replace(EDGE, calls=2, units=2.0), True, None, id="until the wait is half of the limit"),
        pytest.param(replace(EDGE, calls=3, s_per_unit=0.001), False, None, id="short calls wait in a queue"),
        pytest.param(Seen(1, calls=18, units=18, s_per_unit=0.001), False, "queue_full", id="a full queue"),
        pytest.param(Seen(4, calls=18, units=18, s_per_unit=0.001), False, None, id="not full for four replicas"),
        pytest.param(Seen(1, calls=4, units=4, oldest_s=1.0), False, None, id="nothing known, all young"),
        pytest.param(Seen(1, calls=4, units=4, oldest_s=9.0), False, "wait", id="nothing known, one that takes long"),
        pytest.param(Seen(0), False, "no_replica", id="a cold start"),
        pytest.param(Seen(0, starting_s=56), False, None, id="a start that is nearly done"),
        pytest.param(Seen(0, starting_s=61), False, "no_replica", id="a start that is overdue"),
    ],
)
def test_a_request_goes_elsewhere(seen: Seen, spilling: bool, reason: Reason | None) -> None:
    assert why_elsewhere(BOUNDS, seen, spilling=spilling) == reason


def test_doors_share_the_replicas() -> None:
    shared = replace(BOUNDS, doors=2)
    seen = Seen(replicas=2, calls=4, units=4.0, s_per_unit=4.0)
    assert why_elsewhere(BOUNDS, seen) is None
    assert why_elsewhere(shared, seen) == "wait"


def test_a_wait_of_zero_sends_everything_that_would_wait_at_all() -> None:
    bounds = replace(BOUNDS, after_wait_s=0)
    assert why_elsewhere(bounds, replace(EDGE, calls=2, units=2.0)) == "wait"
    assert why_elsewhere(bounds, replace(EDGE, calls=1, units=1.0)) is None


def test_a_start_takes_what_is_left_of_it_and_an_overdue_one_as_long_again() -> None:
    assert [start_left_s(60, waited) for waited in (0, 20, 60, 100)] == [60, 40, 60, 100]


@given(
    replicas=st.integers(0, 50),
    calls=st.integers(0, 5000),
    units=st.floats(0, 1e6),
    s_per_unit=st.none() | st.floats(0, 1e4),
    oldest_s=st.floats(0, 1e5),
    spilling=st.booleans(),
)
def test_whatever_a_door_sees_there_is_an_answer_and_a_free_slot_is_used(  # noqa: PLR0917
    replicas: int,
    calls: int,
    units: float,
    s_per_unit: float | None,
    oldest_s: float,
    spilling: bool,
) -> None:
    seen = Seen(replicas, calls, units, s_per_unit, oldest_s, 0.0)
    reason = why_elsewhere(BOUNDS, seen, spilling=spilling)
    assert wait_s(seen, 2.0) >= 0
    if replicas and calls < replicas * BOUNDS.slots:
        assert reason is None
