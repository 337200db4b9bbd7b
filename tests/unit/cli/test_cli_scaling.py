"""`cotenant scaling`: what the scaler says, as a table and as JSON; what is told where there is none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cotenant.calls.demand import Asked, Line
from cotenant.cli import main
from cotenant.cli import scaling as command
from cotenant.scaling import metrics
from cotenant.scaling.autoscaler import Autoscaler, Scaled
from cotenant.scaling.terms import Bounds

pytestmark = pytest.mark.unit


class _RayError(Exception):
    pass


class Cluster:
    """A Ray with a scaler, or without."""

    def __init__(self, answers: list[Any], *, has_scaler: bool = True) -> None:
        self.answers = answers
        self.has_scaler = has_scaler
        self.exceptions = SimpleNamespace(RayError=_RayError)

    def get_actor(self, name: str, namespace: str) -> Any:
        assert (name, namespace) == ("scaler", "cotenant")
        if not self.has_scaler:
            raise ValueError
        asked = {name: SimpleNamespace(remote=lambda name=name: name) for name in ("look", "changes")}
        return SimpleNamespace(**asked)

    def get(self, asked: Any, timeout: float) -> Any:
        if asked == "changes":
            return [{"workload": "mockups", "before": 0, "replicas": 2}]
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer


def decided() -> dict[str, Any]:
    scaler = Autoscaler()
    scaler.scale("mockups", Scaled(Bounds(2, 0, 4), share_s=40), 0.0)
    scaler.room_for("mockups", 3)
    scaler.serve_has("mockups", 0, 2, 0.0)
    scaler.told("ingress", {"mockups": Asked(lines=(Line(9, 9.0),), arrived=9, ended=((1.0, 2.0),))}, 1.0)
    return {"mockups": metrics.plain(scaler.decide("mockups", 1.0))}


def run(monkeypatch: pytest.MonkeyPatch, cluster: Cluster, *arguments: str) -> Result:
    @contextmanager
    def joined(address: str) -> Iterator[Cluster]:
        assert address == "auto"
        yield cluster

    monkeypatch.setattr(command, "joined", joined)
    monkeypatch.setattr(command.time, "sleep", lambda seconds: None)
    return CliRunner().invoke(main, ["scaling", *arguments])


def test_a_line_a_workload_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, Cluster([decided()]))
    assert result.exit_code == 0
    line = next(line for line in result.output.splitlines() if line.startswith("mockups")).split()
    assert line[:5] == ["mockups", "0", "2", "in", "39"]
    assert "mockups: 1 needed (9 calls wait), more kept for a while" in result.output


def test_json_for_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = json.loads(run(monkeypatch, Cluster([decided()]), "--json").output)
    assert printed["changes"] == [{"workload": "mockups", "before": 0, "replicas": 2}]
    told = printed["workloads"]["mockups"]
    assert (told["serving"], told["waiting"], told["starting_in_s"], told["service_s"]) == (0, 9, [39.0, 39.0], 2.0)


def test_followed_it_is_printed_when_a_number_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = decided(), decided()
    second["mockups"]["serving"] = 1
    cluster = Cluster([first, decided(), second, KeyboardInterrupt()])
    result = run(monkeypatch, cluster, "--follow")
    assert result.exit_code == 0
    assert result.output.count("workload") == 2


def test_where_nothing_scales_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, Cluster([], has_scaler=False))
    assert result.exit_code != 0
    assert "nothing scales on the Ray at auto: no workload there has replicas with another max than" in result.stderr
    result = run(monkeypatch, Cluster([_RayError("gone\nThe actor died")]))
    assert "the scaler does not answer: The actor died" in result.stderr
    assert result.exit_code != 0


def test_every_decision_gives_every_metric() -> None:
    scaler = Autoscaler()
    scaler.scale("w", Scaled(Bounds(2)), 0.0)
    rows = list(metrics.rows({"w": scaler.decide("w", 0.0)}))
    assert {row.name for row in rows} == {metric.name for metric in metrics.METRICS}
    labels = {metric.name: set(metric.labels) for metric in metrics.METRICS}
    assert all(set(row.labels) == labels[row.name] for row in rows)
