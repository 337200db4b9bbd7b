"""CUDA's Multi-Process Service, where a node runs it: each replica's own cap on memory and on SMs.

The control daemon makes a pipe named `control` and a pid file in its pipe directory (CUDA_MPS_PIPE_DIRECTORY, by
default /tmp/nvidia-mps). A client process that finds them is served by MPS, and then its driver refuses allocations
past CUDA_MPS_PINNED_DEVICE_MEM_LIMIT. The variables must be set before the process makes its CUDA context. Written
from NVIDIA's MPS documentation; not run on a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_DEFAULT_PIPES = "/tmp/nvidia-mps"  # noqa: S108 - NVIDIA's
_PID_FILE = "nvidia-cuda-mps-control.pid"


def find_daemon(environ: Mapping[str, str], *, proc: Path = Path("/proc")) -> Path | None:
    """The pipe directory of this node's MPS daemon; None if none runs.

    A pid file that names a process that is gone is what a dead daemon left. One that can't be read is believed: the
    daemon often runs as root, and in a container its process can't be seen at all (`proc` then lacks it), so a
    directory that the environment names is believed too.
    """
    named = environ.get("CUDA_MPS_PIPE_DIRECTORY")
    pipes = Path(named or _DEFAULT_PIPES)
    if not (pipes / "control").exists():
        return None
    if named:
        return pipes
    try:
        pid = int((pipes / _PID_FILE).read_text())
    except (OSError, ValueError):
        return pipes
    return pipes if (proc / str(pid)).exists() else None


def replica_environment(
    pipes: Path | None, *, device: str, budget_kib: int, thread_percent: int | None = None
) -> dict[str, str]:
    """What to set for a replica; empty where no daemon runs.

    Args:
        pipes: the daemon's pipe directory, as `find_daemon` says.
        device: the GPU's UUID, or its ordinal among those that the process sees ("0" if Ray gave it one).
        budget_kib: the replica's budget. The limit is rounded down to whole MiB.
        thread_percent: at most this part of the SMs, 1 to 100; None leaves all.

    Raises:
        ValueError: a budget under 1 MiB, or a percentage out of range.
    """
    if pipes is None:
        return {}
    if budget_kib < 1024:
        raise ValueError(f"an MPS memory limit takes at least 1 MiB; have {budget_kib} KiB")
    variables = {
        "CUDA_MPS_PIPE_DIRECTORY": os.fspath(pipes),
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": f"{device}={budget_kib // 1024}M",
    }
    if thread_percent is not None:
        if not 1 <= thread_percent <= 100:
            raise ValueError(f"thread_percent is between 1 and 100; have {thread_percent}")
        variables["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = str(thread_percent)
    return variables
