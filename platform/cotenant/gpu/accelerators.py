"""GPU types by their GKE names, and how much of each a plan may give away.

`total_gib` is what NVML reports as the device's memory, which is not the number on the box (an "80 GB" H100
has 79.65 GiB, a "24 GB" L4 22.49). `reserve_gib` is what no budget may have: the driver's own reservation and
the contexts' fixed part that no allocator counts. Plans use the rest, rounded down to a tenth.

Sources. Names: the values of GKE's node label cloud.google.com/gke-accelerator. Totals: `nvidia-smi`'s MiB as
listed at thundergolfer.com/blog/nvidia-gpu-memory-capacity (T4, L4, A100, H100, H200); those of P100, V100, RTX PRO
6000 and B200 were not checked against a source. The reserve is our own figure, not a measured one: a pool's
`vram_gib` overrides what comes of it. A MIG slice is treated alike, with the memory that `mig` lists.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

from cotenant.config import Pool
from cotenant.errors import PlanError
from cotenant.gpu.mig import profile

CPU = "cpu"

#: The driver keeps back less of a slice: what `mig` lists is already what instances may use.
_SLICE_RESERVE_GIB = 0.45


@dataclass(frozen=True)
class Accelerator:
    """One GPU type: its memory, and the part of it that is kept back."""

    name: str
    total_gib: float
    reserve_gib: float

    @property
    def usable_gib(self) -> float:
        """GiB that budgets may add up to."""
        return math.floor((self.total_gib - self.reserve_gib) * 10 + 1e-6) / 10


def _listed(name: str, nvml_mib: int, reserve_gib: float) -> Accelerator:
    return Accelerator(name, round(nvml_mib / 1024, 2), reserve_gib)


ACCELERATORS = {
    accelerator.name: accelerator
    for accelerator in (
        _listed("nvidia-tesla-t4", 15_360, 0.45),
        _listed("nvidia-tesla-p100", 16_384, 0.45),
        _listed("nvidia-tesla-v100", 16_384, 0.45),
        _listed("nvidia-l4", 23_034, 0.45),
        _listed("nvidia-tesla-a100", 40_960, 0.75),
        _listed("nvidia-a100-80gb", 81_920, 0.75),
        _listed("nvidia-h100-80gb", 81_559, 0.75),
        _listed("nvidia-h100-mega-80gb", 81_559, 0.75),
        _listed("nvidia-rtx-pro-6000", 97_887, 0.75),
        _listed("nvidia-h200-141gb", 143_771, 1.0),
        _listed("nvidia-b200", 183_359, 1.0),
    )
}


def usable_gib(name: str, pool: Pool) -> float:
    """GiB of one GPU (or MIG slice) of pool `name` that budgets may add up to: the pool's figure, else the catalogue's.

    Raises:
        PlanError: the accelerator is unknown and the pool gives no figure, the figure is more than it has, or it
            has no such MIG profile.
    """
    accelerator = str(pool.accelerator)
    device = _device(name, accelerator, pool)
    if device is None:
        assert pool.vram_gib is not None
        return pool.vram_gib
    if pool.vram_gib is None:
        return device.usable_gib
    if pool.vram_gib > device.total_gib:
        raise PlanError(
            f"pool {name} says vram_gib {pool.vram_gib:g}, but an {device.name} has {device.total_gib:g} GiB; "
            f"leave vram_gib out ({device.usable_gib:g} are usable) or lower it"
        )
    return pool.vram_gib


def gpus_per_node(name: str, pool: Pool) -> int:
    """GPUs of one node as the plan counts them: each MIG slice is one. Raises PlanError for an unknown profile."""
    slices = profile(name, str(pool.accelerator), pool.mig).slices if pool.mig else 1
    return pool.gpus_per_node * slices


def _device(name: str, accelerator: str, pool: Pool) -> Accelerator | None:
    """What the plan calls a GPU in that pool; None if the catalogue lacks it and the pool itself gives the memory."""
    listed = ACCELERATORS.get(accelerator)
    if pool.mig is not None:
        part = profile(name, accelerator, pool.mig)
        return Accelerator(f"{accelerator} {part.name}", part.gib, _SLICE_RESERVE_GIB)
    if listed is None and pool.vram_gib is None:
        near = difflib.get_close_matches(accelerator.lower(), ACCELERATORS, n=1)
        near = near or [name for name in ACCELERATORS if accelerator.lower() in name.split("-")]
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(ACCELERATORS)}, {CPU}."
        raise PlanError(f"pool {name} has the accelerator {accelerator!r}; {hint} Or give the pool vram_gib")
    return listed
