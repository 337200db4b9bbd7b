"""Reads the platform file and says, by line, everything that is wrong with it.

YAML is composed into nodes first, so that each value keeps its line, and duplicates are seen before a dict
swallows them. Each environment is then merged over the shared values and validated as a whole, so an error
names the line that the user would have to change, wherever the value came from.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cotenant.config.model import Platform, PlatformFile
from cotenant.errors import ConfigError, Problem

DEFAULT_FILE = Path("deployments/platform.yaml")
DEFAULT_ENVIRONMENT = "local"

#: Sections of an environment that are merged over the shared ones.
_OVERLAID = ("workloads", "jobs", "gateway")
_FOREIGN_UNITS = ("_mib", "_mb", "_gb", "_kib", "_ms", "_min", "_minutes", "_seconds", "_sec", "_h", "_hours")

Path_ = tuple[str | int, ...]


@dataclass
class _Document:
    """A parsed file: plain data, and the line of each key and value by its path."""

    file: str
    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[Path_, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, path: Path_) -> int:
        """Line of the deepest part of `path` that the file has (1 if none)."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def problem(self, path: Path_, message: str) -> None:
        self.problems.append(Problem(self.file, self.line(path), message))


def load_platform(file: Path | str = DEFAULT_FILE, environment: str = DEFAULT_ENVIRONMENT) -> Platform:
    """The platform that `file` describes for `environment`.

    Raises:
        ConfigError: the file can't be read or has problems, in this environment or in any other.
    """
    document = _parse(Path(file))
    if document.problems:
        raise ConfigError(document.problems)
    environments = document.data.get("environments")
    platforms: dict[str, Platform] = {}
    _check_shape(document)
    if isinstance(environments, dict):
        for name in environments:
            platform = _resolve(document, str(name))
            if platform is not None:
                platforms[str(name)] = platform
    if document.problems:
        raise ConfigError(_unique(document.problems))
    if environment not in platforms:
        known = ", ".join(platforms)
        raise ConfigError(
            [
                Problem(
                    document.file,
                    document.line(("environments",)),
                    f"no environment {environment!r}; it has {known}{_nearest(environment, platforms)}",
                )
            ]
        )
    return platforms[environment]


def environments(file: Path | str = DEFAULT_FILE) -> tuple[str, ...]:
    """Names of the environments in `file`, in its order. Raises ConfigError."""
    document = _parse(Path(file))
    if document.problems:
        raise ConfigError(document.problems)
    found = document.data.get("environments")
    return tuple(str(name) for name in found) if isinstance(found, dict) else ()


def _parse(path: Path) -> _Document:
    document = _Document(str(path))
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        document.problem((), f"no such file; name one with -f/--file (the default is {DEFAULT_FILE})")
        return document
    except (OSError, UnicodeDecodeError) as error:
        document.problem((), f"can't be read: {error}")
        return document
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            document.problem((), "is empty; it needs at least workloads and environments")
        elif not isinstance(node, yaml.MappingNode):
            document.problem((), "needs a mapping at the top, with workloads and environments")
        else:
            document.data = _build(node, (), document)
    except yaml.MarkedYAMLError as error:
        line = (error.problem_mark.line + 1) if error.problem_mark else 1
        what = " ".join(part for part in (error.context, error.problem) if part)
        document.problems.append(Problem(document.file, line, f"is not YAML: {what}"))
    except (yaml.YAMLError, RecursionError) as error:
        document.problem((), f"is not YAML: {error}")
    return document


def _build(node: yaml.Node, path: Path_, document: _Document) -> Any:
    """Plain data of `node`; records each line, and duplicates as problems."""
    document.lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        loader = yaml.SafeLoader("")
        loader.flatten_mapping(node)
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            at = key_node.start_mark.line + 1
            if key is None:
                document.problems.append(Problem(document.file, at, "a key must be plain text"))
                continue
            here = (*path, key)
            if key in mapping:
                first = document.lines[here]
                document.problems.append(
                    Problem(document.file, at, f"{_dotted(here)} is given twice (first on line {first}); keep one")
                )
                continue
            document.lines[here] = at
            mapping[key] = _build(value_node, here, document)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*path, index), document) for index, item in enumerate(node.value)]
    constructor = yaml.SafeLoader("")
    try:
        return constructor.construct_object(node)
    except ValueError as error:
        document.problem(path, f"{_dotted(path)} {error}")
        return None


