"""Who is denoised with whom: equal shapes only, oldest first, nobody left out, chosen seeds alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.engines.image.batching import Shape, together

pytestmark = pytest.mark.unit

SMALL = Shape("text", 64, 64, steps=4, guidance=3.0)


@pytest.mark.parametrize(
    "other",
    [
        replace(SMALL, task="image"),
        replace(SMALL, width=128),
        replace(SMALL, height=128),
        replace(SMALL, steps=5),
        replace(SMALL, guidance=1.0),
        replace(SMALL, strength=0.5),
        replace(SMALL, negative=True),
        replace(SMALL, alone=1),
    ],
    ids=lambda shape: str(shape)[6:40],
)
def test_only_equal_shapes_go_together(other: Shape) -> None:
    assert together([SMALL, other, SMALL], 4) == [0, 2]


def test_nothing_waits_for_nobody() -> None:
    assert together([], 4) == []


def test_a_picture_with_a_seed_of_the_callers_goes_alone() -> None:
    alone = replace(SMALL, alone=7)
    assert together([alone, SMALL, alone], 4) == [0]


shapes = st.builds(
    Shape,
    task=st.sampled_from(("text", "image")),
    width=st.sampled_from((64, 128)),
    height=st.just(64),
    steps=st.just(4),
    guidance=st.just(1.0),
    alone=st.sampled_from((0, 0, 0, 1, 2)),
)


@given(waiting=st.lists(shapes, max_size=30), most=st.integers(1, 5))
def test_everybody_is_served_once_oldest_first_in_batches_of_equals(waiting: list[Shape], most: int) -> None:
    line = list(enumerate(waiting))
    served: list[int] = []
    while line:
        chosen = together([shape for _, shape in line], most)
        batch = [line[index] for index in chosen]
        assert chosen == sorted(set(chosen))
        assert chosen[0] == 0
        assert 1 <= len(batch) <= most
        assert len({shape for _, shape in batch}) == 1
        assert len(batch) == 1 or not batch[0][1].alone
        served += [number for number, _ in batch]
        line = [entry for entry in line if entry not in batch]
    assert sorted(served) == list(range(len(waiting)))


@given(waiting=st.lists(shapes, min_size=1, max_size=30), most=st.integers(1, 5))
def test_a_batch_is_never_smaller_than_it_could_be(waiting: list[Shape], most: int) -> None:
    alike = sum(shape == waiting[0] for shape in waiting)
    assert len(together(waiting, most)) == (1 if waiting[0].alone else min(most, alike))
