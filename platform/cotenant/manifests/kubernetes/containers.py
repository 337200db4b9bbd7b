"""Ray's containers: their images, settings, probes, drains, and the rights that they don't have.

A node that goes is drained: its `preStop` hook has Ray place nothing new there and waits for what runs, at the most as
long as the longest call may take (`grace_s`). SIGTERM, after that, reaches `ray start --block` itself: the shell that
KubeRay starts it from makes room for its last command.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cotenant.config import Platform
from cotenant.gpu.plan import Plan
from cotenant.manifests.kubernetes.door import door_drain_s
from cotenant.manifests.kubernetes.objects import Object, cpus, from_secret, memory, unprivileged, variables
from cotenant.manifests.kubernetes.sizing import Room
from cotenant.manifests.ray_settings import PRELOAD, PRELOADED, shared_settings
from cotenant.manifests.serve import longest_call_s
from cotenant.manifests.site import GROUP_ID, HOME, USER_ID, Image, Site

#: The Secret with the API keys and the webhooks' secrets, under the names of their variables.
SECRET = "cotenant-secrets"  # noqa: S105 - its name
#: What SIGTERM and Ray's own end may take after a drain.
_END_S = 30
#: Where clients find CUDA's MPS daemon.
MPS_SETTINGS = {"CUDA_MPS_PIPE_DIRECTORY": "/tmp/nvidia-mps", "CUDA_MPS_LOG_DIRECTORY": "/tmp/nvidia-mps-log"}  # noqa: S108
#: Where Ray's agent on the node answers.
AGENT_PORT = 52365


def grace_s(platform: Platform, plan: Plan, pool: str) -> int:
    """Seconds that a pod of `pool` may take to stop: the longest call there, or the doors' own drain."""
    if platform.pools[pool].holds_workloads:
        names = [name for name, booking in plan.workloads.items() if booking.pool == pool]
        longest = max((longest_call_s(platform, name) for name in names), default=0.0)
    else:
        drain_s = platform.jobs.drain_s if platform.jobs.ingresses else 0
        longest = max(door_drain_s(platform), drain_s)
    return int(longest) + _END_S


def ray_container(
    name: str, *, site: Site, image: Image, room: Room, env: list[Object], gpus: int = 0, **more: Any
) -> Object:
    """A container that KubeRay has run `ray start`. It gets what it asks for: requests are limits."""
    amount: Object = {"cpu": cpus(room.cpus), "memory": memory(room.gib)}
    if gpus:
        amount["nvidia.com/gpu"] = gpus
    return {
        "name": name,
        "image": site.image(image),
        "imagePullPolicy": "IfNotPresent",
        "env": env,
        "resources": {"requests": dict(amount), "limits": dict(amount)},
        "securityContext": unprivileged(),
        "volumeMounts": [{"name": "home", "mountPath": HOME}],
        **more,
    }


def settings(site: Site, more: Mapping[str, str] | None = None) -> list[Object]:
    """Variables of every Ray container."""
    return variables(
        {
            **shared_settings(),
            PRELOAD: ",".join(PRELOADED),
            # Replicas on as few nodes as will do, so that the others can go.
            "RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY": "1",
            "COTENANT_HOME": HOME,
            "HOME": HOME,
            "GOOGLE_CLOUD_PROJECT": site.gke.project,
            **(more or {}),
        }
    )


def door_secrets(platform: Platform) -> list[Object]:
    """Variables of the doors that come from the Secret. Without API keys the gateway refuses to listen."""
    entries = [from_secret(platform.jobs.webhooks_env, SECRET, optional=True)]
    if platform.gateway.keys_env is not None and platform.gateway.keys_file is None:
        entries.insert(0, from_secret(platform.gateway.keys_env, SECRET, optional=False))
    spills = (workload.spill for workload in platform.workloads.values() if workload.spill is not None)
    # Without its key a workload does not spill, and is served all the same.
    keys = sorted({spill.key_env for spill in spills if spill.key_env is not None})
    return [*(from_secret(key, SECRET, optional=True) for key in keys), *entries]


def pod_security() -> Object:
    """`securityContext` of a pod."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER_ID,
        "runAsGroup": GROUP_ID,
        "fsGroup": GROUP_ID,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def head_lifecycle(grace: int) -> Object:
    """The head waits for nodes that are being drained: with a cluster that is deleted, all pods go at once."""
    wait = ["python", "-m", "deployments.leave", "--head", "--within", str(grace - _END_S)]
    return {"preStop": {"exec": {"command": wait}}}


def lifecycle(grace: int, *, mps: bool = False) -> Object:
    """Drains the node before it goes. With `mps`, CUDA's daemon starts with the container.

    The daemon must have its clients' user, shared memory and process numbers, so it runs in their container, not in
    one of its own; where it can't start, the container doesn't.
    """
    drain = ["python", "-m", "deployments.leave", "--within", str(grace - _END_S)]
    hooks: Object = {"preStop": {"exec": {"command": drain}}}
    if mps:
        start = 'mkdir -p "$CUDA_MPS_PIPE_DIRECTORY" "$CUDA_MPS_LOG_DIRECTORY" && nvidia-cuda-mps-control -d'
        hooks["postStart"] = {"exec": {"command": ["bash", "-c", start]}}
    return hooks


def raylet_probe(*, period_s: int, failures: int) -> Object:
    """A probe that holds while the Ray of the container lives."""
    return {
        "httpGet": {"path": "/api/healthz", "port": AGENT_PORT},
        "periodSeconds": period_s,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def door_probe(port: int) -> Object:
    """Readiness of a pod of the front group: its gateway listens, and has once seen every workload of its cluster run.

    So a cluster that comes up beside another takes no request before it can answer, and a workload that breaks later
    doesn't take the door away from the others.
    """
    ask = f"wget -q -T 4 --tries 1 -O /dev/null http://127.0.0.1:{port}"
    seen = "/tmp/cotenant-was-ready"  # noqa: S108 - in the container
    asked = f"{ask}/healthz && {{ test -e {seen} || {{ {ask}/readyz && touch {seen}; }}; }}"
    return {
        "exec": {"command": ["bash", "-c", asked]},
        "initialDelaySeconds": 5,
        "periodSeconds": 5,
        "timeoutSeconds": 10,
        "failureThreshold": 2,
    }
