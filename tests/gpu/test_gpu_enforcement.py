"""The agent with real figures: who goes past its budget is stopped alone, soon, and its neighbour works on."""

from __future__ import annotations

import pytest
from conftest import need
from gpukit import node
from gpukit.machine import on_cuda
from gpukit.offence import offend
from gpukit.records import Record, percentile, record

_LOOK_S = 1.0
#: NVML's figure is read once a look. A replica's own report is up to one look old when it is read.
_STOP_S = 2.0
_STOP_BY_REPORT_S = 2.5


def test_the_offender_is_killed_alone_and_its_neighbour_works_on() -> None:
    need(node.missing())
    seen = offend(interval_s=_LOOK_S)
    rows = [
        (name, str(len(steps)), *(f"{percentile(steps, p):.2f}" for p in (50, 99, 100)))
        for name, steps in (
            ("before", seen.before_ms),
            ("while the offender is stopped", seen.while_ms),
            ("after", seen.after_ms),
        )
        if steps
    ]
    record(
        Record(
            title="An offender is stopped beside a neighbour",
            source="tests/gpu/test_gpu_enforcement.py",
            columns=("the neighbour's steps", "count", "p50 ms", "p99 ms", "longest ms"),
            rows=rows,
            notes=(
                f"Budget {seen.budget_mib} MiB, gone past at once; looked at every {_LOOK_S:g} s, measured by "
                f"{seen.measured_by}; the offender was gone {seen.took_s:.2f} s later. Neighbour: {seen.work}.",
            ),
            data={"took_s": seen.took_s, "measured_by": seen.measured_by},
        )
    )
    assert seen.killed, f"status {seen.status}"
    assert seen.stopped == ["offender"]
    assert seen.neighbour_alive
    assert not seen.neighbour_failed
    assert seen.before_ms
    assert seen.while_ms
    assert seen.after_ms
    assert seen.took_s <= (_STOP_BY_REPORT_S if seen.measured_by == "reported" else _STOP_S)


def test_without_reports_an_offender_is_stopped_wherever_nvml_tells_processes_apart() -> None:
    need(node.missing())
    seen = offend(interval_s=_LOOK_S, before_s=1.0, after_s=0.5, reports=False)
    if on_cuda() and seen.measured_by != "nvml":
        pytest.skip(f"here figures are {seen.measured_by}: without reports nobody can be told apart")
    assert seen.killed
    assert seen.stopped == ["offender"]
    assert seen.neighbour_alive
    assert not seen.neighbour_failed
