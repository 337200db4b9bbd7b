"""The edge between headroom and Ray: when it asks, what it says, and a Ray that has no autoscaler."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from cotenant.scaling.headroom import NodeView

pytestmark = pytest.mark.integration

MARKER = "cotenant-pool-shared"
TERMS = [
    {"name": "shared", "min": 0, "max": 3, "spare": 1, "marker": MARKER, "resources": {MARKER: 1000.0, "GPU": 1.0}}
]
MONDAY = 1_780_272_000.0


class Ray:
    """Ray's answers, and what it was asked."""

    def __init__(self) -> None:
        self.nodes: list[NodeView] = []
        self.waiting: list[dict[str, float]] = []
        self.asked: list[tuple[int, list[dict[str, str]] | None]] = []
        self.error: Exception | None = None

    def cluster(self) -> tuple[list[NodeView], list[dict[str, float]]]:
        if self.error:
            raise self.error
        return self.nodes, self.waiting

    def request_resources(
        self, *, bundles: list[dict[str, float]], bundle_label_selectors: list[dict[str, str]] | None
    ) -> None:
        assert bundle_label_selectors is None or len(bundles) == len(bundle_label_selectors)
        self.asked.append((len(bundles), bundle_label_selectors))


class Metrics:
    def __init__(self, metrics: Any) -> None:
        self.rows: dict[tuple[str, ...], float] = {}

    def publish(self, rows: Any) -> None:
        self.rows = {(row.name, *row.labels.values()): row.value for row in rows}


@pytest.fixture
def ray_says(monkeypatch: pytest.MonkeyPatch) -> Ray:
    from deployments import headroom

    ray = Ray()
    monkeypatch.setattr(headroom, "_cluster", ray.cluster)
    monkeypatch.setattr(headroom, "request_resources", ray.request_resources)
    monkeypatch.setattr(headroom, "is_autoscaler_v2", lambda: True)
    monkeypatch.setattr(headroom, "Published", Metrics)
    return ray


def busy(name: str) -> NodeView:
    return NodeView(name, {MARKER: 1000.0, "GPU": 1.0}, {MARKER: 999.999, "GPU": 0.5})


def test_it_asks_when_something_changed_and_once_a_minute(ray_says: Ray) -> None:
    from deployments.headroom import Headroom

    headroom = Headroom(TERMS)
    for second in range(0, 60, 5):
        headroom.keep(MONDAY + second)
    assert ray_says.asked == [(1, [{}])]
    headroom.keep(MONDAY + 60)
    assert ray_says.asked == [(1, [{}])] * 2
    ray_says.nodes = [busy("n1")]
    headroom.keep(MONDAY + 65)
    assert ray_says.asked[2:] == [(1, [{"ray.io/node-id": "!in(n1)"}])]
    rows = headroom._published.rows
    assert rows["cotenant_nodes", "shared", "busy"] == 1
    assert rows["cotenant_nodes_wanted", "shared"] == 2


def test_what_another_one_asked_for_before_is_taken_back_at_once(ray_says: Ray) -> None:
    from deployments.headroom import Headroom

    Headroom([{**TERMS[0], "spare": 0}]).keep(MONDAY)
    assert ray_says.asked == [(0, None)]


def test_trouble_is_told_once_and_the_next_look_tries_again(ray_says: Ray, caplog: pytest.LogCaptureFixture) -> None:
    from deployments.headroom import Headroom

    headroom = Headroom(TERMS)
    ray_says.error = RuntimeError("the head is gone")
    with caplog.at_level(logging.INFO, "cotenant"):
        logging.getLogger("cotenant").propagate = True
        for second in range(50):
            headroom.keep(MONDAY + second)
        assert [record.message for record in caplog.records] == ["nodes_not_looked_after"]
        ray_says.error = None
        headroom.keep(MONDAY + 50)
    assert [record.message for record in caplog.records][1:] == ["nodes_wanted"]
    assert len(ray_says.asked) == 1


def test_what_was_learned_survives_and_makes_nodes_before_the_rush(ray_says: Ray) -> None:
    from deployments.headroom import Headroom

    headroom = Headroom([{**TERMS[0], "spare": 0}])
    for quarter in range(4 * 24 * 3):
        hour = quarter / 4 % 24
        ray_says.nodes = [busy("n1"), busy("n2")] if 9 <= hour < 18 else []
        headroom.keep(MONDAY + quarter * 900)
    again = Headroom([{**TERMS[0], "spare": 0}], state=headroom.state())
    ray_says.asked.clear()
    begin = MONDAY + 3 * 86_400
    again.keep(begin + 1)
    for quarter in range(1, 9 * 4):
        again.keep(begin + quarter * 900)
    assert {count for count, _ in ray_says.asked} == {0}
    again.keep(begin + 8.95 * 3600)
    assert ray_says.asked[-1][0] == 2


@pytest.fixture
def plain_ray() -> Iterator[Any]:
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, resources={MARKER: 1000.0})
        yield ray
        ray.shutdown()


def test_a_ray_without_an_autoscaler_takes_no_notice(plain_ray: Any, caplog: pytest.LogCaptureFixture) -> None:
    from deployments.headroom import Headroom

    headroom = Headroom(TERMS)
    with caplog.at_level(logging.INFO, "cotenant"):
        logging.getLogger("cotenant").propagate = True
        for second in range(20):
            headroom.keep(MONDAY + second)
    assert [record.message for record in caplog.records] == ["nodes_wanted"]
    assert len(plain_ray.nodes()) == 1
