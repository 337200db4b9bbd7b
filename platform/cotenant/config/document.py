"""A YAML file as plain data that remembers its lines.

YAML is composed into nodes, not loaded, so that each value keeps its line and duplicates are seen before a dict
swallows them. Anchors, aliases and merge keys (`<<`) work; a value that came by one keeps the line on which it is
written, since that is the line to change.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cotenant.errors import Problem

#: Keys and list positions from the top of the file to a value.
KeyPath = tuple[str | int, ...]

#: libyaml's loader where PyYAML has it: a file of a thousand workloads takes 0.1 s instead of 1.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MERGE_TAG = "tag:yaml.org,2002:merge"
#: Far above what a platform file needs; an alias that contains itself would go on for ever.
_MAX_DEPTH = 50
#: A thousand workloads are some 20,000 values; aliases of aliases make more than any machine has room for.
_MAX_VALUES = 200_000
#: Python itself refuses longer numbers, in words for programmers.
_MAX_DIGITS = 4_000


@dataclass
class Document:
    """A parsed file: plain data, the line of each value by its path, and the problems found so far."""

    file: str
    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def depth(self, path: KeyPath) -> int:
        """How many parts of `path` the file has."""
        while path and path not in self.lines:
            path = path[:-1]
        return len(path)

    def line(self, path: KeyPath) -> int:
        """Line of the deepest part of `path` that the file has (1 if none)."""
        return self.lines.get(path[: self.depth(path)], 1)

    def problem(self, path: KeyPath, message: str) -> None:
        """Record something wrong with the value at `path`."""
        self.problems.append(Problem(self.file, self.line(path), message))

    def origin(self, base: KeyPath, path: KeyPath, *, missing: bool = False) -> KeyPath:
        """Where the value at `path` of an environment comes from: its overlay (at `base`) or the shared part.

        The overlay's word is the last, so an exact match there wins; otherwise whichever knows more of the path.
        What is missing is missing from the shared part, if both know as much.
        """
        if (*base, *path) in self.lines and not missing:
            return (*base, *path)
        overlay, shared = self.depth((*base, *path)) - len(base), self.depth(path)
        return (*base, *path) if overlay > shared or not path or path[0] not in self.data else path


@dataclass(frozen=True)
class Origin:
    """The file and the part of it (`base`) that an environment comes from, to name lines with later."""

    document: Document = field(compare=False, repr=False)
    base: KeyPath

    def problem(self, path: KeyPath, message: str) -> Problem:
        """Something wrong with the value at `path` of the merged environment."""
        return Problem(self.document.file, self.document.line(self.document.origin(self.base, path)), message)


class _TooLarge(Exception):
    """The file holds more values than any platform has."""


def parse(path: Path, missing_hint: str) -> Document:
    """Read `path`. What can't be read or is no YAML mapping is in the document's `problems`."""
    document = Document(str(path))
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        document.problem((), f"no such file; {missing_hint}")
        return document
    except OSError as error:
        document.problem((), f"can't be read: {error.strerror}; {missing_hint}")
        return document
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        document.problems.append(
            Problem(document.file, line, f"is not text in UTF-8 here (byte {error.start}); save it as UTF-8")
        )
        return document
    try:
        node = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        what = " ".join(part for part in (error.context, error.problem) if part)
        document.problems.append(Problem(document.file, line, f"is not YAML here: {what}"))
        return document
    except (yaml.YAMLError, RecursionError) as error:
        document.problem((), f"is not YAML: {' '.join(str(error).split())}")
        return document
    if node is None:
        document.problem((), "is empty; it needs at least workloads and environments")
    elif not isinstance(node, yaml.MappingNode):
        document.problem((), "needs a mapping at the top, with workloads and environments")
    else:
        try:
            document.data = _Builder(document).mapping(node, ())
        except _TooLarge:
            document.problem((), f"holds over {_MAX_VALUES:,} values, aliases written out; use fewer aliases")
    return document


class _Builder:
    """Turns nodes into plain data and fills a document's lines and problems."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._scalars = yaml.SafeLoader("")
        self._values = 0

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self._count()
        self._document.lines.setdefault(path, node.start_mark.line + 1)
        if len(path) > _MAX_DEPTH:
            self._document.problem(path[:1], "is nested too deeply; does an alias contain itself?")
            return None
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        try:
            return self._scalars.construct_object(node)
        except (ValueError, yaml.YAMLError) as error:
            what = error.problem if isinstance(error, yaml.MarkedYAMLError) else error
            if isinstance(error, ValueError) and len(node.value) > _MAX_DIGITS:
                what = f"takes no number of {len(node.value):,} digits"
            self._document.problem(path, f"{dotted(path)}: {what}")
            return None

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        """A mapping's own keys over those it merges; the same key twice is a problem."""
        self._count()
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        pairs = [(key_node, value_node, key_node.start_mark.line + 1) for key_node, value_node in node.value]
        for _, value_node, line in (pair for pair in pairs if pair[0].tag == _MERGE_TAG):
            merged.update(self._merged(value_node, path, line))
        for key_node, value_node, line in (pair for pair in pairs if pair[0].tag != _MERGE_TAG):
            if not isinstance(key_node, yaml.ScalarNode):
                self._report(line, "a key must be plain text")
                continue
            here = (*path, key_node.value)
            if key_node.value in own:
                first = self._document.lines[here]
                self._report(line, f"{dotted(here)} is given twice (first on line {first}); keep one")
                continue
            self._document.lines[here] = line
            own[key_node.value] = self.value(value_node, here)
        return {**merged, **own}

    def _merged(self, node: yaml.Node, path: KeyPath, line: int) -> dict[str, Any]:
        """What `<<: *alias` or `<<: [*one, *two]` brings in; of several the first wins."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for source in reversed(sources):
            if not isinstance(source, yaml.MappingNode):
                self._report(line, "<< merges mappings only; give it an alias of one")
            elif len(path) > _MAX_DEPTH:
                self._report(line, "is nested too deeply; does an alias contain itself?")
            else:
                merged.update(self.mapping(source, path))
        return merged

    def _count(self) -> None:
        self._values += 1
        if self._values > _MAX_VALUES:
            raise _TooLarge

    def _report(self, line: int, message: str) -> None:
        self._document.problems.append(Problem(self._document.file, line, message))


def dotted(path: KeyPath) -> str:
    """A path as messages write it."""
    return ".".join(str(part) for part in path) or "the file"
