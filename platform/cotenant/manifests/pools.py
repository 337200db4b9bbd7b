"""Pools as Ray knows them: custom resources that every node of a pool offers."""

from __future__ import annotations

from cotenant.config import Platform

#: Each Ray node of a pool offers this much of the pool's resource, and a replica takes a crumb of it: it ties the
#: replica to the pool without ever being what runs out.
POOL_RESOURCE_PER_NODE = 1000.0
POOL_CRUMB = 0.001
_POOL_PREFIX = "cotenant-pool-"


def pool_resource(pool: str) -> str:
    """Name of the custom Ray resource that every node of `pool` offers."""
    return f"{_POOL_PREFIX}{pool}"


def is_pool_resource(name: str) -> bool:
    """Whether a Ray resource is a pool's."""
    return name.startswith(_POOL_PREFIX)


def spread_resource(workload: str) -> str:
    """Name of the custom Ray resource of which a node offers as much as it may hold replicas of `workload`."""
    return f"cotenant-spread-{workload}"


def node_resources(platform: Platform, pool: str) -> dict[str, float]:
    """Custom resources that every Ray node of `pool` offers.

    Serve's own `max_replicas_per_node` can't be had together with a placement group, so a workload's
    `replicas.per_node` is a resource of which each of its replicas takes one.
    """
    offered = {pool_resource(pool): POOL_RESOURCE_PER_NODE}
    for name, workload in platform.workloads.items():
        if workload.replicas.per_node is not None and (not workload.pools or pool in workload.pools):
            offered[spread_resource(name)] = float(workload.replicas.per_node)
    return offered
