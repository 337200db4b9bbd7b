"""Spare nodes that Kubernetes keeps (`gke.spare_by: nodes`), instead of Ray.

A CapacityBuffer where the cluster knows it, otherwise pods that do nothing and make room for anything. Both are as
large as the pool's own pods, so that a node which fits them fits one of those, and no other pool's nodes do.
"""

from __future__ import annotations

from cotenant.config import Platform
from cotenant.gpu.plan import Plan
from cotenant.manifests.gke.placement import has_gpu, pod_placement
from cotenant.manifests.kubernetes.access import priority_name
from cotenant.manifests.kubernetes.cluster import pods_per_node_of
from cotenant.manifests.kubernetes.containers import pod_security
from cotenant.manifests.kubernetes.objects import MANAGED_BY, Object, cpus, memory, metadata, unprivileged
from cotenant.manifests.kubernetes.sizing import worker_room
from cotenant.manifests.site import Site

ACTIVE_CAPACITY = "buffer.x-k8s.io/active-capacity"


def spare_capacity(platform: Platform, plan: Plan) -> list[Object]:
    """What keeps the pools' spare nodes; nothing where Ray does."""
    site = Site.of(platform)
    if site.gke.spare_by == "ray":
        return []
    made: list[Object] = []
    for name, pool in platform.pools.items():
        if pool.nodes.spare:
            pods = pool.nodes.spare * pods_per_node_of(platform, plan, name)
            make = _buffer if site.gke.has_buffers else _placeholders
            made += make(platform, plan, name, pods)
    return made


def _buffer(platform: Platform, plan: Plan, name: str, pods: int) -> list[Object]:
    site = Site.of(platform)
    return [
        {
            "apiVersion": "v1",
            "kind": "PodTemplate",
            "metadata": metadata(site, f"spare-{name}"),
            "template": _template(platform, plan, name, {}),
        },
        {
            "apiVersion": "autoscaling.x-k8s.io/v1beta1",
            "kind": "CapacityBuffer",
            "metadata": metadata(site, f"spare-{name}"),
            "spec": {
                "podTemplateRef": {"name": f"spare-{name}"},
                "replicas": pods,
                "provisioningStrategy": ACTIVE_CAPACITY,
            },
        },
    ]


def _placeholders(platform: Platform, plan: Plan, name: str, pods: int) -> list[Object]:
    site = Site.of(platform)
    selector = {"app.kubernetes.io/name": "spare", "cotenant-spare": name}
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata(site, f"spare-{name}"),
            "spec": {
                "replicas": pods,
                "selector": {"matchLabels": selector},
                # All at once: a placeholder has nothing to hand over.
                "strategy": {"type": "Recreate"},
                "template": _template(platform, plan, name, selector),
            },
        }
    ]


def _template(platform: Platform, plan: Plan, name: str, labels: dict[str, str]) -> Object:
    """A pod as large as one of the pool's. It runs the engines' image, so that image is on the node then."""
    site, pool = Site.of(platform), platform.pools[name]
    planned = plan.pools.get(name)
    gpus_per_node = planned.gpus_per_node if planned is not None else 1
    room = worker_room(platform, name, gpus_per_node=gpus_per_node)
    amount: Object = {"cpu": cpus(room.cpus), "memory": memory(room.gib)}
    if has_gpu(pool):
        amount["nvidia.com/gpu"] = gpus_per_node // pods_per_node_of(platform, plan, name)
    return {
        "metadata": {"labels": {**site.labels, **MANAGED_BY, **labels}},
        "spec": {
            "priorityClassName": priority_name(site, "spare"),
            "automountServiceAccountToken": False,
            # It goes at once when something real comes.
            "terminationGracePeriodSeconds": 0,
            "securityContext": pod_security(),
            **pod_placement(platform, name),
            "containers": [
                {
                    "name": "spare",
                    "image": site.image("engines" if pool.holds_workloads else "doors"),
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sleep", "infinity"],
                    "resources": {"requests": dict(amount), "limits": dict(amount)},
                    "securityContext": unprivileged(),
                }
            ],
        },
    }
