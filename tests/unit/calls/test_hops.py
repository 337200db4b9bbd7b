"""What one cotenant says to another in headers, and how much of it is believed."""

from __future__ import annotations

import pytest

from cotenant.calls.hops import Hop, hop_of, is_from_elsewhere

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("headers", "hop"),
    [
        pytest.param({}, Hop(), id="a client"),
        pytest.param({"x-cotenant-spilled-from": "acme"}, Hop(spilled=True), id="sent on"),
        pytest.param({"x-cotenant-batch": "3"}, Hop(batch=True, priority=3), id="a job"),
        pytest.param({"x-cotenant-batch": "99"}, Hop(batch=True, priority=10), id="priority is bounded above"),
        pytest.param({"x-cotenant-batch": "-1e9"}, Hop(batch=True, priority=-10), id="and below"),
        pytest.param({"x-cotenant-batch": "yes"}, Hop(batch=True), id="a job of no priority"),
        pytest.param({"x-cotenant-batch": "nan", "x-cotenant-deadline-s": "inf"}, Hop(batch=True), id="nonsense"),
        pytest.param({"x-cotenant-batch": "0", "x-cotenant-deadline-s": "-5"}, Hop(batch=True), id="no time at all"),
        pytest.param(
            {"x-cotenant-batch": "0", "x-cotenant-deadline-s": "90"}, Hop(batch=True, deadline_s=90.0), id="its time"
        ),
        pytest.param({"x-cotenant-deadline-s": "90"}, Hop(), id="a client chooses no deadline"),
    ],
)
def test_headers_say(headers: dict[str, str], hop: Hop) -> None:
    assert hop_of(headers) == hop


def test_a_reply_is_from_elsewhere_if_it_says_so() -> None:
    assert not is_from_elsewhere({})
    assert not is_from_elsewhere({"x-cotenant-served-by": "cluster"})
    assert is_from_elsewhere({"x-cotenant-served-by": "mockups-abc.a.run.app"})
