"""The JSON schema of the platform file, for editors and for `cotenant schema`.

Generated from the models, so it can't fall behind them. In an environment everything of an overlaid section
is optional, since only what differs is written there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cotenant.config.load import OVERLAID
from cotenant.config.model import PlatformFile

COMMITTED = Path(__file__).with_name("schema.json")


def json_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of the platform file."""
    schema = PlatformFile.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    definitions = schema["$defs"]
    environment = definitions["Environment"]["properties"]
    for section in OVERLAID:
        environment[section] = _overlay(environment[section], definitions)
    _close(schema)
    return schema


def _close(node: Any) -> None:
    """Make editors refuse what is no name, wherever a mapping is keyed by names."""
    if isinstance(node, dict):
        if "patternProperties" in node:
            node["additionalProperties"] = False
        for value in node.values():
            _close(value)
    elif isinstance(node, list):
        for item in node:
            _close(item)


def _overlay(node: Any, definitions: dict[str, Any]) -> Any:
    """A copy of `node` in which nothing is required and references point to overlays of their targets."""
    if isinstance(node, list):
        return [_overlay(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    copy = {}
    for key, value in node.items():
        if key == "$ref":
            name = value.rsplit("/", 1)[1]
            if f"{name}Overlay" not in definitions:
                definitions[f"{name}Overlay"] = {}
                definitions[f"{name}Overlay"] = _overlay(definitions[name], definitions)
            copy[key] = f"#/$defs/{name}Overlay"
        elif key not in ("required", "oneOf", "default", "minProperties"):
            copy[key] = _overlay(value, definitions)
    return copy


def render() -> str:
    """The schema as the committed file holds it."""
    return json.dumps(json_schema(), indent=2, sort_keys=True) + "\n"
