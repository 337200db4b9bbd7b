"""A process's own caps: an allocation past the budget is refused to it, and its neighbour's still succeeds."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Start
from gpukit.child import Child, ChildFailed
from gpukit.machine import on_cuda, pick, require_room
from gpukit.records import OUT_ENV, Record, record

_CLIENT_S = 45.0
_OUT_OF_MEMORY = ("OutOfMemoryError", "RuntimeError", "MemoryError")


def _refused(child: Child, mib: int) -> str:
    """What refuses the process so much more; empty if it gets it."""
    child.tell("hold", mib=mib)
    said = child.answer("hold")
    return "" if "error" not in said else str(said["error"]).splitlines()[0].replace("|", "/")[:160]


def test_torchs_cap_refuses_what_goes_past_the_budget_and_the_neighbour_allocates(start: Start) -> None:
    budget = pick(2048, 256)
    require_room(4 * budget)
    capped, neighbour = start("capped"), start("neighbour")
    by = capped.ask("cap", mib=budget)["by"]
    capped.ask("hold", mib=budget * 3 // 4)
    refused = _refused(capped, budget)
    neighbour.ask("hold", mib=2 * budget)
    after = capped.ask("hold", mib=budget // 16)
    record(
        Record(
            title="Torch's cap",
            source="tests/gpu/test_gpu_caps.py",
            columns=("budget MiB", "held when it asks for the budget once more", "answer", "neighbour then takes"),
            rows=((str(budget), str(budget * 3 // 4), refused, f"{2 * budget} MiB"),),
            notes=(f"Cap: {by}. The capped process goes on, and holds {after['held_mib']:.0f} MiB at the end.",),
        )
    )
    assert refused.startswith(_OUT_OF_MEMORY)
    assert neighbour.ask("figures")["held_mib"] == 2 * budget


@pytest.fixture
def mps_pipes() -> Iterator[Path]:
    """The pipe directory of an MPS daemon of this test's own; no other is touched."""
    control = shutil.which("nvidia-cuda-mps-control")
    if not on_cuda():
        pytest.skip("MPS is CUDA's")
    if control is None:
        pytest.skip("not installed: nvidia-cuda-mps-control")
    folder = Path(tempfile.mkdtemp(prefix="cotenant-mps-"))
    # A daemon outlives its starter: should this process be killed, the suite ends it by this note.
    note = Path(os.environ.get(OUT_ENV) or folder, "mps")
    note.write_text(str(folder))
    pipes, logs = folder / "pipes", folder / "logs"
    pipes.mkdir()
    logs.mkdir()
    environment = {**os.environ, "CUDA_MPS_PIPE_DIRECTORY": str(pipes), "CUDA_MPS_LOG_DIRECTORY": str(logs)}
    try:
        began = subprocess.run(
            [control, "-d"], env=environment, capture_output=True, text=True, timeout=30, check=False
        )
        if began.returncode:
            pytest.skip(f"the MPS daemon does not start: {(began.stderr or began.stdout).strip()[:200]}")
        by = time.monotonic() + 10
        while not (pipes / "control").exists() and time.monotonic() < by:
            time.sleep(0.1)
        yield pipes
    finally:
        subprocess.run(
            [control], input="quit\n", env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        note.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def _servers(pipes: Path) -> str:
    """What the daemon says of its servers; empty if it has none."""
    environment = {**os.environ, "CUDA_MPS_PIPE_DIRECTORY": str(pipes)}
    told = subprocess.run(
        ["nvidia-cuda-mps-control"], input="get_server_list\n", env=environment, capture_output=True, text=True,
        timeout=30, check=False,
    )  # fmt: skip
    return told.stdout.strip()


def test_mps_refuses_what_goes_past_the_limit_and_the_neighbour_allocates(start: Start, mps_pipes: Path) -> None:
    from cotenant.agent import mps

    pipes = mps.find_daemon({"CUDA_MPS_PIPE_DIRECTORY": str(mps_pipes)})
    assert pipes == mps_pipes, "the daemon that was started must be found"
    budget = 3072
    require_room(4 * budget)
    limited = mps.replica_environment(pipes, device="0", budget_kib=budget * 1024)
    client = {"CUDA_MPS_PIPE_DIRECTORY": str(pipes), "CUDA_MPS_LOG_DIRECTORY": str(mps_pipes.parent / "logs")}
    try:
        capped = start("limited", env={**client, **limited}, wait=False)
        neighbour = start("neighbour", env=client, wait=False)
        # A machine whose MPS does not work may keep its clients waiting for good.
        capped.ready(_CLIENT_S)
        neighbour.ready(_CLIENT_S)
    except ChildFailed as failure:
        pytest.skip(f"processes get no CUDA context from this MPS daemon: {failure}")
    if not _servers(pipes):
        pytest.skip("the MPS daemon has no server: this machine's processes are not served by it")
    # The context counts too: half of the limit is safely within it.
    capped.ask("hold", mib=budget // 2)
    refused = _refused(capped, budget)
    neighbour.ask("hold", mib=2 * budget)
    after = capped.ask("hold", mib=64)
    record(
        Record(
            title="MPS's memory limit",
            source="tests/gpu/test_gpu_caps.py",
            columns=("limit", "held when it asks for as much once more", "answer", "neighbour then takes"),
            rows=((limited["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"], f"{budget // 2} MiB", refused, f"{2 * budget} MiB"),),
            notes=(f"The limited process goes on, and holds {after['held_mib']:.0f} MiB at the end.",),
        )
    )
    assert refused.startswith(_OUT_OF_MEMORY)
