"""Sleep and wake: the memory really goes, the answers stay the same, and twenty rounds leave nothing behind."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from conftest import Start, need
from gpukit import meter as meters
from gpukit.child import Child
from gpukit.machine import ceiling_mib, on_cuda, pick, require_room
from gpukit.meter import Meter
from gpukit.records import Record, median, record

_CYCLES = 20


def _cycles(child: Child, meter: Meter) -> tuple[list[float], list[float], list[float], list[float], set[str]]:
    """Twenty rounds: MiB in use asleep and awake, seconds to sleep and to wake, and the answers given."""
    asleep, awake, slept, woke, answers = [], [], [], [], set()
    for _ in range(_CYCLES):
        slept.append(child.ask("model_do", what="sleep")["did"])
        asleep.append(meter.used_mib())
        woke.append(child.ask("model_do", what="wake")["did"])
        awake.append(meter.used_mib())
        answers.add(child.ask("model_do", what="answer")["did"])
    return asleep, awake, slept, woke, answers


def _record(title: str, weights_mib: float, cycles: tuple[list[float], list[float], list[float], list[float]]) -> None:
    asleep, awake, slept, woke = cycles
    record(
        Record(
            title=title,
            source="tests/gpu/test_gpu_warmth.py",
            columns=("weights MiB", "freed asleep MiB", "sleep s", "wake s", "in use asleep, round 2 / last, MiB"),
            rows=(
                (
                    f"{weights_mib:.0f}",
                    f"{median(awake) - median(asleep):.0f}",
                    f"{median(slept):.3f}",
                    f"{median(woke):.3f}",
                    f"{asleep[1]:.0f} / {asleep[-1]:.0f}",
                ),
            ),
            notes=(f"Medians of {_CYCLES} rounds; in use: the whole device.",),
        )
    )


def test_the_stand_in_llm_sleeps_and_wakes_twenty_times(start: Start) -> None:
    need(meters.missing())
    child = start("llm")
    facts = child.ask("model", kind="llm", shape="0.5B" if on_cuda() else "5M", timeout_s=300)
    weights = facts["weights_mib"]
    require_room(2 * weights)
    before = child.ask("model_do", what="answer")["did"]
    asleep, awake, slept, woke, answers = _cycles(child, Meter([child.pid]))
    _record("The stand-in LLM asleep and awake", weights, (asleep, awake, slept, woke))
    assert answers == {before}
    # The first round also makes what stays: pinned pages are the host's, handles of libraries the device's.
    assert max(asleep[1:]) - min(asleep[1:]) <= pick(64, 32)
    if on_cuda():
        assert median(awake) - median(asleep) >= 0.95 * weights


def test_the_image_engine_sleeps_and_wakes_twenty_times(start: Start, tmp_path: Path) -> None:
    need(meters.missing())
    for module in ("diffusers", "transformers", "pydantic", "PIL"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"not installed: {module}")
    child = start("images")
    vram_gib = pick(8192, 1536) / 1024
    require_room(vram_gib * 1024)
    usable_gib = max(vram_gib, ceiling_mib() / 1024)
    facts = child.ask(
        "model", kind="images", folder="tiny-inpaint", vram_gib=vram_gib, usable_gib=usable_gib, side=64,
        home=str(tmp_path), timeout_s=300,
    )  # fmt: skip
    before = child.ask("model_do", what="answer", timeout_s=300)["did"]
    asleep, awake, slept, woke, answers = _cycles(child, Meter([child.pid]))
    _record("The image engine (tiny pipeline) asleep and awake", facts["weights_mib"], (asleep, awake, slept, woke))
    assert answers == {before}
    assert max(asleep[1:]) - min(asleep[1:]) <= pick(64, 48)
