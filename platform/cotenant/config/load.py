"""Reads the platform file and says, by line, everything that is wrong with it, in every environment.

Each environment is merged over the shared values and validated as a whole, so an error names the line that the
user would have to change, wherever the value came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cotenant.config.base import Misplaced
from cotenant.config.document import Document, KeyPath, Origin, parse
from cotenant.config.explain import explain, nearest, probably_meant, shadowed, unknown_key
from cotenant.config.model import KINDS, Environment, Platform, PlatformFile
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
    _share_no_queue(document, platforms)
    if document.problems:
        raise ConfigError(_unique(document.problems))
    if environment not in platforms:
        known = ", ".join(platforms)
        document.problem(
            ("environments",), f"no environment {environment!r}; it has {known}{nearest(environment, platforms)}"
        )
        raise ConfigError(document.problems)
    return platforms[environment]


def _share_no_queue(document: Document, platforms: Mapping[str, Platform]) -> None:
    """Two environments of one project that pull from one subscription would take each other's jobs."""
    first: dict[tuple[str, str], str] = {}
    for name, platform in platforms.items():
        jobs = platform.jobs
        if platform.gke is None or not jobs.ingresses:
            continue
        other = first.setdefault((jobs.project, jobs.subscription), name)
        if other != name:
            document.problem(
                document.origin(("environments", name), ("jobs", "subscription")),
                f"environments {other} and {name} would take each other's jobs: both pull from subscription "
                f"{jobs.subscription} of project {jobs.project}; give {name} its own jobs, e.g. jobs: {{topic: "
                f"jobs-{name}, subscription: jobs-{name}, results: results-{name}, dead_letter: dead-{name}}}",
            )


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
    _jobs_follow_gke(merged)
    try:
        return Platform.model_validate(merged).read_from(Origin(document, base))
    except ValidationError as error:
        details = error.errors()
        misspelled = shadowed(details)
        absent = ("workloads",) if "workloads" in _misspelled_at_top(document) else None
        for detail in details:
            if detail["type"] == "missing" and (detail["loc"] in misspelled or detail["loc"] == absent):
                continue
            path: KeyPath = tuple(part for part in detail["loc"] if part != "[key]")
            broken = detail.get("ctx", {}).get("error")
            if isinstance(broken, Misplaced):
                path = broken.path
            where = document.origin(base, path, missing=detail["type"] == "missing")
            document.problem(where, explain(detail, path, name) + _shared_name(document, path, detail["type"]))
        return None


def _misspelled_at_top(document: Document) -> set[str | None]:
    """Top-level keys that were probably meant by the unknown ones, which are reported themselves."""
    known = PlatformFile.model_fields
    return {probably_meant(key, known) for key in document.data if key not in known}


def _shared_name(document: Document, path: KeyPath, kind: str) -> str:
    """A hint where an environment's workload lacks something because its name is no shared one's."""
    shared = document.data.get("workloads")
    if kind != "missing" or path[:1] != ("workloads",) or len(path) != 3 or not isinstance(shared, dict):
        return ""
    near = "" if path[1] in shared else nearest(str(path[1]), shared)
    return f" {path[1]} is new here{near}" if near else ""


def _jobs_follow_gke(merged: dict[str, Any]) -> None:
    """An environment on Google Cloud has its topics in its own project, unless `jobs.project` says otherwise."""
    gke, jobs = merged.get("gke"), merged.get("jobs", {})
    if isinstance(gke, dict) and isinstance(jobs, dict) and isinstance(gke.get("project"), str):
        merged["jobs"] = {"project": gke["project"], **jobs}


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
