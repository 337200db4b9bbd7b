"""What is remembered of what was applied, and the way back."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from cotenant.cluster.history import (
    KEEP,
    Revision,
    State,
    config_map,
    marked,
    new_revision,
    revisions,
    storable,
    too_many,
    way_back,
)
from cotenant.cluster.objects import environment_labels
from cotenant.errors import NoRevision
from tests.contracts.cluster import config, ray_service

pytestmark = pytest.mark.unit

LABELS = environment_labels("shop", "prod")


def revision(number: int, state: State = "applied", digest: str = "") -> Revision:
    return Revision(number, digest or f"d{number}", "then", "me", state, "shop-prod")


def test_a_revision_is_read_back_as_it_was_written() -> None:
    things = [config("shop"), ray_service("shop")]
    made = new_revision([revision(6)], things, name="shop-prod", at="2026-01-01T00:00:00Z", by="me", rollback_of=3)
    thing = config_map(replace(made, generation=4), "shop", LABELS)
    assert thing["metadata"]["name"] == "shop-prod-revision-7"
    (got,) = revisions([thing, config("shop")], LABELS)
    assert got == replace(made, generation=4)
    assert got.things() == things


def test_the_same_manifests_have_the_same_digest() -> None:
    first = new_revision([], [ray_service("shop")], name="a", at="1", by="x")
    second = new_revision([first], [ray_service("shop")], name="a", at="2", by="y")
    assert (first.digest, first.text) == (second.digest, second.text)
    assert second.number == 2


def test_a_secret_is_not_kept() -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "data": {"a": "aHVudGVy"}}
    assert storable([secret, config("shop")]) == [config("shop")]


def test_manifests_too_big_to_be_kept_are_refused_before_anything_is_applied() -> None:
    noise = random.Random(1).randbytes(1 << 20).hex()
    made = new_revision([], [config("shop", noise=noise)], name="a", at="1", by="x")
    with pytest.raises(NoRevision, match="no way back"):
        config_map(made, "shop", LABELS)


def test_a_damaged_revision_says_so() -> None:
    made = new_revision([], [config("shop")], name="a", at="1", by="x")
    for text in (b"", made.text[:-9], b"garbage"):
        with pytest.raises(NoRevision, match="--to"):
            replace(made, text=text).things()
    with pytest.raises(NoRevision, match="is not what was applied"):
        replace(made, digest="other").things()


def test_a_config_map_that_is_no_revision_is_left_out() -> None:
    thing = config_map(new_revision([], [], name="a", at="1", by="x"), "shop", LABELS)
    strange = {**thing, "data": {"state": "odd"}}
    foreign = config_map(new_revision([], [], name="a", at="1", by="x"), "shop", environment_labels("other", "prod"))
    assert revisions([strange, foreign], LABELS) == ()


def test_ten_are_kept_and_the_newest_healthy_one_always() -> None:
    known = [revision(n, "healthy" if n in (1, 2) else "failed") for n in range(1, 15)]
    assert [each.number for each in too_many(known)] == [1, 3, 4]
    assert too_many(known[:KEEP]) == ()


def test_the_way_back_is_the_last_healthy_one_before_the_last() -> None:
    known = [revision(1, "healthy"), revision(2, "healthy"), revision(3, "failed"), revision(4)]
    assert way_back(known).number == 2
    assert way_back(known, 1).number == 1


def test_what_runs_already_is_no_way_back() -> None:
    known = [revision(1, "healthy", "a"), revision(2, "healthy", "b"), revision(3, "applied", "b")]
    assert way_back(known).number == 1


def test_going_back_twice_goes_back_and_forth_not_in_circles_of_failures() -> None:
    known = [revision(1, "healthy", "a"), revision(2, "failed", "b"), revision(3, "healthy", "a")]
    with pytest.raises(NoRevision, match=r"1 \(healthy\), 2 \(failed\), 3 \(healthy\)"):
        way_back(known)


@pytest.mark.parametrize(
    ("known", "to", "words"),
    [
        ([], None, "never deployed"),
        ([revision(1)], None, r"there are 1 \(applied\)"),
        ([revision(1, "healthy")], 4, r"no revision 4; there are 1 \(healthy\)"),
    ],
)
def test_without_a_way_back_it_is_said_what_there_is(known: list[Revision], to: int | None, words: str) -> None:
    with pytest.raises(NoRevision, match=words):
        way_back(known, to)


def test_a_revision_is_marked_with_its_reason() -> None:
    assert marked(revision(1), "failed", "why").reason == "why"
