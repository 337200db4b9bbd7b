"""From a platform and its plan to what is simulated: pools with prices, workloads with shares and bounds."""

from __future__ import annotations

from dataclasses import replace

from cotenant.config import Platform, Pool
from cotenant.gpu.machines import node_usd_per_h
from cotenant.gpu.plan import Plan
from cotenant.scaling.terms import Bounds
from cotenant.sim.model import SimPool, SimWorkload
from cotenant.sim.stages import DEFAULTS, SPOT, Image, Span, Spot, Stages

#: Instead of an LLM's weights, a renderer loads a scene of some MB.
SCENE = Span(0.5, 2, 6, "assumed; 1.4 s until the first frame on a CPU, measured")


def scene_parts(
    platform: Platform,
    plan: Plan,
    *,
    image: Image,
    spare_nodes: int | None = None,
    stages: Stages = DEFAULTS,
    spot: Spot = SPOT,
) -> tuple[tuple[SimPool, ...], tuple[SimWorkload, ...]]:
    """The pools that hold workloads, and the workloads on them with the shares that the plan gives them.

    `spare_nodes` stands in for what the file says of its pools. A pool without a price costs nothing. A node of
    several GPUs is simulated as that many nodes, its price split. While a spot pool has no nodes to give, they come
    from the first pool with the same GPUs that is no spot pool, if the file has one.
    """
    names = [name for name in plan.pools if platform.pools[name].holds_workloads]
    fallbacks = {name: _fallback(platform, name) for name in names}
    names += [name for name in dict.fromkeys(fallbacks.values()) if name is not None and name not in names]
    pools = []
    for name in names:
        pool = platform.pools[name]
        usd = node_usd_per_h(pool) or 0.0
        gpus = pool.gpus_per_node
        pools.append(
            SimPool(
                name,
                usd_per_h=usd / gpus,
                min_nodes=pool.nodes.min * gpus,
                max_nodes=pool.nodes.max * gpus,
                spare_nodes=pool.nodes.spare * gpus if spare_nodes is None else spare_nodes,
                image=image,
                losses_per_h=spot.losses_per_h if pool.spot else 0.0,
                dry_s=spot.dry_s if pool.spot else 0.0,
                fallback=names.index(fallback) if (fallback := fallbacks.get(name)) is not None else None,
            )
        )
    workloads = []
    for name, booking in plan.workloads.items():
        workload = platform.workloads[name]
        bounds = Bounds(
            slots=workload.slots,
            min=booking.replicas_min,
            max=booking.replicas_max,
            target_wait_s=workload.wait_s,
            can_sleep=workload.residency == "sleep",
        )
        mine = stages
        if workload.kind == "mockup" and stages.weights == DEFAULTS.weights:
            mine = replace(stages, weights=SCENE)
        workloads.append(SimWorkload(name, bounds, booking.num_gpus, names.index(booking.pool), mine))
    return tuple(pools), tuple(workloads)


def _fallback(platform: Platform, name: str) -> str | None:
    """The pool that stands in for a spot pool."""
    pool = platform.pools[name]

    def gpus(one: Pool) -> tuple[str | None, int, str | None]:
        return (one.accelerator, one.gpus_per_node, one.mig)

    alike = (other for other, one in platform.pools.items() if not one.spot and gpus(one) == gpus(pool))
    return next(alike, None) if pool.spot else None
