"""Finding the reason of a failed start in what the engine's processes logged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cotenant.cli.machine.engine_logs import root_cause

pytestmark = pytest.mark.unit


def write(folder: Path, name: str, text: str, written_s: float) -> Path:
    logs = folder / "session_latest" / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    (logs / name).write_text(text)
    os.utime(logs / name, (written_s, written_s))
    return logs / name


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        pytest.param(
            "(EngineCore pid=7) ValueError: too big", "EngineCore: ValueError: too big", id="a bare traceback"
        ),
        pytest.param(
            "(EngineCore_DP0 pid=7) ERROR 11-22 20:00:00 [core.py:9] torch.OutOfMemoryError: 2 GiB",
            "EngineCore_DP0: torch.OutOfMemoryError: 2 GiB",
            id="a logged one",
        ),
    ],
)
def test_the_last_error_of_an_engine_process_is_the_cause(tmp_path: Path, line: str, cause: str) -> None:
    file = write(
        tmp_path, "worker-1.err", f"(EngineCore pid=7) KeyError: earlier\n{line}\n(EngineCore pid=7) bye\n", 100
    )
    assert root_cause(tmp_path, since_s=50) == f"{cause} (more in {file})"


def test_an_error_of_an_earlier_start_is_not_the_cause_of_this_one(tmp_path: Path) -> None:
    write(tmp_path, "worker-1.err", "(EngineCore pid=7) ValueError: old\n", 10)
    assert root_cause(tmp_path, since_s=50) is None


def test_other_processes_and_missing_folders_give_no_cause(tmp_path: Path) -> None:
    assert root_cause(tmp_path, since_s=0) is None
    write(tmp_path, "worker-1.out", "ValueError: not an engine's\n(APIServer pid=1) RuntimeError: see above\n", 100)
    assert root_cause(tmp_path, since_s=0) is None
