"""`kustomization.yaml`, so that kubectl, Argo CD and Flux take the folder as it is, and overlays may patch it.

A strategic-merge patch replaces lists whole unless it knows their key, so the schema with the keys of Ray's lists lies
beside it: a patch may name one worker group.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cotenant.manifests.kubernetes.objects import Object

SCHEMA_FILE = "openapi.json"


def kustomization(resources: Sequence[str]) -> Object:
    """Of files in the same folder."""
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "openapi": {"path": SCHEMA_FILE},
        "resources": list(resources),
    }


def component(resources: Sequence[str]) -> Object:
    """A part that an overlay adds to the environment with `components:`."""
    return {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "resources": list(resources),
    }


def merge_keys() -> str:
    """OpenAPI of a RayService as far as kustomize needs it: which field tells the items of a list apart."""

    def listed(key: str, items: dict[str, Any]) -> dict[str, Any]:
        return {
            "type": "array",
            "items": {"type": "object", "properties": items},
            "x-kubernetes-patch-merge-key": key,
            "x-kubernetes-patch-strategy": "merge",
        }

    def mapping(properties: dict[str, Any]) -> dict[str, Any]:
        return {"type": "object", "properties": properties}

    env = {"env": listed("name", {}), "volumeMounts": listed("mountPath", {})}
    template = mapping({"spec": mapping({"containers": listed("name", env), "volumes": listed("name", {})})})
    cluster = mapping(
        {
            "headGroupSpec": mapping({"template": template}),
            "workerGroupSpecs": listed("groupName", {"template": template}),
        }
    )
    definition = {
        **mapping(
            {
                "apiVersion": {"type": "string"},
                "kind": {"type": "string"},
                "metadata": {"type": "object"},
                "spec": mapping({"rayClusterConfig": cluster}),
            }
        ),
        "x-kubernetes-group-version-kind": [{"group": "ray.io", "version": "v1", "kind": "RayService"}],
    }
    return json.dumps({"definitions": {"io.ray.v1.RayService": definition}}, indent=2, sort_keys=True) + "\n"
