"""`cotenant simulate` as it is typed: the table, the JSON, and what it says to what makes no sense."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cotenant.cli import main

pytestmark = pytest.mark.unit

FILE = str(Path(__file__).parents[3] / "deployments/platform.yaml")
LOADS = ("--load", "mockups=0.5@1x4", "--load", "writer=0.2@3", "--hours", "1")


def simulate(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["simulate", "-f", FILE, "-e", "prod", *arguments])


def test_json_compares_all_ways_on_the_same_calls() -> None:
    said = json.loads(simulate(*LOADS, "--json").stdout)
    assert said["simulated"] is True
    runs = {run["name"]: run for run in said["runs"]}
    assert list(runs) == [
        "cotenant",
        "Serve's default",
        "HPA on the queue metric",
        "KEDA",
        "fixed at the peak",
        "a GPU each, at the peak",
    ]
    assert {run["workloads"]["mockups"]["calls"] for run in runs.values()} == {
        runs["cotenant"]["workloads"]["mockups"]["calls"]
    }
    assert all(run["undone"] == 0 for run in runs.values())
    assert runs["cotenant"]["gpu_hours"] < runs["fixed at the peak"]["gpu_hours"]
    assert runs["fixed at the peak"]["gpu_hours"] < runs["a GPU each, at the peak"]["gpu_hours"]
    assert runs["fixed at the peak"]["workloads"]["mockups"]["longer_than_target"] == 0


def test_the_same_seed_says_the_same() -> None:
    assert simulate(*LOADS, "--json", "--seed", "3").stdout == simulate(*LOADS, "--json", "--seed", "3").stdout
    assert simulate(*LOADS, "--json", "--seed", "3").stdout != simulate(*LOADS, "--json", "--seed", "4").stdout


def test_the_table_names_every_way_and_that_it_is_simulated() -> None:
    result = simulate(*LOADS)
    assert result.exit_code == 0
    for words in ("1 h, simulated", "HPA on the queue metric", "mockups: ", "to wait no longer than 5 s", "not a bill"):
        assert words in result.stdout
    assert "painter: " not in result.stdout


def test_a_trace_is_played_and_own_stages_are_taken(tmp_path: Path) -> None:
    trace, stages = tmp_path / "trace.csv", tmp_path / "stages.yaml"
    trace.write_text("at_s,service_s\n" + "".join(f"{n},0.5\n" for n in range(200)))
    stages.write_text("{wake: 1, pull: [60, 90, 150]}")
    result = simulate(
        "--trace", str(trace), "--workload", "mockups", "--stages", str(stages), "--image", "pull", "--json"
    )
    (ours, *_) = json.loads(result.stdout)["runs"]
    assert ours["workloads"]["mockups"]["calls"] == 200


def test_spot_nodes_are_lost_and_calls_may_have_deadlines() -> None:
    loads = ("--load", "mockups=0.3@1", "--load", "writer=0.1@40/3600", "--hours", "2", "--losses", "1")
    result = CliRunner().invoke(main, ["simulate", "-f", FILE, "-e", "staging", *loads, "--json"])
    said = json.loads(result.stdout)
    ours = said["runs"][0]
    assert ours["nodes_lost"] > 0
    assert ours["workloads"]["writer"]["dated"]["calls"] > 500
    assert "taken away 1 times an hour" in said["notes"][0]
    shown = CliRunner().invoke(main, ["simulate", "-f", FILE, "-e", "staging", *loads]).stdout
    for words in ("nodes lost", "overdue", "Both are assumed", "more with deadlines"):
        assert words in " ".join(shown.split())


TUNED = ("--load", "mockups=0.2@1x8", "--hours", "0.5", "--tune", "--runs", "14")


def test_tuning_says_what_to_write_and_what_it_costs() -> None:
    said = json.loads(simulate(*TUNED, "--json").stdout)["tuned"]
    assert said["runs"] <= 14
    assert said["found"]["usd"] <= said["present"]["usd"] or (said["found"]["met"] and not said["present"]["met"])
    assert set(said["on_another_day"]) == {"present", "found"}
    shown = simulate(*TUNED).stdout
    for words in (
        "0.5 h, simulated, p95 of waits within",
        "nodes.spare",
        "found against as it is",
        "With another seed",
    ):
        assert words in " ".join(shown.split())


def test_a_limit_that_is_met_anyway_leaves_everything_as_it_is_or_cheaper() -> None:
    said = json.loads(simulate(*TUNED, "--p95", "1000", "--json").stdout)["tuned"]
    assert (said["p95_s"], said["present"]["met"], said["found"]["met"]) == (1000, True, True)
    assert said["found"]["usd"] <= said["present"]["usd"]


@pytest.mark.parametrize(("name", "begins"), [("day.png", b"\x89PNG"), ("day.svg", b"<?xml")])
def test_a_plot_has_the_same_bytes_each_time(tmp_path: Path, name: str, begins: bytes) -> None:
    pytest.importorskip("matplotlib")
    first, second = tmp_path / name, tmp_path / f"again-{name}"
    for file in (first, second):
        assert simulate("--load", "mockups=0.5@1x4", "--hours", "0.5", "--json", "--plot", str(file)).exit_code == 0
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith(begins)


def test_a_plot_without_matplotlib_is_refused_before_anything_is_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = simulate("--trace", "/nowhere.csv", "--plot", "day.png")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "--plot needs matplotlib, which is not installed; pip install 'cotenant[plots]'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give either --trace FILE or one or more --load"),
        (("--trace", "x", "--load", "mockups=1@1"), "give either --trace FILE or one or more --load"),
        (("--load", "mockups"), "--load mockups is not NAME=RATE@SECONDS[xB]"),
        (("--load", "cups=1@1"), "NAME is one of"),
        (("--load", "mockups=0@1"), "is not NAME=RATE@SECONDS"),
        (("--load", "mockups=1@1x99"), "B is 1 to 10"),
        (("--load", "mockups=1@1", "--p95", "3"), "--p95 goes with --tune"),
        (("--load", "mockups=1@1/"), "W the seconds that a call may wait"),
        (("--trace", "/nowhere.csv"), "/nowhere.csv can't be read"),
        (("--trace", "x", "--workload", "cups"), "there is no workload cups"),
        (("--load", "mockups=1@1", "--stages", "/nowhere.yaml"), "/nowhere.yaml: "),
        (("--trace", "/nowhere.csv", "--plot", "day.pdf"), "--plot day.pdf ends in .pdf; a figure is .png or .svg"),
        (("--trace", "/nowhere.csv", "--plot", "/nowhere/day.png"), "there is no folder /nowhere"),
    ],
)
def test_what_makes_no_sense_is_said_in_a_line(arguments: tuple[str, ...], said: str) -> None:
    result = simulate(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr


def test_stages_that_are_no_mapping_are_named(tmp_path: Path) -> None:
    stages = tmp_path / "stages.yaml"
    stages.write_text("[1, 2]")
    assert "is no mapping of stages" in simulate("--load", "mockups=1@1", "--stages", str(stages)).stderr
    stages.write_text("spot: {losses: 3}")
    assert "give dry_s and losses_per_h" in simulate("--load", "mockups=1@1", "--stages", str(stages)).stderr
