"""What the scaler is told of the platform: plain data that the doors carry in their `user_config`.

So a changed bound or target reaches it in place. In the policy's own settings it would restart the workload's replicas.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cotenant.config import Platform
from cotenant.config.model import Kind
from cotenant.gpu.plan import Plan
from cotenant.manifests.nodes import headroom_terms
from cotenant.manifests.pools import pool_resource, spread_resource

#: Seconds that it takes until a replica serves: from sleep, on a node that is there, with a node that has to be made.
#: Assumed, as `cotenant simulate` does with streamed images (`sim.stages`); the scaler learns what they are.
ASSUMED_STARTS_S: Mapping[Kind, tuple[float, float, float]] = {
    "llm": (3.0, 70.0, 200.0),
    "image": (3.0, 70.0, 200.0),
    "mockup": (3.0, 40.0, 170.0),
}


def scaling_terms(platform: Platform, plan: Plan) -> dict[str, Any]:
    """`{"workloads": […], "pools": […]}`: workloads whose number of replicas may change, and the pools' nodes."""
    return {
        "workloads": [
            _workload_terms(platform, plan, name)
            for name, workload in platform.workloads.items()
            if workload.replicas.min != workload.replicas.max
        ],
        "pools": headroom_terms(platform, plan),
    }


def _workload_terms(platform: Platform, plan: Plan, name: str) -> dict[str, Any]:
    workload, booking = platform.workloads[name], plan.workloads[name]
    wake_s, share_s, node_s = ASSUMED_STARTS_S[workload.kind]
    return {
        "name": name,
        "pool_resource": pool_resource(booking.pool),
        "spread_resource": spread_resource(name) if workload.replicas.per_node is not None else None,
        "num_gpus": booking.num_gpus,
        "cpus": workload.cpus,
        "slots": workload.slots,
        "min": workload.replicas.min,
        "max": workload.replicas.max,
        "target_wait_s": workload.wait_s,
        "wake_s": wake_s,
        "share_s": share_s,
        "node_s": node_s,
    }
