"""The Cloud Run service, in the YAML of its Admin API v1 (cloud.google.com/run/docs/reference/yaml/v1). Pure."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

from cotenant.config import Platform
from cotenant.errors import PlanError
from cotenant.manifests.cloudrun.alone import KEYS_ENV, PORT, WEIGHTS, Alone
from cotenant.manifests.site import Site

#: Cloud Run's own limits.
_LONGEST_S, _MOST_CONCURRENCY, _MOST_INSTANCES = 3600, 1000, 1000
_NAME_CHARS = 49
#: A startup probe may last for 240 s after a delay of up to 240 s.
_START_DELAY_S, _START_PERIOD_S, _START_TRIES = 60, 10, 24
_HOME = "/tmp/cotenant"  # noqa: S108 - in the container's memory, its own user's
#: Variable with the text of the platform file, so that a revision carries its configuration.
_FILE_ENV = "COTENANT_PLATFORM_FILE"
_RUN = (
    f'mkdir -p "$COTENANT_HOME" && printf %s "${_FILE_ENV}" > "$COTENANT_HOME/platform.yaml" && '
    'exec cotenant up --foreground --grace 8 -f "$COTENANT_HOME/platform.yaml" -e "$COTENANT_ENVIRONMENT"'
)
_MOUNT = "weights"


@dataclass(frozen=True)
class Names:
    """What the service and what belongs to it are called."""

    site: Site
    workload: str
    service: str
    account: str
    keys_secret: str

    @property
    def account_email(self) -> str:
        return f"{self.account}@{self.site.gke.project}.iam.gserviceaccount.com"


def names_of(platform: Platform, workload: str) -> Names:
    """Raises PlanError: there is no such workload, no `gke` section, or the name is longer than Cloud Run allows."""
    if workload not in platform.workloads:
        raise PlanError(
            f"there is no workload {workload!r} to run on Cloud Run; here are {', '.join(platform.workloads)}"
        )
    site = Site.of(platform)
    service = f"{site.name}-{workload}"
    if len(service) > _NAME_CHARS:
        raise PlanError(
            f"the service would be called {service}, {len(service)} characters where Cloud Run allows {_NAME_CHARS}; "
            "shorten the name of the platform, the environment or the workload"
        )
    digest = hashlib.sha256(service.encode()).hexdigest()[:6]
    account = service if len(service) <= 26 else f"{service[:19].rstrip('-')}-{digest}"
    return Names(site, workload, service, f"{account}-run", f"{service}-keys")


def service(
    alone: Alone, names: Names, platform_text: str, *, min_instances: int, max_instances: int
) -> dict[str, Any]:
    """The document. Raises PlanError: a limit of Cloud Run is passed."""
    workload = alone.platform.workloads[alone.workload]
    if workload.deadline_s > _LONGEST_S:
        raise PlanError(
            f"{alone.workload} has deadline_s {workload.deadline_s:g}, and Cloud Run ends a request after "
            f"{_LONGEST_S} s; lower it to {_LONGEST_S}"
        )
    if not 0 <= min_instances <= max_instances <= _MOST_INSTANCES:
        raise PlanError(
            f"{min_instances} to {max_instances} instances can't be had; ask for 0 to {_MOST_INSTANCES}, the least "
            "first"
        )
    concurrency = min(_MOST_CONCURRENCY, workload.slots * workload.replicas.max)
    return {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {
            "name": names.service,
            "labels": {
                "cloud.googleapis.com/location": names.site.gke.region,
                "cotenant-environment": names.site.environment,
                "cotenant-workload": alone.workload,
            },
            "annotations": {
                "run.googleapis.com/ingress": "all",
                # Whoever calls needs roles/run.invoker.
                "run.googleapis.com/invoker-iam-disabled": "false",
            },
        },
        "spec": {
            "template": {
                "metadata": {
                    # A changed platform file is a new revision.
                    "labels": {"cotenant-platform": hashlib.sha256(platform_text.encode()).hexdigest()[:12]},
                    "annotations": {
                        "autoscaling.knative.dev/minScale": str(min_instances),
                        "autoscaling.knative.dev/maxScale": str(max_instances),
                        # An instance with a GPU has its cores all the time.
                        "run.googleapis.com/cpu-throttling": "false",
                        "run.googleapis.com/startup-cpu-boost": "true",
                        "run.googleapis.com/execution-environment": "gen2",
                        # Overflow has another place to be served: the cluster.
                        "run.googleapis.com/gpu-zonal-redundancy-disabled": "true",
                    },
                },
                "spec": {
                    "containerConcurrency": concurrency,
                    "timeoutSeconds": math.ceil(workload.deadline_s),
                    "serviceAccountName": names.account_email,
                    "nodeSelector": {"run.googleapis.com/accelerator": alone.accelerator},
                    "containers": [_container(alone, names, platform_text)],
                    **({"volumes": [_volume(alone.bucket)]} if alone.bucket else {}),
                },
            },
            "traffic": [{"percent": 100, "latestRevision": True}],
        },
    }


def _container(alone: Alone, names: Names, platform_text: str) -> dict[str, Any]:
    slow = alone.platform.workloads[alone.workload].kind != "mockup"
    secret = {"secretKeyRef": {"name": names.keys_secret, "key": "latest"}}
    return {
        "name": "cotenant",
        "image": names.site.image("engines"),
        "command": ["bash", "-c", _RUN],
        "ports": [{"name": "http1", "containerPort": PORT}],
        "env": [
            {"name": "COTENANT_HOME", "value": _HOME},
            {"name": "HOME", "value": _HOME},
            {"name": "COTENANT_ENVIRONMENT", "value": alone.platform.environment},
            {"name": _FILE_ENV, "value": platform_text},
            {"name": KEYS_ENV, "valueFrom": secret},
        ],
        "resources": {
            "limits": {"cpu": str(alone.cpus), "memory": f"{alone.memory_gib}Gi", "nvidia.com/gpu": "1"},
        },
        "startupProbe": {
            "httpGet": {"path": "/readyz", "port": PORT},
            "initialDelaySeconds": _START_DELAY_S if slow else 0,
            "periodSeconds": _START_PERIOD_S,
            "timeoutSeconds": 5,
            "failureThreshold": _START_TRIES,
        },
        "livenessProbe": {
            "httpGet": {"path": "/healthz", "port": PORT},
            "periodSeconds": 30,
            "timeoutSeconds": 10,
            "failureThreshold": 3,
        },
        **({"volumeMounts": [{"name": _MOUNT, "mountPath": WEIGHTS}]} if alone.bucket else {}),
    }


def _volume(bucket: str | None) -> dict[str, Any]:
    return {
        "name": _MOUNT,
        "csi": {
            "driver": "gcsfuse.run.googleapis.com",
            "readOnly": True,
            "volumeAttributes": {"bucketName": bucket, "mountOptions": "implicit-dirs"},
        },
    }
