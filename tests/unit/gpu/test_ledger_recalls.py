"""Whom to recall: enough, nobody in vain, idle before busy, the least recently used first."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.gpu.recalls import choose
from cotenant.gpu.tenants import Held, Tenant
from cotenant.gpu.terms import Priority

pytestmark = pytest.mark.unit

NOW = 100.0
BATCH, INTERACTIVE = Priority.BATCH, Priority.INTERACTIVE


def held(
    name: str,
    gives: int,
    *,
    used_at: float = 0.0,
    wake_s: float = 1.0,
    work: Priority | None = None,
    hold_until: float = 0.0,
    granted_at: float = 0.0,
) -> Held:
    made = Held(Tenant(name, gives + 1, 1, wake_s), 0.0)
    made.used_at, made.work, made.hold_until, made.granted_at = used_at, work, hold_until, granted_at
    return made


def names(
    need: int, *holders: Held, asked: Priority = INTERACTIVE, rank: Priority = INTERACTIVE, partial: bool = False
) -> tuple[list[str], float]:
    idle = [one for one in holders if one.work is None]
    busy = [one for one in holders if one.work is not None]
    choice = choose(need, idle, busy, asked=asked, rank=rank, now=NOW, partial=partial)
    return [one.id for one in choice.recall], choice.retry_at


@pytest.mark.parametrize(
    ("need", "holders", "expected"),
    [
        pytest.param(5, [held("new", 5, used_at=2), held("old", 5, used_at=1)], ["old"], id="least recently used"),
        pytest.param(5, [held("slow", 5, wake_s=9), held("quick", 5)], ["quick"], id="then the cheaper to wake"),
        pytest.param(5, [held("small", 2, used_at=1), held("large", 5, used_at=2)], ["large"], id="nobody in vain"),
        pytest.param(
            7, [held("small", 2, used_at=1), held("large", 5, used_at=2)], ["small", "large"], id="all that it takes"
        ),
        pytest.param(5, [held("working", 5, work=BATCH), held("resting", 5, used_at=9)], ["resting"], id="idle first"),
        pytest.param(
            5,
            [held("chat", 5, work=INTERACTIVE), held("bulk", 5, work=BATCH, granted_at=9)],
            ["bulk"],
            id="batch work before interactive work",
        ),
        pytest.param(
            5,
            [held("late", 5, work=BATCH, granted_at=9), held("early", 5, work=BATCH, granted_at=1)],
            ["early"],
            id="of the busy ones who was granted first",
        ),
        pytest.param(8, [held("only", 5)], [], id="nobody if they would not suffice"),
    ],
)
def test_who_is_recalled(need: int, holders: list[Held], expected: list[str]) -> None:
    assert names(need, *holders)[0] == expected


def test_as_many_as_there_are_if_that_helps_too() -> None:
    assert names(8, held("only", 5), partial=True) == (["only"], math.inf)


@pytest.mark.parametrize(
    ("asked", "rank", "work", "expected"),
    [
        pytest.param(INTERACTIVE, INTERACTIVE, BATCH, (["a"], math.inf), id="interactive breaks into batch work"),
        pytest.param(INTERACTIVE, INTERACTIVE, INTERACTIVE, ([], 130.0), id="equals wait for the hold"),
        pytest.param(BATCH, BATCH, BATCH, ([], 130.0), id="batch equals too"),
        pytest.param(BATCH, INTERACTIVE, BATCH, ([], 130.0), id="an aged batch waiter breaks into nothing"),
        pytest.param(BATCH, INTERACTIVE, INTERACTIVE, ([], 130.0), id="but waits for the hold like an equal"),
        pytest.param(BATCH, BATCH, INTERACTIVE, ([], math.inf), id="no time helps batch against interactive work"),
    ],
)
def test_a_hold_protects_from_equals(
    asked: Priority, rank: Priority, work: Priority, expected: tuple[list[str], float]
) -> None:
    assert names(5, held("a", 5, work=work, hold_until=130.0), asked=asked, rank=rank) == expected


HOLDERS = st.lists(
    st.tuples(
        st.integers(1, 9),
        st.integers(0, 5),
        st.sampled_from([None, None, BATCH, INTERACTIVE]),
        st.sampled_from([0.0, NOW + 5]),
    ),
    max_size=7,
)


@given(need=st.integers(1, 30), made=HOLDERS, asked=st.sampled_from(Priority), aged=st.booleans())
def test_enough_are_recalled_and_none_of_them_in_vain(
    need: int, made: list[tuple[int, int, Priority | None, float]], asked: Priority, aged: bool
) -> None:
    rank = INTERACTIVE if aged else asked
    holders = [
        held(f"t{i}", gives, used_at=used_at, work=work, hold_until=until)
        for i, (gives, used_at, work, until) in enumerate(made)
    ]
    idle = [one for one in holders if one.work is None]
    busy = [one for one in holders if one.work is not None]
    free_to_go = [
        one
        for one in busy
        if one.work is not None and (asked > one.work or (rank >= one.work and one.hold_until <= NOW))
    ]
    choice = choose(need, idle, busy, asked=asked, rank=rank, now=NOW)
    gives = sum(one.gives_kib for one in choice.recall)
    if sum(one.gives_kib for one in idle + free_to_go) < need:
        assert choice.recall == ()
        return
    assert gives >= need
    assert all(gives - one.gives_kib < need for one in choice.recall)
    assert set(choice.recall) <= {*idle, *free_to_go}
    if sum(one.gives_kib for one in idle) >= need:
        assert set(choice.recall) <= set(idle)
    for one in set(choice.recall) & set(idle):
        spared = [other for other in idle if other not in choice.recall and other.gives_kib == one.gives_kib]
        assert all(other.used_at >= one.used_at for other in spared)
