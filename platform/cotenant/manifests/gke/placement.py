"""How a pool's pods find its nodes, and how nobody else's do: labels, taints and tolerations, in one place.

Always true: the nodes of a pool carry the label and the taint that its pods select and tolerate, and no other pool's
pods tolerate that taint. A pool that GKE chooses nodes for (spot first, or made as needed) is told apart by its compute
class, every other one by `POOL_LABEL`; either has `Site.pool` as its value. Every node carries `POOL_LABEL` as a label.
"""

from __future__ import annotations

from typing import Any, Literal

from cotenant.config import Platform, Pool
from cotenant.manifests.site import POOL_LABEL, Site

#: Label and taint by which GKE knows the nodes of a compute class.
CLASS_LABEL = "cloud.google.com/compute-class"
#: What GKE taints every node with GPUs with, by itself.
GPU_TAINT = "nvidia.com/gpu"
#: What GKE taints the spot nodes with that it makes by itself.
SPOT_TAINT = "cloud.google.com/gke-spot"

ClassKind = Literal["fixed", "auto"]


def has_gpu(pool: Pool) -> bool:
    """Whether its nodes have a real GPU."""
    return pool.accelerator not in (None, "cpu")


def class_kind(platform: Platform, pool: str) -> ClassKind | None:
    """How GKE chooses the pool's nodes by a compute class; None if there is one node pool and nothing to choose.

    `fixed`: spot nodes first, and on-demand ones where there are none, from two node pools made beforehand. `auto`: the
    same, or on-demand alone, from node pools that GKE makes. The front pool is never `auto`: it has to be there first.
    """
    spec = platform.pools[pool]
    gke = Site.of(platform).gke
    if gke.node_pools == "auto" and spec.holds_workloads:
        return "auto"
    return "fixed" if spec.spot else None


def node_key(platform: Platform, pool: str) -> str:
    """Key of the label and taint that set the pool's nodes apart; their value is `Site.pool`."""
    return POOL_LABEL if class_kind(platform, pool) is None else CLASS_LABEL


def pod_placement(platform: Platform, pool: str) -> dict[str, Any]:
    """`nodeSelector` and `tolerations` of a pod that belongs on the pool's nodes.

    Raises PlanError: the environment has no `gke`.
    """
    name = Site.of(platform).pool(pool)
    key = node_key(platform, pool)
    tolerations = [{"key": key, "operator": "Equal", "value": name, "effect": "NoSchedule"}]
    if has_gpu(platform.pools[pool]):
        tolerations.append({"key": GPU_TAINT, "operator": "Exists", "effect": "NoSchedule"})
    if platform.pools[pool].spot and class_kind(platform, pool) == "auto":
        tolerations.append({"key": SPOT_TAINT, "operator": "Equal", "value": "true", "effect": "NoSchedule"})
    return {"nodeSelector": {key: name}, "tolerations": tolerations}
