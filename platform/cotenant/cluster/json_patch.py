"""Changes of single fields, as a JSON patch (RFC 6902) tells them, and what they make of an object. Pure.

Server-side apply can't change one field of an item where a list is one value to it, as the worker groups of a Ray
cluster are: whoever applies one of them owns, and overwrites, all of them. A patch whose `test` does not hold changes
nothing at all.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cotenant.cluster.objects import Object


@dataclass(frozen=True)
class Operation:
    """`path` leads to a field that is there, by keys and by places in lists."""

    op: Literal["test", "replace"]
    path: tuple[str | int, ...]
    value: Any

    @property
    def pointer(self) -> str:
        """The path as RFC 6901 writes it."""
        return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in self.path)


def document(operations: Iterable[Operation]) -> list[Object]:
    """As it is sent."""
    return [{"op": each.op, "path": each.pointer, "value": each.value} for each in operations]


def read_document(told: Iterable[Mapping[str, Any]]) -> list[Operation]:
    """The reverse, for whoever plays the API server."""
    return [Operation(each["op"], _steps(str(each["path"])), each["value"]) for each in told]


def _steps(pointer: str) -> tuple[str | int, ...]:
    named = [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]
    return tuple(int(step) if step.isdecimal() else step for step in named)


def patched(thing: Mapping[str, Any], operations: Iterable[Operation]) -> Object | None:
    """A copy of `thing` after all of it. None: a test does not hold, or a path leads nowhere."""
    after = copy.deepcopy(dict(thing))
    for each in operations:
        *parents, last = each.path
        try:
            at: Any = after
            for step in parents:
                at = at[step]
            held = at[last]
        except (LookupError, TypeError):
            return None
        if each.op == "replace":
            at[last] = copy.deepcopy(each.value)
        elif held != each.value:
            return None
    return after
