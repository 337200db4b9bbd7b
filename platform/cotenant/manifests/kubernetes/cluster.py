"""The Ray cluster of an environment: a head without workloads, a front group for the doors, a group for each GPU pool.

Always true: a group's pods fit the nodes of its pool and no others', one pod to a node (one to a slice with MIG); every
node of a group offers its pool's resource, so a replica lands in the pool that the plan gave it; the front group is
never empty, so that something is there to wake the others up.
"""

from __future__ import annotations

from cotenant.config import Platform
from cotenant.gpu.plan import Plan
from cotenant.manifests.gke.placement import has_gpu, pod_placement
from cotenant.manifests.kubernetes.access import priority_name
from cotenant.manifests.kubernetes.containers import (
    MPS_SETTINGS,
    door_probe,
    door_secrets,
    grace_s,
    head_lifecycle,
    lifecycle,
    pod_security,
    ray_container,
    raylet_probe,
    settings,
)
from cotenant.manifests.kubernetes.door import DOOR_LABEL
from cotenant.manifests.kubernetes.front import front_of
from cotenant.manifests.kubernetes.objects import Object, cpus, memory, unprivileged
from cotenant.manifests.kubernetes.redis import gcs_fault_tolerance
from cotenant.manifests.kubernetes.sizing import AUTOSCALER, HEAD, pods_per_node, worker_room
from cotenant.manifests.pools import node_resources
from cotenant.manifests.ray_settings import RAY_VERSION
from cotenant.manifests.site import Image, Site

#: The Secret with Ray's token, and the key that KubeRay looks under. One of our own: KubeRay's would change with every
#: cluster.
TOKEN_SECRET, TOKEN_KEY = "cotenant-ray-token", "auth_token"
#: A node that holds nothing goes after this long; a GPU node holds nothing once its agent has ended (30 s).
_GPU_IDLE_S, _FRONT_IDLE_S = 120, 600
#: A pod that doesn't come within this time is given up, and asked for again. A GPU node with its images takes minutes.
_ALLOCATE_S = 900
#: How much later than its last worker the head may go.
_HEAD_LATER_S = 30
#: Ray's shared memory, within the container's own.
_OBJECT_STORE_BYTES = {"doors": 2**30, "engines": 2 * 2**30}
#: What COTENANT_HOME may grow to on the node's disk: compiled code, and models that are no bucket's.
_HOME_GIB = {"doors": 5, "engines": 60}


def ray_cluster(platform: Platform, plan: Plan) -> Object:
    """`rayClusterConfig` of the RayService.

    Raises:
        PlanError: the environment has no front pool, or one that may be empty; a pool has no machine type or too small
            a machine.
    """
    site = Site.of(platform)
    front = front_of(platform)
    return {
        "rayVersion": RAY_VERSION,
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": _autoscaler(),
        "authOptions": {"mode": "token", "secretName": TOKEN_SECRET},
        "gcsFaultToleranceOptions": gcs_fault_tolerance(site),
        "headGroupSpec": _head(platform, plan, site, front),
        "workerGroupSpecs": [
            _group(platform, plan, site, front),
            *(_group(platform, plan, site, name) for name in plan.pools),
        ],
    }


def pods_at_min(platform: Platform, plan: Plan) -> dict[str, int]:
    """Pods that each group always has, by its name."""
    groups = [front_of(platform), *plan.pools]
    return {name: platform.pools[name].nodes.min * pods_per_node_of(platform, plan, name) for name in groups}


def _autoscaler() -> Object:
    amount = {"cpu": cpus(AUTOSCALER.cpus), "memory": memory(AUTOSCALER.gib)}
    return {
        "version": "v2",
        "idleTimeoutSeconds": _GPU_IDLE_S,
        "upscalingMode": "Default",
        "imagePullPolicy": "IfNotPresent",
        "resources": {"requests": dict(amount), "limits": dict(amount)},
        "securityContext": unprivileged(),
        "env": [{"name": "RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S", "value": str(_ALLOCATE_S)}],
    }


