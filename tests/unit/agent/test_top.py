"""`cotenant top`: what it shows in 80 columns without colour, and what scripts get."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from cotenant.agent.snapshot import Snapshot
from cotenant.cli import main, top_view
from cotenant.errors import EnvironmentFault
from tests.unit.agent.house import EIGHT, GIB, L4, MIB, House, report
from tests.unit.agent.test_agent_node import BATCH, INTERACTIVE

pytestmark = pytest.mark.unit


@pytest.fixture
def snapshot() -> Snapshot:
    """A writer that is awake, two painters of which one waits, and a stranger."""
    house = House(L4, reserve_kib=450 * MIB)
    writer = house.come("writer", 10, gib=5)
    house.come("painter", 20, gib=5)
    second = house.come("painter", 21, 2, gib=5)
    house.node.said(writer, INTERACTIVE, house.now)
    house.node.report(writer, report(running=3, waiting=2), house.now)
    house.node.said(second, BATCH, house.now)
    house.processes.spawn(77)
    for pid, kib in ((10, 3 * GIB), (20, 256 * MIB), (77, GIB)):
        house.probe.hold(L4.key, pid, kib)
    house.probe.busy[L4.key] = 0.42
    house.look()
    return house.node.snapshot()


def shown(*snapshots: Snapshot) -> str:
    out = io.StringIO()
    top_view.show(snapshots, Console(file=out, width=80, color_system=None))
    return out.getvalue()


def test_it_fits_80_columns_and_says_who_holds_what(snapshot: Snapshot) -> None:
    text = shown(snapshot)
    lines = text.splitlines()
    assert max(len(line) for line in lines) <= 80
    assert lines[0].endswith("  1 GPU, 3 replicas, 1 waits for memory")
    assert "GPU 0 NVIDIA L4  pool shared, 10 GiB: 4.2 held, 6.0 lent, 4.0 free to lend" in lines
    assert "  4.7 of 23.0 GiB used, SM 42%" in lines
    writer = next(line.split() for line in lines if "writer" in line)
    assert writer == ["W", "writer", "10", "resident", "3.0", "5.0", "5.0", "3.0", "3", "2"]
    assert "  wait for memory: painter" in lines
    assert "  process 77 is no replica, holds 1.0 GiB" in lines
    bar = next(line for line in lines if line.endswith("  letters held, - lent"))
    assert bar.count("W") == 12, "3 of 10 GiB in 40 cells"
    assert bar.count("P") == 1
    assert bar.count("?") == 4
    assert " lately" not in text
    assert "granted   writer may hold 5.00 GiB" in text


def test_a_gpu_that_tells_little_is_shown_with_what_there_is() -> None:
    house = House(*EIGHT[:1])
    house.probe.tells_processes = False
    house.come("writer", 10)
    house.look()
    assert "NVML does not tell processes apart here" in shown(house.node.snapshot())
    house.probe.faults[EIGHT[0].key] = "fell off the bus"
    house.node.disconnected("writer#1")
    house.look()
    text = shown(house.node.snapshot())
    assert "  fell off the bus" in text
    assert " lost " in text
    assert " ? " in text


def test_a_replica_on_a_gpu_not_known_yet_is_shown() -> None:
    house = House(*EIGHT)
    house.come("writer", 10)
    text = shown(house.node.snapshot())
    assert "GPU not known yet" in text
    assert text.count("NVIDIA H100") == 8


@pytest.fixture
def agent(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that always says the same."""
    monkeypatch.setattr("cotenant.cli.top.snapshots", lambda: [snapshot])


@pytest.mark.usefixtures("agent")
def test_once_prints_and_ends() -> None:
    result = CliRunner().invoke(main, ["top", "--once"])
    assert result.exit_code == 0
    assert "writer" in result.output


@pytest.mark.usefixtures("agent")
def test_scripts_get_json(snapshot: Snapshot) -> None:
    result = CliRunner().invoke(main, ["top", "--once", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.output) == {"agents": [snapshot.model_dump(mode="json")]}


def test_no_agent_is_a_clear_message(agents_folder: Path) -> None:
    result = CliRunner().invoke(main, ["top"])
    assert result.exit_code == 1
    assert "no GPU agent runs on this machine" in result.output
    assert str(agents_folder) in result.output


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("flags", [["--json"], []], ids=["json", "screen"])
def test_it_goes_on_until_it_is_interrupted(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr("cotenant.cli.top._watched", lambda: True)
    result = CliRunner().invoke(main, ["top", "--interval", "0.5", *flags])
    assert result.exit_code == 0
    assert sleeps == [0.5] * 3
    if flags:
        assert len(result.output.splitlines()) == 3


@pytest.mark.usefixtures("agent")
def test_a_pipe_gets_it_once() -> None:
    result = CliRunner().invoke(main, ["top"])
    assert result.exit_code == 0
    assert "writer" in result.output


def test_an_agent_that_goes_away_is_waited_for_and_then_missed(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def again() -> list[Snapshot]:
        nonlocal asked
        asked += 1
        if asked == 1:
            return [snapshot]
        raise EnvironmentFault("none answers")

    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(EnvironmentFault):
        top_view.live([snapshot], again, 1.0)
    assert asked == 1 + 6
