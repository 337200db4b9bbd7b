"""The HTTP door's address: inside the cluster always, outside by a load balancer with TLS where there is a domain.

The Service is our own, not KubeRay's for the RayService: that one takes in every Ray worker, the GPU nodes too, where
nobody listens. Ours selects the front group by a label of ours, of whatever Ray cluster, so during an upgrade both
clusters serve as soon as their doors are ready (`containers.door_probe`). An HTTP client is answered as long as the
longest answer takes (`deadline_s`).
"""

from __future__ import annotations

from cotenant.config import Platform
from cotenant.manifests.kubernetes.objects import Object, metadata
from cotenant.manifests.serve import longest_answer_s
from cotenant.manifests.site import Site

#: Google's global external Application Load Balancer.
GATEWAY_CLASS = "gke-l7-global-external-managed"
#: Name of the Service of the HTTP door.
SERVICE = "http"
#: The time until nobody asks a gateway that goes for more, and until Serve has seen it end.
_GATEWAY_S = 25
#: What pods of the front group carry for it.
DOOR_LABEL = {"cotenant-door": "http"}


def door_drain_s(platform: Platform) -> int:
    """How long a gateway that goes may take, and the load balancer leave it what it still answers (3600 s at most)."""
    return min(3600, int(longest_answer_s(platform)) + _GATEWAY_S)


def http_service(platform: Platform) -> Object:
    """The Service of the HTTP door, whoever may reach it."""
    site = Site.of(platform)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(site, SERVICE),
        "spec": {
            "type": "ClusterIP",
            "selector": DOOR_LABEL,
            "ports": [
                {
                    "name": "http",
                    "port": platform.gateway.port,
                    "targetPort": "http",
                    "protocol": "TCP",
                    "appProtocol": "http",
                }
            ],
        },
    }


def address_name(site: Site) -> str:
    """The global static address, made by `setup.sh`."""
    return f"{site.name}-http"


def certificate_map(site: Site) -> str:
    """The certificate map of Certificate Manager, made by `setup.sh`."""
    return f"{site.name}-http"


def outside_door(platform: Platform) -> list[Object]:
    """Gateway, routes, and the policies of GKE that go with them. Empty without a domain."""
    site = Site.of(platform)
    domain = site.gke.domain
    if domain is None:
        return []
    port = platform.gateway.port
    backend = {"group": "", "kind": "Service", "name": SERVICE}
    longest_s = int(longest_answer_s(platform)) + 30
    return [
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": metadata(site, "http", annotations={"networking.gke.io/certmap": certificate_map(site)}),
            "spec": {
                "gatewayClassName": GATEWAY_CLASS,
                "addresses": [{"type": "NamedAddress", "value": address_name(site)}],
                "listeners": [
                    {"name": "https", "protocol": "HTTPS", "port": 443, "allowedRoutes": _own_namespace()},
                    {"name": "http", "protocol": "HTTP", "port": 80, "allowedRoutes": _own_namespace()},
                ],
            },
        },
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": metadata(site, "http"),
            "spec": {
                "parentRefs": [{"name": "http", "sectionName": "https"}],
                "hostnames": [domain],
                "rules": [
                    {
                        # What is for the inside stays there: metrics, and the pages that describe the interface.
                        "matches": [
                            {"path": {"type": "PathPrefix", "value": "/v1"}},
                            {"path": {"type": "Exact", "value": "/healthz"}},
                        ],
                        "backendRefs": [{"name": SERVICE, "port": port}],
                    }
                ],
            },
        },
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": metadata(site, "http-to-https"),
            "spec": {
                "parentRefs": [{"name": "http", "sectionName": "http"}],
                "hostnames": [domain],
                "rules": [
                    {
                        "filters": [
                            {"type": "RequestRedirect", "requestRedirect": {"scheme": "https", "statusCode": 301}}
                        ]
                    }
                ],
            },
        },
        {
            "apiVersion": "networking.gke.io/v1",
            "kind": "HealthCheckPolicy",
            "metadata": metadata(site, "http"),
            "spec": {
                "default": {
                    "checkIntervalSec": 5,
                    "timeoutSec": 3,
                    "healthyThreshold": 1,
                    "unhealthyThreshold": 3,
                    "config": {"type": "HTTP", "httpHealthCheck": {"port": port, "requestPath": "/healthz"}},
                },
                "targetRef": backend,
            },
        },
        {
            "apiVersion": "networking.gke.io/v1",
            "kind": "GCPBackendPolicy",
            "metadata": metadata(site, "http"),
            "spec": {
                "default": {
                    "timeoutSec": longest_s,
                    "connectionDraining": {"drainingTimeoutSec": door_drain_s(platform)},
                },
                "targetRef": backend,
            },
        },
    ]


def _own_namespace() -> Object:
    return {"namespaces": {"from": "Same"}}
