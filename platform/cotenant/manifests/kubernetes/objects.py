"""Small parts that most objects are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cotenant.manifests.site import Site

#: One Kubernetes object.
Object = dict[str, Any]

#: Part of an environment, but not of what `cotenant deploy` applies, so not for it to delete either.
ADDED_BY_OVERLAY = {"app.kubernetes.io/managed-by": "kustomize"}
#: Who made an object; `cotenant deploy` deletes what carries it and isn't rendered any more.
MANAGED_BY = {"app.kubernetes.io/managed-by": "cotenant"}


def metadata(
    site: Site,
    name: str,
    *,
    namespaced: bool = True,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Object:
    """`metadata` of an object of the environment."""
    made: Object = {"name": name}
    if namespaced:
        made["namespace"] = site.namespace
    made["labels"] = {**site.labels, **MANAGED_BY, **(labels or {})}
    if annotations:
        made["annotations"] = dict(annotations)
    return made


def variables(values: Mapping[str, str]) -> list[Object]:
    """`env` of a container."""
    return [{"name": name, "value": value} for name, value in values.items()]


def from_secret(name: str, secret: str, *, optional: bool) -> Object:
    """An `env` entry whose value is the key of the same name in a Secret."""
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": name, "optional": optional}}}


def unprivileged() -> Object:
    """`securityContext` of a container that may do no more than its user."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def memory(gib: float) -> str:
    """A quantity of memory."""
    return f"{int(gib)}Gi" if gib == int(gib) else f"{int(gib * 1024)}Mi"


def cpus(amount: float) -> str:
    """A quantity of CPU."""
    return str(int(amount)) if amount == int(amount) else f"{round(amount * 1000)}m"
