"""This machine's processes by /proc, and the virtual GPUs of a CPU pool.

Made to be asked once a second for next to nothing: the list of processes is read each time, but of a process only
what can change. Its parent is read once, when it is first seen, so what it starts stays in its tree even when a
link between them ends. A process that was started and left behind between two refreshes is not noticed as its.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

from cotenant.gpu.probe.protocol import Gpu, GpuSample

_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024
_READ_BYTES = 4096


class ProcessTable:
    """Processes by /proc (Linux). May be used from several threads."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = str(proc)
        self._parents: dict[int, int] = {}
        self._children: dict[int, set[int]] = {}
        self._changes = threading.Lock()

    def refresh(self) -> None:
        with self._changes:
            now = {int(name) for name in os.listdir(self._proc) if name.isdigit()}  # noqa: PTH208 - a third of the cost
            for pid in self._parents.keys() - now:
                self._remove(pid)
            for pid in now - self._parents.keys():
                stat = self._stat(pid)
                if stat is not None:
                    self._parents[pid] = stat.parent
                    self._children.setdefault(stat.parent, set()).add(pid)

    def known(self, pid: int) -> bool:
        return pid in self._parents

    def tree(self, root: int, besides: frozenset[int] = frozenset()) -> frozenset[int]:
        with self._changes:
            if root not in self._parents:
                return frozenset()
            found: set[int] = set()
            todo = [root]
            while todo:
                pid = todo.pop()
                found.add(pid)
                started = self._children.get(pid, ())
                todo.extend(child for child in started if child not in found and child not in besides)
            return frozenset(found)

    def alive(self, pid: int) -> bool:
        stat = self._stat(pid)
        if stat is None:
            return False
        # A first thread that has ended shows so even while others still hold the memory.
        return stat.state not in "ZX" or self._threads(pid) > 1

    def private_kib(self, pid: int) -> int:
        """Resident anonymous pages (statm: resident - shared), which after a fork count in both processes."""
        text = self._read(pid, "statm")
        if not text:
            return 0
        fields = text.split()
        return max(0, int(fields[1]) - int(fields[2])) * _PAGE_KIB

    def divided_kib(self, pid: int) -> int:
        """Pss_Anon of smaps_rollup, where the kernel has it (5.9 and later) and lets this user see it."""
        for line in self._read(pid, "smaps_rollup").splitlines():
            if line.startswith(b"Pss_Anon:"):
                return int(line.split()[1])
        return self.private_kib(pid)

    def started(self, pid: int) -> int | None:
        stat = self._stat(pid)
        return None if stat is None else stat.started

    def kill(self, pid: int, started: int) -> bool:
        if pid <= 1 or pid == os.getpid():
            return False
        try:
            handle = os.pidfd_open(pid)
        except OSError:
            return False
        try:
            # Looked up after the handle was taken: if it is the same process now, the handle is that process's.
            if self.started(pid) != started or Path(self._proc, str(pid)).stat().st_uid != os.getuid():
                return False
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        except OSError:
            return False
        finally:
            os.close(handle)
        return True

    def _remove(self, pid: int) -> None:
        """Forget a process; what it had started goes on in the tree it was in."""
        parent = self._parents.pop(pid)
        self._children.get(parent, set()).discard(pid)
        for child in self._children.pop(pid, ()):
            self._parents[child] = parent
            self._children.setdefault(parent, set()).add(child)

    def _stat(self, pid: int) -> _Stat | None:
        text = self._read(pid, "stat")
        return None if not text else _Stat(text)

    def _threads(self, pid: int) -> int:
        try:
            return len(os.listdir(f"{self._proc}/{pid}/task"))  # noqa: PTH208
        except OSError:
            return 0

    def _read(self, pid: int, name: str) -> bytes:
        try:
            file = os.open(f"{self._proc}/{pid}/{name}", os.O_RDONLY)
        except OSError:
            return b""
        try:
            return os.read(file, _READ_BYTES)
        except OSError:
            return b""
        finally:
            os.close(file)


class _Stat:
    """The parts of /proc/<pid>/stat that matter; the name in it may hold anything, so fields count from its end."""

    __slots__ = ("parent", "started", "state")

    def __init__(self, text: bytes) -> None:
        fields = text[text.rindex(b")") + 2 :].split()
        self.state = fields[0].decode()
        self.parent = int(fields[1])
        self.started = int(fields[19])


class VirtualGpus:
    """The GPUs of a CPU pool: `count` of `total_kib` each. Who holds what is read from the processes."""

    def __init__(self, total_kib: int, count: int = 1) -> None:
        self._gpus = tuple(
            Gpu(key=f"cpu:{index}", index=index, name="CPU", total_kib=total_kib, virtual=True)
            for index in range(count)
        )

    def gpus(self) -> Sequence[Gpu]:
        return self._gpus

    def sample(self) -> Sequence[GpuSample]:
        return tuple(GpuSample(gpu=gpu) for gpu in self._gpus)

    def close(self) -> None:
        """Nothing is open."""
