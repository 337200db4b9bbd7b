"""Memory in use on the device, seen from outside the processes that hold it.

On a GPU it is NVML's figure for the whole device: what can no longer be allocated by anybody. On a CPU it is the
private memory of the processes under test.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Iterable
from types import TracebackType

from gpukit.machine import facts, on_cuda

_WAIT_S = 0.1


def missing() -> str:
    """Why the device's memory can't be measured here; empty if it can."""
    if on_cuda() and importlib.util.find_spec("pynvml") is None:
        return "not installed: nvidia-ml-py"
    return ""


class Meter:
    """`used_mib` of the device. On a CPU, of the processes `pids` and their descendants."""

    def __init__(self, pids: Iterable[int] = ()) -> None:
        from cotenant.gpu.probe.host import ProcessTable

        self._pids = tuple(pids)
        self._processes = ProcessTable()
        if on_cuda():
            from cotenant.gpu.probe.nvml import NvmlProbe

            self.probe = NvmlProbe()
            self.gpu = next((gpu for gpu in self.probe.gpus() if gpu.key == facts()["uuid"]), self.probe.gpus()[0])

    def used_mib(self) -> float:
        """In use now.

        Raises:
            RuntimeError: the driver does not tell.
        """
        if not on_cuda():
            self._processes.refresh()
            trees = frozenset[int]().union(*(self._processes.tree(pid) for pid in self._pids))
            return sum(self._processes.private_kib(pid) for pid in trees) / 1024
        sample = next(sample for sample in self.probe.sample() if sample.gpu.key == self.gpu.key)
        if sample.used_kib is None:
            raise RuntimeError(f"NVML tells no memory of {self.gpu.name}: {sample.fault}")
        return sample.used_kib / 1024

    def settled_mib(self, *, within_mib: float = 2.0, timeout_s: float = 10.0) -> float:
        """In use once two looks agree: a driver takes a moment to clear up after a process."""
        by = time.monotonic() + timeout_s
        before = self.used_mib()
        while True:
            time.sleep(_WAIT_S)
            now = self.used_mib()
            if abs(now - before) <= within_mib or time.monotonic() > by:
                return now
            before = now

    def wait_below(self, mib: float, timeout_s: float = 10.0) -> float:
        """In use, once it is less than `mib` or time is up."""
        by = time.monotonic() + timeout_s
        while (now := self.used_mib()) >= mib and time.monotonic() < by:
            time.sleep(_WAIT_S)
        return now


class Peak:
    """The most in use while the body ran, by looking every few milliseconds."""

    def __init__(self, meter: Meter, every_s: float = 0.005) -> None:
        self._meter = meter
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak", daemon=True)
        self.mib = 0.0

    def __enter__(self) -> Peak:
        self.mib = self._meter.used_mib()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self._every_s):
            self.mib = max(self.mib, self._meter.used_mib())
