"""A VRAM budget becomes a share: rounded up, but n that fit in bytes fit in shares."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.gpu.shares import GPU_TICKS, budget_kib, share_ticks, usable_kib

pytestmark = pytest.mark.unit


def ticks(budget_gib: float, usable_gib: float) -> int:
    return share_ticks(budget_kib(budget_gib), usable_kib(usable_gib))


@pytest.mark.parametrize(
    ("budget_gib", "usable_gib", "expected"),
    [
        pytest.param(11, 22, 5000, id="half"),
        pytest.param(22, 22, 10_000, id="whole"),
        pytest.param(12, 22, 5455, id="rounded up"),
        pytest.param(22 / 3, 22, 3333, id="a third is rounded down, so that three fit"),
        pytest.param(22 / 7, 22, 1428, id="a seventh too"),
        pytest.param(22 / 3 + 0.001, 22, 3334, id="a little over a third is not"),
        pytest.param(0.0001, 22, 1, id="never nothing"),
    ],
)
def test_a_share_is_the_budgets_part_of_the_gpu(budget_gib: float, usable_gib: float, expected: int) -> None:
    assert ticks(budget_gib, usable_gib) == expected


@given(st.floats(1, 200), st.integers(1, 99))
def test_equal_parts_of_a_gpu_fill_it(usable_gib: float, parts: int) -> None:
    budget = usable_kib(usable_gib) // parts
    assert GPU_TICKS // share_ticks(budget, usable_kib(usable_gib)) == parts


@given(st.floats(1, 200), st.floats(0.001, 1))
def test_a_share_never_books_a_whole_tick_too_little(usable_gib: float, part: float) -> None:
    usable = usable_kib(usable_gib)
    budget = budget_kib(usable_gib * part)
    share = share_ticks(budget, usable)
    assert 1 <= share <= GPU_TICKS
    assert (share + 1) * usable > budget * GPU_TICKS
    assert (share - 1) * usable < budget * GPU_TICKS


@given(st.floats(1, 200), st.floats(0.01, 1))
def test_as_many_fit_in_shares_as_in_bytes_give_or_take_the_rounding(usable_gib: float, part: float) -> None:
    usable = usable_kib(usable_gib)
    budget = budget_kib(usable_gib * part)
    assert GPU_TICKS // share_ticks(budget, usable) == usable // budget