def _check_shape(document: _Document) -> None:
    """Top-level keys, and keys of each environment that the merged platform would not show."""
    data = document.data
    if not isinstance(data.get("environments"), dict) or not data.get("environments"):
        document.problem(
            ("environments",),
            "environments is missing; give at least local: {pools: {shared: {accelerator: cpu, vram_gib: 12}}}",
        )
    for key in data:
        if key not in PlatformFile.model_fields:
            document.problem((key,), _unknown_key((key,), PlatformFile))


def _resolve(document: _Document, environment: str) -> Platform | None:
    """The platform of one environment, or None with its problems recorded."""
    base = ("environments", environment)
    overlay = document.data["environments"][environment]
    if not isinstance(overlay, dict):
        document.problem(base, f"environment {environment} needs a mapping with pools")
        return None
    merged = {key: value for key, value in document.data.items() if key != "environments"}
    merged = {key: value for key, value in merged.items() if key in PlatformFile.model_fields}
    for key, value in overlay.items():
        if key in _OVERLAID:
            merged[key] = _merge(merged.get(key), value)
        else:
            merged[key] = value
    merged["environment"] = environment
    try:
        return Platform.model_validate(merged)
    except ValidationError as error:
        for detail in error.errors():
            path = tuple(part for part in detail["loc"] if part != "[key]")
            overlaid = (*base, *path)
            in_overlay = overlaid in document.lines or (path and path[0] not in document.data)
            where = overlaid if in_overlay else path
            document.problem(where, _explain(detail, path, environment if in_overlay else None, document.data))
        return None


def _merge(under: Any, over: Any) -> Any:
    """`over` deep-merged on `under`: mappings by key, anything else replaced. Naming another kind drops the old one."""
    if not (isinstance(under, dict) and isinstance(over, dict)):
        return over
    return {**under, **{key: _merge(under.get(key), value) for key, value in over.items()}}


def _explain(detail: ErrorDetails, path: Path_, environment: str | None, data: dict[str, Any]) -> str:
    """One line for a pydantic error: what was given, the rule, the next step."""
    dotted = _dotted(path)
    kind, given = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return _unknown_key(path, _model_at(path[:-1]))
    if kind == "missing":
        if path == ("pools",):
            return f"environment {environment or ''} needs pools, e.g. pools: {{shared: {{accelerator: cpu, vram_gib: 12}}}}"
        return f"{dotted} is missing{_described(path)}"
    if kind == "string_pattern_mismatch" and path:
        return f"{dotted}: a name is lower-case letters, digits and dashes, at most 40; got {given!r}"
    message = detail["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{dotted} {message}" if path else message
    message = message[0].lower() + message[1:]
    shown = repr(given) if isinstance(given, (str, int, float, bool)) or given is None else type(given).__name__
    return f"{dotted}: {message}; got {shown}"


def _unknown_key(path: Path_, model: type[BaseModel] | None) -> str:
    key = str(path[-1])
    known = list(model.model_fields) if model is not None else []
    stems = {name: name for name in known}
    for unit in _FOREIGN_UNITS:
        if key.endswith(unit):
            stem = key.removesuffix(unit)
            same = [name for name in known if name.rsplit("_", 1)[0] == stem]
            if same:
                return f"{_dotted(path)} is not a key here: the unit differs; write {same[0]}"
    near = difflib.get_close_matches(key, stems, n=1, cutoff=0.6) or [
        name for name in known if name.split("_")[0] == key.split("_")[0]
    ]
    hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
    return f"{_dotted(path)} is not a key here; {hint}"


def _model_at(path: Path_) -> type[BaseModel] | None:
    """The model that describes the mapping at `path` of a platform."""
    model: type[BaseModel] | None = Platform
    steps: Iterator[str | int] = iter(path)
    for step in steps:
        if model is None:
            return None
        info = model.model_fields.get(str(step))
        if info is None:
            return None
        nested = [arg for arg in _flatten(info.annotation) if isinstance(arg, type) and issubclass(arg, BaseModel)]
        annotation = str(info.annotation)
        if annotation.startswith("dict["):
            next(steps, None)
        model = nested[0] if nested else None
    return model


def _flatten(annotation: Any) -> Iterator[Any]:
    yield annotation
    for arg in get_args(annotation):
        yield from _flatten(arg)


def _described(path: Path_) -> str:
    model = _model_at(path[:-1])
    info = model.model_fields.get(str(path[-1])) if model is not None else None
    return f": {info.description}" if info is not None and info.description else ""


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _dotted(path: Path_) -> str:
    return ".".join(str(part) for part in path) or "the file"


def _unique(problems: list[Problem]) -> list[Problem]:
    """Without repeats (a shared value is wrong once, however many environments use it), by line."""
    return sorted(dict.fromkeys(problems), key=lambda problem: problem.line)
