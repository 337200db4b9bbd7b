"""Who owns which field after an apply: whatever was there before."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.cluster.fields import Ownership, applied, conflicts, owned_paths, value_at, written

pytestmark = pytest.mark.unit

VALUES = st.recursive(
    st.integers(0, 2) | st.lists(st.integers(0, 2), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
THINGS = st.dictionaries(st.sampled_from(["spec", "data"]), VALUES, max_size=2)


def after_all(steps: list[tuple[str, bool, dict[str, Any]]]) -> tuple[dict[str, Any], tuple[Ownership, ...]]:
    live: dict[str, Any] = {}
    owners: tuple[Ownership, ...] = ()
    for manager, applies, thing in steps:
        if applies:
            live, owners = applied(live, thing, owners, manager)
        else:
            owners, live = written(live, thing, owners, manager), thing
    return live, owners


STEPS = st.lists(st.tuples(st.sampled_from(["x", "y"]), st.booleans(), THINGS), max_size=4)


@given(STEPS, THINGS)
def test_an_apply_makes_every_field_so_and_ours(steps: list[Any], wanted: dict[str, Any]) -> None:
    live, owners = after_all(steps)
    after, then = applied(live, wanted, owners, "us")
    for path in owned_paths(wanted):
        assert value_at(after, path) == value_at(wanted, path)
    assert next(each.paths for each in then if each.manager == "us") == owned_paths(wanted)


@given(STEPS, THINGS)
def test_an_apply_again_changes_nothing_and_is_no_conflict(steps: list[Any], wanted: dict[str, Any]) -> None:
    live, owners = after_all(steps)
    after, then = applied(live, wanted, owners, "us")
    assert conflicts(after, wanted, then, "us") == {}
    assert applied(after, wanted, then, "us") == (after, then)


@given(THINGS, THINGS)
def test_what_only_we_set_goes_when_we_leave_it_out(first: dict[str, Any], second: dict[str, Any]) -> None:
    live, owners = applied({}, first, (), "us")
    after, _ = applied(live, second, owners, "us")
    assert owned_paths(after) - owned_paths(second) <= {("spec",), ("data",)} | owned_paths({})


def test_a_field_set_by_others_to_the_same_is_shared_and_stays() -> None:
    live, owners = applied({}, {"spec": {"a": 1, "b": 1}}, (), "us")
    live, owners = applied(live, {"spec": {"a": 1}}, owners, "them")
    after, owners = applied(live, {"spec": {"b": 1}}, owners, "us")
    assert after == {"spec": {"a": 1, "b": 1}}
    assert conflicts(after, {"spec": {"a": 2}}, owners, "us") == {"them": [".spec.a"]}
