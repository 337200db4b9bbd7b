"""`cotenant starts`: what it shows in 80 columns without colour, what scripts get, and what the simulator gets."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console

from cotenant.agent.snapshot import Snapshot
from cotenant.cli import main, starts_view
from cotenant.cli.starts import stages_yaml
from cotenant.sim.stages import overridden
from cotenant.telemetry.starts import Start, figures
from tests.unit.telemetry.test_start_records import start

pytestmark = pytest.mark.unit

STARTS = [
    start(
        "cold", ("queued", 1.0), ("process", 3.0), ("imports", 4.0), ("turn", 1.0), ("weights", 8.0), ("warm_up", 3.0)
    ),
    start("cold", ("process", 2.0), ("imports", 4.0), ("weights", 6.0), ("warm_up", 1.0), ("first_result", 2.0)),
    start("wake", ("turn", 0.25), ("wake", 1.0), ("first_result", 0.5), workload="painter"),
]


@pytest.fixture
def agents(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Two agents; the list holds the addresses that were asked for."""
    asked: list[str | None] = []

    def snapshots(address: str | None = None) -> list[Snapshot]:
        asked.append(address)
        parts = (STARTS[:2], STARTS[2:])
        return [
            Snapshot(node_id=f"n{n}", at=0, interval_s=1, gpus=(), starts=tuple(part)) for n, part in enumerate(parts)
        ]

    monkeypatch.setattr("cotenant.cli.starts.agents", snapshots)
    return asked


def shown(starts: list[Start]) -> list[str]:
    out = io.StringIO()
    starts_view.show(starts, figures(starts), Console(file=out, width=80, color_system=None))
    return out.getvalue().splitlines()


def test_it_fits_80_columns_and_draws_each_start_to_scale() -> None:
    lines = shown(STARTS)
    assert max(map(len, lines)) <= 80
    bars = [line for line in lines if "writer" in line and "W" in line and "(" not in line]
    assert [bars[0].count(letter) for letter in "QPITWU"] == [2, 4, 7, 1, 13, 5], "20 s in 32 cells"
    assert bars[0].split()[-2:] == ["20.0", "-"]
    assert bars[1].split()[-2:] == ["13.0", "2.00"]
    assert any("W weights" in line and "K wake" in line for line in lines)


def test_figures_are_by_workload_and_end_with_readiness() -> None:
    lines = [line.split() for line in shown(STARTS)]
    assert ["W", "weights", "7.00", "(7.00)"] in lines
    assert ["Q", "queued", "0.50", "(0.50)"] in lines
    assert ["ready", "16.5", "(16.5)"] in lines
    assert ["K", "wake", "1.00", "(1.00)"] in lines


@pytest.mark.usefixtures("agents")
def test_scripts_get_json() -> None:
    result = CliRunner().invoke(main, ["starts", "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert [one["workload"] for one in told["starts"]] == ["writer", "writer", "painter"]
    assert told["starts"][0]["ready_s"] == 20
    assert told["starts"][2]["seconds"] == {"turn": 0.25, "wake": 1.0, "first_result": 0.5}
    assert Start.model_validate(told["starts"][1]) == STARTS[1]
    assert {one["stage"] for one in told["figures"] if one["workload"] == "painter"} == {
        "turn",
        "wake",
        "first_result",
        None,
    }


def test_one_workload_of_a_cluster(agents: list[str | None]) -> None:
    result = CliRunner().invoke(main, ["starts", "--address", "auto", "--workload", "painter"])
    assert result.exit_code == 0
    assert agents == ["auto"]
    assert "painter" in result.output
    assert "writer" not in result.output


@pytest.mark.usefixtures("agents")
def test_a_workload_without_starts_is_a_clear_message() -> None:
    result = CliRunner().invoke(main, ["starts", "--workload", "mockups"])
    assert result.exit_code == 1
    assert "no start of mockups is on record; here are painter, writer" in result.output


@pytest.mark.usefixtures("agents")
def test_the_simulator_takes_what_was_measured(tmp_path: Path) -> None:
    file = tmp_path / "stages.yaml"
    result = CliRunner().invoke(main, ["starts", "--stages", str(file)])
    assert result.exit_code == 0, result.output
    given = yaml.safe_load(file.read_text())
    assert given == {
        "process": [6.0, 7.0, 8.0],
        "weights": [6.0, 7.0, 8.0],
        "warm_up": [1.0, 2.0, 3.0],
        "wake": [1.0, 1.0, 1.0],
    }
    assert overridden(given).weights.often_s == 7.0
    assert file.read_text().startswith("# Measured: 3 starts of painter, writer.")


def test_the_process_of_a_load_is_not_its_imports() -> None:
    loads = [start("load", ("imports", 1.0), ("weights", 2.0))]
    assert yaml.safe_load(stages_yaml(loads)) == {"weights": [2.0, 2.0, 2.0]}
