"""Who is warned, who is stopped, and who is left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.agent.guard import Holding, Limits, Stop, Warn, Watch, judge

pytestmark = pytest.mark.unit

MIB = 1024
LIMITS = Limits()
BUDGET, FLOOR = 4_000 * MIB, 1_000 * MIB


def holding(held_mib: int | None, *, full: bool = True, exact: bool = True) -> Holding:
    held = None if held_mib is None else held_mib * MIB
    return Holding(held_kib=held, budget_kib=BUDGET, floor_kib=FLOOR, full=full, exact=exact)


@pytest.mark.parametrize(
    ("what", "verdict"),
    [
        pytest.param(holding(3_599), None, id="under 90 %"),
        pytest.param(holding(3_600), Warn(3_600 * MIB, BUDGET), id="at 90 %"),
        pytest.param(holding(4_000), Warn(4_000 * MIB, BUDGET), id="at its budget"),
        pytest.param(holding(4_001), Stop(4_001 * MIB, BUDGET, past_budget=True), id="past it"),
        pytest.param(holding(4_080, exact=False), Warn(4_080 * MIB, BUDGET), id="within what NVML's steps may add"),
        pytest.param(holding(4_081, exact=False), Stop(4_081 * MIB, BUDGET, past_budget=True), id="past that too"),
        pytest.param(
            holding(4_001, full=False), Stop(4_001 * MIB, BUDGET, past_budget=True), id="past it without a lease"
        ),
        pytest.param(holding(1_000, full=False), None, id="asleep, at its floor"),
        pytest.param(holding(1_100, full=False), None, id="asleep, a little over: floors are estimates"),
        pytest.param(holding(1_101, full=False), Warn(1_101 * MIB, FLOOR), id="asleep, over it"),
        pytest.param(holding(None), None, id="nothing is known"),
    ],
)
def test_one_sample(what: Holding, verdict: Warn | Stop | None) -> None:
    assert judge(what, Watch(), 0.0, LIMITS)[0] == verdict


def test_a_small_budget_has_at_least_64_mib_of_slack_on_a_gpu() -> None:
    small = Holding(held_kib=564 * MIB, budget_kib=500 * MIB, floor_kib=500 * MIB, full=False)
    assert isinstance(judge(small, Watch(), 0.0, LIMITS)[0], Warn)


def test_a_warning_is_given_once_until_it_has_calmed_down() -> None:
    watch, said = Watch(), []
    for held_mib in (3_700, 3_800, 3_500, 3_700, 3_300, 3_700):
        verdict, watch = judge(holding(held_mib), watch, 0.0, LIMITS)
        said.append(verdict is not None)
    assert said == [True, False, False, False, False, True]


def test_above_its_floor_it_is_warned_at_once_and_stopped_when_the_grace_is_over() -> None:
    watch, verdicts = Watch(), []
    for now in (0.0, 1.0, 10.0, 10.5):
        verdict, watch = judge(holding(2_000, full=False), watch, now, LIMITS)
        verdicts.append(verdict)
    assert verdicts == [Warn(2_000 * MIB, FLOOR), None, None, Stop(2_000 * MIB, FLOOR, past_budget=False)]


def test_coming_down_to_the_floor_or_waking_ends_the_grace() -> None:
    for calm in (holding(900, full=False), holding(2_000, full=True)):
        watch = judge(holding(2_000, full=False), Watch(), 0.0, LIMITS)[1]
        watch = judge(calm, watch, 9.0, LIMITS)[1]
        verdict, _ = judge(holding(2_000, full=False), watch, 20.0, LIMITS)
        assert isinstance(verdict, Warn)


def test_who_is_always_resident_has_no_floor_to_keep_to() -> None:
    resident = Holding(held_kib=BUDGET, budget_kib=BUDGET, floor_kib=BUDGET, full=False, exact=True)
    assert isinstance(judge(resident, Watch(), 0.0, LIMITS)[0], Warn)


@given(st.lists(st.tuples(st.integers(0, 5_000), st.booleans(), st.floats(0, 5)), max_size=30), st.booleans())
def test_within_what_it_may_hold_it_is_never_stopped_and_past_its_budget_always(
    steps: list[tuple[int, bool, float]], exact: bool
) -> None:
    watch, now = Watch(), 0.0
    slack_mib = 0 if exact else 80
    for held_mib, full, passed_s in steps:
        now += passed_s
        verdict, watch = judge(holding(held_mib, full=full, exact=exact), watch, now, LIMITS)
        assert (isinstance(verdict, Stop) and verdict.past_budget) == (held_mib > 4_000 + slack_mib)
        if held_mib <= (4_000 if full else 1_000):
            assert not isinstance(verdict, Stop)
