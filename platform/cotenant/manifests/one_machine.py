"""What one machine can be of an environment: its only GPU pool. `cotenant up` and the files for a VM ask here.

Ray shares out a GPU only inside itself, so one machine is one Ray node, and a Ray node is of one GPU pool. The doors'
pool, which has no GPU, comes along.
"""

from __future__ import annotations

from cotenant.config import Platform, Pool
from cotenant.errors import EnvironmentFault


def only_gpu_pool(platform: Platform) -> tuple[str, Pool]:
    """Name and spec of the environment's GPU pool.

    Raises:
        EnvironmentFault: it has several.
    """
    gpu_pools = {name: pool for name, pool in platform.pools.items() if pool.holds_workloads}
    if len(gpu_pools) > 1:
        raise EnvironmentFault(
            f"environment {platform.environment} has {len(gpu_pools)} GPU pools ({', '.join(gpu_pools)}) and one "
            "machine can be one of them; name one environment with a single GPU pool, or `cotenant compile` and "
            "`serve deploy` on a cluster"
        )
    return next(iter(gpu_pools.items()))


def gpus_of_machine(pool: Pool) -> int:
    """GPUs that one machine of `pool` has; a CPU pool's virtual ones are all on it, whatever its nodes."""
    return pool.gpus_per_node * (pool.nodes.max if pool.accelerator == "cpu" else 1)
