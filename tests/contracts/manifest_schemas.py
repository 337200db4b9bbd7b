"""Validates Kubernetes objects by the best schema that there is of each kind, with unknown fields refused.

Built-in kinds by the published OpenAPI (`kubernetes-validate`), KubeRay's by its own definitions where they are to be
found, all others by what `tests/data/crds` carries. Definitions only prune what they don't know, so they are closed
here first: a misspelled field is an error.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
CARRIED = ROOT / "tests/data/crds"
KUBERAY = Path(os.environ.get("COTENANT_KUBERAY_CRDS") or ROOT.parent / "shared/schemas")
#: The version of Kubernetes that the manifests are for.
KUBERNETES = "1.35"
#: API groups that Kubernetes itself has.
_BUILT_IN = ("apps", "autoscaling", "batch", "networking.k8s.io", "policy", "scheduling.k8s.io", "v1")


def problems(document: dict[str, Any]) -> list[str]:
    """What its schema says against an object, a line each. Skips the test where KubeRay's definitions are missing."""
    group = document["apiVersion"].rpartition("/")[0] or document["apiVersion"]
    if group in _BUILT_IN:
        try:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            return [f"{document['kind']} {document['metadata']['name']}: {error.message} at {list(error.path)}"]
        return []
    schema = _schema(document["apiVersion"], document["kind"])
    return [
        f"{document['kind']} {document['metadata']['name']}: {error.message} at {list(error.path)}"
        for error in jsonschema.Draft202012Validator(schema).iter_errors(document)
    ]


@lru_cache
def _definitions() -> dict[tuple[str, str], dict[str, Any]]:
    found = {}
    for folder in (CARRIED, KUBERAY):
        for file in sorted(folder.glob("*.yaml")):
            for definition in yaml.safe_load_all(file.read_text()):
                spec = definition["spec"]
                for version in spec["versions"]:
                    name = f"{spec['group']}/{version['name']}"
                    found[name, spec["names"]["kind"]] = version["schema"]["openAPIV3Schema"]
    return found


@lru_cache
def _schema(api_version: str, kind: str) -> dict[str, Any]:
    schema = _definitions().get((api_version, kind))
    if schema is None and api_version.startswith("ray.io/"):
        pytest.skip(f"no definition of {kind} in {KUBERAY}; COTENANT_KUBERAY_CRDS may name a folder")
    assert schema is not None, f"no schema of {api_version} {kind}"
    closed = _closed(schema)
    # Kubernetes' own; definitions say only that it is there.
    closed["properties"] |= {"metadata": {"type": "object"}, "apiVersion": {"type": "string"}, "kind": {"const": kind}}
    return closed


def _closed(node: Any) -> Any:
    if isinstance(node, list):
        return [_closed(each) for each in node]
    if not isinstance(node, dict):
        return node
    made = {key: _closed(value) for key, value in node.items() if not key.startswith("x-kubernetes-")}
    if node.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    opened = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
    if isinstance(node.get("properties"), dict) and node.get("type") == "object" and not opened:
        made["additionalProperties"] = False
    return made
