"""The one machine that an environment runs on: its size by the table of machine types, what a container may take of it.

Always true of a `Host`: the environment's minimum fits it, its GPUs are those of the plan, and what its containers may
take of memory together is less than it has.
"""

from __future__ import annotations

from dataclasses import dataclass

from cotenant.config import Platform
from cotenant.errors import PlanError
from cotenant.gpu.machines import MACHINES, node_usd_per_h
from cotenant.gpu.plan import Plan
from cotenant.manifests.one_machine import gpus_of_machine, only_gpu_pool
from cotenant.manifests.site import Site

_MIB_PER_GIB = 1024
#: Memory limits of what runs beside the platform.
EMULATOR_MIB, TLS_MIB = 1024, 256
#: For the system, Docker and the page cache's least.
_SYSTEM_MIB, _SYSTEM_PART = 1024, 0.05
#: Beside its virtual GPU, a CPU environment needs this for Ray, both doors, the agent and the scaler.
RAY_AND_DOORS_MIB = 4096


@dataclass(frozen=True)
class Host:
    """One machine. Without a machine type (`machine` is None) it is whatever runs Docker."""

    name: str
    pool: str
    machine: str | None
    #: Zero on a CPU.
    gpus: int
    spot: bool
    #: List price per hour, without disks and network; None where the table lacks the machine.
    usd_per_h: float | None
    #: Most memory that the platform's container may take.
    platform_mib: int
    site: Site | None

    @property
    def on_cpu(self) -> bool:
        return self.gpus == 0


def host_of(platform: Platform, plan: Plan) -> Host:
    """The machine for `platform`.

    Raises:
        EnvironmentFault: the environment has several GPU pools.
        PlanError: its minimum takes more than one machine, its GPUs are MIG slices, its pool names no machine type or
            one that isn't in the table, or the machine's memory is too small.
    """
    name, pool = only_gpu_pool(platform)
    where = f"environment {platform.environment}"
    planned = plan.pools[name]
    on_cpu = pool.accelerator == "cpu"
    if pool.mig is not None:
        raise PlanError(
            f"{where} cuts the GPUs of pool {name} into MIG slices ({pool.mig}), which a container on a VM is not "
            "given; drop mig from the pool, or use the KubeRay manifests"
        )
    has = gpus_of_machine(pool)
    if len(planned.gpus_at_min) > has:
        raise PlanError(
            f"{where} needs {len(planned.gpus_at_min)} GPUs for its replicas.min, but one machine of pool {name} has "
            f"{has}; lower replicas.min or vram_gib, name a machine with more GPUs, or use the KubeRay manifests"
        )
    return Host(
        name=f"{platform.name}-{platform.environment}",
        pool=name,
        machine=pool.machine,
        gpus=0 if on_cpu else planned.gpus_per_node,
        spot=pool.spot,
        usd_per_h=node_usd_per_h(pool) if pool.machine else None,
        platform_mib=_platform_mib(platform),
        site=Site.of(platform) if platform.gke is not None else None,
    )


def _platform_mib(platform: Platform) -> int:
    name, pool = only_gpu_pool(platform)
    virtual_mib = 0
    if pool.accelerator == "cpu":
        virtual_mib = int(gpus_of_machine(pool) * (pool.vram_gib or 0) * _MIB_PER_GIB) + RAY_AND_DOORS_MIB
    if pool.machine is None:
        if pool.accelerator == "cpu":
            return virtual_mib
        raise PlanError(
            f"pool {name} names no machine type, and a VM is made of one; write machine: g2-standard-8 (or another "
            "that has its GPU)"
        )
    machine = MACHINES.get(pool.machine)
    if machine is None:
        raise PlanError(
            f"pool {name} has the machine type {pool.machine}, whose memory is not known here; it knows "
            f"{', '.join(MACHINES)}"
        )
    memory_mib = int(machine.memory_gib * _MIB_PER_GIB)
    room_mib = memory_mib - max(_SYSTEM_MIB, int(memory_mib * _SYSTEM_PART)) - EMULATOR_MIB - TLS_MIB
    if virtual_mib > room_mib:
        raise PlanError(
            f"pool {name} gives its virtual GPU {pool.vram_gib:g} GiB, which takes {virtual_mib / _MIB_PER_GIB:.1f} "
            f"GiB with Ray and the doors, but {pool.machine} has {room_mib / _MIB_PER_GIB:.1f} GiB beside the system; "
            "lower vram_gib, or take a larger machine"
        )
    return room_mib
