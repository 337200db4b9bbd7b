"""Who owns which field: server-side apply as far as the in-memory twin needs it. Pure.

A field is a path to a leaf. Lists are leaves as a whole here (the API server tells items of some lists apart by their
key), and so is an empty object. What an object is called, and what the server fills in, is nobody's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Path = tuple[str, ...]

_OF_THE_SERVER = frozenset(
    {"name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "selfLink"}
)


@dataclass(frozen=True)
class Ownership:
    """Fields of one manager. Those that it applied go when it leaves them out; those it wrote otherwise stay."""

    manager: str
    applied: bool
    paths: frozenset[Path]


def owned_paths(thing: Mapping[str, Any]) -> frozenset[Path]:
    """The fields that an object sets, and somebody may own."""
    return frozenset(path for path in _leaves(thing, ()) if not _is_the_servers(path))


def _is_the_servers(path: Path) -> bool:
    return path[0] in ("apiVersion", "kind") or (path[0] == "metadata" and len(path) > 1 and path[1] in _OF_THE_SERVER)


def _leaves(value: Any, path: Path) -> Iterable[Path]:
    if isinstance(value, Mapping) and (value or not path):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, str(key)))
    else:
        yield path


def conflicts(
    live: Mapping[str, Any], wanted: Mapping[str, Any], owners: Iterable[Ownership], manager: str
) -> dict[str, list[str]]:
    """Fields that `wanted` sets to another value than they have, by the other manager that owns them."""
    different = [path for path in owned_paths(wanted) if value_at(live, path) != value_at(wanted, path)]
    found: dict[str, list[str]] = {}
    for owner in owners:
        if owner.manager == manager and owner.applied:
            continue
        fields = [f".{'.'.join(path)}" for path in different if _overlaps(path, owner.paths)]
        if fields:
            found.setdefault(owner.manager, []).extend(sorted(fields))
    return found


def _overlaps(path: Path, owned: frozenset[Path]) -> bool:
    return any(path[: len(each)] == each or each[: len(path)] == path for each in owned)


def applied(
    live: Mapping[str, Any], wanted: Mapping[str, Any], owners: Iterable[Ownership], manager: str
) -> tuple[dict[str, Any], tuple[Ownership, ...]]:
    """`live` after `manager` applied `wanted`, conflicts or not, and who owns its fields then."""
    owners = tuple(owners)
    mine = owned_paths(wanted)
    before = next((each.paths for each in owners if each.manager == manager and each.applied), frozenset())
    others = [
        Ownership(
            each.manager, each.applied, frozenset(path for path in each.paths if not _lost(path, live, wanted, mine))
        )
        for each in owners
        if not (each.manager == manager and each.applied)
    ]
    held = frozenset().union(*(each.paths for each in others)) if others else frozenset()
    after = copy.deepcopy(dict(live))
    for path in before - mine - held:
        remove(after, path)
    for path in mine:
        put(after, path, copy.deepcopy(value_at(wanted, path)))
    return after, (*(each for each in others if each.paths), Ownership(manager, True, mine))


def _lost(path: Path, live: Mapping[str, Any], wanted: Mapping[str, Any], mine: frozenset[Path]) -> bool:
    """Whether its owner loses `path`: somebody applied another value there."""
    return any(_overlaps(path, frozenset({each})) and value_at(live, each) != value_at(wanted, each) for each in mine)


def written(
    before: Mapping[str, Any], after: Mapping[str, Any], owners: Iterable[Ownership], manager: str
) -> tuple[Ownership, ...]:
    """Who owns what after `manager` changed an object without applying: it has the fields that it changed."""
    changed = frozenset(
        path
        for path in owned_paths(after)
        if path not in owned_paths(before) or value_at(before, path) != value_at(after, path)
    )
    kept = []
    mine: frozenset[Path] = changed
    for each in owners:
        left = frozenset(path for path in each.paths - changed if value_at(after, path) is not _MISSING)
        if each.manager == manager and not each.applied:
            mine |= left
        elif left:
            kept.append(Ownership(each.manager, each.applied, left))
    return (*kept, Ownership(manager, False, mine)) if mine else tuple(kept)


class _Missing:
    def __repr__(self) -> str:
        return "missing"


_MISSING = _Missing()


def value_at(thing: Any, path: Path) -> Any:
    """The value at `path`, or a marker that equals nothing else."""
    for key in path:
        if not isinstance(thing, Mapping) or key not in thing:
            return _MISSING
        thing = thing[key]
    return thing


def put(thing: dict[str, Any], path: Path, value: Any) -> None:
    *parents, last = path
    for key in parents:
        if not isinstance(thing.get(key), dict):
            thing[key] = {}
        thing = thing[key]
    thing[last] = value


def remove(thing: dict[str, Any], path: Path) -> None:
    """Take `path` away, and objects that are empty for it."""
    head, *rest = path
    if head not in thing:
        return
    if rest and isinstance(thing[head], dict):
        remove(thing[head], tuple(rest))
        if thing[head]:
            return
    del thing[head]


def fields_v1(paths: Iterable[Path]) -> dict[str, Any]:
    """As `managedFields` writes them: `{"f:spec": {"f:replicas": {}}}`."""
    tree: dict[str, Any] = {}
    for path in sorted(paths):
        node = tree
        for key in path:
            node = node.setdefault(f"f:{key}", {})
    return tree
