"""The pool of the front doors, which a cluster must have: with it, zero GPUs can wake up again."""

from __future__ import annotations

from cotenant.config import Platform
from cotenant.errors import PlanError


def front_of(platform: Platform) -> str:
    """Its name. Raises PlanError: there is none, or it may be empty."""
    front = platform.front_pool
    if front is None:
        raise PlanError(
            platform.wrong(
                f"environment {platform.environment} has no pool for the front doors, which on a cluster must outlive "
                "every GPU node; add a pool without accelerator, e.g. front: {machine: e2-standard-4, nodes: {min: 1}}",
                "pools",
            )
        )
    if platform.pools[front].nodes.min < 1:
        raise PlanError(
            platform.wrong(
                f"pool {front} carries the front doors and may have no node at all, so nothing could wake up again; "
                "write nodes: {min: 1}",
                "pools",
                front,
                "nodes",
            )
        )
    return front
