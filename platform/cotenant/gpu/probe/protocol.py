"""What a GPU agent needs to know of its machine: GPUs, who holds memory on them, and processes. Memory in KiB.

Always true: a figure that the machine does not tell is None, never 0. A probe raises `EnvironmentFault` only when
it can tell nothing at all; one GPU that fails is a sample with a `fault`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Gpu:
    """A GPU that workloads can be given: a whole one, a MIG slice, or a virtual one of a CPU pool."""

    key: str
    """NVML's UUID (`GPU-…`, `MIG-…`), or `cpu:0`, `cpu:1`, … on a CPU pool."""
    index: int
    """NVML's index; a slice has that of the GPU it was cut from."""
    name: str
    total_kib: int
    mig: str | None = None
    """The slice's profile, such as 1g.5gb."""
    virtual: bool = False
    """On a CPU pool: what is held is the memory of the processes."""


@dataclass(frozen=True)
class GpuProcess:
    """A process with memory on a GPU; `held_kib` is None where NVML names the process but not its memory."""

    pid: int
    held_kib: int | None


@dataclass(frozen=True)
class GpuSample:
    """One GPU at one moment."""

    gpu: Gpu
    used_kib: int | None = None
    """What can no longer be allocated, the driver's reserve included."""
    sm_util: float | None = None
    """Part of the last sampling period (driver's choice, 1/6 s to 1 s) in which a kernel ran, 0 to 1."""
    processes: tuple[GpuProcess, ...] | None = None
    """None where the machine does not tell."""
    fault: str | None = None
    """Why there are no figures."""


class GpuProbe(Protocol):
    """Where samples come from."""

    def gpus(self) -> Sequence[Gpu]:
        """What there is, the same GPUs in the same order each time until the driver was lost."""
        ...

    def sample(self) -> Sequence[GpuSample]:
        """One sample a GPU.

        Raises:
            EnvironmentFault: the driver does not answer.
        """
        ...

    def close(self) -> None: ...


class Processes(Protocol):
    """This machine's processes, as of the last `refresh`."""

    def refresh(self) -> None: ...

    def known(self, pid: int) -> bool:
        """Whether such a process was there."""
        ...

    def tree(self, root: int, besides: frozenset[int] = frozenset()) -> frozenset[int]:
        """`root` and what descends from it, without the trees of `besides`; empty if there is no `root`."""
        ...

    def alive(self, pid: int) -> bool:
        """Whether it runs now. One that has ended and was not yet waited for does not, nor does it hold memory."""
        ...

    def private_kib(self, pid: int) -> int:
        """Memory of its own, not backed by files or shared; 0 if it is gone.

        Quick, and too much while a page belongs to several processes: after a fork it counts in each.
        """
        ...

    def divided_kib(self, pid: int) -> int:
        """The same, a page of several processes counted in parts. Slow: takes milliseconds a GiB."""
        ...

    def started(self, pid: int) -> int | None:
        """When it started, in clock ticks since boot: with the pid, its identity. None if it is gone."""
        ...

    def kill(self, pid: int, started: int) -> bool:
        """End the process of that pid and start time, at once; False if it is gone or belongs to another user."""
        ...
