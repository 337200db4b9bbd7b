"""`cotenant plan --add … --gpus …`: what a change makes of GPUs and cost, and what is refused in which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cotenant.cli import main

pytestmark = pytest.mark.unit

FILE = """\
workloads:
  writer: {mockup: {}, gpu: {vram_gib: 12}, replicas: {min: 1, max: 2}}
environments:
  local: {pools: {shared: {accelerator: cpu, vram_gib: 12, nodes: {min: 0, max: 2}}}}
  prod:
    pools:
      shared: {accelerator: nvidia-l4, machine: g2-standard-8, nodes: {min: 1, max: 4}}
  two:
    pools:
      shared: {accelerator: nvidia-l4, machine: g2-standard-24, gpus_per_node: 2, nodes: {min: 1, max: 4}}
      large: {accelerator: nvidia-tesla-a100, machine: a2-highgpu-1g, nodes: {min: 0, max: 1}}
  tight: {pools: {shared: {accelerator: nvidia-l4, machine: g2-standard-8, usd_per_h: 1}}}
  full:
    pools: {shared: {accelerator: nvidia-l4, machine: g2-standard-8, nodes: {min: 1, max: 2}}}
    workloads: {writer: {replicas: {min: 3, max: 3}}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "platform.yaml"
    path.write_text(FILE)
    return path


def run(file: Path, environment: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["plan", "-f", str(file), "-e", environment, *arguments])


def what_if(file: Path, environment: str, *arguments: str) -> dict[str, Any]:
    done = run(file, environment, "--json", *arguments)
    assert done.exit_code == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["what_if"]
    return found


def words(done: Result) -> str:
    """What a command printed, without its line breaks."""
    return " ".join(done.stdout.split())


def test_another_workload_shows_in_the_plan_and_what_it_costs_more(file: Path) -> None:
    done = run(file, "prod", "--add", "captions=11x2")
    assert "captions x2" in done.stdout
    assert (
        "What if captions 2 x 11 GiB: 1 GPU more, +$623 a month with every replica; 1 GPU more, +$623 a month at "
        "minimum." in words(done)
    )


def test_a_workload_that_fits_beside_the_others_costs_nothing(file: Path) -> None:
    assert "no further GPU and the same cost with every replica" in words(run(file, "prod", "--add", "captions=4"))


def test_where_nothing_has_a_price_only_gpus_are_counted(file: Path) -> None:
    assert "What if captions 1 x 1 GiB, pool shared with 4 GPUs: 1 GPU more with every replica; 1 GPU more" in words(
        run(file, "local", "--add", "captions=1", "--gpus", "4")
    )


def test_more_gpus_make_room_and_fewer_take_it(file: Path) -> None:
    more = run(file, "tight", "--gpus", "2")
    assert "1 GPU more, +$730 a month with every replica" in words(more)
    assert "Room for 1 more of the file's own replicas than now." in words(more)
    fewer = run(file, "prod", "--gpus", "shared=1")
    assert "1 GPU fewer, -$623 a month with every replica" in words(fewer)
    assert "1 of the file's own replicas that have room now would have none." in words(fewer)


def test_a_file_that_does_not_fit_is_planned_with_more_gpus(file: Path) -> None:
    assert run(file, "full").exit_code == 2
    done = run(file, "full", "--gpus", "3")
    assert done.exit_code == 0
    assert "pool shared with 3 GPUs: needs 3 GPUs with every replica, 3 at minimum. The file as it is does" in words(
        done
    )
    assert what_if(file, "full", "--gpus", "3") == {
        "add": [], "gpus": {"shared": 3}, "fits": True, "why_not": [], "gpus_more": None, "gpus_more_at_min": None,
        "monthly_usd_more": None, "monthly_usd_more_at_min": None, "room_for_more": None,
    }  # fmt: skip


def test_as_json_it_is_the_changed_plan_and_the_difference(file: Path) -> None:
    assert what_if(file, "prod", "--add", "captions=11x2", "--add", "tiny=0.5", "--gpus", "shared=5") == {
        "add": [
            {"name": "captions", "vram_gib": 11, "replicas": 2},
            {"name": "tiny", "vram_gib": 0.5, "replicas": 1},
        ],
        "gpus": {"shared": 5},
        "fits": True,
        "why_not": [],
        "gpus_more": 1,
        "gpus_more_at_min": 1,
        "monthly_usd_more": 623.13,
        "monthly_usd_more_at_min": 623.13,
        "room_for_more": 0,
    }


def test_what_does_not_fit_is_said_with_the_reason_and_code_two(file: Path) -> None:
    done = run(file, "prod", "--add", "captions=30")
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith(
        "does not fit: --add captions=30: captions needs 30 GiB, but the largest GPU it may use"
    )
    as_json = run(file, "prod", "--add", "captions=30", "--json")
    assert as_json.exit_code == 2
    found = json.loads(as_json.stdout)
    assert found["environment"] == "prod"
    assert found["what_if"]["fits"] is False
    assert "captions needs 30 GiB" in found["what_if"]["why_not"][0]


def test_one_gpu_is_one_gpu(file: Path) -> None:
    assert "What if pool shared with 1 GPU: 1 GPU fewer" in words(run(file, "prod", "--gpus", "1"))


def test_an_added_workload_is_told_only_what_it_can_say(file: Path) -> None:
    done = run(file, "local", "--gpus", "1", "--add", "extra=3x2")
    assert done.exit_code == 2
    assert done.stderr == (
        "does not fit: --add extra=3x2: extra needs 2 x 3 GiB at minimum, but the emptiest cpu of pool shared has 0.0 "
        "of 12.0 GiB left; raise nodes.max of pool shared from 1 to 2\n"
    )


@pytest.mark.parametrize(
    ("environment", "arguments", "message"),
    [
        ("prod", ["--add", "captions"], "takes NAME=GIB or NAME=GIBxREPLICAS, e.g. captions=4x2; got 'captions'"),
        ("prod", ["--add", "Captions=4"], "'Captions' can't be a workload's name"),
        ("prod", ["--add", "gateway=4"], "'gateway' is a front door's name"),
        ("prod", ["--add", "c=0"], "'c=0': GiB must be more than 0, replicas from 1 to 10000"),
        ("prod", ["--add", "c=1x0"], "'c=1x0': GiB must be more than 0, replicas from 1 to 10000"),
        ("prod", ["--add", "writer=4"], "'writer' is a workload of the file already"),
        ("prod", ["--add", "a=1", "--add", "a=2"], "--add names a twice; give the second another name"),
        ("prod", ["--gpus", "2", "--gpus", "3"], "--gpus names the pool twice; give it one number"),
        ("prod", ["--gpus", "shared=2", "--gpus", "shared=3"], "--gpus names shared twice; give it one number"),
        ("prod", ["--gpus", "2", "--gpus", "shared=3"], "--gpus names shared twice; give it one number"),
        ("prod", ["--gpus", "many"], "takes a number of GPUs, or POOL=NUMBER, up to 10000; got 'many'"),
        ("prod", ["--gpus", "0"], "takes a number of GPUs, or POOL=NUMBER, up to 10000; got '0'"),
        ("prod", ["--gpus", "fast=4"], "there is no GPU pool 'fast'; there is shared"),
        ("two", ["--gpus", "4"], "say which pool, e.g. --gpus shared=4; there are shared, large"),
        ("two", ["--gpus", "shared=3"], "a node of pool shared has 2 GPUs; say a multiple of that, e.g. 4"),
    ],
)
def test_what_is_no_change_is_a_usage_error(file: Path, environment: str, arguments: list[str], message: str) -> None:
    done = run(file, environment, *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
