"""The GPU suite's tests: processes that really hold the device's memory, and what keeps them apart.

They need a CUDA device and torch; each skips, with the reason, where the machine lacks something further. With
COTENANT_GPU_SUITE_DEVICE=cpu the same bodies run on a CPU at a small scale: a rehearsal, not a result.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
for _path in (ROOT, ROOT / "platform", ROOT / "benchmarks" / "gpu"):
    sys.path.insert(0, str(_path))

from gpukit.child import Child  # noqa: E402 - found by the lines above
from gpukit.machine import DEVICE_ENV, device, facts  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA device")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in here:
        item.add_marker(pytest.mark.gpu)
    if not here:
        return
    if device() == "cpu" and not _rehearsal():
        for item in here:
            item.add_marker(pytest.mark.skip(reason=f"no CUDA device; {DEVICE_ENV}=cpu rehearses on a CPU"))


def pytest_report_header() -> str:
    found = facts()
    return f"device: {found['name'] or found['cpu']}, driver {found['driver'] or '-'}, torch {found['torch']}"


def _rehearsal() -> bool:
    import os

    return os.environ.get(DEVICE_ENV) == "cpu"


Start = Callable[..., Child]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts processes under test, which end with the test."""
    children: list[Child] = []

    def begin(name: str, *, env: dict[str, str] | None = None, wait: bool = True) -> Child:
        child = Child(name, env=env, wait=False)
        children.append(child)
        if wait:
            child.ready()
        return child

    yield begin
    for child in children:
        child.close()


def need(reason: str) -> None:
    """Skip if there is a reason."""
    if reason:
        pytest.skip(reason)
