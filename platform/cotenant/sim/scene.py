"""From a platform and its plan to what is simulated: pools with prices, workloads with shares and bounds."""

from __future__ import annotations

from dataclasses import replace

from cotenant.config import Platform
from cotenant.gpu.machines import node_usd_per_h
from cotenant.gpu.plan import Plan
from cotenant.scaling.terms import Bounds
from cotenant.sim.model import SimPool, SimWorkload
from cotenant.sim.stages import DEFAULTS, Image, Span, Stages

#: Instead of an LLM's weights, a renderer loads a scene of some MB.
SCENE = Span(0.5, 2, 6, "assumed; 1.4 s until the first frame on a CPU, measured")


def scene_parts(
    platform: Platform, plan: Plan, *, image: Image, spare_nodes: int | None = None, stages: Stages = DEFAULTS
) -> tuple[tuple[SimPool, ...], tuple[SimWorkload, ...]]:
    """The pools that hold workloads, and the workloads on them with the shares that the plan gives them.

    `spare_nodes` stands in for what the file says of its pools. A pool without a price costs nothing. A node of
    several GPUs is simulated as that many nodes, its price split.
    """
    names = [name for name in plan.pools if platform.pools[name].holds_workloads]
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
