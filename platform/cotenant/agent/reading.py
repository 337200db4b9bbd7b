"""One look at the machine, for all replicas at once: GPUs, whose process is whose, and what processes hold.

It may block (a driver does), so it runs on a thread of its own, and its result is plain data.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cotenant.errors import EnvironmentFault
from cotenant.gpu.probe import GpuProbe, GpuSample, Processes

#: Longer than a child needs from vfork to exec.
_CLOSE_LOOK_S = 0.005


@dataclass(frozen=True)
class Root:
    """Where a replica's processes begin."""

    pid: int
    further: tuple[int, ...] = ()
    """Processes outside its tree that it says are its own."""
    may_kib: int | None = None
    """Process memory past which it is looked at closely; None on real GPUs."""


@dataclass(frozen=True)
class Reading:
    """What was seen. Process memory is only read on virtual GPUs."""

    samples: Sequence[GpuSample] = ()
    processes: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    """By replica: its processes and when each started."""
    private_kib: Mapping[int, int] = field(default_factory=dict)
    known: frozenset[int] = frozenset()
    """Of the processes that the GPUs named, those that this machine has."""
    dead: frozenset[str] = frozenset()
    """Replicas whose first process has ended."""
    fault: str = ""
    """Why there are no samples."""


def read(
    probe: GpuProbe, processes: Processes, roots: Mapping[str, Root], seen: Mapping[str, Mapping[int, int]]
) -> Reading:
    """Look.

    Args:
        probe: for samples.
        processes: refreshed first.
        roots: by replica.
        seen: each replica's processes as of the last reading, so that only new ones are asked when they started.
    """
    fault = ""
    try:
        samples = probe.sample()
    except EnvironmentFault as error:
        samples, fault = (), str(error)
    processes.refresh()
    owned = owners(processes, roots)
    started: dict[str, dict[int, int]] = {}
    for replica, pids in owned.items():
        before = seen.get(replica, {})
        found = {pid: before.get(pid) or processes.started(pid) for pid in pids}
        started[replica] = {pid: start for pid, start in found.items() if start is not None}
    return Reading(
        samples=samples,
        processes=started,
        private_kib=_memory(processes, roots, owned),
        known=frozenset(
            process.pid for sample in samples for process in sample.processes or () if processes.known(process.pid)
        ),
        dead=frozenset(replica for replica, root in roots.items() if root.pid and not processes.alive(root.pid)),
        fault=fault,
    )


def _memory(processes: Processes, roots: Mapping[str, Root], owned: Mapping[str, frozenset[int]]) -> dict[int, int]:
    """Memory of the processes of replicas on virtual GPUs.

    Who seems to hold too much is looked at closely: pages that a forked child has in common with its parent count
    once, and a child that was just about to run another program (vfork) has become that by then.
    """
    memory: dict[int, int] = {}
    suspects: dict[str, Root] = {}
    for replica, pids in owned.items():
        may_kib = roots[replica].may_kib
        if may_kib is None:
            continue
        memory.update((pid, processes.private_kib(pid)) for pid in pids)
        if sum(memory[pid] for pid in pids) > may_kib:
            suspects[replica] = roots[replica]
    if suspects:
        time.sleep(_CLOSE_LOOK_S)
        for replica in suspects:
            memory.update((pid, processes.divided_kib(pid)) for pid in owned[replica])
    return memory


def owners(processes: Processes, roots: Mapping[str, Root]) -> dict[str, frozenset[int]]:
    """Each replica's processes, none of them twice.

    A replica's own tree is its own, less the trees of replicas started within it. What it merely says is its own
    counts only if it is in no replica's tree, no other said so before, and this process does not descend from it.
    """
    own = frozenset(root.pid for root in roots.values() if root.pid)
    owned: dict[str, frozenset[int]] = {}
    taken: set[int] = set()
    for replica, root in roots.items():
        tree = processes.tree(root.pid, own - {root.pid}) if root.pid else frozenset[int]()
        owned[replica] = tree - taken
        taken |= tree
    for replica, root in roots.items():
        for pid in root.further:
            if pid > 1 and pid not in taken:
                tree = processes.tree(pid, own) - taken
                if os.getpid() not in tree:
                    owned[replica] |= tree
                    taken |= tree
    return owned
