"""What Google's managed Prometheus gathers: Ray's metrics on every node, ours among them, and the gateway's own."""

from __future__ import annotations

from cotenant.config import Platform
from cotenant.manifests.kubernetes.door import DOOR_LABEL
from cotenant.manifests.kubernetes.objects import Object, metadata
from cotenant.manifests.site import METRICS_PORT, Site

_EVERY = "30s"


def pod_monitoring(platform: Platform) -> list[Object]:
    """Two PodMonitorings, for all pods of Ray and for the front group."""
    site = Site.of(platform)
    return [
        _monitoring(site, "ray", {"ray.io/is-ray-node": "yes"}, METRICS_PORT, ["ray_io_group", "ray_io_cluster"]),
        _monitoring(site, "gateway", DOOR_LABEL, platform.gateway.port, []),
    ]


def _monitoring(site: Site, name: str, selects: dict[str, str], port: int, labels: list[str]) -> Object:
    spec: Object = {
        "selector": {"matchLabels": selects},
        "endpoints": [{"port": port, "path": "/metrics", "interval": _EVERY}],
    }
    if labels:
        spec["targetLabels"] = {
            "fromPod": [{"from": label.replace("ray_io_", "ray.io/"), "to": label} for label in labels]
        }
    return {
        "apiVersion": "monitoring.googleapis.com/v1",
        "kind": "PodMonitoring",
        "metadata": metadata(site, name),
        "spec": spec,
    }
