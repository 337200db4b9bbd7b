"""What KubeRay's operator writes into a RayService's status, and what pods and events of its look like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ACTIVE = "shop-raycluster-a"
PENDING = "shop-raycluster-b"
LATER = "2026-01-01T00:10:00Z"


def condition(type_: str, true: bool, reason: str, message: str = "it is so") -> dict[str, Any]:
    status = "True" if true else "False"
    time = "2026-01-01T00:00:00Z"
    return {"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": time}


def applications(**statuses: str | tuple[str, str]) -> dict[str, Any]:
    """`writer="RUNNING"`, or with a message `writer=("DEPLOY_FAILED", "Traceback …")`."""
    told = {name: (each, "") if isinstance(each, str) else each for name, each in statuses.items()}
    return {
        name: {
            "status": status,
            **({"message": message} if message else {}),
            "serveDeploymentStatuses": {"Replica": {"status": "HEALTHY" if status == "RUNNING" else "UPDATING"}},
        }
        for name, (status, message) in told.items()
    }


def status(
    generation: int,
    *,
    active: Mapping[str, Any] | None = None,
    pending: Mapping[str, Any] | None = None,
    ready: bool | None = None,
    failure: str = "",
    updated: str = "2026-01-01T00:00:00Z",
) -> dict[str, Any]:
    """Applications of the active and of the pending Ray cluster; None: there is no such cluster."""
    ready = active is not None if ready is None else ready
    ray = {"conditions": [condition("ReplicaFailure", True, "FailedCreateWorkerPod", failure)]} if failure else {}

    def part(name: str, told: Mapping[str, Any] | None) -> dict[str, Any]:
        if told is None:
            return {}
        return {"rayClusterName": name, "applicationStatuses": dict(told), "rayClusterStatus": ray}

    return {
        "observedGeneration": generation,
        **({"serviceStatus": "Running"} if ready else {}),
        "numServeEndpoints": 1 if ready else 0,
        "lastUpdateTime": updated,
        "conditions": [
            condition("Ready", ready, "NonZeroServeEndpoints" if ready else "Initializing", "it is initializing"),
            condition(
                "UpgradeInProgress",
                active is not None and pending is not None,
                "NoPendingCluster" if pending is None else "BothActivePendingClustersExist",
            ),
        ],
        "activeServiceStatus": part(ACTIVE, active),
        "pendingServiceStatus": part(PENDING, pending),
    }


def pod(
    name: str = "shop-worker-1",
    *,
    group: str = "shared",
    cluster: str = ACTIVE,
    namespace: str = "shop",
    ready: bool = False,
    unschedulable: str = "",
    containers: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    if unschedulable:
        conditions.append(
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": unschedulable}
        )
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"ray.io/cluster": cluster, "ray.io/group": group},
        },
        "spec": {"nodeName": "" if unschedulable else "node-1", "containers": [{"name": "ray", "image": "engines:1"}]},
        "status": {"phase": "Pending", "conditions": conditions, "containerStatuses": containers or []},
    }


def event(
    reason: str, message: str, *, about: str = "shop-worker-1", at: str = "2026-01-01T00:00:00Z", kind: str = "Pod"
) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{about}.{reason}.{at}".lower().replace(":", ""), "namespace": "shop"},
        "involvedObject": {"kind": kind, "name": about, "namespace": "shop"},
        "reason": reason,
        "message": message,
        "lastTimestamp": at,
        "type": "Warning",
    }
