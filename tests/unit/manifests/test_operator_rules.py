"""The operator's own rules, each broken once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from cotenant.config import load_platform
from cotenant.gpu.plan import plan
from cotenant.manifests.kubernetes.operator_rules import operator_problems
from cotenant.manifests.kubernetes.rayservice import ray_service

pytestmark = pytest.mark.unit

Service = dict[str, Any]


@lru_cache
def shipped() -> Service:
    platform = load_platform(Path(__file__).parents[3] / "deployments/platform.yaml", "prod")
    return ray_service(platform, plan(platform))


def ray(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = service["spec"]["rayClusterConfig"]
    return found


def head(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = ray(service)["headGroupSpec"]
    return found


def group(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = ray(service)["workerGroupSpecs"][1]
    return found


def head_env(service: Service, name: str) -> None:
    head(service)["template"]["spec"]["containers"][0]["env"].append({"name": name, "value": "1"})


def by_steps(**options: Any) -> Callable[[Service], None]:
    given = {"gatewayClassName": "c", "intervalSeconds": 10, "stepSizePercent": 5, "maxSurgePercent": 50, **options}

    def change(service: Service) -> None:
        service["spec"]["upgradeStrategy"] = {
            "type": "NewClusterWithIncrementalUpgrade",
            "clusterUpgradeOptions": given,
        }

    return change


def annotated(name: str) -> Callable[[Service], None]:
    return lambda s: s["metadata"].update(annotations={name: "true"})


BROKEN: dict[str, tuple[Callable[[Service], Any], str]] = {
    "a long name": (lambda s: s["metadata"].update(name="n" * 48), "at most 47"),
    "a name with a capital": (lambda s: s["metadata"].update(name="Cotenant"), "DNS label"),
    "a negative delay": (lambda s: s["spec"].update(rayClusterDeletionDelaySeconds=-1), "is negative"),
    "a cluster's own strategy": (lambda s: ray(s).update(upgradeStrategy={"type": "Recreate"}), "must be unset"),
    "an unknown strategy": (lambda s: s["spec"].update(upgradeStrategy={"type": "Rolling"}), "must be one of"),
    "a strategy without type": (lambda s: s["spec"].update(upgradeStrategy={}), "must be one of"),
    "steps without options": (
        lambda s: s["spec"].update(upgradeStrategy={"type": "NewClusterWithIncrementalUpgrade"}),
        "needs upgradeStrategy.clusterUpgradeOptions",
    ),
    "steps above the surge": (by_steps(stepSizePercent=60), "from 0 to maxSurgePercent"),
    "a surge above all": (by_steps(maxSurgePercent=120), "from 0 to 100"),
    "steps without a pause": (by_steps(intervalSeconds=0), "above 0"),
    "steps without a class": (by_steps(gatewayClassName=""), "needs a gatewayClassName"),
    "no container": (lambda s: group(s)["template"]["spec"].update(containers=[]), "has no container"),
    "sizes twice": (lambda s: group(s)["rayStartParams"].update({"num-gpus": "1"}), "takes one of the two"),
    "labels as parameters": (lambda s: group(s)["rayStartParams"].update(labels="a=b"), "group's own labels"),
    "a label's value": (lambda s: group(s).update(labels={"a": "b c"}), "none for a label"),
    "an empty range": (lambda s: group(s).update(minReplicas=9, maxReplicas=3), "are no range"),
    "a negative count": (lambda s: group(s).update(minReplicas=-1), "are no range"),
    "idle without v2": (lambda s: ray(s)["autoscalerOptions"].pop("version"), "version v2"),
    "priority in an old Ray": (
        lambda s: (group(s).update(priority=1), ray(s).update(rayVersion="2.55.0")),
        "from 2.56.0",
    ),
    "pods that restart": (lambda s: group(s)["template"]["spec"].update(restartPolicy="Always"), "must be Never"),
    "two groups of one name": (lambda s: group(s).update(groupName="front"), "the same groupName"),
    "fault tolerance twice": (annotated("ray.io/ft-enabled"), "can't go with gcsFaultToleranceOptions"),
    "a storage namespace": (annotated("ray.io/external-storage-namespace"), "can't go with"),
    "a password beside": (lambda s: head_env(s, "REDIS_PASSWORD"), "has REDIS_PASSWORD beside"),
    "a user beside": (lambda s: head_env(s, "REDIS_USERNAME"), "redisUsername"),
    "an address alone": (
        lambda s: (ray(s).pop("gcsFaultToleranceOptions"), head_env(s, "RAY_REDIS_ADDRESS")),
        "without gcsFaultToleranceOptions",
    ),
    "a disk with redis": (
        lambda s: ray(s)["gcsFaultToleranceOptions"].update(storage={"size": "1Gi"}),
        "rocksdb only",
    ),
    "the autoscaler's switch": (lambda s: head_env(s, "RAY_enable_autoscaler_v2"), "which autoscalerOptions.version"),
    "a negative idle time": (
        lambda s: ray(s)["autoscalerOptions"].update(idleTimeoutSeconds=-1),
        "idleTimeoutSeconds is negative",
    ),
    "the autoscaler's command": (
        lambda s: ray(s)["autoscalerOptions"]["env"].append({"name": "KUBERAY_GEN_AUTOSCALER_START_CMD"}),
        "must not hold",
    ),
    "a token in an old Ray": (lambda s: ray(s).update(rayVersion="2.51.9"), "from 2.52.0"),
    "a token without a version": (lambda s: ray(s).pop("rayVersion"), "from 2.52.0"),
    "Kubernetes' tokens": (lambda s: ray(s)["authOptions"].update(enableK8sTokenAuth=True), "with a RayService"),
}


def test_what_is_rendered_breaks_none() -> None:
    assert operator_problems(shipped()) == []


@pytest.mark.parametrize("rule", BROKEN, ids=list(BROKEN))
def test_the_operator_would_refuse(rule: str) -> None:
    change, said = BROKEN[rule]
    service = copy.deepcopy(shipped())
    change(service)
    found = operator_problems(service)
    assert any(said in line for line in found), found


def test_an_upgrade_by_steps_needs_the_autoscaler() -> None:
    service = copy.deepcopy(shipped())
    by_steps()(service)
    assert operator_problems(service) == []
    ray(service)["enableInTreeAutoscaling"] = False
    assert any("needs enableInTreeAutoscaling" in line for line in operator_problems(service))


def test_a_head_without_any_env_or_options_is_fine() -> None:
    service = copy.deepcopy(shipped())
    for key in ("gcsFaultToleranceOptions", "authOptions"):
        ray(service).pop(key)
    service["spec"].pop("upgradeStrategy")
    assert operator_problems(service) == []
