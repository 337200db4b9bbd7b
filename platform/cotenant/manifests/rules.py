"""What must hold between the objects of an environment, beyond their schemas: what each of them means for the others.

A schema says that a number is a number. These rules say that the pod fits its node, that the share booked in Serve is
the budget that the plan gave, and that nothing in the folder could take the node over. They read objects alone, so they
hold for what an overlay made of them too. Each returns what is broken, a line each; empty if nothing is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from cotenant.config import Platform
from cotenant.gpu.machines import MACHINES
from cotenant.gpu.plan import Plan
from cotenant.manifests.kubernetes.cluster import pods_per_node_of
from cotenant.manifests.kubernetes.objects import Object
from cotenant.manifests.kubernetes.operator_rules import operator_problems
from cotenant.manifests.kubernetes.sizing import allocatable, worker_room
from cotenant.manifests.pools import POOL_CRUMB, is_pool_resource, pool_resource
from cotenant.manifests.site import Site

_GIB = {"Gi": 1.0, "Mi": 1 / 1024, "Ki": 1 / 1024**2}
_SECRET_LIKE = re.compile(r"(KEY|TOKEN|PASSWORD|SECRET)S?$")
_LESS_THAN_A_TICK = 1e-9


def broken(objects: Sequence[Object], platform: Platform, plan: Plan) -> list[str]:
    """Every rule that the objects of an environment break."""
    found: list[str] = []
    for service in _of_kind(objects, "RayService"):
        found += operator_problems(service)
        found += _doors_stay(service, platform)
        found += _lands_in_its_pool(service, platform, plan)
        found += _books_what_was_planned(service, plan)
        found += _fits_the_nodes(service, objects, platform, plan)
        found += _may_finish(service, platform)
    for where, pod in pods_of(objects):
        found += _unprivileged(where, pod)
        found += _images_are_ours(where, pod, Site.of(platform))
        found += _tells_no_secret(where, pod)
    found += [f"{kind} {name} would hold a secret's value" for kind, name in _named(objects) if kind == "Secret"]
    return found


def cpu_shortages(platform: Platform, plan: Plan) -> list[str]:
    """GPUs that the plan fills with replicas which need more cores than the node's pod has: warnings, not errors.

    Ray then places some of them on another node, so the pool needs more GPUs than the plan says.
    """
    found = []
    for name, pool in plan.pools.items():
        room = worker_room(platform, name, gpus_per_node=pool.gpus_per_node)
        gpus_per_pod = pool.gpus_per_node // pods_per_node_of(platform, plan, name)
        most = max(
            (sum(platform.workloads[w].cpus * n for w, n in gpu.replicas.items()) for gpu in pool.gpus_at_max),
            default=0,
        )
        if most * gpus_per_pod > room.cpus:
            found.append(
                f"pool {name}: the replicas of one GPU book {most:g} CPU, but a pod on {platform.pools[name].machine} "
                f"has {room.cpus:g} for {gpus_per_pod} GPU, so Ray spreads them over more nodes than planned; lower "
                "the workloads' cpus or take a larger machine"
            )
    return found


def upgrade_room(platform: Platform, plan: Plan) -> list[str]:
    """Pools that can't hold a second Ray cluster beside the first, which an upgrade of images makes: warnings."""
    if Site.of(platform).gke.upgrade == "none":
        return []
    found = []
    for name, pool in platform.pools.items():
        planned = plan.pools.get(name)
        least = pool.nodes.min if planned is None else max(pool.nodes.min, planned.nodes_at_min)
        # What stands in for spot has a node pool of its own, as large.
        most = pool.nodes.max * (2 if pool.spot else 1)
        if most < 2 * least:
            found.append(
                f"pool {name} has {least} nodes at the least and {pool.nodes.max} at the most, so another version of "
                f"the images can't come up beside this one; let it have {2 * least}, or set gke.upgrade: none"
            )
    return found


def pods_of(objects: Iterable[Object]) -> Iterator[tuple[str, Object]]:
    """Every pod that the objects would make, with where it comes from."""
    for each in objects:
        name, kind = each["metadata"]["name"], each["kind"]
        if kind == "RayService":
            cluster = each["spec"]["rayClusterConfig"]
            yield "head", cluster["headGroupSpec"]["template"]["spec"]
            for group in cluster["workerGroupSpecs"]:
                yield f"group {group['groupName']}", group["template"]["spec"]
        elif kind in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            yield f"{kind} {name}", each["spec"]["template"]["spec"]
        elif kind == "PodTemplate":
            yield f"{kind} {name}", each["template"]["spec"]


