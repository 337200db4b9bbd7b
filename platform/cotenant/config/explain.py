"""What is wrong with a value of the platform file, in one line: what was given, the rule, the next step."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from cotenant.config.base import NAME_PATTERN
from cotenant.config.document import KeyPath, dotted
from cotenant.config.model import Platform

#: Units that a user may have had in mind where the file has another.
_FOREIGN_UNITS = (
    "_bytes", "_kib", "_kb", "_mib", "_mb", "_gib", "_gb", "_tib", "_ms", "_s", "_sec", "_secs", "_seconds", "_min",
    "_minutes", "_h", "_hours", "_eur", "_usd",
)  # fmt: skip

#: pydantic's words for a wrong type, in ours.
_WANTED = {
    "int_type": "takes a whole number",
    "int_from_float": "takes a whole number",
    "float_type": "takes a number",
    "string_type": "takes text",
    "bool_type": "takes true or false",
    "tuple_type": "takes a list",
    "dict_type": "takes a mapping",
    "model_type": "takes a mapping",
    "model_attributes_type": "takes a mapping",
}


def explain(detail: ErrorDetails, path: KeyPath, environment: str) -> str:
    """One line for a pydantic error at `path` of an environment's merged platform."""
    name = dotted(path)
    kind, given = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return unknown_key(path, _model_at(path[:-1]))
    if kind == "missing":
        if path == ("pools",):
            return f"environment {environment} needs pools, e.g. pools: {{shared: {{accelerator: cpu, vram_gib: 12}}}}"
        if path == ("workloads",):
            return (
                "workloads is missing; name what is served, e.g. workloads: {mug: {mockup: {}, gpu: {vram_gib: 1.5}}}"
            )
        return f"{name} is missing{_described(path)}"
    if kind == "string_pattern_mismatch" and path[-1] == "mig":
        return f"{name} takes a MIG profile in lower case, e.g. 1g.10gb; got {given!r}"
    if kind == "string_pattern_mismatch" and detail["ctx"]["pattern"] != NAME_PATTERN:
        return f"{name} does not look like that; got {given!r}{_described(path)}"
    if kind == "string_pattern_mismatch":
        return f"{name}: a name is lower-case letters, digits and dashes, at most 40; got {given!r}"
    if kind == "too_short":
        return f"{name} is empty; give at least one"
    if kind == "value_error":
        return f"{name} {detail['msg'].removeprefix('Value error, ')}"
    if given is None:
        drop = "" if _required(path) else " or drop the key"
        return f"{name} has no value; give one{drop}{_described(path)}"
    if kind in _WANTED:
        return f"{name} {_WANTED[kind]}; got {_shown(given)}"
    message = detail["msg"].removeprefix("Input ")
    return f"{name} {message[0].lower() + message[1:]}; got {_shown(given)}"


def unknown_key(path: KeyPath, model: type[BaseModel] | None) -> str:
    """One line for a key that `model` does not have: the one that was probably meant, or all there are."""
    known = list(model.model_fields) if model is not None else []
    meant = probably_meant(str(path[-1]), known)
    if meant is None:
        return f"{dotted(path)} is not a key here; known keys: {', '.join(known)}"
    if _without_unit(meant) == _without_unit(str(path[-1])):
        return f"{dotted(path)} is not a key here: the unit differs; write {meant}"
    return f"{dotted(path)} is not a key here; did you mean {meant}?"


def probably_meant(key: str, known: Iterable[str]) -> str | None:
    """The known key that an unknown one was probably meant to be: in another unit, or nearly spelled so."""
    known = list(known)
    same = [name for name in known if name.endswith(_FOREIGN_UNITS) and _without_unit(name) == _without_unit(key)]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    alike = [name for name in known if name.partition("_")[0] == key.partition("_")[0]]
    return next(iter((*same, *near, *alike)), None)


def shadowed(errors: Iterable[ErrorDetails]) -> set[tuple[int | str, ...]]:
    """Paths of keys that only seem to be missing, because they stand there misspelled."""
    found = set()
    for error in errors:
        if error["type"] == "extra_forbidden":
            *parent, key = error["loc"]
            model = _model_at(tuple(parent))
            meant = probably_meant(str(key), model.model_fields if model is not None else ())
            if meant is not None:
                found.add((*parent, meant))
    return found


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that suggests the known name nearest to `name`, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _without_unit(key: str) -> str:
    return key.rsplit("_", 1)[0] if key.endswith(_FOREIGN_UNITS) else key


def _shown(given: Any) -> str:
    if isinstance(given, dict):
        return "a mapping"
    if isinstance(given, (list, tuple)):
        return "a list"
    return repr(given)


def _model_at(path: KeyPath) -> type[BaseModel] | None:
    """The model that describes the mapping at `path` of a platform."""
    model: type[BaseModel] | None = Platform
    steps: Iterator[str | int] = iter(path)
    for step in steps:
        info = model.model_fields.get(str(step)) if model is not None else None
        if info is None:
            return None
        if str(info.annotation).startswith("dict["):
            next(steps, None)
        nested = [arg for arg in _flat(info.annotation) if isinstance(arg, type) and issubclass(arg, BaseModel)]
        model = nested[0] if nested else None
    return model


def _flat(annotation: Any) -> Iterator[Any]:
    yield annotation
    for arg in get_args(annotation):
        yield from _flat(arg)


def _required(path: KeyPath) -> bool:
    info = _field_at(path)
    return info is not None and info.is_required()


def _field_at(path: KeyPath) -> FieldInfo | None:
    model = _model_at(path[:-1])
    return model.model_fields.get(str(path[-1])) if model is not None else None


def _described(path: KeyPath) -> str:
    info = _field_at(path)
    return f": {info.description}" if info is not None and info.description else ""
