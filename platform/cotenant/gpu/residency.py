"""What a workload books of a GPU, by how warm it is kept.

`always` books its whole budget. `sleep` and `on-demand` book only their *floor*, what a replica holds while asleep;
so that any one of them can wake wherever Ray puts it, every GPU of their pool keeps *wake-up room* free: the most that
any of them takes on top of its floor. Shares are fractions of what is left (usable memory less wake-up room), so that
on every GPU, for any placement that Ray's shares allow:

    floors and whole budgets of what lies there + wake-up room <= usable memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from cotenant.config import Workload
from cotenant.config.model import Kind
from cotenant.gpu.shares import budget_kib

#: GiB a replica holds asleep where the file gives no `asleep_gib`. On a CPU it is the process with its libraries
#: loaded; with CUDA the context and what the allocators keep (vLLM's sleep level 1 leaves about 1.4 GiB).
_ASLEEP_CPU_GIB: dict[Kind, float] = {"llm": 2.3, "mockup": 0.6, "image": 0.9}
_ASLEEP_CUDA_GIB: dict[Kind, float] = {"llm": 1.5, "mockup": 0.6, "image": 0.8}


@dataclass(frozen=True)
class Need:
    """What one replica takes of a GPU, in KiB: its budget, what it books of it always, and the rest, to wake."""

    full_kib: int
    booked_kib: int

    @property
    def wake_kib(self) -> int:
        return self.full_kib - self.booked_kib


def floor_gib(workload: Workload, accelerator: str) -> float:
    """GiB that a replica may hold at any time: its budget if always resident, else what it holds asleep."""
    if workload.residency == "always":
        return workload.gpu.gib
    defaults = _ASLEEP_CPU_GIB if accelerator == "cpu" else _ASLEEP_CUDA_GIB
    return min(workload.gpu.asleep_gib or defaults[workload.kind], workload.gpu.gib)


def need(workload: Workload, accelerator: str) -> Need:
    """What a replica takes of a GPU of `accelerator`."""
    full = budget_kib(workload.gpu.gib)
    return Need(full, full if workload.residency == "always" else budget_kib(floor_gib(workload, accelerator)))
