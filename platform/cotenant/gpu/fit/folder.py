"""Where a model's files are read from: a folder here, a repository elsewhere, a dict in tests.

Only names, sizes and short stretches of files are ever asked for, so the same readers serve a local folder and a hub
over HTTPS. What is missing or unreadable is a `FactsMissing`, whose text says what to do about it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from cotenant.errors import CotenantError

#: A config is a few KiB; 8 MiB is far above any, and far below what would harm.
LONGEST_JSON = 8 << 20


class FactsMissing(CotenantError):
    """What an estimate needs to know of a model is not to be had; the text says from where it could be."""

    exit_code = 2


class Folder(Protocol):
    """A model's files."""

    @property
    def name(self) -> str:
        """What messages call it: a path or an id."""
        ...

    def files(self) -> Mapping[str, int]:
        """Sizes in bytes by path inside the folder, with forward slashes."""
        ...

    def read(self, path: str, start: int, length: int) -> bytes:
        """At most `length` bytes of a file from `start`; fewer where it ends. Raises FactsMissing."""
        ...


class LocalFolder:
    """A folder of this machine. Files deeper than one subfolder don't count: no model layout has any."""

    def __init__(self, path: Path, *, name: str | None = None) -> None:
        self._path = path
        self.name = name or str(path)

    def files(self) -> Mapping[str, int]:
        found = [*self._path.glob("*"), *self._path.glob("*/*")]
        return {path.relative_to(self._path).as_posix(): path.stat().st_size for path in found if path.is_file()}

    def read(self, path: str, start: int, length: int) -> bytes:
        try:
            with (self._path / path).open("rb") as file:
                file.seek(start)
                return file.read(length)
        except OSError as error:
            raise FactsMissing(f"{self._path / path} can't be read: {error.strerror}") from None


class InMemoryFolder:
    """A folder of given bytes: the twin for tests, and for facts that come with the package."""

    def __init__(self, name: str, content: Mapping[str, bytes]) -> None:
        self.name = name
        self._content = dict(content)

    def files(self) -> Mapping[str, int]:
        return {path: len(data) for path, data in self._content.items()}

    def read(self, path: str, start: int, length: int) -> bytes:
        if path not in self._content:
            raise FactsMissing(f"{self.name} has no {path}")
        return self._content[path][start : start + length]


def read_json(folder: Folder, path: str) -> dict[str, Any]:
    """A JSON object of the folder. Raises FactsMissing if it is too long, no JSON or no object."""
    data = folder.read(path, 0, LONGEST_JSON + 1)
    if len(data) > LONGEST_JSON:
        raise FactsMissing(f"{path} of {folder.name} has more than {LONGEST_JSON >> 20} MiB, too much for a config")
    try:
        value = json.loads(data)
    except ValueError as error:
        raise FactsMissing(f"{path} of {folder.name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise FactsMissing(f"{path} of {folder.name} holds no JSON object")
    return value
