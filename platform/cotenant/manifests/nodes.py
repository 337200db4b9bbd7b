"""What whoever keeps nodes ready is told of the pools: plain data, so that the Serve config can carry it."""

from __future__ import annotations

from typing import Any

from cotenant.config import Platform
from cotenant.gpu.plan import Plan
from cotenant.manifests.pools import POOL_RESOURCE_PER_NODE, pool_resource


def headroom_terms(platform: Platform, plan: Plan) -> list[dict[str, Any]]:
    """One entry a pool, as `scaling.headroom.PoolTerms` spells it.

    `resources` is all of a node's pool resource, so a bundle of it takes a whole node and fits no other pool; with the
    GPUs (or MIG slices) of the node, since Ray likes to keep GPU nodes from those who ask for no GPU.
    """
    terms = []
    for name, pool in platform.pools.items():
        resources = {pool_resource(name): POOL_RESOURCE_PER_NODE}
        if name in plan.pools:
            resources["GPU"] = float(plan.pools[name].gpus_per_node)
        nodes = pool.nodes
        terms.append(
            {
                "name": name,
                "min": nodes.min,
                "max": nodes.max,
                "spare": nodes.spare,
                "marker": pool_resource(name),
                "resources": resources,
            }
        )
    return terms
