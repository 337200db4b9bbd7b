"""Reads the platform file and says, by line, everything that is wrong with it, in every environment.

Each environment is merged over the shared values and validated as a whole, so an error names the line that the
user would have to change, wherever the value came from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cotenant.config.document import Document, KeyPath, parse
from cotenant.config.explain import explain, nearest, shadowed, unknown_key
from cotenant.config.model import KINDS, Environment, Misplaced, Platform, PlatformFile
from cotenant.errors import ConfigError, Problem

DEFAULT_FILE = Path("deployments/platform.yaml")
DEFAULT_ENVIRONMENT = "local"

#: Sections of an environment that are merged over the shared ones.
OVERLAID = ("workloads", "jobs", "gateway")
_EXAMPLE = "local: {pools: {shared: {accelerator: cpu, vram_gib: 12}}}"


def load_platform(file: Path | str = DEFAULT_FILE, environment: str = DEFAULT_ENVIRONMENT) -> Platform:
    """The platform that `file` describes for `environment`.

    Raises:
        ConfigError: the file can't be read or has problems, in this environment or in any other.
    """
    document = _read(file)
    _check_top(document)
    overlays = document.data.get("environments")
    platforms: dict[str, Platform] = {}
    if isinstance(overlays, dict):
        for name in overlays:
            platform = _resolve(document, name)
            if platform is not None:
                platforms[name] = platform
    if document.problems:
        raise ConfigError(_unique(document.problems))
    if environment not in platforms:
        known = ", ".join(platforms)
        document.problem(
            ("environments",), f"no environment {environment!r}; it has {known}{nearest(environment, platforms)}"
        )
        raise ConfigError(document.problems)
    return platforms[environment]


def environments(file: Path | str = DEFAULT_FILE) -> tuple[str, ...]:
    """Names of the environments in `file`, in its order. Raises ConfigError."""
    found = _read(file).data.get("environments")
    return tuple(found) if isinstance(found, dict) else ()


def _read(file: Path | str) -> Document:
    document = parse(Path(file), missing_hint=f"name one with -f/--file (the default is {DEFAULT_FILE})")
    if document.problems:
        raise ConfigError(_unique(document.problems))
    return document


def _check_top(document: Document) -> None:
    """Top-level keys, and that there is an environment at all."""
    for key in document.data:
        if key in Environment.model_fields and key not in PlatformFile.model_fields:
            document.problem((key,), f"{key} belongs to an environment; move it under environments.<name>")
        elif key not in PlatformFile.model_fields:
            document.problem((key,), unknown_key((key,), PlatformFile))
    overlays = document.data.get("environments")
    if not isinstance(overlays, dict) or not overlays:
        document.problem(("environments",), f"environments needs at least one, e.g. {_EXAMPLE}")


def _resolve(document: Document, name: str) -> Platform | None:
    """The platform of one environment, or None with its problems recorded."""
    base = ("environments", name)
    overlay = document.data["environments"][name]
    if not isinstance(overlay, dict):
        document.problem(base, f"environment {name} needs pools, e.g. {_EXAMPLE}")
        return None
    merged = {k: v for k, v in document.data.items() if k in PlatformFile.model_fields and k != "environments"}
    for key, value in overlay.items():
        if key not in Environment.model_fields:
            document.problem((*base, key), unknown_key((*base, key), Environment))
        elif key in OVERLAID:
            merged[key] = _merge(merged.get(key), value)
        else:
            merged[key] = value
    merged["environment"] = name
    try:
        return Platform.model_validate(merged)
    except ValidationError as error:
        details = error.errors()
        misspelled = shadowed(details)
        for detail in details:
            if detail["type"] == "missing" and detail["loc"] in misspelled:
                continue
            path: KeyPath = tuple(part for part in detail["loc"] if part != "[key]")
            broken = detail.get("ctx", {}).get("error")
            if isinstance(broken, Misplaced):
                path = broken.path
            document.problem(_where(document, base, path, detail["type"]), explain(detail, path, name))
        return None


def _where(document: Document, base: KeyPath, path: KeyPath, kind: str) -> KeyPath:
    """Where in the file the value at `path` of a merged environment comes from: its overlay or the shared part.

    The overlay's word is the last, so an exact match there wins; otherwise whichever knows more of the path.
    What is missing is missing from the shared part, if both know as much.
    """
    if (*base, *path) in document.lines and kind != "missing":
        return (*base, *path)
    overlay, shared = document.depth((*base, *path)) - len(base), document.depth(path)
    return (*base, *path) if overlay > shared or not path or path[0] not in document.data else path


def _merge(under: Any, over: Any) -> Any:
    """`over` deep-merged on `under`: mappings by key, anything else replaced.

    A workload that names a kind of its own drops the shared one: an llm in staging replaces a mockup.
    """
    if not (isinstance(under, dict) and isinstance(over, dict)):
        return over
    if any(over.get(kind) is not None for kind in KINDS):
        under = {key: value for key, value in under.items() if key not in KINDS or key in over}
    return {**under, **{key: _merge(under.get(key), value) for key, value in over.items()}}


def _unique(problems: list[Problem]) -> list[Problem]:
    """Without repeats (a shared value is wrong once, however many environments use it), by line."""
    return sorted(dict.fromkeys(problems), key=lambda problem: problem.line)
