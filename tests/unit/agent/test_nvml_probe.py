"""The NVML edge on every layout that matters, and on what drivers answer instead of a figure."""

from __future__ import annotations

import sys

import pytest

from cotenant.errors import EnvironmentFault
from cotenant.gpu.probe import GpuProcess, count_gpus
from cotenant.gpu.probe.nvml import NvmlProbe
from tests.unit.agent.fake_nvml import MIB, Device, FakeNvml, a100, h100, l4, t4

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        pytest.param([l4()], [("GPU-1400-aaaa", 0, "NVIDIA L4", 23_034, None)], id="one L4"),
        pytest.param([t4()], [("GPU-0014-bbbb", 0, "Tesla T4", 15_360, None)], id="one T4"),
        pytest.param(
            [h100(n) for n in range(8)],
            [(f"GPU-0100-cc{n:02d}", n, "NVIDIA H100 80GB HBM3", 81_559, None) for n in range(8)],
            id="a node of eight H100",
        ),
        pytest.param(
            [a100()], [("GPU-a100-dddd", 0, "NVIDIA A100-SXM4-40GB", 40_960, None)], id="an A100 that is not cut"
        ),
        pytest.param(
            [a100(["1g.5gb"] * 7)],
            [(f"MIG-{n}-1g.5gb", 0, "NVIDIA A100-SXM4-40GB", 4_864, "1g.5gb") for n in range(7)],
            id="an A100 cut into seven",
        ),
        pytest.param(
            [a100(["3g.20gb", "2g.10gb", "1g.5gb"]), l4(1)],
            [
                ("MIG-0-3g.20gb", 0, "NVIDIA A100-SXM4-40GB", 19_968, "3g.20gb"),
                ("MIG-1-2g.10gb", 0, "NVIDIA A100-SXM4-40GB", 9_856, "2g.10gb"),
                ("MIG-2-1g.5gb", 0, "NVIDIA A100-SXM4-40GB", 4_864, "1g.5gb"),
                ("GPU-1401-aaaa", 1, "NVIDIA L4", 23_034, None),
            ],
            id="mixed slices beside a whole L4",
        ),
        pytest.param([a100([])], [], id="an A100 in MIG mode without slices has nothing to give"),
        pytest.param([], [], id="no GPU"),
    ],
)
def test_gpus_are_found_whole_or_by_slice(
    devices: list[Device], expected: list[tuple[str, int, str, int, str | None]]
) -> None:
    gpus = NvmlProbe(FakeNvml(devices)).gpus()
    assert [(g.key, g.index, g.name, g.total_kib // 1024, g.mig) for g in gpus] == expected
    assert not any(gpu.virtual for gpu in gpus)


def test_a_slice_without_a_name_of_its_own_is_named_by_its_attributes() -> None:
    device = a100(["2g.10gb"])
    assert device.slices is not None
    device.slices[0].name = "NVIDIA A100-SXM4-40GB"
    assert NvmlProbe(FakeNvml([device])).gpus()[0].mig == "2g.10gb"
    device.slices[0].errors["nvmlDeviceGetAttributes_v2"] = FakeNvml.NVML_ERROR_NOT_SUPPORTED
    assert NvmlProbe(FakeNvml([device])).gpus()[0].mig == "?"


def test_a_sample_has_memory_utilisation_and_processes() -> None:
    device = l4()
    device.used, device.gpu_percent = 6_000 * MIB, 40
    device.compute, device.graphics = [(20, 5_000 * MIB), (10, 300 * MIB)], [(10, 500 * MIB)]
    (sample,) = NvmlProbe(FakeNvml([device])).sample()
    assert sample.used_kib == (6_000 + 450) * 1024, "the driver's reserve can't be allocated either"
    assert sample.sm_util == 0.4
    assert sample.processes == (GpuProcess(10, 500 * 1024), GpuProcess(20, 5_000 * 1024))
    assert sample.fault is None


def test_a_slice_has_no_utilisation() -> None:
    assert [sample.sm_util for sample in NvmlProbe(FakeNvml([a100(["1g.5gb"])])).sample()] == [None]


def test_an_old_driver_is_asked_the_old_way() -> None:
    device = l4()
    device.used = 1_000 * MIB
    device.errors["nvmlDeviceGetMemoryInfo_v2"] = FakeNvml.NVML_ERROR_FUNCTION_NOT_FOUND
    (sample,) = NvmlProbe(FakeNvml([device])).sample()
    assert sample.used_kib == 1_450 * 1024


@pytest.mark.parametrize(
    ("compute", "expected"),
    [
        pytest.param([], (), id="an empty list"),
        pytest.param([(4_000_123, 5_000 * MIB)], (GpuProcess(4_000_123, 5_000 * 1024),), id="a pid of the host's"),
        pytest.param([(10, 0)], (GpuProcess(10, None),), id="0 MiB is not a figure"),
        pytest.param([(10, None)], (GpuProcess(10, None),), id="nor is no answer"),
        pytest.param([(10, 1)], (GpuProcess(10, 1),), id="a byte counts as a KiB"),
    ],
)
def test_what_nvml_says_of_processes_in_a_container_is_passed_on(
    compute: list[tuple[int, int | None]], expected: tuple[GpuProcess, ...]
) -> None:
    device = l4()
    device.compute = compute
    (sample,) = NvmlProbe(FakeNvml([device])).sample()
    assert sample.processes == expected


def test_a_driver_that_tells_no_processes_is_told_apart_from_a_gpu_without_any() -> None:
    device = l4()
    for name in ("Compute", "Graphics"):
        device.errors[f"nvmlDeviceGet{name}RunningProcesses_v3"] = FakeNvml.NVML_ERROR_NO_PERMISSION
    (sample,) = NvmlProbe(FakeNvml([device])).sample()
    assert sample.processes is None
    assert sample.used_kib is not None


def test_a_gpu_that_fell_off_the_bus_does_not_hide_the_others() -> None:
    nvml = FakeNvml([h100(0), h100(1)])
    probe = NvmlProbe(nvml)
    nvml.devices[0].errors["*"] = FakeNvml.NVML_ERROR_GPU_IS_LOST
    lost, fine = probe.sample()
    assert lost.fault is not None
    assert lost.used_kib is None
    assert fine.fault is None
    assert [gpu.index for gpu in NvmlProbe(nvml).gpus()] == [1], "one lost from the start is passed over"


def test_a_driver_that_went_away_is_asked_again_until_it_is_back() -> None:
    nvml = FakeNvml([l4()])
    probe = NvmlProbe(nvml)
    nvml.ready = False
    nvml.init_error = FakeNvml.NVML_ERROR_DRIVER_NOT_LOADED
    assert probe.sample()[0].fault is not None
    with pytest.raises(EnvironmentFault, match="nvidia-smi"):
        probe.sample()
    nvml.init_error = None
    assert probe.sample()[0].fault is None
    assert nvml.inits == 2


@pytest.mark.parametrize("name", ["nvmlDeviceGetMigMode", "nvmlDeviceGetUUID", "nvmlDeviceGetMemoryInfo_v2"])
def test_a_driver_that_goes_away_while_gpus_are_listed_is_a_fault(name: str) -> None:
    nvml = FakeNvml([a100()])
    nvml.devices[0].errors[name] = FakeNvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    with pytest.raises(EnvironmentFault, match="can't list the GPUs"):
        NvmlProbe(nvml)
    assert not nvml.ready


def test_no_driver_is_a_fault_that_says_what_to_do() -> None:
    nvml = FakeNvml([])
    nvml.init_error = FakeNvml.NVML_ERROR_DRIVER_NOT_LOADED
    with pytest.raises(EnvironmentFault, match="NVIDIA driver does not answer"):
        NvmlProbe(nvml)
    nvml.init_error = None
    nvml.errors["nvmlDeviceGetCount"] = FakeNvml.NVML_ERROR_NOT_SUPPORTED
    with pytest.raises(EnvironmentFault, match="can't list"):
        NvmlProbe(nvml)


def test_a_machine_without_the_library_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(EnvironmentFault, match="pip install nvidia-ml-py"):
        NvmlProbe()
    assert count_gpus() == 0


@pytest.mark.parametrize(
    ("init_error", "count_error", "expected"),
    [(None, None, 2), (9, None, 0), (None, 3, 0)],
    ids=["two", "no driver", "no answer"],
)
def test_gpus_are_counted(
    monkeypatch: pytest.MonkeyPatch, init_error: int | None, count_error: int | None, expected: int
) -> None:
    nvml = FakeNvml([l4(0), l4(1)])
    nvml.init_error = init_error
    if count_error is not None:
        nvml.errors["nvmlDeviceGetCount"] = count_error
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert count_gpus() == expected