def requested(pod: Object) -> dict[str, float]:
    """What a pod's containers request: cores, GiB, and whole things."""
    total: dict[str, float] = {}
    for container in pod["containers"]:
        for resource, quantity in container["resources"]["requests"].items():
            total[resource] = total.get(resource, 0.0) + _amount(resource, quantity)
    return total


def _amount(resource: str, quantity: Any) -> float:
    text = str(quantity)
    if resource == "cpu":
        return float(text[:-1]) / 1000 if text.endswith("m") else float(text)
    return float(text[:-2]) * _GIB[text[-2:]] if text[-2:] in _GIB else float(text)


def _of_kind(objects: Iterable[Object], kind: str) -> list[Object]:
    return [each for each in objects if each["kind"] == kind]


def _named(objects: Iterable[Object]) -> list[tuple[str, str]]:
    return [(each["kind"], each["metadata"]["name"]) for each in objects]


def _groups(service: Object) -> dict[str, Object]:
    return {group["groupName"]: group for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]}


def _serve(service: Object) -> Mapping[str, Any]:
    config: Mapping[str, Any] = yaml.safe_load(service["spec"]["serveConfigV2"])
    return config


def _doors_stay(service: Object, platform: Platform) -> Iterator[str]:
    """Zero GPUs can wake up again: the doors' group is never empty, and needs no GPU."""
    front = _groups(service).get(str(platform.front_pool))
    if front is None or front["minReplicas"] < 1:
        yield "the group of the front doors may be empty, and then nothing could wake the others"
    elif "nvidia.com/gpu" in requested(front["template"]["spec"]):
        yield "the group of the front doors takes a GPU"
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]
    if head["rayStartParams"].get("num-cpus") != "0":
        yield "the head offers CPU cores, so Ray would place workloads there"


def _lands_in_its_pool(service: Object, platform: Platform, plan: Plan) -> Iterator[str]:
    """Each application's replicas ask for the resource of their pool, and one group alone offers it, on its nodes."""
    site, groups = Site.of(platform), _groups(service)
    offered: dict[str, list[str]] = {}
    for name, group in groups.items():
        for resource in group.get("resources") or {}:
            offered.setdefault(resource, []).append(name)
        wanted = site.pool(name)
        if wanted not in group["template"]["spec"]["nodeSelector"].values():
            yield f"group {name} does not select the nodes of pool {wanted}"
        if not any(each.get("value") == wanted for each in group["template"]["spec"]["tolerations"]):
            yield f"group {name} does not tolerate the taint of pool {wanted}"
    for resource, names in offered.items():
        if is_pool_resource(resource) and names != [resource.removeprefix(pool_resource(""))]:
            yield f"{resource} is offered by {', '.join(names)}"
    for application in _serve(service)["applications"]:
        for deployment in application["deployments"]:
            asked = [name for name in _asks(deployment) if is_pool_resource(name)]
            booking = plan.workloads.get(application["name"])
            pool = booking.pool if booking is not None else str(platform.front_pool)
            if asked != [pool_resource(pool)]:
                yield f"application {application['name']} asks for {asked or 'no pool'}, and belongs in {pool}"
            elif asked[0] not in offered:
                yield f"application {application['name']} asks for {asked[0]}, which no group offers"


def _asks(deployment: Mapping[str, Any]) -> dict[str, float]:
    """What one replica books: its actor, or its placement group where it has one."""
    options = deployment["ray_actor_options"]
    booked = {"GPU": float(options.get("num_gpus", 0)), **options.get("resources", {})}
    for bundle in deployment.get("placement_group_bundles", ()):
        booked = {key: value for key, value in bundle.items() if key != "CPU"}
    return booked


def _books_what_was_planned(service: Object, plan: Plan) -> Iterator[str]:
    """The share of a GPU in Serve is the plan's, which covers the budget: fractions times memory is no less."""
    for application in _serve(service)["applications"]:
        booking = plan.workloads.get(application["name"])
        if booking is None:
            continue
        (deployment,) = application["deployments"]
        booked, pool = _asks(deployment), plan.pools[booking.pool]
        share = booked["GPU"]
        if abs(share - booking.num_gpus) > _LESS_THAN_A_TICK or not 0 < share <= 1:
            yield f"{application['name']} books {share:g} of a GPU, where the plan has {booking.num_gpus:g}"
        room = pool.usable_gib - pool.wake_gib
        need = booking.terms.floor_gib
        # Of n budgets that fit in bytes the last share is rounded down, by less than a tick each.
        if share * room + room * 1e-3 < need:
            yield f"{application['name']} books {share * room:.2f} GiB, where its replicas hold {need:.2f}"
        crumb = booked.get(pool_resource(booking.pool))
        if crumb != POOL_CRUMB:
            yield f"{application['name']} takes {crumb} of its pool's resource, which would run out"


