"""The Serve config: one application per workload, one per front door, derived from platform and plan alone.

Pure: no Ray. Applications are separate so that a change to one leaves its neighbours' replicas warm; what the
doors need to know of the workloads travels in `user_config`, which Serve applies in place. Serve accepts unknown
keys in silence, so `unknown_keys` checks a config against Serve's own models (given by the caller, who has Ray).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from cotenant.calls import Directory
from cotenant.config import Platform, Workload
from cotenant.gpu.plan import Booking, Plan
from cotenant.manifests.pools import POOL_CRUMB, pool_resource, spread_resource
from cotenant.manifests.scaling import scaling_terms
from cotenant.manifests.spill import spill_terms

_DOOR_CPUS = 0.1
#: What Serve allows a gateway beyond the longest answer before it kills it.
_DOOR_MARGIN_S = 10.0


def serve_config(platform: Platform, plan: Plan) -> dict[str, Any]:
    """The config that `serve deploy` (or the dashboard's REST interface) takes, as plain data."""
    applications = [
        _workload(name, workload, plan, ingresses=platform.jobs.ingresses, longest_s=longest_call_s(platform, name))
        for name, workload in platform.workloads.items()
    ]
    told: dict[str, Any] = {"workloads": Directory.of(platform).to_plain(), "scaling": scaling_terms(platform, plan)}
    spill = spill_terms(platform)
    if spill:
        told["spill"] = spill
    applications.append(_gateway(platform, told))
    if platform.jobs.ingresses:
        applications.append(_ingress(platform, told))
    return {"proxy_location": "Disabled", "applications": applications}


def admitted(slots: int, *, ingresses: int) -> int:
    """Calls that Serve lets into a replica of `slots`.

    Each ingress sends batch jobs for that many slots, and half as many again where jobs take milliseconds; as much
    interactive work has room beside all of them, so it never waits in the router for a job to end. The replica decides
    who works (`engines.admission`).
    """
    return slots * (1 + max(1, ingresses)) + slots // 2


def longest_call_s(platform: Platform, name: str) -> float:
    """Seconds that a call to a workload may take at the most: a request's deadline, or that of a job."""
    jobs_s = float(platform.jobs.max_job_s) if platform.jobs.ingresses else 0.0
    return max(platform.workloads[name].deadline_s, jobs_s)


def longest_answer_s(platform: Platform) -> float:
    """Seconds that an answer by HTTP may take at the most."""
    return max(workload.deadline_s for workload in platform.workloads.values())


def _workload(name: str, workload: Workload, plan: Plan, *, ingresses: int, longest_s: float) -> dict[str, Any]:
    booking = plan.workloads[name]
    deployment: dict[str, Any] = {
        "name": "Replica",
        **_replicas(name, workload),
        "max_ongoing_requests": admitted(workload.slots, ingresses=ingresses),
        "max_queued_requests": workload.queue,
        # Serve rounds the percentage up to whole replicas, and the plan has room for one.
        "max_surge_percent": max(1, 100 // workload.replicas.max) if plan.has_surge_room(name) else 0,
        # A replica that goes may finish what it has.
        "graceful_shutdown_wait_loop_s": 0.5,
        "graceful_shutdown_timeout_s": longest_s,
        "health_check_period_s": 10.0,
        "health_check_timeout_s": 60.0,
        **_resources(workload, booking),
    }
    return {
        "name": name,
        "route_prefix": None,
        "import_path": f"deployments.{workload.kind}:build",
        "args": {"terms": booking.terms.model_dump(mode="json"), "spec": workload.spec.model_dump(mode="json")},
        "deployments": [deployment],
    }


def _replicas(name: str, workload: Workload) -> dict[str, Any]:
    """A fixed number, or bounds within which our policy decides.

    Serve's own target of ongoing requests is what its metrics show; it counts slots, not what Serve lets in.
    """
    replicas = workload.replicas
    if replicas.min == replicas.max:
        return {"num_replicas": replicas.min}
    return {
        "autoscaling_config": {
            "min_replicas": replicas.min,
            "max_replicas": replicas.max,
            "target_ongoing_requests": max(1.0, round(workload.slots * 0.75, 2)),
            # The policy has its own patience; Serve is to do what it says when it says it.
            "upscale_delay_s": 0.0,
            "downscale_delay_s": 0.0,
            "downscale_to_zero_delay_s": 0.0,
            "policy": {
                "policy_function": "deployments.policy:Policy",
                "policy_kwargs": {"name": name},
            },
        }
    }


def _resources(workload: Workload, booking: Booking) -> dict[str, Any]:
    """What a replica books. On a GPU vLLM works in an actor of its own, so an LLM books by placement group.

    Of the group's share the replica itself takes nothing there; on a CPU it is the replica's, which so learns where
    it is.
    """
    pool = {pool_resource(booking.pool): POOL_CRUMB}
    if workload.replicas.per_node is not None:
        pool[spread_resource(booking.workload)] = 1.0
    if workload.kind == "llm":
        own = booking.num_gpus if booking.terms.on_cpu else 0
        return {
            "ray_actor_options": {"num_cpus": 0, "num_gpus": own},
            "placement_group_bundles": [{"CPU": workload.cpus, "GPU": booking.num_gpus, **pool}],
            "placement_group_strategy": "STRICT_PACK",
        }
    return {"ray_actor_options": {"num_cpus": workload.cpus, "num_gpus": booking.num_gpus, "resources": pool}}


def _gateway(platform: Platform, told: Mapping[str, Any]) -> dict[str, Any]:
    arguments = {name: getattr(platform, name).model_dump(mode="json") for name in ("gateway", "jobs")}
    gateway = _door(platform, "gateway", replicas=platform.gateway.replicas, arguments=arguments, told=told)
    gateway["deployments"][0]["graceful_shutdown_timeout_s"] = longest_answer_s(platform) + _DOOR_MARGIN_S
    return gateway


def _ingress(platform: Platform, told: Mapping[str, Any]) -> dict[str, Any]:
    arguments = {"jobs": platform.jobs.model_dump(mode="json")}
    return _door(platform, "ingress", replicas=platform.jobs.ingresses, arguments=arguments, told=told)


def _door(
    platform: Platform, name: str, *, replicas: int, arguments: Mapping[str, Any], told: Mapping[str, Any]
) -> dict[str, Any]:
    """A front door: no GPU, on the front pool if there is one, told of workloads and scaling by `user_config`.

    How it starts and drains is its own affair, so its builder's settings for that stand.
    """
    options: dict[str, Any] = {"num_cpus": _DOOR_CPUS, "num_gpus": 0}
    per_node = _per_node(platform, replicas)
    if platform.front_pool is not None:
        options["resources"] = {pool_resource(platform.front_pool): POOL_CRUMB}
    return {
        "name": name,
        "route_prefix": None,
        "import_path": f"deployments.{name}:build",
        "args": dict(arguments),
        "deployments": [
            {
                "name": name.capitalize(),
                "num_replicas": replicas,
                "max_ongoing_requests": 100,
                **({"max_replicas_per_node": per_node} if per_node is not None else {}),
                "ray_actor_options": options,
                "user_config": dict(told),
            }
        ],
    }


def _per_node(platform: Platform, replicas: int) -> int | None:
    """How many replicas of a door one node may hold, so that losing a node leaves some; None if it doesn't matter.

    Where the front pool can't grow to hold the next version beside this one, a bound would keep that from starting.
    """
    if platform.gke is None or platform.front_pool is None or replicas < 2:
        return None
    nodes = platform.pools[platform.front_pool].nodes
    bound = -(-replicas // max(1, nodes.min))
    return bound if bound * nodes.max >= 2 * replicas else None


def unknown_keys(config: Mapping[str, Any], known: Mapping[str, Collection[str]]) -> list[str]:
    """Dotted paths of the keys in a Serve config that Serve does not know.

    `known` names the fields of Serve's models: "config" (ServeDeploySchema), "application"
    (ServeApplicationSchema), "deployment" (DeploymentSchema), "ray_actor_options" (RayActorOptionsSchema),
    "autoscaling_config" (AutoscalingConfig).
    """
    return list(_unknown_keys(config, known))


def _unknown_keys(config: Mapping[str, Any], known: Mapping[str, Collection[str]]) -> Iterator[str]:
    def strange(part: Mapping[str, Any], model: str, path: str) -> Iterator[str]:
        yield from (f"{path}{key}" for key in part if key not in known[model])

    yield from strange(config, "config", "")
    for application in config.get("applications", ()):
        path = f"{application.get('name')}."
        yield from strange(application, "application", path)
        for deployment in application.get("deployments", ()):
            inner = f"{path}{deployment.get('name')}."
            yield from strange(deployment, "deployment", inner)
            for section in ("ray_actor_options", "autoscaling_config"):
                yield from strange(deployment.get(section) or {}, section, f"{inner}{section}.")
