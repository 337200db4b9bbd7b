#!/usr/bin/env python3
"""An LLM and a renderer on one GPU: each alone, then both at once; throughput and latency of each, and the sum.

Both are processes of their own, as replicas are. Rounds alternate, so that a machine's mood hits all three ways. The
LLM is the stand-in decoding a batch; the renderer is the platform's own on Mitsuba where that is installed, otherwise
torch convolutions, and the table says which. What it is to show: what two tenants cost each other when they share a
GPU by time, and what sharing gains against two GPUs used one after the other.

    python benchmarks/gpu/colocation.py --rounds 3 --seconds 8
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from typing import Any

from gpukit import renderer
from gpukit.child import Child, ChildFailed
from gpukit.machine import on_cuda, pick
from gpukit.records import Record, median, percentile, record

_SOURCE = "benchmarks/gpu/colocation.py"
_WARM_S = 0.5


@dataclass
class Seen:
    """What was seen of one tenant in one way, over all rounds."""

    rates: list[float] = field(default_factory=list)
    """Units a second, by round."""
    steps_ms: list[float] = field(default_factory=list)


def watched(run: dict[str, Any], per_step: float, since: float, until: float) -> tuple[float, list[float]]:
    """Units a second and step times between two moments.

    Raises:
        ChildFailed: it failed, or made no step in that time.
    """
    if run["failed"]:
        raise ChildFailed(str(run["failed"]))
    inside = [float(ms) for at, ms in run["steps"] if since <= at <= until]
    if not inside:
        raise ChildFailed(f"no step ended within {until - since:.1f} s; measure for longer")
    return len(inside) * per_step / (until - since), inside


def round_of(tenants: list[tuple[Child, float, Seen]], seconds: float) -> None:
    """Let the tenants work at once, and note what was seen of each while all did."""
    for child, _, _ in tenants:
        child.tell("run")
    time.sleep(_WARM_S)
    since = time.monotonic()
    time.sleep(seconds)
    until = time.monotonic()
    for child, _, _ in tenants:
        child.tell("stop")
    for child, per_step, seen in tenants:
        rate, steps = watched(child.answer("run"), per_step, since, until)
        child.answer("stop")
        seen.rates.append(rate)
        seen.steps_ms += steps


def measure(rounds: int, seconds: float, shape: str, batch: int) -> Record:
    with Child("llm") as llm, Child("renderer") as other:
        decoding = {"shape": shape, "batch": batch, "length": pick(1024, 128)}
        made = llm.ask("prepare", loop="decode", sizes=decoding, timeout_s=300)
        rendering = prepared(other)
        alone = (Seen(), Seen())
        together = (Seen(), Seen())
        rates = (float(made["per_step"]), float(rendering["per_step"]))
        for turn in range(rounds):
            ways = [[(llm, rates[0], alone[0])], [(other, rates[1], alone[1])]]
            ways.append(list(zip((llm, other), rates, together, strict=True)))
            for way in ways if turn % 2 == 0 else reversed(ways):
                round_of(way, seconds)
    rows = []
    kept = []
    for name, unit, apart, shared in (
        ("LLM", made["unit"], alone[0], together[0]),
        ("renderer", rendering["unit"], alone[1], together[1]),
    ):
        ratio = median(shared.rates) / median(apart.rates)
        kept.append(ratio)
        rows.append((f"{name}, {unit}/s", f"{median(apart.rates):.2f}", f"{median(shared.rates):.2f}", f"{ratio:.2f}"))
        for percent in (50, 99):
            before, after = percentile(apart.steps_ms, percent), percentile(shared.steps_ms, percent)
            rows.append((f"{name}, step p{percent} ms", f"{before:.2f}", f"{after:.2f}", f"{after / before:.2f}"))
    rows.append(
        ("both: sum of the throughput ratios", "1 (one after the other)", f"{sum(kept):.2f}", f"{sum(kept):.2f}")
    )
    notes = (
        f"LLM: {made['label']}. Renderer: {rendering['label']}.",
        f"{rounds} rounds of {seconds:g} s a way, medians of rounds; percentiles over all steps. Two processes without "
        "MPS: the GPU gives them turns in time. Above 1, the sum is what sharing gains against one after the other.",
    )
    data = {
        "alone": [vars(one) | {"steps_ms": []} for one in alone],
        "together": [vars(one) | {"steps_ms": []} for one in together],
        "sum_of_ratios": sum(kept),
    }
    title = "An LLM and a renderer on one GPU" if on_cuda() else "An LLM and a renderer on one CPU"
    return Record(title, _SOURCE, ("", "alone", "together", "ratio"), rows, notes, data)


def prepared(child: Child) -> dict[str, Any]:
    """The renderer's loop: Mitsuba, or convolutions where it is missing or does not work."""
    if not renderer.missing():
        try:
            sizes = {"side": pick(512, 96), "samples": pick(32, 4)}
            return child.ask("prepare", loop="mockups", sizes=sizes, timeout_s=300)
        except ChildFailed as failure:
            if child.process.poll() is not None:
                raise
            print(f"Mitsuba does not work here, convolutions stand in: {str(failure)[:300]}")
    sizes = {"side": pick(1024, 64), "rounds": pick(4, 2)}
    return child.ask("prepare", loop="convolutions", sizes=sizes, timeout_s=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=None, help="default 3; on a CPU 2")
    parser.add_argument("--seconds", type=float, default=None, help="of each way in a round: default 5; on a CPU 1.5")
    parser.add_argument("--shape", default=None, help="of the stand-in LLM: default 1B; on a CPU 5M")
    parser.add_argument("--batch", type=int, default=None, help="sequences decoded together: default 16; on a CPU 2")
    arguments = parser.parse_args()
    try:
        record(
            measure(
                arguments.rounds or pick(3, 2),
                arguments.seconds or (5.0 if on_cuda() else 1.5),
                arguments.shape or ("1B" if on_cuda() else "5M"),
                arguments.batch or pick(16, 2),
            )
        )
    except ChildFailed as failure:
        print(f"FAILED colocation: {failure}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
