"""What a process takes of a device before it does any work of its own, by kind of device. Pure.

On a CPU pool memory is counted as the GPU agent counts it: resident memory that no other process shares, of all
processes of a replica. Those figures are measured (docs/measurements.md, "Memory before the model"); how, is said
beside each. Those of CUDA are assumed: no measurement on a GPU went into them.
"""

from __future__ import annotations

from dataclasses import dataclass

from cotenant.gpu.accelerators import ACCELERATORS, CPU
from cotenant.gpu.fit.parts import MIB, Part

#: CUDA context with the handles of cuBLAS and cuDNN, as NVML counts it for the process.
CUDA_CONTEXT_MIB = 512
_CUDA_SOURCE = "assumed: 0.3 to 0.6 GiB by driver and GPU"


@dataclass(frozen=True)
class Device:
    """An accelerator as estimates see it; `total_gib` is None where the catalogue lacks it (and on a CPU)."""

    name: str
    total_gib: float | None

    @property
    def on_cpu(self) -> bool:
        return self.name == CPU

    @property
    def on_large_gpu(self) -> bool:
        """Whether vLLM takes larger batches by default: 70 GiB and more, but no A100 (vllm 0.29, arg_utils.py)."""
        return (self.total_gib or 0) >= 70 and "a100" not in self.name


def device(accelerator: str) -> Device:
    """The device of an accelerator's name; one that the catalogue lacks is a GPU like the smaller ones."""
    listed = ACCELERATORS.get(accelerator)
    return Device(accelerator, listed.total_gib if listed else None)


def cuda_context() -> Part:
    """The context, which stays while asleep."""
    return Part("CUDA context", CUDA_CONTEXT_MIB * MIB, "one context a process", _CUDA_SOURCE, asleep=True)
