"""Whose memory is it: a GPU's sample, and what replicas say and run, become what each replica holds. Pure; KiB.

Three ways, by what the machine tells of a GPU:

- processes: a CPU pool. A replica holds the private memory of its processes.
- nvml: NVML names processes of this machine, with their memory.
- reported: NVML names processes that this machine does not have (the host's, in a container), none, or ours with no
  memory. Then a replica's own allocators' figure stands. What is used beyond all of it is *unattributed*: CUDA
  contexts, which no allocator counts, and whatever else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from cotenant.gpu.probe import GpuProcess, GpuSample

MeasuredBy = Literal["processes", "nvml", "reported", "none"]


@dataclass(frozen=True)
class Claim:
    """A replica on the GPU: its processes, and its own figure."""

    replica: str
    pids: frozenset[int]
    """No process is in two claims."""
    reported_kib: int | None = None


@dataclass(frozen=True)
class Attribution:
    """Who holds what of one GPU."""

    held: Mapping[str, int | None]
    """By replica; None where nothing tells."""
    by: MeasuredBy
    used_kib: int | None
    unattributed_kib: int = 0
    unknown: tuple[GpuProcess, ...] = ()
    """Processes of this machine that hold memory here and are in no claim."""


def attribute(
    sample: GpuSample, claims: Iterable[Claim], *, known: Callable[[int], bool], private_kib: Callable[[int], int]
) -> Attribution:
    """What each claim's replica holds of the sampled GPU.

    Args:
        sample: of the GPU.
        claims: the replicas on it.
        known: whether a process of that pid runs on this machine.
        private_kib: private memory of a process; asked on virtual GPUs only.
    """
    claims = tuple(claims)
    if sample.gpu.virtual:
        private = {claim.replica: sum(private_kib(pid) for pid in claim.pids) for claim in claims}
        return Attribution(held=dict(private), by="processes", used_kib=sum(private.values()))
    if sample.fault is not None:
        return Attribution(held={claim.replica: None for claim in claims}, by="none", used_kib=None)
    named = _named(sample, known)
    held = {claim.replica: _held(claim, named) for claim in claims}
    ours = frozenset[int]().union(*(claim.pids for claim in claims))
    unknown = tuple(process for process in named.values() if process.pid not in ours)
    told = sum(kib or 0 for kib in held.values()) + sum(process.held_kib or 0 for process in unknown)
    return Attribution(
        held=held,
        by="nvml" if any(process.held_kib for process in named.values()) else "reported",
        used_kib=sample.used_kib,
        unattributed_kib=max(0, (sample.used_kib or 0) - told),
        unknown=unknown,
    )


def _named(sample: GpuSample, known: Callable[[int], bool]) -> dict[int, GpuProcess]:
    """NVML's processes by pid; none if it names one that this machine lacks: its pids are then another namespace's,
    and one that happens to exist here means nothing."""
    processes = sample.processes or ()
    return {process.pid: process for process in processes} if all(known(p.pid) for p in processes) else {}


def _held(claim: Claim, named: Mapping[int, GpuProcess]) -> int | None:
    """NVML's figure if it has one for every process of the replica that it names, else the replica's own, if that
    is more."""
    matched = [named[pid].held_kib for pid in claim.pids if pid in named]
    told = sum(kib or 0 for kib in matched)
    if matched and all(kib is not None for kib in matched):
        return told
    if not matched and claim.reported_kib is None:
        # NVML names processes with their memory, and this replica's are not among them: it has no context.
        return 0 if any(process.held_kib for process in named.values()) else None
    return max(told, claim.reported_kib) if claim.reported_kib is not None else told or None
