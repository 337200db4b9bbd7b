"""Node pools of an environment as data: what GKE's API takes, field by field.

Always true of what is made here:

- a pool's nodes carry the label and the taint that its pods go by (`placement`), so a workload lands on its pool only;
- a node has the pool's GPUs whole, or cut by MIG. GPUs are never shared by GKE (`gpuSharingConfig` is left out):
  time-sharing would show one GPU as many, without a bound on anyone's memory, and GKE's MPS cuts it into equal parts.
  Here one Ray pod takes the node's GPUs, and replicas share them inside by budgets of any size, each enforced;
- images are streamed, and GPU nodes of an environment with `baked` images have them on a second boot disk;
- nodes have no public address, run as an account that may do next to nothing, and hide it from pods.

A spot pool is two: spot nodes, and on-demand ones with the same label and taint, which a compute class tries in that
order. A pool without nodes to begin with grows as pods wait for it. Sources: the reference of `NodePool` and
`NodeConfig` (google.cloud.container_v1), and GKE's pages on image streaming and on secondary boot disks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cotenant.config import Platform, Pool
from cotenant.errors import PlanError
from cotenant.manifests.gke.placement import CLASS_LABEL, class_kind, has_gpu, node_key
from cotenant.manifests.site import POOL_LABEL, Site

#: Name of the on-demand node pool beside a spot pool's ends so.
ON_DEMAND = "-od"
_LONGEST_NAME = 40

#: GKE's own pods on a GPU node are about a dozen; with 32 a node takes a /26 of the pods' addresses instead of a /24.
PODS_PER_NODE = 32

#: Disks of one node. What models and containers write beside the images lies there; a node with GPUs holds weights.
GPU_DISK_GB, FRONT_DISK_GB = 200, 100
#: Families that take no Persistent Disk (Compute Engine's page on Hyperdisk).
_HYPERDISK_ONLY = frozenset({"a4", "a4x", "c4", "c4a", "c4d", "g4", "h4d", "n4", "n4a", "n4d", "x4"})

#: Seconds that the kubelet of a spot node holds up its end, of which these are for GKE's own pods. Of the 30 that a
#: notice gives, GKE itself would leave ours 15.
SPOT_GRACE_S, SPOT_SYSTEM_GRACE_S = 30, 5

#: Label of the node pool itself: a digest of its definition, without what is changed in place.
DIGEST_LABEL = "cotenant_definition"


def node_pools(platform: Platform) -> list[dict[str, Any]]:
    """Every node pool of the environment that is made beforehand, as `google.cloud.container_v1.NodePool` in JSON.

    Raises:
        PlanError: the environment has no `gke`, or a pool has no machine type or too long a name.
    """
    made = []
    for name, pool in platform.pools.items():
        kind = class_kind(platform, name)
        if kind == "auto":
            continue
        made.append(_node_pool(platform, name, spot=pool.spot))
        if kind == "fixed":
            made.append(_node_pool(platform, name, spot=False, suffix=ON_DEMAND))
    return made


def node_pool_names(platform: Platform, pool: str) -> tuple[str, ...]:
    """Names of the node pools of a pool that is made beforehand, in the order in which they are to be taken."""
    name = Site.of(platform).pool(pool)
    if class_kind(platform, pool) is None:
        return (name,)
    if len(name) + len(ON_DEMAND) > _LONGEST_NAME:
        raise PlanError(
            platform.wrong(
                f"pool {pool} is a spot pool, so the node pool {name}{ON_DEMAND} goes with it, whose name has "
                f"{len(name) + len(ON_DEMAND)} characters where GKE allows {_LONGEST_NAME}; shorten the pool's name",
                "pools",
                pool,
            )
        )
    return (name, name + ON_DEMAND)


def machine_family(machine: str) -> str:
    """`g2` of `g2-standard-8`; an A3 with H200s is called `a3-ultragpu`."""
    return machine.split("-", 1)[0]


def disk_type(machine: str) -> str:
    """The balanced disk that a machine type takes."""
    hyper = machine_family(machine) in _HYPERDISK_ONLY or machine.startswith("a3-ultragpu")
    return "hyperdisk-balanced" if hyper else "pd-balanced"


def disk_gb(pool: Pool) -> int:
    return GPU_DISK_GB if pool.holds_workloads else FRONT_DISK_GB


def machine_of(platform: Platform, name: str) -> str:
    """The machine type of a pool. Raises PlanError if it has none."""
    machine = platform.pools[name].machine
    if machine is None:
        raise PlanError(
            platform.wrong(
                f"pool {name} names no machine type, and a node pool needs one; write e.g. machine: g2-standard-8",
                "pools",
                name,
            )
        )
    return machine


def _node_pool(platform: Platform, name: str, *, spot: bool, suffix: str = "") -> dict[str, Any]:
    pool, site = platform.pools[name], Site.of(platform)
    names = node_pool_names(platform, name)
    definition: dict[str, Any] = {
        "name": names[-1] if suffix else names[0],
        "initialNodeCount": 0,
        "autoscaling": {
            "enabled": True,
            "totalMinNodeCount": 0 if suffix else pool.nodes.min,
            "totalMaxNodeCount": pool.nodes.max,
            # A GPU or a spot machine is taken where it is to be had; doors are spread over the zones.
            "locationPolicy": "ANY" if pool.holds_workloads or spot else "BALANCED",
        },
        "management": {"autoUpgrade": True, "autoRepair": True},
        "upgradeSettings": _upgrade(pool),
        "maxPodsConstraint": {"maxPodsPerNode": str(PODS_PER_NODE)},
        "networkConfig": {"enablePrivateNodes": True},
        "config": _config(platform, name, site, spot=spot),
    }
    if site.gke.zones and pool.holds_workloads:
        definition["locations"] = list(site.gke.zones)
    definition["config"]["resourceLabels"][DIGEST_LABEL] = _digest(definition)
    return definition


def _upgrade(pool: Pool) -> dict[str, Any]:
    """A door is replaced before it goes. A GPU node goes first: the quota may hold no second GPU, nor the zone."""
    if pool.holds_workloads:
        return {"strategy": "SURGE", "maxSurge": 0, "maxUnavailable": 1}
    return {"strategy": "SURGE", "maxSurge": 1, "maxUnavailable": 0}


def _config(platform: Platform, name: str, site: Site, *, spot: bool) -> dict[str, Any]:
    pool, machine, key = platform.pools[name], machine_of(platform, name), node_key(platform, name)
    value = site.pool(name)
    labels = {POOL_LABEL: value, "cotenant-environment": site.environment}
    if key == CLASS_LABEL:
        labels[CLASS_LABEL] = value
    config: dict[str, Any] = {
        "machineType": machine,
        "diskType": disk_type(machine),
        "diskSizeGb": disk_gb(pool),
        "imageType": "COS_CONTAINERD",
        "spot": spot,
        "labels": labels,
        "taints": [{"key": key, "value": value, "effect": "NO_SCHEDULE"}],
        "resourceLabels": resource_labels(site, value),
        "metadata": {"disable-legacy-endpoints": "true"},
        "gcfsConfig": {"enabled": True},
        "gvnic": {"enabled": True},
        "serviceAccount": site.node_account_email,
        # What the account may do bounds it, not the scope.
        "oauthScopes": ["https://www.googleapis.com/auth/cloud-platform"],
        "workloadMetadataConfig": {"mode": "GKE_METADATA"},
        "shieldedInstanceConfig": {"enableSecureBoot": True, "enableIntegrityMonitoring": True},
        "kubeletConfig": _kubelet(spot=spot),
    }
    if has_gpu(pool):
        config["accelerators"] = [_accelerator(pool)]
        if site.gke.baked:
            config["secondaryBootDisks"] = [{"diskImage": disk_image(site), "mode": "CONTAINER_IMAGE_CACHE"}]
    return config


def resource_labels(site: Site, pool: str) -> dict[str, str]:
    """Labels of the machines, by which the bill can be split."""
    return {"cotenant_platform": site.platform, "cotenant_environment": site.environment, "cotenant_pool": pool}


def disk_image(site: Site) -> str:
    """The disk image with the engines' image in it, as GKE names it."""
    return f"projects/{site.gke.project}/global/images/{site.node_image}"


def _accelerator(pool: Pool) -> dict[str, Any]:
    accelerator: dict[str, Any] = {
        "acceleratorCount": str(pool.gpus_per_node),
        "acceleratorType": pool.accelerator,
        # The default may lag behind what Mitsuba's OptiX needs (570); the latest one of a GKE version does not.
        "gpuDriverInstallationConfig": {"gpuDriverVersion": "LATEST"},
    }
    if pool.mig is not None:
        accelerator["gpuPartitionSize"] = pool.mig
    return accelerator


def _kubelet(*, spot: bool) -> dict[str, Any]:
    """One process that runs out of memory ends alone, not the whole Ray node with its other replicas."""
    kubelet: dict[str, Any] = {"singleProcessOomKill": True, "insecureKubeletReadonlyPortEnabled": False}
    if spot:
        kubelet["shutdownGracePeriodSeconds"] = SPOT_GRACE_S
        kubelet["shutdownGracePeriodCriticalPodsSeconds"] = SPOT_SYSTEM_GRACE_S
    return kubelet


def _digest(definition: Mapping[str, Any]) -> str:
    """Of everything but what `setup.sh` changes in place."""
    lasting = {key: value for key, value in definition.items() if key != "autoscaling"}
    return hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()[:16]
