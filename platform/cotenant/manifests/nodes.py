"""What whoever keeps nodes ready is told of the pools: plain data, so that the Serve config can carry it."""

from __future__ import annotations

from typing import Any

from cotenant.config import Platform
from cotenant.gpu.plan import Plan
from cotenant.manifests.pools import POOL_RESOURCE_PER_NODE, pool_resource


def headroom_terms(platform: Platform, plan: Plan) -> list[dict[str, Any]]:
    """One entry a pool, as `scaling.headroom.PoolTerms` spells it.

    `resources` is all of a node's pool resource, so a bundle of it takes a whole node and fits no other pool; with the
    GPUs (or MIG slices) of the node, since Ray likes to keep GPU nodes from those who ask for no GPU. On Kubernetes
    each MIG slice is a Ray node of its own, and spare nodes may be Kubernetes' to keep.
    """
    terms = []
    for name, pool in platform.pools.items():
        resources = {pool_resource(name): POOL_RESOURCE_PER_NODE}
        pods = 1
        if name in plan.pools:
            gpus = plan.pools[name].gpus_per_node
            pods = gpus if pool.mig is not None and platform.gke is not None else 1
            resources["GPU"] = gpus / pods
        nodes = pool.nodes
        by_ray = platform.gke is None or platform.gke.spare_by == "ray"
        terms.append(
            {
                "name": name,
                "min": nodes.min * pods,
                "max": nodes.max * pods,
                "spare": nodes.spare * pods if by_ray else 0,
                "marker": pool_resource(name),
                "resources": resources,
            }
        )
    return terms
