"""The RayService: the Ray cluster, and the Serve config that runs on it."""

from __future__ import annotations

from cotenant.config import Platform
from cotenant.gpu.plan import Plan
from cotenant.manifests.files import plain_yaml
from cotenant.manifests.kubernetes.cluster import ray_cluster
from cotenant.manifests.kubernetes.objects import Object, metadata
from cotenant.manifests.serve import serve_config
from cotenant.manifests.site import Site

#: Between a switch to a new cluster and the end of the old one. The doors there drain by themselves besides.
_OLD_CLUSTER_S = 120
#: In an upgrade by steps: GPUs beyond what is needed, how much traffic moves at once, and how often, in %, %, s.
_SURGE, _STEP, _EVERY_S = 25, 25, 60


def ray_service(platform: Platform, plan: Plan) -> Object:
    """The RayService of the environment. Raises PlanError as `ray_cluster`."""
    site = Site.of(platform)
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": metadata(site, site.platform),
        "spec": {
            "upgradeStrategy": _upgrade(site),
            "rayClusterDeletionDelaySeconds": _OLD_CLUSTER_S,
            # The head takes no calls: it is not in the operator's Service.
            "excludeHeadPodFromServeSvc": True,
            "serveConfigV2": plain_yaml(serve_config(_with_open_metrics(platform), plan)),
            "rayClusterConfig": ray_cluster(platform, plan),
        },
    }


def _with_open_metrics(platform: Platform) -> Platform:
    """Google's collector has no key of ours, and who else reaches the gateway's port is up to the network policies."""
    return platform.model_copy(update={"gateway": platform.gateway.model_copy(update={"open_metrics": True})})


def _upgrade(site: Site) -> Object:
    if site.gke.upgrade == "none":
        return {"type": "None"}
    if site.gke.upgrade == "new-cluster":
        return {"type": "NewCluster"}
    return {
        "type": "NewClusterWithIncrementalUpgrade",
        "clusterUpgradeOptions": {
            # The operator insists on a Gateway of its own. Nobody uses it: requests come by our Service, which holds
            # the doors of both clusters, and their number moves in the same steps.
            "gatewayClassName": "gke-l7-rilb",
            "maxSurgePercent": _SURGE,
            "stepSizePercent": _STEP,
            "intervalSeconds": _EVERY_S,
        },
    }
