"""Monthly cost of an environment: its GPU pools at the plan's minimum and maximum, against a GPU per replica.

Nodes are what is paid for, so cost counts nodes, also those of which only a part is used and those that
`nodes.min` keeps. The comparison gives each replica a GPU of its own in the same pool; it is not bound by
`nodes.max`. A pool whose price is unknown counts in no sum and is named in `unpriced`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cotenant.config import Platform
from cotenant.gpu.machines import node_usd_per_h
from cotenant.gpu.plan import Plan

HOURS_PER_MONTH = 730.0


@dataclass(frozen=True)
class PoolCost:
    """One pool: the price of a node, and how many run. A front pool has no comparison: its nodes are the same."""

    name: str
    holds_workloads: bool
    usd_per_h: float | None
    nodes_at_min: int
    nodes_at_max: int
    nodes_whole_gpus_at_min: int
    nodes_whole_gpus_at_max: int

    def monthly_usd(self, nodes: int) -> float:
        return (self.usd_per_h or 0.0) * nodes * HOURS_PER_MONTH


@dataclass(frozen=True)
class Cost:
    """USD a month. `gpu_` sums are over the pools that hold workloads, `front_` over the others."""

    pools: tuple[PoolCost, ...]

    @property
    def unpriced(self) -> tuple[str, ...]:
        return tuple(pool.name for pool in self.pools if pool.usd_per_h is None)

    @property
    def gpu_usd_at_min(self) -> float:
        return math.fsum(pool.monthly_usd(pool.nodes_at_min) for pool in self._gpu)

    @property
    def gpu_usd_at_max(self) -> float:
        return math.fsum(pool.monthly_usd(pool.nodes_at_max) for pool in self._gpu)

    @property
    def whole_gpus_usd_at_min(self) -> float:
        return math.fsum(pool.monthly_usd(pool.nodes_whole_gpus_at_min) for pool in self._gpu)

    @property
    def whole_gpus_usd_at_max(self) -> float:
        return math.fsum(pool.monthly_usd(pool.nodes_whole_gpus_at_max) for pool in self._gpu)

    @property
    def front_usd_at_min(self) -> float:
        return math.fsum(pool.monthly_usd(pool.nodes_at_min) for pool in self.pools if not pool.holds_workloads)

    @property
    def front_usd_at_max(self) -> float:
        return math.fsum(pool.monthly_usd(pool.nodes_at_max) for pool in self.pools if not pool.holds_workloads)

    @property
    def usd_per_h_at_min(self) -> float:
        """All nodes of the environment per hour, the front's too; machines only, as `gpu.machines` prices them."""
        return (self.gpu_usd_at_min + self.front_usd_at_min) / HOURS_PER_MONTH

    @property
    def usd_per_h_at_max(self) -> float:
        return (self.gpu_usd_at_max + self.front_usd_at_max) / HOURS_PER_MONTH

    @property
    def _gpu(self) -> tuple[PoolCost, ...]:
        return tuple(pool for pool in self.pools if pool.holds_workloads)


def monthly_cost(platform: Platform, plan: Plan) -> Cost:
    """What the pools of a platform cost at the minimum and at the maximum of its plan."""
    costs = []
    for name, pool in platform.pools.items():
        planned = plan.pools.get(name)
        if planned is None:
            at_min, at_max = whole_min, whole_max = pool.nodes.min, pool.nodes.max
        else:
            at_min, at_max = planned.nodes_at_min, planned.nodes_at_max
            here = [booking for booking in plan.workloads.values() if booking.pool == name]
            whole_min, whole_max = (
                max(pool.nodes.min, -(-gpus // pool.gpus_per_node))
                for gpus in (sum(b.replicas_min for b in here), sum(b.placed_max for b in here))
            )
        costs.append(PoolCost(name, pool.holds_workloads, node_usd_per_h(pool), at_min, at_max, whole_min, whole_max))
    return Cost(tuple(costs))