def _head(platform: Platform, plan: Plan, site: Site, front: str) -> Object:
    # As long as the slowest of its workers, and a little longer.
    grace = max(grace_s(platform, plan, name) for name in (front, *plan.pools)) + _HEAD_LATER_S
    container = ray_container(
        "ray-head",
        site=site,
        image="doors",
        room=HEAD,
        env=settings(site),
        ports=[
            {"name": "gcs-server", "containerPort": 6379},
            {"name": "dashboard", "containerPort": 8265},
            {"name": "client", "containerPort": 10001},
        ],
        lifecycle=head_lifecycle(grace),
        livenessProbe=raylet_probe(period_s=10, failures=30),
        readinessProbe=raylet_probe(period_s=5, failures=6),
    )
    return {
        "rayStartParams": {
            # It runs no workload, no door, and no task that doesn't ask for the head by name.
            "num-cpus": "0",
            "dashboard-host": "0.0.0.0",  # noqa: S104 - KubeRay's operator talks to it, with the token
            "object-store-memory": str(_OBJECT_STORE_BYTES["doors"]),
        },
        "template": {
            "metadata": {"labels": {**site.labels}},
            "spec": {
                "priorityClassName": priority_name(site, "doors"),
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": grace,
                "securityContext": pod_security(),
                **pod_placement(platform, front),
                "containers": [container],
                "volumes": [_home("doors")],
            },
        },
    }


def _group(platform: Platform, plan: Plan, site: Site, name: str) -> Object:
    pool = platform.pools[name]
    per_node = pods_per_node_of(platform, plan, name)
    is_front = not pool.holds_workloads
    image: Image = "doors" if is_front else "engines"
    template = {
        "metadata": {"labels": {**site.labels, **(DOOR_LABEL if is_front else {})}},
        "spec": {
            "priorityClassName": priority_name(site, "doors" if is_front else "workloads"),
            "serviceAccountName": site.service_account,
            "automountServiceAccountToken": False,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": grace_s(platform, plan, name),
            "securityContext": pod_security(),
            **pod_placement(platform, name),
            **({"topologySpreadConstraints": _over_zones(name)} if is_front else {}),
            "containers": [_worker(platform, plan, site, name)],
            "volumes": [_home(image)],
        },
    }
    return {
        "groupName": name,
        "replicas": pool.nodes.min * per_node,
        "minReplicas": pool.nodes.min * per_node,
        "maxReplicas": pool.nodes.max * per_node,
        "idleTimeoutSeconds": _FRONT_IDLE_S if is_front else _GPU_IDLE_S,
        "resources": {resource: str(int(amount)) for resource, amount in node_resources(platform, name).items()},
        "rayStartParams": {"object-store-memory": str(_OBJECT_STORE_BYTES[image])},
        "template": template,
    }


def _worker(platform: Platform, plan: Plan, site: Site, name: str) -> Object:
    pool = platform.pools[name]
    is_front = not pool.holds_workloads
    image: Image = "doors" if is_front else "engines"
    planned = plan.pools.get(name)
    per_node = pods_per_node_of(platform, plan, name)
    gpus = planned.gpus_per_node // per_node if planned is not None and has_gpu(pool) else 0
    door = {
        "ports": [{"name": "http", "containerPort": platform.gateway.port}],
        "readinessProbe": door_probe(platform.gateway.port),
    }
    return ray_container(
        "ray-worker",
        site=site,
        image=image,
        room=worker_room(platform, name, gpus_per_node=planned.gpus_per_node if planned is not None else 1),
        env=[*settings(site, MPS_SETTINGS if pool.mps else {}), *(door_secrets(platform) if is_front else [])],
        gpus=gpus,
        lifecycle=lifecycle(grace_s(platform, plan, name), mps=pool.mps),
        livenessProbe=raylet_probe(period_s=10, failures=30),
        **(door if is_front else {"readinessProbe": raylet_probe(period_s=5, failures=6)}),
    )


def pods_per_node_of(platform: Platform, plan: Plan, name: str) -> int:
    """Ray pods of one node of the pool."""
    planned = plan.pools.get(name)
    return pods_per_node(platform.pools[name], planned.gpus_per_node if planned is not None else 1)


def _home(image: Image) -> Object:
    return {"name": "home", "emptyDir": {"sizeLimit": f"{_HOME_GIB[image]}Gi"}}


def _over_zones(group: str) -> list[Object]:
    """Doors in several zones, where there are several."""
    return [
        {
            "maxSkew": 1,
            "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {"ray.io/group": group}},
        }
    ]
