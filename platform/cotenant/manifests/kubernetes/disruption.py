"""How much of an environment a drain of nodes may take at once.

Kubernetes counts pods that no controller of its own made by `minAvailable` alone. A group that always has two pods or
more keeps all but one. For a smaller one there is no budget: with one pod it could only forbid every drain, and GKE
would wait for an hour and then drain all the same. Ray's head has none either: its state is on a disk of its own, what
it started goes on while it is away.
"""

from __future__ import annotations

from cotenant.config import Platform
from cotenant.manifests.kubernetes.objects import Object, metadata
from cotenant.manifests.site import Site


def disruption_budgets(platform: Platform, pods_at_min: dict[str, int]) -> list[Object]:
    """One PodDisruptionBudget for each group that always has two pods or more, by its pods at the least."""
    site = Site.of(platform)
    return [
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": metadata(site, f"group-{group}"),
            "spec": {
                "minAvailable": pods - 1,
                "selector": {"matchLabels": {"ray.io/group": group, "ray.io/node-type": "worker"}},
                # A pod that isn't ready serves nobody: it may always go.
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
            },
        }
        for group, pods in pods_at_min.items()
        if pods >= 2
    ]
