"""Kubernetes objects as plain dictionaries, and how one is named."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

#: An object as the API server takes and gives it.
Object = dict[str, Any]

MANAGED_BY = "app.kubernetes.io/managed-by"
PART_OF = "app.kubernetes.io/part-of"
ENVIRONMENT = "cotenant-environment"
#: Who we are to Kubernetes: the field manager of everything that is applied, and the value of `MANAGED_BY`.
MANAGER = "cotenant"


@dataclass(frozen=True, order=True)
class Kind:
    """A type of object: `Kind("ray.io/v1", "RayService")`."""

    api_version: str
    name: str

    @property
    def group(self) -> str:
        """The API group, empty for the core one."""
        return self.api_version.rpartition("/")[0]

    def __str__(self) -> str:
        return f"{self.name} ({self.api_version})"


@dataclass(frozen=True, order=True)
class Ref:
    """One object: its kind, its name and, unless it belongs to the whole cluster, its namespace."""

    kind: Kind
    name: str
    namespace: str | None = None

    def __str__(self) -> str:
        return f"{self.kind.name} {self.name}"


CONFIG_MAP = Kind("v1", "ConfigMap")
EVENT = Kind("v1", "Event")
NAMESPACE = Kind("v1", "Namespace")
POD = Kind("v1", "Pod")
RAY_CLUSTER = Kind("ray.io/v1", "RayCluster")
RAY_SERVICE = Kind("ray.io/v1", "RayService")


def kind_of(thing: Mapping[str, Any]) -> Kind:
    return Kind(str(thing["apiVersion"]), str(thing["kind"]))


def ref_of(thing: Mapping[str, Any]) -> Ref:
    metadata = thing["metadata"]
    return Ref(kind_of(thing), str(metadata["name"]), metadata.get("namespace"))


def labels_of(thing: Mapping[str, Any]) -> Mapping[str, str]:
    return thing.get("metadata", {}).get("labels") or {}


def has_labels(thing: Mapping[str, Any], wanted: Mapping[str, str]) -> bool:
    labels = labels_of(thing)
    return all(labels.get(key) == value for key, value in wanted.items())


def version_of(thing: Mapping[str, Any]) -> str:
    """`resourceVersion`, empty where there is none."""
    return str(thing.get("metadata", {}).get("resourceVersion") or "")


def environment_labels(platform: str, environment: str) -> dict[str, str]:
    """What everything of one environment carries, and by which it is found again."""
    return {MANAGED_BY: MANAGER, PART_OF: platform, ENVIRONMENT: environment}


@dataclass(frozen=True)
class Target:
    """An environment of a platform, and the namespace that it lives in."""

    platform: str
    environment: str
    namespace: str

    @property
    def labels(self) -> dict[str, str]:
        return environment_labels(self.platform, self.environment)

    @property
    def name(self) -> str:
        return f"{self.platform}-{self.environment}"


def labelled(things: Iterable[Mapping[str, Any]], labels: Mapping[str, str]) -> list[Object]:
    """Copies of `things` that carry `labels`; a label of the same name is replaced."""
    done = []
    for thing in things:
        mine = copy.deepcopy(dict(thing))
        mine["metadata"] = {**mine["metadata"], "labels": {**labels_of(mine), **labels}}
        done.append(mine)
    return done
