"""The renderer beside torch: its memory is bounded by the chunk, and a neighbour out of memory does it no harm."""

from __future__ import annotations

from conftest import Start, need
from gpukit import meter as meters
from gpukit import renderer
from gpukit.child import Child, ChildFailed
from gpukit.machine import pick
from gpukit.meter import Meter, Peak
from gpukit.records import Record, record

_SLACK_MIB = 128


def _peak(child: Child, side: int, samples: int) -> tuple[float, float]:
    """Most in use while it renders, above what it holds otherwise, and the seconds it takes."""
    child.ask("flush_renderer")
    meter = Meter([child.pid])
    before = meter.settled_mib()
    with Peak(meter) as peak:
        took = child.ask("render", side=side, samples=samples, timeout_s=300)["seconds"]
    return peak.mib - before, took


def _renderer(start: Start, paths_per_chunk: int | None) -> Child:
    """A renderer, or a skip where Mitsuba does not work here."""
    child = start("renderer")
    try:
        child.ask("renderer", paths_per_chunk=paths_per_chunk, timeout_s=300)
    except ChildFailed as failure:
        need(f"Mitsuba does not work here: {str(failure)[:300]}")
    return child


def test_a_renders_memory_is_bounded_by_the_chunk_of_paths(start: Start) -> None:
    need(renderer.missing() or meters.missing())
    side, many = pick(2048, 512), 16
    # One sample of this picture is one chunk.
    child = _renderer(start, side * side)
    child.ask("render", side=side, samples=1, timeout_s=300)
    one, one_s = _peak(child, side, 1)
    several, several_s = _peak(child, side, many)
    record(
        Record(
            title="A render's memory",
            source="tests/gpu/test_gpu_renderer.py",
            columns=("render", "peak MiB beside what is held anyway", "seconds"),
            rows=(
                (f"{side} x {side}, 1 sample: one chunk", f"{one:.0f}", f"{one_s:.2f}"),
                (f"{side} x {side}, {many} samples: {many} chunks", f"{several:.0f}", f"{several_s:.2f}"),
            ),
            notes=(f"Unbounded it would be up to {many} times as much.",),
        )
    )
    assert several <= 1.25 * max(one, 0.0) + _SLACK_MIB


def test_a_neighbour_out_of_memory_leaves_the_renderer_and_its_pictures_as_they_were(start: Start) -> None:
    need(renderer.missing())
    side = pick(512, 128)
    child = _renderer(start, None)
    alone = child.ask("render", side=side, samples=16, timeout_s=300)["digest"]
    budget = pick(2048, 128)
    neighbour = start("neighbour")
    neighbour.ask("cap", mib=budget)
    failures = 0
    beside = []
    for _ in range(5):
        child.tell("render", side=side, samples=16)
        neighbour.tell("hold", mib=2 * budget)
        failures += "error" in neighbour.answer("hold")
        beside.append(child.answer("render", 300).get("digest"))
    record(
        Record(
            title="A torch neighbour runs out of memory beside the renderer",
            source="tests/gpu/test_gpu_renderer.py",
            columns=("allocations refused to the neighbour", "renders meanwhile", "with the same bytes as alone"),
            rows=((f"{failures} of 5", "5", str(beside.count(alone))),),
        )
    )
    assert failures == 5
    assert beside == [alone] * 5