def _fits_the_nodes(service: Object, objects: Sequence[Object], platform: Platform, plan: Plan) -> Iterator[str]:
    """The pods that share a node request no more than it has: a GPU node's own, and on a front node the head's."""
    cluster = service["spec"]["rayClusterConfig"]
    others = [pod for where, pod in pods_of(objects) if where == "StatefulSet redis"]
    autoscaler = {"containers": [{"resources": cluster["autoscalerOptions"]["resources"]}]}
    for name, group in _groups(service).items():
        machine = MACHINES[str(platform.pools[name].machine)]
        room = allocatable(machine.vcpus, machine.memory_gib)
        pods = [group["template"]["spec"]] * pods_per_node_of(platform, plan, name)
        if name == platform.front_pool:
            pods += [cluster["headGroupSpec"]["template"]["spec"], autoscaler, *others]
        needed = [requested(pod) for pod in pods]
        for resource, have in (("cpu", room.cpus), ("memory", room.gib)):
            need = sum(each.get(resource, 0.0) for each in needed)
            if need > have:
                yield f"pods of {name} request {need:.2f} {resource}, where a {machine.name} has {have:.2f}"
        if name in plan.pools and platform.pools[name].accelerator != "cpu":
            gpus = sum(each.get("nvidia.com/gpu", 0.0) for each in needed)
            if gpus != plan.pools[name].gpus_per_node:
                yield f"pods of {name} request {gpus:g} GPUs of a node that has {plan.pools[name].gpus_per_node}"
        nodes, per_node = platform.pools[name].nodes, pods_per_node_of(platform, plan, name)
        if (group["minReplicas"], group["maxReplicas"]) != (nodes.min * per_node, nodes.max * per_node):
            yield f"group {name} may have {group['minReplicas']} to {group['maxReplicas']} pods, its pool other nodes"


def _may_finish(service: Object, platform: Platform) -> Iterator[str]:
    """A pod that goes may take as long as Serve gives to the replicas in it."""
    longest: dict[str, float] = {}
    for application in _serve(service)["applications"]:
        for deployment in application["deployments"]:
            timeout_s = deployment.get("graceful_shutdown_timeout_s", 0.0)
            for resource in _asks(deployment):
                longest[resource] = max(longest.get(resource, 0.0), timeout_s)
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    slowest_s = max(group["template"]["spec"]["terminationGracePeriodSeconds"] for group in _groups(service).values())
    waits = any("lifecycle" in container for container in head["containers"])
    if head.get("terminationGracePeriodSeconds", 30) <= slowest_s or not waits:
        yield f"the head goes before its workers, which may take {slowest_s} s, and without it nothing drains"
    for name, group in _groups(service).items():
        spec = group["template"]["spec"]
        grace_s, need_s = spec["terminationGracePeriodSeconds"], longest.get(pool_resource(name), 0.0)
        if name == platform.front_pool and platform.jobs.ingresses:
            need_s = max(need_s, platform.jobs.drain_s)
        if grace_s <= need_s:
            yield f"group {name} is killed after {grace_s} s, and its replicas may take {need_s:g} s to finish"
        if not any("lifecycle" in container for container in spec["containers"]):
            yield f"group {name} is not drained before it goes"


def _unprivileged(where: str, pod: Object) -> Iterator[str]:
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            yield f"{where} has {key}"
    yield from (f"{where} mounts {v['name']} from its node" for v in pod.get("volumes", []) if "hostPath" in v)
    for container in pod["containers"]:
        rights = container.get("securityContext", {})
        bounded = rights.get("allowPrivilegeEscalation") is False and rights.get("capabilities") == {"drop": ["ALL"]}
        if rights.get("privileged") or not bounded or not rights.get("runAsNonRoot"):
            yield f"{where}: container {container['name']} has rights that it does not need"
        if not container["resources"].get("limits"):
            yield f"{where}: container {container['name']} has no limits"


def _images_are_ours(where: str, pod: Object, site: Site) -> Iterator[str]:
    """From one registry, in the cluster's region, and always the same."""
    prefix = f"{site.registry_host}/{site.gke.project}/"
    for container in pod["containers"]:
        image = container["image"]
        tag = image.rsplit("/", 1)[-1].partition(":")[2]
        if not image.startswith(prefix):
            yield f"{where}: image {image} comes from elsewhere than {prefix}"
        if tag in ("", "latest"):
            yield f"{where}: image {image} names no version"


def _tells_no_secret(where: str, pod: Object) -> Iterator[str]:
    for container in pod["containers"]:
        for variable in container.get("env", []):
            if _SECRET_LIKE.search(variable["name"]) and "valueFrom" not in variable:
                yield f"{where}: {variable['name']} has its value in the manifest"
