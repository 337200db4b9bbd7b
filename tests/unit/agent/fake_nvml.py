"""A `pynvml` of which a test says what it answers, to be put below the edge: layouts, processes, errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

MIB = 2**20
GIB = 2**30


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"error {value}")
        self.value = value


@dataclass
class Device:
    """A GPU, or a slice of one."""

    uuid: str
    name: str
    total: int
    reserved: int = 0
    used: int = 0
    compute: list[tuple[int, int | None]] = field(default_factory=list)
    graphics: list[tuple[int, int | None]] = field(default_factory=list)
    gpu_percent: int = 0
    slices: list[Device] | None = None
    """None: can't be cut (or is not)."""
    slots: int = 7
    errors: dict[str, int] = field(default_factory=dict)
    """Function name to the error that it raises on this device."""


class FakeNvml:
    """Stands in for the module."""

    NVMLError = NVMLError
    NVML_ERROR_UNINITIALIZED = 1
    NVML_ERROR_INVALID_ARGUMENT = 2
    NVML_ERROR_NOT_SUPPORTED = 3
    NVML_ERROR_NO_PERMISSION = 4
    NVML_ERROR_NOT_FOUND = 6
    NVML_ERROR_DRIVER_NOT_LOADED = 9
    NVML_ERROR_FUNCTION_NOT_FOUND = 13
    NVML_ERROR_GPU_IS_LOST = 15
    NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18
    NVML_DEVICE_MIG_ENABLE = 1
    nvmlMemory_v2 = 0x02000028

    def __init__(self, devices: list[Device]) -> None:
        self.devices = devices
        self.init_error: int | None = None
        self.errors: dict[str, int] = {}
        self.inits = 0
        self.ready = False

    def nvmlInit(self) -> None:
        if self.init_error is not None:
            raise NVMLError(self.init_error)
        self.inits += 1
        self.ready = True

    def nvmlShutdown(self) -> None:
        if not self.ready:
            raise NVMLError(self.NVML_ERROR_UNINITIALIZED)
        self.ready = False

    def nvmlDeviceGetCount(self) -> int:
        if "nvmlDeviceGetCount" in self.errors:
            raise NVMLError(self.errors["nvmlDeviceGetCount"])
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Device:
        return self._answer("nvmlDeviceGetHandleByIndex", self.devices[index], lambda d: d)

    def nvmlDeviceGetUUID(self, device: Device) -> str:
        return self._answer("nvmlDeviceGetUUID", device, lambda d: d.uuid)

    def nvmlDeviceGetName(self, device: Device) -> str:
        return self._answer("nvmlDeviceGetName", device, lambda d: d.name)

    def nvmlDeviceGetMigMode(self, device: Device) -> list[int]:
        if not any(name in device.name for name in ("A100", "H100", "H200")):
            raise NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        return self._answer("nvmlDeviceGetMigMode", device, lambda d: [int(d.slices is not None)] * 2)

    def nvmlDeviceGetMaxMigDeviceCount(self, device: Device) -> int:
        return self._answer("nvmlDeviceGetMaxMigDeviceCount", device, lambda d: d.slots)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: Device, index: int) -> Device:
        if index >= len(device.slices or ()):
            raise NVMLError(self.NVML_ERROR_NOT_FOUND)
        return (device.slices or [])[index]

    def nvmlDeviceGetAttributes_v2(self, device: Device) -> Any:
        attributes = SimpleNamespace(gpuInstanceSliceCount=2, memorySizeMB=device.total // MIB)
        return self._answer("nvmlDeviceGetAttributes_v2", device, lambda d: attributes)

    def nvmlDeviceGetMemoryInfo(self, device: Device, version: int | None = None) -> Any:
        name = "nvmlDeviceGetMemoryInfo_v2" if version else "nvmlDeviceGetMemoryInfo"
        free = device.total - device.reserved - device.used
        if version:
            said = SimpleNamespace(total=device.total, free=free, used=device.used, reserved=device.reserved)
        else:
            said = SimpleNamespace(total=device.total, free=free, used=device.used + device.reserved)
        return self._answer(name, device, lambda d: said)

    def nvmlDeviceGetUtilizationRates(self, device: Device) -> Any:
        if device.uuid.startswith("MIG-"):
            raise NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        rates = SimpleNamespace(gpu=device.gpu_percent, memory=0)
        return self._answer("nvmlDeviceGetUtilizationRates", device, lambda d: rates)

    def nvmlDeviceGetComputeRunningProcesses_v3(self, device: Device) -> list[Any]:
        return self._answer("nvmlDeviceGetComputeRunningProcesses_v3", device, lambda d: _listed(d.compute))

    def nvmlDeviceGetGraphicsRunningProcesses_v3(self, device: Device) -> list[Any]:
        return self._answer("nvmlDeviceGetGraphicsRunningProcesses_v3", device, lambda d: _listed(d.graphics))

    # nvmlDeviceGetMPSComputeRunningProcesses_v3 is left out, as in a library too old for it.

    def _answer(self, name: str, device: Device, answer: Callable[[Device], Any]) -> Any:
        if not self.ready:
            raise NVMLError(self.NVML_ERROR_UNINITIALIZED)
        error = device.errors.get(name, device.errors.get("*"))
        if error is not None:
            raise NVMLError(error)
        return answer(device)


def _listed(processes: list[tuple[int, int | None]]) -> list[Any]:
    return [SimpleNamespace(pid=pid, usedGpuMemory=held) for pid, held in processes]


def l4(number: int = 0) -> Device:
    return Device(f"GPU-14{number:02d}-aaaa", "NVIDIA L4", 23_034 * MIB, reserved=450 * MIB)


def t4() -> Device:
    return Device("GPU-0014-bbbb", "Tesla T4", 15_360 * MIB, reserved=440 * MIB)


def h100(number: int = 0) -> Device:
    return Device(f"GPU-0100-cc{number:02d}", "NVIDIA H100 80GB HBM3", 81_559 * MIB, reserved=640 * MIB)


def a100(profiles: list[str] | None = None) -> Device:
    """An A100 of 40 GB; cut into slices if profiles are given (`[]`: cut, and none made)."""
    whole = Device("GPU-a100-dddd", "NVIDIA A100-SXM4-40GB", 40_960 * MIB, reserved=570 * MIB)
    if profiles is not None:
        whole.slices = [
            Device(
                f"MIG-{number}-{profile}",
                f"NVIDIA A100-SXM4-40GB MIG {profile}",
                {"1g.5gb": 4_864, "2g.10gb": 9_856, "3g.20gb": 19_968}[profile] * MIB,
            )
            for number, profile in enumerate(profiles)
        ]
    return whole
