"""How large the containers of a node are: what GKE lets pods have, less what its own pods there take.

One Ray pod takes a whole GPU node, since Ray shares the GPU inside; on a front node the head may lie beside one.

Sources. What GKE keeps back of CPU and memory: "Plan node sizes for Standard clusters", cloud.google.com/kubernetes-
engine/docs/concepts/plan-node-sizes (the formulas below; 100 MiB is the eviction threshold). What GKE's own DaemonSets
take (logging, metrics, network, device plugin, image streaming) is our own figure, on the safe side, not a measured
one; `kubectl describe node` tells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cotenant.config import Platform, Pool
from cotenant.errors import PlanError
from cotenant.gpu.machines import MACHINES

#: What GKE's DaemonSets request on a node.
_SYSTEM_CPUS, _SYSTEM_GIB = 0.5, 1.0
_EVICTION_GIB = 100 / 1024


@dataclass(frozen=True)
class Room:
    """CPU cores and GiB of memory."""

    cpus: float
    gib: float


#: Head and autoscaler, which share a pod. The head runs no workload; its memory is Ray's tables, the dashboard, Serve's
#: controller and the scaler.
HEAD = Room(1.0, 4.0)
AUTOSCALER = Room(0.25, 0.5)
#: Redis lies there too.
REDIS = Room(0.1, 0.25)
_HEADS = Room(HEAD.cpus + AUTOSCALER.cpus + REDIS.cpus, HEAD.gib + AUTOSCALER.gib + REDIS.gib)


def allocatable(vcpus: int, memory_gib: float) -> Room:
    """What pods may request on a node of that size, all together."""
    kept_cpus = 0.06 * min(vcpus, 1) + 0.01 * min(max(vcpus - 1, 0), 1) + 0.005 * min(max(vcpus - 2, 0), 2)
    kept_cpus += 0.0025 * max(vcpus - 4, 0)
    kept_gib, left = 0.0, memory_gib
    for size, part in ((4, 0.25), (4, 0.20), (8, 0.10), (112, 0.06), (math.inf, 0.02)):
        here = min(left, size)
        kept_gib += part * here
        left -= here
    return Room(vcpus - kept_cpus, memory_gib - kept_gib - _EVICTION_GIB)


def node_room(platform: Platform, name: str) -> Room:
    """What our pods may request on a node of pool `name`.

    Raises:
        PlanError: the pool has no machine type, or one whose size isn't known.
    """
    pool = platform.pools[name]
    machine = MACHINES.get(pool.machine or "")
    if machine is None:
        said = f"has the machine type {pool.machine!r}" if pool.machine else "names no machine type"
        raise PlanError(
            platform.wrong(
                f"pool {name} {said}, so nothing says how large its pods may be; take one of "
                f"{', '.join(sorted(MACHINES))}",
                "pools",
                name,
            )
        )
    room = allocatable(machine.vcpus, machine.memory_gib)
    return Room(room.cpus - _SYSTEM_CPUS, room.gib - _SYSTEM_GIB)


def pods_per_node(pool: Pool, gpus_per_node: int) -> int:
    """Ray pods of one node: one for each MIG slice, since a CUDA process sees one slice only, otherwise one."""
    return gpus_per_node if pool.mig is not None else 1


def worker_room(platform: Platform, name: str, *, gpus_per_node: int) -> Room:
    """What one Ray worker pod of pool `name` requests: whole cores and whole GiB.

    Raises:
        PlanError: as `node_room`, or the machine is too small for any.
    """
    pool = platform.pools[name]
    room = node_room(platform, name)
    if not pool.holds_workloads:
        room = Room(room.cpus - _HEADS.cpus, room.gib - _HEADS.gib)
    share = pods_per_node(pool, gpus_per_node)
    whole = Room(math.floor(room.cpus / share), math.floor(room.gib / share))
    if whole.cpus < 1 or whole.gib < 2:
        for_head = "" if pool.holds_workloads else ", besides Ray's head,"
        raise PlanError(
            platform.wrong(
                f"pool {name}: a {pool.machine} leaves {room.cpus:.1f} CPU and {room.gib:.1f} GiB for {share} Ray "
                f"pod{'s' if share > 1 else ''} and each{for_head} needs 1 CPU and 2 GiB; take a larger machine",
                "pools",
                name,
            )
        )
    return whole
