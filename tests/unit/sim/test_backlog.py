"""What waits: whose turn it is, and what the policy is told."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.scaling.learning import ServiceTimes
from cotenant.sim.backlog import Backlog, Call

pytestmark = pytest.mark.unit

NONE_KNOWN = ServiceTimes()


def call(came_s: float, due_s: float = math.inf, *, service_s: float = 1.0, units: float = 1.0) -> Call:
    return Call(due_s, came_s, service_s, units)


def test_what_has_no_deadline_goes_first_then_the_nearest_deadline() -> None:
    backlog = Backlog(5.0)
    for one in (call(0, 900), call(1, 300), call(2), call(3)):
        backlog.add(one)
    assert [backlog.take().came_s for _ in range(4)] == [2, 3, 1, 0]
    assert not backlog


def test_what_is_begun_again_goes_before_what_came_later() -> None:
    backlog = Backlog(5.0)
    backlog.add(call(10))
    backlog.again([call(3), call(1), call(2, 400)])
    assert [backlog.take().came_s for _ in range(4)] == [1, 3, 10, 2]


def test_urgency_is_told_in_groups() -> None:
    backlog = Backlog(5.0)
    for one in (call(0), call(95), call(0, 130), call(0, 139), call(0, 3700), call(0, 86_400)):
        backlog.add(one)
    queues = backlog.queues(100.0, NONE_KNOWN)
    assert [(queue.waiting, queue.within_s) for queue in queues] == [(2, -95), (2, 10), (1, 1795), (1, 43_150)]


def test_work_is_reckoned_from_hints() -> None:
    times = ServiceTimes()
    for _ in range(50):
        for units in (10.0, 20.0, 40.0):
            times.ended(units, 2 + 0.1 * units)
    backlog = Backlog(5.0)
    for units in (10.0, 100.0):
        backlog.add(call(0, units=units))
    (queue,) = backlog.queues(0.0, times)
    assert queue.work_s == pytest.approx(2 * 2 + 0.1 * 110, rel=1e-3)


@given(
    st.lists(st.tuples(st.floats(0, 1000), st.one_of(st.just(math.inf), st.floats(1001, 1e6)), st.floats(0, 50))),
    st.integers(0, 60),
)
def test_the_policy_is_told_of_every_call_once(calls: list[tuple[float, float, float]], taken: int) -> None:
    backlog = Backlog(5.0)
    for came_s, due_s, units in sorted(calls):
        backlog.add(call(came_s, due_s, units=units))
    for _ in range(min(taken, len(calls))):
        backlog.take()
    left = len(calls) - min(taken, len(calls))
    queues = backlog.queues(1000.0, NONE_KNOWN)
    assert (len(backlog), sum(queue.waiting for queue in queues)) == (left, left)
    assert [queue.within_s for queue in queues] == sorted(queue.within_s for queue in queues)
    assert len(queues) <= 2 + math.log2(1e6 / 5)
