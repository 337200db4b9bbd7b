"""Who may speak to whom in the namespace: nobody, but for what is listed here.

Ray's own ports have a token, Serve's and the metrics' have none, and Ray opens hundreds; so pods of the environment
speak to each other and to nobody else, but for the HTTP door, the operator at the head's dashboard, and the collector
of metrics. Outbound, artwork and webhooks go to the public internet and not to private addresses, which the code checks
too (`outbound.addresses`); DNS and the metadata server (Workload Identity) are let through. The head reaches port 443
anywhere, since nobody knows beforehand where the Kubernetes API is, and a Redis of yours; the doors what they spill to.
"""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib.parse import urlsplit

from cotenant.config import Platform
from cotenant.manifests.kubernetes.door import DOOR_LABEL
from cotenant.manifests.kubernetes.objects import Object, metadata
from cotenant.manifests.site import METRICS_PORT, Site

#: Where Google's load balancers and their health checks come from (cloud.google.com/load-balancing/docs/
#: health-check-concepts).
LOAD_BALANCERS = ("35.191.0.0/16", "130.211.0.0/22")
#: GKE's metadata server: before it answers, its own proxy does at the second address (Workload Identity).
_METADATA = ("169.254.169.254/32", "169.254.169.252/32")
_PRIVATE = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10"]
_OPERATOR_NAMESPACE = "kuberay-system"
_COLLECTOR_NAMESPACE = "gmp-system"


def network_policies(platform: Platform) -> list[Object]:
    """The policies of the namespace. Google's load balancers reach the HTTP door only where there is a domain."""
    site, http_port = Site.of(platform), platform.gateway.port
    exposed = site.gke.domain is not None
    everyone: Object = {"podSelector": {}}
    door_from = [everyone, *({"ipBlock": {"cidr": block}} for block in (LOAD_BALANCERS if exposed else ()))]
    return [
        _policy(site, "nobody", {}, ingress=[], egress=[]),
        _policy(
            site,
            "each-other",
            {},
            ingress=[{"from": [everyone]}],
            egress=[{"to": [everyone]}, _dns(), _metadata_server(), _internet()],
        ),
        _policy(
            site,
            "http-door",
            DOOR_LABEL,
            ingress=[{"from": door_from, "ports": [_tcp(http_port)]}],
        ),
        _policy(
            site,
            "operator",
            {"ray.io/node-type": "head"},
            ingress=[{"from": [_namespace(_OPERATOR_NAMESPACE)], "ports": [_tcp(8265)]}],
            # The autoscaler beside the head asks for nodes at the Kubernetes API, wherever that is.
            egress=[{"ports": [_tcp(443)]}, *_redis_elsewhere(site)],
        ),
        *_spills(platform, site),
        _policy(
            site,
            "metrics",
            {},
            ingress=[
                {"from": [_namespace(_COLLECTOR_NAMESPACE)], "ports": [_tcp(METRICS_PORT), _tcp(http_port)]},
            ],
        ),
    ]


def _redis_elsewhere(site: Site) -> list[Object]:
    """To somebody else's Redis, mostly at a private address."""
    if site.gke.redis is None:
        return []
    host, _, port = site.gke.redis.rpartition(":")
    return [_to(host, int(port))]


def _spills(platform: Platform, site: Site) -> list[Object]:
    """From the doors to the servers that workloads spill to, wherever they are."""
    targets = set()
    for workload in platform.workloads.values():
        if workload.spill is not None:
            url = urlsplit(workload.spill.url)
            targets.add((str(url.hostname), url.port or (443 if url.scheme == "https" else 80)))
    if not targets:
        return []
    return [_policy(site, "spill", DOOR_LABEL, egress=[_to(host, port) for host, port in sorted(targets)])]


def _to(host: str, port: int) -> Object:
    """To that port of an address; of any one, if it has a name, since policies know no names."""
    try:
        block = f"{ipaddress.ip_address(host)}/32"
    except ValueError:
        return {"ports": [_tcp(port)]}
    return {"to": [{"ipBlock": {"cidr": block}}], "ports": [_tcp(port)]}


def _policy(
    site: Site,
    name: str,
    selects: dict[str, str],
    *,
    ingress: list[Any] | None = None,
    egress: list[Any] | None = None,
) -> Object:
    spec: Object = {"podSelector": {"matchLabels": selects} if selects else {}, "policyTypes": []}
    for kind, rules in (("Ingress", ingress), ("Egress", egress)):
        if rules is not None:
            spec["policyTypes"].append(kind)
            if rules:
                spec[kind.lower()] = rules
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(site, name),
        "spec": spec,
    }


def _tcp(port: int) -> Object:
    return {"protocol": "TCP", "port": port}


def _namespace(name: str) -> Object:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _dns() -> Object:
    """To any address: with NodeLocal DNSCache that is one of the node's."""
    return {"ports": [{"protocol": "UDP", "port": 53}, _tcp(53)]}


def _metadata_server() -> Object:
    ports = [_tcp(port) for port in (80, 988, 987)]
    return {"to": [{"ipBlock": {"cidr": block}} for block in _METADATA], "ports": ports}


def _internet() -> Object:
    """The ports that artwork, webhooks, Pub/Sub, buckets and model hubs are at."""
    return {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": _PRIVATE}}], "ports": [_tcp(443), _tcp(80)]}
