"""Namespace, identity and priorities of an environment.

Doors and workloads run as one Kubernetes service account, which Workload Identity binds to the environment's Google
one: no key exists anywhere. Ray's head is another, made by KubeRay, which may scale its own cluster and nothing else.
"""

from __future__ import annotations

from cotenant.manifests.kubernetes.objects import Object, metadata
from cotenant.manifests.site import Site


def namespace(site: Site) -> Object:
    """The namespace. Nothing privileged is let in."""
    labels = {
        "pod-security.kubernetes.io/enforce": "baseline",
        "pod-security.kubernetes.io/warn": "restricted",
    }
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": metadata(site, site.namespace, namespaced=False, labels=labels),
    }


def service_account(site: Site) -> Object:
    """Who doors and workloads are towards Google Cloud."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata(
            site,
            site.service_account,
            annotations={"iam.gke.io/gcp-service-account": site.service_account_email},
        ),
        # Nothing of ours in these pods speaks to the Kubernetes API.
        "automountServiceAccountToken": False,
    }


def priority_name(site: Site, of: str) -> str:
    """Name of a priority class, which has no namespace: `of` is doors, workloads or spare."""
    return f"{site.name}-{of}"


def priority_classes(site: Site) -> list[Object]:
    """Doors before workloads; spare capacity gives way to anything and is worth no eviction."""
    made = []
    for of, value, what in (
        ("doors", 100_000, "Ray's head, gateways and ingresses: without them nothing is served"),
        ("workloads", 10_000, "Ray workers with a GPU"),
        ("spare", -10, "placeholders on spare nodes, which make room for anything"),
    ):
        made.append(
            {
                "apiVersion": "scheduling.k8s.io/v1",
                "kind": "PriorityClass",
                "metadata": metadata(site, priority_name(site, of), namespaced=False),
                "value": value,
                "globalDefault": False,
                "preemptionPolicy": "Never" if of == "spare" else "PreemptLowerPriority",
                "description": what,
            }
        )
    return made
