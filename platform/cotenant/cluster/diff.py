"""What an apply would change, as a reader wants it: YAML, without what the API server keeps for itself. Pure."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from typing import Any

import yaml

from cotenant.cluster.objects import Object

_KEPT_BY_THE_SERVER = ("managedFields", "resourceVersion", "uid", "creationTimestamp", "generation", "selfLink")
_NOTED_BY_OTHERS = ("kubectl.kubernetes.io/last-applied-configuration", "deployment.kubernetes.io/revision")


class _Dumper(yaml.SafeDumper):
    """Text of several lines as a block, so that a changed line of a Serve config shows as one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def wanted_part(thing: Mapping[str, Any]) -> Object:
    """`thing` without its state and without what nobody sets; the values of a Secret are hidden."""
    kept = copy.deepcopy(dict(thing))
    kept.pop("status", None)
    metadata = kept.get("metadata") or {}
    for key in _KEPT_BY_THE_SERVER:
        metadata.pop(key, None)
    notes = metadata.get("annotations") or {}
    for key in _NOTED_BY_OTHERS:
        notes.pop(key, None)
    if not notes:
        metadata.pop("annotations", None)
    if kept.get("kind") == "Secret":
        for part in ("data", "stringData"):
            if part in kept:
                kept[part] = {key: f"(hidden, {len(str(value))} characters)" for key, value in kept[part].items()}
    return kept


def as_yaml(thing: Mapping[str, Any]) -> str:
    return yaml.dump(dict(thing), Dumper=_Dumper, sort_keys=True, width=120)


def difference(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, name: str) -> str:
    """A unified diff of what can be set, empty where there is none. None: it is not there."""
    old = as_yaml(wanted_part(before)).splitlines() if before is not None else []
    new = as_yaml(wanted_part(after)).splitlines() if after is not None else []
    lines = difflib.unified_diff(old, new, f"{name} (live)", f"{name} (applied)", lineterm="", n=3)
    return "\n".join(lines)
