"""What KubeRay's operator (1.7) refuses in a RayService although its CRD accepts it.

Written after `ray-operator/controllers/ray/utils/validation.go` of ray-project/kuberay as it was near that version; the
checks that concern features which are never rendered here (history server, TLS, its network policies, suspension) are
left out. The operator reports such a mistake only as an event, minutes later.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
#: The operator's names for a cluster and its pods come after the service's own.
_LONGEST_NAME = 47
_UPGRADES = ("NewCluster", "NewClusterWithIncrementalUpgrade", "None")
_SIZES = ("num-cpus", "num-gpus", "memory", "resources")
_V2_SWITCH = "RAY_enable_autoscaler_v2"


def operator_problems(service: dict[str, Any]) -> list[str]:
    """What the operator would refuse, a line each; empty if nothing."""
    return [*_service(service), *_cluster(service)]


def _service(service: dict[str, Any]) -> Iterator[str]:
    name, spec = service["metadata"]["name"], service["spec"]
    if len(name) > _LONGEST_NAME or not _DNS_1035.fullmatch(name):
        yield f"the name {name!r} must be a DNS label that begins with a letter, of at most {_LONGEST_NAME} characters"
    if spec["rayClusterConfig"].get("upgradeStrategy") is not None:
        yield "rayClusterConfig.upgradeStrategy must be unset: the RayService's own strategy upgrades it"
    if spec.get("rayClusterDeletionDelaySeconds", 0) < 0:
        yield "rayClusterDeletionDelaySeconds is negative"
    upgrade = spec.get("upgradeStrategy")
    if upgrade is None:
        return
    if upgrade.get("type") not in _UPGRADES:
        yield f"upgradeStrategy.type {upgrade.get('type')!r} must be one of {', '.join(_UPGRADES)}"
    if upgrade.get("type") == "NewClusterWithIncrementalUpgrade":
        yield from _by_steps(upgrade.get("clusterUpgradeOptions"), spec)


def _by_steps(options: dict[str, Any] | None, spec: dict[str, Any]) -> Iterator[str]:
    if options is None:
        yield "an upgrade by steps needs upgradeStrategy.clusterUpgradeOptions"
        return
    surge, step = options.get("maxSurgePercent", 100), options.get("stepSizePercent", -1)
    if not 0 <= surge <= 100:
        yield f"maxSurgePercent {surge} must be from 0 to 100"
    if not 0 <= step <= min(surge, 100):
        yield f"stepSizePercent {step} must be from 0 to maxSurgePercent, {surge}"
    if options.get("intervalSeconds", 0) <= 0:
        yield "intervalSeconds must be above 0"
    if not options.get("gatewayClassName"):
        yield "an upgrade by steps needs a gatewayClassName"
    if not spec["rayClusterConfig"].get("enableInTreeAutoscaling"):
        yield "an upgrade by steps needs enableInTreeAutoscaling"


def _cluster(service: dict[str, Any]) -> Iterator[str]:
    cluster = service["spec"]["rayClusterConfig"]
    annotations = service["metadata"].get("annotations") or {}
    head, groups = cluster["headGroupSpec"], cluster.get("workerGroupSpecs", [])
    is_v2 = (cluster.get("autoscalerOptions") or {}).get("version") == "v2"
    for name, group in (("the head", head), *((f"group {g['groupName']}", g) for g in groups)):
        yield from _group(name, group, cluster, is_v2)
    names = [group["groupName"] for group in groups]
    if len(set(names)) < len(names):
        yield "two worker groups have the same groupName"
    yield from _fault_tolerance(cluster, annotations)
    yield from _autoscaler(cluster)
    yield from _auth(cluster)


def _group(name: str, group: dict[str, Any], cluster: dict[str, Any], is_v2: bool) -> Iterator[str]:
    parameters, spec = group.get("rayStartParams") or {}, group["template"]["spec"]
    if not spec.get("containers"):
        yield f"{name} has no container"
    both = [key for key in _SIZES if key in parameters]
    if group.get("resources") and both:
        yield f"{name} has resources and rayStartParams {', '.join(both)}; the operator takes one of the two"
    if "labels" in parameters:
        yield f"{name} has rayStartParams labels; they belong in the group's own labels"
    for key, value in (group.get("labels") or {}).items():
        if len(str(value)) > 63 or not _LABEL_VALUE.fullmatch(str(value)):
            yield f"{name}: label {key} has the value {value!r}, which is none for a label"
    least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
    if least < 0 or most < 0 or least > most:
        yield f"{name}: minReplicas {least} and maxReplicas {most} are no range"
    idle_s = group.get("idleTimeoutSeconds")
    if idle_s is not None and (idle_s < 0 or not is_v2):
        yield f"{name}: idleTimeoutSeconds {idle_s} must not be negative, and needs autoscalerOptions.version v2"
    if group.get("priority", 0) and (not is_v2 or _version(cluster) < (2, 56, 0)):
        yield f"{name}: priority needs autoscalerOptions.version v2 and a rayVersion from 2.56.0"
    if is_v2 and cluster.get("enableInTreeAutoscaling") and spec.get("restartPolicy", "Never") not in ("", "Never"):
        yield f"{name}: restartPolicy must be Never with autoscaler v2"


def _fault_tolerance(cluster: dict[str, Any], annotations: dict[str, str]) -> Iterator[str]:
    options, head = cluster.get("gcsFaultToleranceOptions"), cluster["headGroupSpec"]
    env = {each["name"] for each in head["template"]["spec"]["containers"][0].get("env", [])}
    parameters = head.get("rayStartParams") or {}
    if "redis-username" in parameters or "REDIS_USERNAME" in env:
        yield "the user of Redis belongs in gcsFaultToleranceOptions.redisUsername"
    if options is None:
        if "RAY_REDIS_ADDRESS" in env and annotations.get("ray.io/ft-enabled") != "true":
            yield "the head has RAY_REDIS_ADDRESS without gcsFaultToleranceOptions"
        return
    if annotations.get("ray.io/ft-enabled"):
        yield "the annotation ray.io/ft-enabled can't go with gcsFaultToleranceOptions"
    if annotations.get("ray.io/external-storage-namespace"):
        yield "the annotation ray.io/external-storage-namespace can't go with gcsFaultToleranceOptions"
    for given in sorted({"redis-password"} & set(parameters) | {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS"} & env):
        yield f"the head has {given} beside gcsFaultToleranceOptions; give it there"
    if options.get("backend", "redis") == "redis" and options.get("storage"):
        yield "gcsFaultToleranceOptions.storage goes with the back end rocksdb only"


def _autoscaler(cluster: dict[str, Any]) -> Iterator[str]:
    options = cluster.get("autoscalerOptions") or {}
    env = {each["name"] for each in cluster["headGroupSpec"]["template"]["spec"]["containers"][0].get("env", [])}
    if _V2_SWITCH in env and (options.get("version") or not cluster.get("enableInTreeAutoscaling")):
        yield f"the head has {_V2_SWITCH}, which autoscalerOptions.version sets"
    if (options.get("idleTimeoutSeconds") or 0) < 0:
        yield "autoscalerOptions.idleTimeoutSeconds is negative"
    if any(each["name"] == "KUBERAY_GEN_AUTOSCALER_START_CMD" for each in options.get("env", [])):
        yield "autoscalerOptions.env must not hold KUBERAY_GEN_AUTOSCALER_START_CMD"


def _auth(cluster: dict[str, Any]) -> Iterator[str]:
    options = cluster.get("authOptions") or {}
    if options.get("mode") == "token" and _version(cluster) < (2, 52, 0):
        yield "authOptions.mode token needs a rayVersion from 2.52.0"
    if options.get("enableK8sTokenAuth"):
        yield "authOptions.enableK8sTokenAuth can't be had with a RayService"


def _version(cluster: dict[str, Any]) -> tuple[int, ...]:
    numbers = re.findall(r"\d+", cluster.get("rayVersion") or "")
    return tuple(map(int, numbers[:3])) if len(numbers) >= 3 else (0, 0, 0)
