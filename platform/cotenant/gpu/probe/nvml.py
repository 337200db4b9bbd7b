"""GPUs by NVML. The one file that touches it: its errors end here, and what it does not tell becomes None.

NVML inside a container may name the host's PIDs, none at all, or ours with 0 bytes (the driver then knows the
process and not its memory). All of it is passed on as it is, 0 as None; what to believe is the agent's question.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from cotenant.errors import EnvironmentFault
from cotenant.gpu.probe.protocol import Gpu, GpuProcess, GpuSample

#: A slice's name ends so: NVIDIA A100-SXM4-40GB MIG 1g.5gb.
_MIG_NAME = re.compile(r"^(?P<gpu>.*?)\s*MIG\s+(?P<profile>\S+)$")
_PROCESS_LISTS = (
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetGraphicsRunningProcesses_v3",
    "nvmlDeviceGetMPSComputeRunningProcesses_v3",
)
#: Errors after which the library must be initialised again before anything it says is worth hearing.
_LOST = ("NVML_ERROR_UNINITIALIZED", "NVML_ERROR_DRIVER_NOT_LOADED", "NVML_ERROR_LIB_RM_VERSION_MISMATCH")


def count_gpus() -> int:
    """NVIDIA GPUs of this machine; 0 where there is no driver or `nvidia-ml-py` is not installed."""
    try:
        import pynvml  # noqa: PLC0415 - an optional dependency
    except ImportError:
        return 0
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0
    finally:
        pynvml.nvmlShutdown()


def _import_nvml() -> Any:
    try:
        import pynvml  # noqa: PLC0415 - an optional dependency
    except ImportError:
        raise EnvironmentFault(
            "measuring GPUs needs nvidia-ml-py, which is not installed; pip install nvidia-ml-py"
        ) from None
    return pynvml


class NvmlProbe:
    """The GPUs and MIG slices of this machine.

    A GPU cut into slices is not itself one that workloads can be given. Slices are looked for when the library is
    initialised: after re-cutting a GPU, restart the agent.

    Raises:
        EnvironmentFault: no `nvidia-ml-py`, or no driver.
    """

    def __init__(self, nvml: Any = None) -> None:
        self._nvml = _import_nvml() if nvml is None else nvml
        self._lost_errors = tuple(getattr(self._nvml, name) for name in _LOST)
        self._devices: list[tuple[Gpu, Any]] = []
        self._ready = False
        self._begin()

    def gpus(self) -> Sequence[Gpu]:
        return tuple(gpu for gpu, _ in self._devices)

    def sample(self) -> Sequence[GpuSample]:
        if not self._ready:
            self._begin()
        return tuple(self._sample(gpu, device) for gpu, device in self._devices)

    def close(self) -> None:
        self._ready = False
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()

    def _begin(self) -> None:
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            raise EnvironmentFault(f"the NVIDIA driver does not answer ({error}); see what nvidia-smi says") from None
        try:
            self._devices = self._find()
        except self._nvml.NVMLError as error:
            self.close()
            raise EnvironmentFault(f"NVML can't list the GPUs ({error}); see what nvidia-smi says") from None
        self._ready = True

    def _find(self) -> list[tuple[Gpu, Any]]:
        found: list[tuple[Gpu, Any]] = []
        for index in range(self._nvml.nvmlDeviceGetCount()):
            try:
                found.extend(self._find_at(index))
            except self._nvml.NVMLError as error:
                # One that has fallen off the bus must not hide the others.
                if error.value in self._lost_errors:
                    raise
        return found

    def _find_at(self, index: int) -> list[tuple[Gpu, Any]]:
        device = self._nvml.nvmlDeviceGetHandleByIndex(index)
        if self._is_cut(device):
            return self._slices(index, device)
        return [(self._gpu(index, device, mig=None), device)]

    def _is_cut(self, device: Any) -> bool:
        current = self._ask(lambda: self._nvml.nvmlDeviceGetMigMode(device)[0])
        return bool(current == self._nvml.NVML_DEVICE_MIG_ENABLE)

    def _slices(self, index: int, device: Any) -> list[tuple[Gpu, Any]]:
        found = []
        for slot in range(self._ask(lambda: int(self._nvml.nvmlDeviceGetMaxMigDeviceCount(device))) or 0):
            # Slots without a slice answer NVML_ERROR_NOT_FOUND.
            part = self._ask(partial(self._nvml.nvmlDeviceGetMigDeviceHandleByIndex, device, slot))
            if part is not None:
                found.append((self._gpu(index, part, mig=self._profile(part)), part))
        return found

    def _profile(self, part: Any) -> str:
        named = _MIG_NAME.match(self._name(part))
        if named:
            return named["profile"]
        attributes = self._ask(lambda: self._nvml.nvmlDeviceGetAttributes_v2(part))
        if attributes is None:
            return "?"
        return f"{attributes.gpuInstanceSliceCount}g.{round(attributes.memorySizeMB / 1024)}gb"

    def _gpu(self, index: int, device: Any, *, mig: str | None) -> Gpu:
        name = self._name(device)
        cut = _MIG_NAME.match(name)
        return Gpu(
            key=str(self._nvml.nvmlDeviceGetUUID(device)),
            index=index,
            name=cut["gpu"] if cut else name,
            total_kib=self._memory(device).total // 1024,
            mig=mig,
        )

    def _name(self, device: Any) -> str:
        return str(self._ask(lambda: self._nvml.nvmlDeviceGetName(device)) or "GPU")

    def _memory(self, device: Any) -> Any:
        """Version 2 where the driver has it. `free` means the same in both, `used` does not."""
        try:
            return self._nvml.nvmlDeviceGetMemoryInfo(device, version=self._nvml.nvmlMemory_v2)
        except self._nvml.NVMLError as error:
            if error.value in self._lost_errors:
                raise
            return self._nvml.nvmlDeviceGetMemoryInfo(device)

    def _sample(self, gpu: Gpu, device: Any) -> GpuSample:
        try:
            memory = self._memory(device)
            return GpuSample(
                gpu=gpu,
                used_kib=(memory.total - memory.free) // 1024,
                sm_util=self._utilisation(device),
                processes=self._processes(device),
            )
        except self._nvml.NVMLError as error:
            if error.value in self._lost_errors:
                self.close()
            return GpuSample(gpu=gpu, fault=f"NVML: {error}")

    def _utilisation(self, device: Any) -> float | None:
        """None on slices: NVML has no such figure for them."""
        percent = self._ask(lambda: int(self._nvml.nvmlDeviceGetUtilizationRates(device).gpu))
        return None if percent is None else min(percent, 100) / 100

    def _processes(self, device: Any) -> tuple[GpuProcess, ...] | None:
        """Processes by pid; one that is in several lists holds what the greatest says."""
        held: dict[int, int | None] = {}
        told = False
        for name in _PROCESS_LISTS:
            listed = self._ask(partial(self._list, name, device))
            if listed is None:
                continue
            told = True
            for process in listed:
                kib = -(-process.usedGpuMemory // 1024) if process.usedGpuMemory else None
                held[process.pid] = max(kib or 0, held.get(process.pid) or 0) or None
        return tuple(GpuProcess(pid, kib) for pid, kib in sorted(held.items())) if told else None

    def _list(self, name: str, device: Any) -> Any:
        return getattr(self._nvml, name)(device)

    def _ask(self, question: Callable[[], Any]) -> Any:
        """The answer, or None where this device or driver has none. A lost driver is the caller's to hear of."""
        try:
            return question()
        except self._nvml.NVMLError as error:
            if error.value in self._lost_errors:
                raise
            return None
        except AttributeError:
            return None
