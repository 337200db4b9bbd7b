"""How many more replicas fit on nodes that are there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_ROUNDING = 1e-9


def free_shares(
    nodes: Iterable[Mapping[str, float]], pool: str, num_gpus: float, cpus: float, spread: str | None = None
) -> int:
    """Replicas that fit on nodes with so much left.

    A node tells what is left of all its GPUs together; of one with several that are partly booked it may be a share
    that no single one has, so this can be one too high for each GPU.

    Args:
        nodes: what is left of each node's resources, by name.
        pool: the resource that the pool's nodes offer.
        num_gpus: what a replica books of a GPU.
        cpus: what it books of the CPUs.
        spread: the resource of which each replica takes one, if there is one.
    """

    def fit(left: float, each: float) -> int:
        return int((left + _ROUNDING) / each)

    return sum(
        min(
            fit(node.get("GPU", 0.0), num_gpus),
            fit(node.get("CPU", 0.0), cpus),
            *([fit(node.get(spread, 0.0), 1.0)] if spread is not None else []),
        )
        for node in nodes
        if node.get(pool, 0.0) > 0
    )
