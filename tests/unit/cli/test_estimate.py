"""The dry run's figures: jobs, time and money by workload, measured where somebody measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cotenant.cli.amounts import duration_s, size_text, time_text
from cotenant.cli.estimate import ASSUMED_LLM_S, ASSUMED_MOCKUP_S, Estimate, estimates
from cotenant.config import Platform, load_platform
from cotenant.gpu.plan import plan
from cotenant.jobs.model import Job
from cotenant.jobs.reading import read_jobs
from cotenant.jobs.store.records import Board, WorkloadPace
from tests.contracts.jobs_house import chat, render

pytestmark = pytest.mark.unit

WORKLOADS = """
workloads:
  mockups: {mockup: {templates: [mug]}, gpu: {vram_gib: 5.5}, concurrency: 2, replicas: {min: 1, max: 3}}
  writer: {llm: {model: tiny}, gpu: {vram_gib: 11}}
"""
CPU = "environments: {local: {pools: {shared: {accelerator: cpu, vram_gib: 44}}}}\n"
L4 = "environments: {local: {pools: {shared: {accelerator: nvidia-l4, machine: g2-standard-8, nodes: {max: 4}}}}}\n"


def platform_of(tmp_path: Path, environment: str) -> Platform:
    (tmp_path / "platform.yaml").write_text(WORKLOADS + environment)
    return load_platform(tmp_path / "platform.yaml", "local")


def jobs_of(*lines: Any) -> list[Job]:
    return read_jobs([json.dumps(line).encode() for line in lines], "jobs.jsonl", tenant="acme", batch="b1")


def board(**paces: WorkloadPace) -> Board:
    return Board("i1", 0.0, workloads=paces)


def test_what_the_ingresses_measured_counts_and_how_many_slots_they_have(tmp_path: Path) -> None:
    platform = platform_of(tmp_path, CPU)
    jobs = jobs_of(*[render(f"r{n}") for n in range(100)], chat("c"))
    boards = [board(mockups=WorkloadPace(slots=2, mean_s=1.0)), board(mockups=WorkloadPace(slots=2, mean_s=3.0))]
    mockups, writer = sorted(estimates(platform, plan(platform), jobs, boards), key=lambda each: each.workload)
    assert (mockups.jobs, mockups.slots, mockups.mean_s, mockups.measured) == (100, 4, 2.0, True)
    assert mockups.time_s == 50.0
    assert (writer.jobs, writer.measured, writer.mean_s) == (1, False, ASSUMED_LLM_S)


def test_without_a_platform_that_runs_a_mockups_time_grows_with_its_pixels_and_samples(tmp_path: Path) -> None:
    platform = platform_of(tmp_path, CPU)
    small, large = (
        estimates(platform, plan(platform), jobs_of(render("r", size=side, samples=16)), [])[0] for side in (512, 1024)
    )
    assert small.mean_s == pytest.approx(ASSUMED_MOCKUP_S)
    assert large.mean_s == pytest.approx(4 * ASSUMED_MOCKUP_S)
    assert small.slots == 3 * 2, "as many as its replicas can have"
    assert small.time_s == small.mean_s, "no job is quicker for there being more slots"


def test_the_price_is_the_share_of_the_gpu_that_the_work_keeps_busy(tmp_path: Path) -> None:
    platform = platform_of(tmp_path, L4)
    boards = [board(mockups=WorkloadPace(slots=2, mean_s=2.0))]
    (found,) = estimates(platform, plan(platform), jobs_of(*[render(f"r{n}") for n in range(3600)]), boards)
    share = plan(platform).workloads["mockups"].num_gpus
    assert found.usd == pytest.approx(3600 * 2.0 / 2 * share * 0.8536 / 3600, rel=0.01)
    assert found.priced


def test_this_machine_has_no_price_and_an_unknown_one_is_said_to_be_unknown(tmp_path: Path) -> None:
    def of(environment: str) -> Estimate:
        platform = platform_of(tmp_path, environment)
        return estimates(platform, plan(platform), jobs_of(render("r")), [])[0]

    at_home, unknown = of(CPU), of(L4.replace("g2-standard-8", "x9-unheard-of"))
    assert (at_home.usd, at_home.priced) == (None, False)
    assert (unknown.usd, unknown.priced) == (None, True)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90.0), ("2h", 7200.0), ("1h30m", 5400.0), ("7d", 604800.0), ("1.5H", 5400.0), ("2", None), ("soon", None)],
)
def test_durations_are_read_as_people_write_them(text: str, seconds: float | None) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.85, "0.85 s"), (12.4, "12 s"), (60, "1 min"), (185, "3 min 5 s"), (7830, "2 h 10 min"), (273600, "3 d 4 h")],
)
def test_times_are_told_in_two_units(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (512, "512 B"), (3500, "3.4 KiB"), (20 << 20, "20.0 MiB"), (5 << 40, "5120 GiB")]
)
def test_sizes_are_told_in_binary_units(size: int, text: str) -> None:
    assert size_text(size) == text
