"""Compute classes: which nodes GKE tries for a pool, in which order.

Always true: a class is called as its pool (`Site.pool`), its nodes are of one machine type and accelerator, so to Ray
they are the same, and where none of them is to be had the pods wait. GKE's API gives a class no way to cut GPUs by MIG,
so such a pool needs node pools made beforehand.
"""

from __future__ import annotations

from typing import Any

from cotenant.config import Platform
from cotenant.errors import PlanError
from cotenant.manifests.gke.node_pools import disk_gb, disk_type, machine_of, node_pool_names
from cotenant.manifests.gke.placement import class_kind, has_gpu
from cotenant.manifests.kubernetes.objects import Object, metadata
from cotenant.manifests.site import POOL_LABEL, Site

#: Minutes that a node without work is kept, where nobody asks for spare ones.
IDLE_MINUTES = 5


def compute_classes(platform: Platform) -> list[Object]:
    """The environment's classes, to be applied to the cluster; they have no namespace.

    Raises:
        PlanError: the environment has no `gke`, or GKE can't make such nodes by itself.
    """
    return [_compute_class(platform, pool) for pool in platform.pools if class_kind(platform, pool) is not None]


def _compute_class(platform: Platform, pool: str) -> Object:
    site = Site.of(platform)
    spec = _auto(platform, pool, site) if class_kind(platform, pool) == "auto" else _fixed(platform, pool)
    return {
        "apiVersion": "cloud.google.com/v1",
        "kind": "ComputeClass",
        "metadata": metadata(site, site.pool(pool), namespaced=False),
        "spec": spec,
    }


def _fixed(platform: Platform, pool: str) -> dict[str, Any]:
    """The spot node pool, then the on-demand one."""
    return {
        "priorities": [{"nodepools": [name]} for name in node_pool_names(platform, pool)],
        "nodePoolAutoCreation": {"enabled": False},
        **_common(platform, pool),
    }


def _auto(platform: Platform, pool: str, site: Site) -> dict[str, Any]:
    spec = platform.pools[pool]
    if spec.mig is not None:
        raise PlanError(
            platform.wrong(
                f"pool {pool} has MIG slices {spec.mig}, which a compute class can't ask for; use "
                "gke: {node_pools: fixed}, or drop mig",
                "pools",
                pool,
            )
        )
    ways = (True, False) if spec.spot else (False,)
    return {
        "priorities": [_rule(platform, pool, site, spot=spot) for spot in ways],
        "nodePoolAutoCreation": {"enabled": True},
        "nodePoolConfig": {
            "serviceAccount": site.node_account_email,
            "imageType": "cos_containerd",
            "imageStreaming": {"enabled": True},
            "gvnic": {"enabled": True},
            "autoRepair": True,
            "autoUpgrade": True,
            "nodeLabels": {POOL_LABEL: site.pool(pool), "cotenant-environment": site.environment},
        },
        **_common(platform, pool),
    }


def _rule(platform: Platform, pool: str, site: Site, *, spot: bool) -> dict[str, Any]:
    spec, machine = platform.pools[pool], machine_of(platform, pool)
    storage: dict[str, Any] = {"bootDiskType": disk_type(machine), "bootDiskSize": disk_gb(spec)}
    rule: dict[str, Any] = {"machineType": machine, "spot": spot, "storage": storage}
    if has_gpu(spec):
        rule["gpu"] = {"type": spec.accelerator, "count": spec.gpus_per_node, "driverVersion": "latest"}
        if site.gke.baked:
            storage["secondaryBootDisks"] = [
                {"diskImageName": site.node_image, "project": site.gke.project, "mode": "CONTAINER_IMAGE_CACHE"}
            ]
    if site.gke.zones:
        rule["location"] = {"zones": list(site.gke.zones)}
    return rule


def _common(platform: Platform, pool: str) -> dict[str, Any]:
    return {
        # Back to spot when there is some again; nothing to go back to where there is one way only.
        "activeMigration": {"optimizeRulePriority": platform.pools[pool].spot},
        # Only a node without any of our pods is given up, also one with MIG slices that are partly in use.
        "autoscalingPolicy": {
            "consolidationDelayMinutes": IDLE_MINUTES,
            "consolidationThreshold": 0,
            "gpuConsolidationThreshold": 0,
        },
        "whenUnsatisfiable": "DoNotScaleUp",
    }
