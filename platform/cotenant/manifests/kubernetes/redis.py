"""Where the state of Ray's head is kept, so that a head that dies comes back to the cluster that is still there.

One Redis protocol server with an append-only file on a disk of its own, in the namespace; or somebody else's, by
`gke.redis`. Losing it costs the next restart of the head its memory, not what runs. It is Valkey, whose licence is BSD.
KubeRay's other back end, an embedded store on a disk of the head's, needs a feature gate that is alpha in 1.7.
"""

from __future__ import annotations

from cotenant.config import Platform
from cotenant.manifests.gke.placement import pod_placement
from cotenant.manifests.kubernetes.access import priority_name
from cotenant.manifests.kubernetes.front import front_of
from cotenant.manifests.kubernetes.objects import MANAGED_BY, Object, metadata, unprivileged
from cotenant.manifests.site import Site

IMAGE = "valkey/valkey:8.1.3-alpine"
SERVICE = "redis"
#: The Secret with the password, and the key that it is under.
SECRET = "cotenant-redis"  # noqa: S105 - its name
KEY = "password"
_PORT = 6379
#: The user of the image.
_USER_ID = 999
_SELECTOR = {"app.kubernetes.io/name": "redis"}


def gcs_fault_tolerance(site: Site) -> Object:
    """`gcsFaultToleranceOptions` of the Ray cluster. What each cluster keeps there is under its own UID."""
    return {
        "redisAddress": site.gke.redis or f"{SERVICE}:{_PORT}",
        "redisPassword": {"valueFrom": {"secretKeyRef": {"name": SECRET, "key": KEY}}},
    }


def redis(platform: Platform) -> list[Object]:
    """The server and its Service; nothing where the file names another."""
    site = Site.of(platform)
    if site.gke.redis is not None:
        return []
    amount = {"cpu": "100m", "memory": "256Mi"}
    container = {
        "name": "redis",
        "image": site.mirrored(IMAGE),
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", 'exec valkey-server --requirepass "$PASSWORD" --appendonly yes --dir /data'],
        "env": [{"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": SECRET, "key": KEY}}}],
        "ports": [{"name": "redis", "containerPort": _PORT}],
        "resources": {"requests": dict(amount), "limits": dict(amount)},
        "securityContext": {**unprivileged(), "readOnlyRootFilesystem": True},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        "livenessProbe": {"tcpSocket": {"port": _PORT}, "periodSeconds": 10, "failureThreshold": 6},
        "readinessProbe": {"tcpSocket": {"port": _PORT}, "periodSeconds": 5},
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata(site, SERVICE),
            "spec": {
                "selector": _SELECTOR,
                "ports": [{"name": "redis", "port": _PORT, "targetPort": "redis", "protocol": "TCP"}],
            },
        },
        {
            "apiVersion": "apps/v1",
            "kind": "StatefulSet",
            "metadata": metadata(site, SERVICE),
            "spec": {
                "serviceName": SERVICE,
                "replicas": 1,
                "selector": {"matchLabels": _SELECTOR},
                "template": {
                    "metadata": {"labels": {**site.labels, **MANAGED_BY, **_SELECTOR}},
                    "spec": {
                        "priorityClassName": priority_name(site, "doors"),
                        "automountServiceAccountToken": False,
                        "securityContext": {
                            "runAsNonRoot": True,
                            "runAsUser": _USER_ID,
                            "runAsGroup": _USER_ID,
                            "fsGroup": _USER_ID,
                            "seccompProfile": {"type": "RuntimeDefault"},
                        },
                        **pod_placement(platform, front_of(platform)),
                        "containers": [container],
                    },
                },
                "volumeClaimTemplates": [
                    {
                        "metadata": {"name": "data"},
                        "spec": {
                            "accessModes": ["ReadWriteOnce"],
                            "storageClassName": "standard-rwo",
                            "resources": {"requests": {"storage": "10Gi"}},
                        },
                    }
                ],
            },
        },
    ]
