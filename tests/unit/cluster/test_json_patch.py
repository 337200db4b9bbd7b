"""A JSON patch does all of it or nothing."""

from __future__ import annotations

import pytest

from cotenant.cluster.json_patch import Operation, document, patched, read_document

pytestmark = pytest.mark.unit

THING = {"spec": {"groups": [{"name": "a", "most": 1}], "a/b~1": "x"}}
TEST = Operation("test", ("spec", "groups", 0, "name"), "a")


def test_a_patch_is_written_as_the_standard_has_it_and_read_back() -> None:
    patch = [TEST, Operation("replace", ("spec", "a/b~1"), "y")]
    assert [each["path"] for each in document(patch)] == ["/spec/groups/0/name", "/spec/a~1b~01"]
    assert read_document(document(patch)) == patch


def test_a_patch_leaves_what_it_was_given_as_it_was() -> None:
    after = patched(THING, [TEST, Operation("replace", ("spec", "groups", 0, "most"), 5)])
    assert after == {"spec": {"groups": [{"name": "a", "most": 5}], "a/b~1": "x"}}
    assert THING["spec"]["groups"] == [{"name": "a", "most": 1}]


@pytest.mark.parametrize(
    "wrong",
    [
        Operation("test", ("spec", "groups", 0, "name"), "b"),
        Operation("test", ("spec", "groups", 1, "name"), "a"),
        Operation("replace", ("spec", "none", "name"), "a"),
        Operation("replace", ("spec", "a/b~1", "name"), "a"),
    ],
    ids=["another value", "a place that is not there", "a key that is not there", "into a text"],
)
def test_a_patch_that_does_not_fit_does_nothing(wrong: Operation) -> None:
    assert patched(THING, [Operation("replace", ("spec", "groups", 0, "most"), 5), wrong]) is None
