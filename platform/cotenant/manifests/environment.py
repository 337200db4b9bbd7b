"""Everything that an environment needs on GKE, as the files of `kuberay/<environment>/` and as the objects in them.

Both come from the same lists, so what is committed is what `cotenant deploy` applies.
"""

from __future__ import annotations

from collections.abc import Sequence

from cotenant.config import Platform
from cotenant.errors import PlanError
from cotenant.gpu.plan import Plan
from cotenant.manifests.files import Files, yaml_text
from cotenant.manifests.gke.compute_class import compute_classes
from cotenant.manifests.gke.region import region_problems
from cotenant.manifests.kubernetes.access import namespace, priority_classes, service_account
from cotenant.manifests.kubernetes.cluster import pods_at_min
from cotenant.manifests.kubernetes.disruption import disruption_budgets
from cotenant.manifests.kubernetes.door import http_service, outside_door
from cotenant.manifests.kubernetes.front import front_of
from cotenant.manifests.kubernetes.kustomization import SCHEMA_FILE, component, kustomization, merge_keys
from cotenant.manifests.kubernetes.monitoring import pod_monitoring
from cotenant.manifests.kubernetes.network import network_policies
from cotenant.manifests.kubernetes.objects import Object
from cotenant.manifests.kubernetes.rayservice import ray_service
from cotenant.manifests.kubernetes.redis import redis
from cotenant.manifests.kubernetes.spare import spare_capacity
from cotenant.manifests.kubernetes.standalone import external_metric_hpa, ingress_deployment, keda_scaler
from cotenant.manifests.rules import broken
from cotenant.manifests.site import Site

#: What the variants of the ingress say of themselves.
NO_RAY_WORKERS = (
    "An ingress outside of Ray, scaled by the queue's metric. Ray workers can't be scaled so: RayService and\n"
    "RayCluster have no scale subresource. The ingress that Serve runs needs no metric; this is the other way."
)
USE_COMPONENT = "Not part of the environment. An overlay adds it (docs/gke.md) with `components: [PATH/{folder}]`."
#: Addresses that nobody outside of the container reaches.
_LOOPBACK = ("127.", "localhost", "::1")


def command_for(environment: str) -> str:
    """The command that generates the files of an environment."""
    return f"cotenant manifests -e {environment}"


def cluster_objects(platform: Platform, plan: Plan) -> list[Object]:
    """The objects of an environment in the order in which they are applied.

    Raises:
        PlanError: the environment has no `gke`, or can't run on a cluster as it is. One line a problem.
    """
    return [each for _, objects in _parts(platform, plan) for each in objects]


def environment_files(platform: Platform, plan: Plan) -> Files:
    """The files of `kuberay/<environment>/`.

    Raises:
        PlanError: as `cluster_objects`, or the objects break a rule that holds between them.
    """
    command = command_for(platform.environment)
    parts = [(name, objects) for name, objects in _parts(platform, plan) if objects]
    found = broken([each for _, objects in parts for each in objects], platform, plan)
    if found:
        raise PlanError("\n".join(f"environment {platform.environment}: {line}" for line in found))
    files = {f"{name}.yaml": yaml_text(objects, command) for name, objects in parts}
    files["kustomization.yaml"] = yaml_text([kustomization(list(files))], command)
    files[SCHEMA_FILE] = merge_keys()
    if platform.jobs.ingresses:
        for scaler, objects in (("hpa", external_metric_hpa(platform)), ("keda", keda_scaler(platform))):
            folder = f"ingress-{scaler}"
            files[f"{folder}/ingress.yaml"] = yaml_text(ingress_deployment(platform), command, NO_RAY_WORKERS)
            files[f"{folder}/{scaler}.yaml"] = yaml_text(objects, command, NO_RAY_WORKERS)
            files[f"{folder}/kustomization.yaml"] = yaml_text(
                [component(["ingress.yaml", f"{scaler}.yaml"])], command, USE_COMPONENT.format(folder=folder)
            )
    return files


def _parts(platform: Platform, plan: Plan) -> Sequence[tuple[str, list[Object]]]:
    site = Site.of(platform)
    _check(platform)
    return (
        ("namespace", [namespace(site), service_account(site), *priority_classes(site)]),
        ("network", network_policies(platform)),
        ("redis", redis(platform)),
        ("door", [http_service(platform), *outside_door(platform)]),
        ("disruption", disruption_budgets(platform, pods_at_min(platform, plan))),
        ("monitoring", pod_monitoring(platform)),
        ("spare", spare_capacity(platform, plan)),
        ("compute-classes", compute_classes(platform)),
        ("rayservice", [ray_service(platform, plan)]),
    )


def _check(platform: Platform) -> None:
    """Refuse what can't work in a container on a cluster, all at once."""
    problems = list(region_problems(platform))
    try:
        front_of(platform)
    except PlanError as error:
        problems.append(str(error))
    if platform.gateway.host.startswith(_LOOPBACK):
        problems.append(
            platform.wrong(
                f"gateway.host {platform.gateway.host} is heard in its own pod only; on a cluster write host: 0.0.0.0 "
                "(API keys and the network policy guard it)",
                "gateway",
                "host",
            )
        )
    if problems:
        raise PlanError("\n".join(problems))
