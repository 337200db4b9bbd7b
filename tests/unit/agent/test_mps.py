"""What a replica is told where an MPS daemon runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from cotenant.agent import mps

pytestmark = pytest.mark.unit


@pytest.fixture
def pipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default pipe directory, with a daemon of pid 42 that runs."""
    folder = tmp_path / "nvidia-mps"
    folder.mkdir()
    (folder / "control").touch()
    (folder / "nvidia-cuda-mps-control.pid").write_text("42\n")
    (tmp_path / "proc" / "42").mkdir(parents=True)
    monkeypatch.setattr(mps, "_DEFAULT_PIPES", str(folder))
    return folder


def test_a_daemon_is_found_where_it_is_by_default(pipes: Path, tmp_path: Path) -> None:
    assert mps.find_daemon({}, proc=tmp_path / "proc") == pipes


def test_what_a_dead_daemon_left_is_none(pipes: Path, tmp_path: Path) -> None:
    (tmp_path / "proc" / "42").rmdir()
    assert mps.find_daemon({}, proc=tmp_path / "proc") is None


def test_a_pid_that_cannot_be_read_is_believed(pipes: Path, tmp_path: Path) -> None:
    (pipes / "nvidia-cuda-mps-control.pid").write_text("?")
    assert mps.find_daemon({}, proc=tmp_path / "proc") == pipes


def test_a_directory_that_the_environment_names_is_believed(pipes: Path, tmp_path: Path) -> None:
    assert mps.find_daemon({"CUDA_MPS_PIPE_DIRECTORY": str(pipes)}, proc=tmp_path / "empty") == pipes
    assert mps.find_daemon({"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path / "none")}) is None


def test_without_a_daemon_nothing_is_set() -> None:
    assert mps.replica_environment(None, device="0", budget_kib=2**20) == {}


@pytest.mark.parametrize("device", ["0", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"])
def test_the_budget_becomes_the_limit(device: str) -> None:
    assert mps.replica_environment(Path("/pipes"), device=device, budget_kib=5 * 2**20 + 1023) == {
        "CUDA_MPS_PIPE_DIRECTORY": "/pipes",
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": f"{device}=5120M",
    }


def test_a_part_of_the_sms_can_be_had_too() -> None:
    variables = mps.replica_environment(Path("/pipes"), device="0", budget_kib=2**20, thread_percent=30)
    assert variables["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "30"


@pytest.mark.parametrize(("budget_kib", "percent"), [(1023, None), (2**20, 0), (2**20, 101)])
def test_what_mps_cannot_be_told_is_refused(budget_kib: int, percent: int | None) -> None:
    with pytest.raises(ValueError, match="have"):
        mps.replica_environment(Path("/pipes"), device="0", budget_kib=budget_kib, thread_percent=percent)
