"""Nodes wanted from nodes in use, spare ones and a forecast, and how that is asked of Ray."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.scaling.headroom import Ask, Kept, NodeView, PoolTerms, Use, ask_for, decide, nodes_wanted, use_of

pytestmark = pytest.mark.unit

MARKER = "cotenant-pool-shared"
POOL = PoolTerms("shared", min=0, max=4, spare=1, marker=MARKER, resources={MARKER: 1000.0, "GPU": 1.0})
OTHER = PoolTerms("big", min=0, max=2, spare=0, marker="cotenant-pool-big", resources={"cotenant-pool-big": 1000.0})


def node(name: str, *, gpu_free: float = 1.0, replicas: int = 0, draining: bool = False, cpus: float = 8.0) -> NodeView:
    total = {MARKER: 1000.0, "GPU": 1.0, "CPU": 8.0}
    free = {MARKER: 1000.0 - replicas * 0.001, "GPU": gpu_free, "CPU": cpus}
    return NodeView(name, total, free, draining)


def ask(share: float, cpus: float = 1.0) -> dict[str, float]:
    return {MARKER: 0.001, "GPU": share, "CPU": cpus}


pools = st.builds(
    lambda least, more, spare: PoolTerms("p", least, least + more, min(spare, least + more), MARKER, {MARKER: 1000.0}),
    st.integers(0, 5), st.integers(1, 20), st.integers(0, 5),
)  # fmt: skip
counts = st.integers(0, 40)


@given(pools, counts, counts)
def test_nodes_wanted_are_within_bounds_and_never_fewer_than_those_in_use(
    pool: PoolTerms, need: int, forecast: int
) -> None:
    wanted = nodes_wanted(pool, need, forecast)
    assert pool.min <= wanted <= pool.max
    assert wanted >= min(need, pool.max)
    assert wanted >= min(need + pool.spare, pool.max)


@given(pools, counts, counts, st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)))
def test_more_use_more_spare_or_a_higher_forecast_never_gives_fewer(
    pool: PoolTerms, need: int, forecast: int, growth: tuple[int, int, int]
) -> None:
    more, higher, sparer = growth
    roomier = replace(pool, spare=min(pool.spare + sparer, pool.max))
    assert nodes_wanted(roomier, need + more, forecast + higher) >= nodes_wanted(pool, need, forecast)


@given(pools, st.lists(st.tuples(st.floats(0, 400), counts, counts), max_size=30))
def test_what_was_forecast_is_kept_for_a_while_and_then_given_up(
    pool: PoolTerms, course: list[tuple[float, int, int]]
) -> None:
    now, kept, asked = 0.0, Kept(), []
    for passed, need, forecast in course:
        now += passed
        wanted, kept = decide(pool, need, forecast, kept, now=now, keep_s=300)
        asked.append((now, forecast))
        lately = max(most for then, most in asked if now - then <= 300)
        assert wanted == nodes_wanted(pool, need, lately)
        assert list(kept.forecast_at_s) == sorted(kept.forecast_at_s, reverse=True)


def test_the_spare_node_is_wanted_before_anything_is_in_use() -> None:
    assert decide(POOL, 0, 0, Kept(), now=0.0)[0] == 1
    assert decide(POOL, 2, 0, Kept(), now=0.0)[0] == 3
    assert decide(POOL, 4, 9, Kept(), now=0.0)[0] == 4


def test_a_node_with_a_replica_is_in_use_and_one_that_drains_is_not_counted() -> None:
    nodes = [node("a", replicas=1, gpu_free=0.5), node("b"), node("c", replicas=2, draining=True)]
    assert use_of(POOL, nodes, []) == Use(frozenset("a"), frozenset("b"), frozenset("c"))
    assert use_of(OTHER, nodes, [ask(0.5)]) == Use()


@pytest.mark.parametrize(
    ("waiting", "busy", "missing"),
    [
        pytest.param([ask(0.4)], "a", 0, id="room beside what is there"),
        pytest.param([ask(0.6)], "ab", 0, id="an idle node"),
        pytest.param([ask(0.6), ask(0.6)], "ab", 1, id="the idle node and one more"),
        pytest.param([ask(0.3)] * 9, "ab", 2, id="three to a node"),
        pytest.param([ask(0.1, cpus=9)], "a", 1, id="too many CPUs for those that are there"),
        pytest.param([{"GPU": 1.0}], "a", 0, id="not of this pool"),
    ],
)
def test_what_waits_is_laid_where_there_is_room_and_nodes_are_missing_for_the_rest(
    waiting: list[dict[str, float]], busy: str, missing: int
) -> None:
    use = use_of(POOL, [node("a", replicas=1, gpu_free=0.5), node("b")], waiting)
    assert (use.busy, use.missing) == (frozenset(busy), missing)
    assert use.need == len(busy) + missing


def test_only_the_nodes_beyond_those_in_use_are_asked_for_where_labels_are_known() -> None:
    use = Use(busy=frozenset({"n2", "n1"}), idle=frozenset({"n3"}))
    asked = ask_for([(POOL, use, 3), (OTHER, Use(), 0)], apart=True)
    assert asked == Ask((POOL.resources,), ({"ray.io/node-id": "!in(n1,n2)"},))


def test_all_nodes_are_asked_for_where_labels_are_not_known() -> None:
    use = Use(busy=frozenset({"n2", "n1"}), idle=frozenset({"n3"}))
    assert ask_for([(POOL, use, 3)], apart=False) == Ask((POOL.resources,) * 3, ({},) * 3)


@pytest.mark.parametrize("apart", [True, False])
def test_nothing_is_asked_for_where_no_more_is_wanted_than_needed_anyway(apart: bool) -> None:
    use = Use(busy=frozenset({"n1"}), missing=1)
    assert ask_for([(POOL, use, 2)], apart=apart) == Ask()


def test_a_node_that_is_still_to_come_is_asked_for_beside_the_spare_one() -> None:
    use = Use(busy=frozenset({"n1"}), missing=1)
    assert len(ask_for([(POOL, use, 3)], apart=True).bundles) == 2
