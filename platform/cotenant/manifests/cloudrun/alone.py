"""A workload alone on a Cloud Run instance: the platform that its container runs, and what the instance needs. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from cotenant.config import Gateway, Jobs, Nodes, Platform, Pool, Replicas, Workload
from cotenant.errors import PlanError
from cotenant.gpu.accelerators import usable_gib
from cotenant.gpu.plan import Plan
from cotenant.gpu.plan import plan as make_plan

PORT = 8080
#: Where the weights' bucket is mounted.
WEIGHTS = "/mnt/weights"
#: Variable with the API keys of the container's gateway.
KEYS_ENV = "COTENANT_API_KEYS"
_POOL = "gpu"
#: What Ray's head, the doors and the agent need beside the workload's own cores.
_OTHER_CPUS = 1.0
#: Mitsuba's GPU variant needs the driver 570; that of Cloud Run's L4 was 535 when this was written.
_NO_OPTIX = "With a driver below 570 Mitsuba renders on the instance's cores, not on its GPU: see docs/spill.md."


@dataclass(frozen=True)
class Size:
    """Cores and GiB of an instance with that GPU: the least, and what more there is."""

    cpus: tuple[int, ...]
    memory_gib: tuple[int, ...]


#: cloud.google.com/run/docs/configuring/services/gpu: at least 4 cores and 16 GiB with an L4, 20 and 80 with the other.
#: Eight cores and 32 GiB are the most without the larger GPU.
GPUS = {
    "nvidia-l4": Size((4, 8), (16, 32)),
    "nvidia-rtx-pro-6000": Size((20,), (80,)),
}


@dataclass(frozen=True)
class Alone:
    """`platform` is what the container runs; `note` is what whoever deploys it should know."""

    platform: Platform
    workload: str
    accelerator: str
    cpus: int
    memory_gib: int
    bucket: str | None = None
    note: str = ""


def alone(platform: Platform, plan: Plan, workload: str) -> Alone:
    """The workload on an instance of its own, with as many replicas as its GPU and cores hold.

    Raises:
        PlanError: Cloud Run can't run it.
    """
    original, pool = platform.workloads[workload], platform.pools[plan.workloads[workload].pool]
    accelerator = _accelerator(platform, plan, workload)
    size, budget = GPUS[accelerator], plan.workloads[workload].vram_gib
    cpus, replicas = _cores(platform, workload, size, int(usable_gib(_POOL, _pool(pool)) / budget + 1e-9))
    spec, bucket, note = _spec(original, workload)
    served = original.model_copy(
        update={
            **spec,
            # Instances come and go; within one there is nobody to sleep for, and nothing to scale.
            "residency": "always",
            "replicas": Replicas(min=replicas, max=replicas),
            "pools": (),
            "spill": None,
            "gpu": original.gpu.model_copy(update={"vram_gib": budget, "asleep_gib": None}),
        }
    )
    made = Platform(
        name=platform.name,
        environment=platform.environment,
        workloads={workload: served},
        jobs=Jobs(ingresses=0),
        gateway=Gateway(
            host="0.0.0.0",  # noqa: S104 - in its container; Cloud Run's front end and the key guard it
            port=PORT,
            keys_env=KEYS_ENV,
            max_body_mib=platform.gateway.max_body_mib,
        ),
        pools={_POOL: _pool(pool)},
    )
    make_plan(made)  # raises what does not fit
    memory_gib = size.memory_gib[size.cpus.index(cpus)]
    return Alone(made, workload, accelerator, cpus, memory_gib, bucket, note)


def weights_of(platform: Platform, workload: str) -> str | None:
    """The bucket that the workload's weights are in, if they are in one."""
    return _spec(platform.workloads[workload], workload)[1]


def _accelerator(platform: Platform, plan: Plan, workload: str) -> str:
    name = plan.workloads[workload].pool
    pool = platform.pools[name]
    have = ", ".join(GPUS)
    if pool.mig is not None:
        raise PlanError(
            platform.wrong(
                f"{workload} runs on MIG slices ({pool.mig}) of pool {name}, and Cloud Run gives whole GPUs; name a "
                f"pool of {have} without mig in its pools",
                "pools",
                name,
                "mig",
            )
        )
    if pool.accelerator not in GPUS:
        raise PlanError(
            platform.wrong(
                f"{workload} runs on {pool.accelerator} (pool {name}), and Cloud Run has {have}; plan it on one of "
                "these, in an environment of its own if need be",
                "pools",
                name,
                "accelerator",
            )
        )
    return pool.accelerator


def _pool(pool: Pool) -> Pool:
    """One instance's GPU, as a pool of one node."""
    return Pool(accelerator=pool.accelerator, vram_gib=pool.vram_gib, nodes=Nodes(min=1, max=1), usd_per_h=0.0)


def _cores(platform: Platform, name: str, size: Size, fit: int) -> tuple[int, int]:
    """Cores of the instance, and replicas: as many as the smallest instance holds that holds one."""
    workload = platform.workloads[name]
    for cpus in size.cpus:
        replicas = min(fit, workload.replicas.max, math.floor((cpus - _OTHER_CPUS) / workload.cpus + 1e-9))
        if replicas >= 1:
            return cpus, replicas
    raise PlanError(
        platform.wrong(
            f"{name} books {workload.cpus:g} cores a replica, and an instance of Cloud Run has {size.cpus[-1]}, of "
            f"which {_OTHER_CPUS:g} is Ray's and the gateway's; lower cpus",
            "workloads",
            name,
            "cpus",
        )
    )


def _spec(workload: Workload, name: str) -> tuple[dict[str, Any], str | None, str]:
    """The spec as the container has it, the bucket of its weights, and a note."""
    spec = workload.llm or workload.image
    if spec is None:
        return {}, None, _NO_OPTIX
    if spec.model.startswith("gs://"):
        bucket, _, folder = spec.model.removeprefix("gs://").partition("/")
        local = spec.model_copy(update={"model": f"{WEIGHTS}/{folder.rstrip('/')}"})
        return {workload.kind: local}, bucket, f"Ask it for the model {name!r}: the weights' folder is its other name."
    if spec.model.startswith(("/", ".", "~")):
        raise PlanError(
            f"{name} has the model {spec.model}, a folder of this machine; copy it to a bucket and name that: "
            "gs://BUCKET/FOLDER"
        )
    if "/" not in spec.model:
        return {}, None, ""
    note = (
        f"Every instance downloads {spec.model} when it starts, within the 5 minutes that it has.\nFrom a bucket in "
        f"the region it comes sooner: copy it there and set {workload.kind}.model: gs://BUCKET/FOLDER."
    )
    return {}, None, note
