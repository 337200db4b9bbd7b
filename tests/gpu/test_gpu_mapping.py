"""Whose memory is it: what NVML tells of a process that holds a known amount, and what the platform makes of it."""

from __future__ import annotations

from typing import Any

from conftest import Start, need
from gpukit import meter as meters
from gpukit.machine import on_cuda, pick
from gpukit.meter import Meter
from gpukit.records import Record, record

#: What a process holds beside its tensors: CUDA context and the libraries' handles. Generous.
_CONTEXT_MIB = 2048
#: NVML and torch round to 2 MiB; torch takes blocks of 20 MiB and more as they are.
_ROUNDING_MIB = 64


def _sample(meter: Meter) -> Any:
    from cotenant.gpu.probe.host import VirtualGpus

    if not on_cuda():
        return VirtualGpus(16 * 2**20).sample()[0]
    return next(sample for sample in meter.probe.sample() if sample.gpu.key == meter.gpu.key)


def _case(sample: Any, pid: int, known: Any) -> str:
    """Which of the ways of NVML this is."""
    if sample.gpu.virtual:
        return "process memory (no NVML)"
    if sample.processes is None:
        return "NVML names no processes"
    if any(not known(process.pid) for process in sample.processes):
        return "NVML names processes that this machine does not have"
    mine = next((process for process in sample.processes if process.pid == pid), None)
    if mine is None:
        return "NVML does not name this process"
    return "NVML names the process, without its memory" if mine.held_kib is None else "NVML tells the process's memory"


def test_what_a_process_holds_is_found_and_adds_up_with_the_device(start: Start) -> None:
    need(meters.missing())
    from cotenant.agent.attribution import Claim, attribute
    from cotenant.gpu.probe.host import ProcessTable

    held = pick(2048, 256)
    holder = start("holder")
    meter = Meter([holder.pid])
    before = meter.settled_mib()
    figures = holder.ask("hold", mib=held)
    after = meter.settled_mib()
    processes = ProcessTable()
    processes.refresh()
    sample = _sample(meter)
    reported = figures["reserved_mib"]
    claim = Claim("holder", frozenset([holder.pid]), None if reported is None else int(reported * 1024))
    found = attribute(sample, [claim], known=processes.known, private_kib=processes.private_kib)
    mine = (found.held["holder"] or 0) / 1024
    holder.close()
    released = meter.wait_below(after - held + _ROUNDING_MIB) if on_cuda() else 0.0
    case = _case(sample, holder.pid, processes.known)
    record(
        Record(
            title="Who holds what, by NVML",
            source="tests/gpu/test_gpu_mapping.py",
            columns=("", "MiB"),
            rows=(
                ("a process allocates", str(held)),
                ("the device's used memory rises by", f"{after - before:.0f}"),
                ("attributed to the process", f"{mine:.0f} (by {found.by})"),
                ("the process's own report", "-" if reported is None else f"{reported:.0f}"),
                ("used, and nobody's that could be named", f"{found.unattributed_kib / 1024:.0f}"),
                ("after its end the device's used memory is lower by", f"{after - released:.0f}"),
            ),
            notes=(f"Here: {case}.",),
            data={"case": case, "by": found.by},
        )
    )
    assert abs(after - before - held) <= _ROUNDING_MIB
    assert held <= mine <= held + _CONTEXT_MIB
    if found.by == "reported":
        assert mine == int((reported or 0) * 1024) / 1024
    if on_cuda():
        told = sum(kib or 0 for kib in found.held.values()) + sum(p.held_kib or 0 for p in found.unknown)
        assert found.used_kib is not None
        assert abs(found.used_kib - told - found.unattributed_kib) <= 1 or told > found.used_kib
        assert after - released >= held - _ROUNDING_MIB
