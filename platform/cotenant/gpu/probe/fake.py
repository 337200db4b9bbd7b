"""The twins of the edges, in memory: GPUs on which somebody holds what was said, and processes that never were."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cotenant.errors import EnvironmentFault
from cotenant.gpu.probe.protocol import Gpu, GpuProcess, GpuSample


class FakeProbe:
    """GPUs of which a test or a rehearsal says who holds what.

    `reserve_kib` is used from the start on each. `measure`, if given, is asked at each sample for what each process
    holds on a GPU (by its key), beside what was `hold`: so that processes that really allocate can be shown as if
    they did so on a GPU.
    """

    def __init__(
        self,
        gpus: Iterable[Gpu],
        *,
        reserve_kib: int = 0,
        measure: Callable[[str], Mapping[int, int]] | None = None,
    ) -> None:
        self._gpus = tuple(gpus)
        self._reserve_kib = reserve_kib
        self._measure = measure
        self._held: dict[str, dict[int, int]] = {gpu.key: {} for gpu in self._gpus}
        self.busy: dict[str, float] = {}
        """SM utilisation by GPU, 0 if it has none here."""
        self.tells_processes = True
        """Off, as in a container whose driver names no processes."""
        self.lost: str | None = None
        """A reason, while the driver does not answer."""
        self.faults: dict[str, str] = {}
        """A reason for each GPU that alone does not answer."""

    def hold(self, key: str, pid: int, kib: int) -> None:
        """From now on `pid` holds so much of that GPU; 0 ends it."""
        if kib:
            self._held[key][pid] = kib
        else:
            self._held[key].pop(pid, None)

    def gpus(self) -> Sequence[Gpu]:
        return self._gpus

    def sample(self) -> Sequence[GpuSample]:
        if self.lost is not None:
            raise EnvironmentFault(self.lost)
        return tuple(self._sample(gpu) for gpu in self._gpus)

    def close(self) -> None:
        """Nothing is open."""

    def _sample(self, gpu: Gpu) -> GpuSample:
        if gpu.key in self.faults:
            return GpuSample(gpu=gpu, fault=self.faults[gpu.key])
        if gpu.virtual:
            return GpuSample(gpu=gpu)
        held = dict(self._held[gpu.key])
        for pid, kib in (self._measure(gpu.key) if self._measure else {}).items():
            held[pid] = held.get(pid, 0) + kib
        return GpuSample(
            gpu=gpu,
            used_kib=self._reserve_kib + sum(held.values()),
            sm_util=self.busy.get(gpu.key, 0.0),
            processes=tuple(GpuProcess(pid, kib) for pid, kib in sorted(held.items()))
            if self.tells_processes
            else None,
        )


@dataclass
class _Process:
    parent: int
    private_kib: int
    started: int
    divided_kib: int | None = None
    alive: bool = True


@dataclass
class FakeProcesses:
    """Processes that were said to run."""

    killed: list[int] = field(default_factory=list)
    _all: dict[int, _Process] = field(default_factory=dict)

    def spawn(self, pid: int, *, parent: int = 1, private_kib: int = 0, started: int = 1) -> None:
        self._all[pid] = _Process(parent, private_kib, started)

    def use(self, pid: int, private_kib: int, *, divided_kib: int | None = None) -> None:
        """From now on it has that much memory; `divided_kib` if less of it is its alone."""
        self._all[pid].private_kib, self._all[pid].divided_kib = private_kib, divided_kib

    def end(self, pid: int) -> None:
        self._all.pop(pid, None)

    def refresh(self) -> None:
        """Nothing changes but by what is said."""

    def known(self, pid: int) -> bool:
        return pid in self._all

    def tree(self, root: int, besides: frozenset[int] = frozenset()) -> frozenset[int]:
        if root not in self._all:
            return frozenset()
        found = {root}
        grew = True
        while grew:
            more = {
                pid
                for pid, process in self._all.items()
                if process.parent in found and pid not in found and pid not in besides
            }
            found |= more
            grew = bool(more)
        return frozenset(found)

    def alive(self, pid: int) -> bool:
        return pid in self._all and self._all[pid].alive

    def private_kib(self, pid: int) -> int:
        return self._all[pid].private_kib if pid in self._all else 0

    def divided_kib(self, pid: int) -> int:
        divided = self._all[pid].divided_kib if pid in self._all else None
        return self.private_kib(pid) if divided is None else divided

    def started(self, pid: int) -> int | None:
        return self._all[pid].started if pid in self._all else None

    def kill(self, pid: int, started: int) -> bool:
        if self.started(pid) != started:
            return False
        self.killed.append(pid)
        self.end(pid)
        return True
