"""Designs times templates times colours: the jobs that a designer means, without writing a file of them.

Every picture is read and decoded once, before anything is stored, however many jobs it is for. A small one is embedded
in its jobs; a large one is kept in the store once and named by them. Always true: the same pictures, templates,
colours and look give the same jobs, byte for byte, so submitting them again under the same batch repeats no work.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from cotenant.calls import Directory
from cotenant.config import Platform
from cotenant.engines.mockup.request import parse
from cotenant.engines.pictures.decode import decode
from cotenant.engines.pictures.refusal import BadRequest
from cotenant.errors import JobsFileError, MalformedJob, Problem, UnknownWorkload
from cotenant.jobs.model import check_name, digest

MOCKUPS_URL = "/v1/mockups"
#: A picture up to this is carried by each of its jobs; a larger one costs less as one object in the store.
EMBEDDED_BYTES = 16 << 10
#: Embedded copies of all pictures together; beyond it all of them are stored.
_EMBEDDED_IN_ALL = 32 << 20
#: What a folder of designs is searched for.
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
#: Pictures are decoded to be checked, no larger than this is needed for.
_ENOUGH_PX = 256
_MAX_PROBLEMS = 20


@dataclass(frozen=True)
class Design:
    """A picture that was checked. `name` is its path below the folder that all designs have in common."""

    name: str
    path: Path
    sha256: str
    bytes: int
    embedded: str | None
    """Its base64 where it is small."""


@dataclass(frozen=True)
class Look:
    """What of a mockup is the same in all jobs; None leaves a field to the renderer's default."""

    size: str | None = None
    samples: int | None = None
    format: str | None = None
    quality: int | None = None
    fit: str | None = None
    seed: int | None = None

    def body(self) -> dict[str, Any]:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if self.size is not None and self.size.isdecimal():
            given["size"] = int(self.size)
        return given


@dataclass(frozen=True)
class Range:
    """What is asked for. `colours` are backgrounds; none means the renderer's own, and no part of custom_ids."""

    templates: tuple[str, ...]
    colours: tuple[str, ...] = ()
    look: Look = field(default_factory=Look)


@dataclass(frozen=True)
class Wrong(Problem):
    """Something wrong that stands on no line of a file: `file` is the picture or the option."""

    def __str__(self) -> str:
        return f"{self.file}: {self.message}"


def find_designs(patterns: Iterable[str]) -> list[Path]:
    """The files that `patterns` mean: file names, folders (of which all pictures are taken) and globs; sorted.

    Raises:
        JobsFileError: a pattern that means nothing.
    """
    found: dict[Path, None] = {}
    problems: list[Problem] = []
    for pattern in patterns:
        expanded = os.path.expanduser(pattern)  # noqa: PTH111 (a glob is no path yet)
        if Path(expanded).is_dir():
            paths = [path for path in Path(expanded).iterdir() if path.suffix.lower() in _SUFFIXES]
        elif has_magic(expanded) and not Path(expanded).exists():
            paths = [Path(match) for match in glob(expanded, recursive=True)]  # noqa: PTH207 (a pattern may be absolute)
        else:
            paths = [Path(expanded)]
        files = [path for path in sorted(paths) if path.is_file()]
        if not files:
            what = "holds no PNG, JPEG or WebP files" if Path(expanded).is_dir() else "matches no file"
            problems.append(Wrong("--designs", 1, f"{pattern!r} {what}; name pictures, a folder or a pattern"))
        found |= dict.fromkeys(files)
    if problems:
        raise JobsFileError(problems)
    return list(found)


def read_designs(paths: Sequence[Path], on_read: Callable[[], object] = lambda: None) -> list[Design]:
    """Read and decode each picture once, a few at a time.

    Raises:
        JobsFileError: pictures that can't be read, that no renderer would take, or whose name no job can carry.
    """
    root = Path(os.path.commonpath([path.absolute().parent for path in paths])) if paths else Path()
    designs: list[Design] = []
    problems: list[Problem] = []
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for read in pool.map(lambda path: _read(path, path.absolute().relative_to(root).as_posix()), paths):
            on_read()
            if isinstance(read, Design):
                designs.append(read)
            elif len(problems) < _MAX_PROBLEMS:
                problems.append(read)
    if problems:
        raise JobsFileError(problems)
    return designs


def content_of(design: Design) -> bytes:
    """The picture's bytes once more, to be stored. Raises JobsFileError if they are not what was checked."""
    try:
        data = design.path.read_bytes()
    except OSError as error:
        raise JobsFileError([_unreadable(design.path, error)]) from error
    if digest(data) != design.sha256:
        raise JobsFileError([Wrong(str(design.path), 1, "changed while it was submitted; submit it again")])
    return data


def check_range(wanted: Range, platform: Platform) -> Range:
    """`wanted` with colours written one way and nothing twice.

    Raises:
        JobsFileError: templates that nobody renders, or values that the renderer of one of them refuses.
    """
    directory = Directory.of(platform)
    problems: list[Problem] = []
    templates = tuple(dict.fromkeys(wanted.templates))
    body = {"template": "any", "artwork": "any", **wanted.look.body()}
    colours: dict[str, None] = {}
    try:
        parse(_json(body))
    except BadRequest as error:
        problems.append(Wrong(f"--{error.param or 'size'}", 1, str(error).removeprefix(f"{error.param}: ")))
    for colour in wanted.colours if not problems else ():
        try:
            colours[parse(_json({**body, "background": colour})).background] = None
        except BadRequest as error:
            text = str(error).removeprefix(f"{error.param}: ")
            problems.append(Wrong("--color", 1, text if repr(colour) in text else f"{colour}: {text}"))
    for template in templates:
        try:
            served = directory.route(MOCKUPS_URL, {"template": template})
        except UnknownWorkload as error:
            problems.append(Wrong("--template", 1, str(error)))
            continue
        spec = platform.workloads[served.name].mockup
        if problems or spec is None:
            continue
        request = parse(_json(body))
        if max(request.pixels) > spec.max_size_px:
            text = f"{served.name} renders up to {spec.max_size_px} pixels a side; ask for less, or raise max_size_px"
            problems.append(Wrong("--size", 1, text))
        if request.samples > spec.max_samples:
            text = f"{served.name} takes up to {spec.max_samples} samples; ask for less, or raise max_samples"
            problems.append(Wrong("--samples", 1, text))
    if problems:
        raise JobsFileError(list(dict.fromkeys(problems)))
    return Range(templates, tuple(colours), wanted.look)


def embeds(designs: Iterable[Design], wanted: Range) -> bool:
    """Whether small pictures are to be embedded: not where their copies would make most of a file."""
    copies = len(wanted.templates) * max(1, len(wanted.colours))
    return copies * sum(len(design.embedded) for design in designs if design.embedded is not None) <= _EMBEDDED_IN_ALL


def lines(
    designs: Iterable[Design], wanted: Range, reference: Callable[[Design], Any], *, embed: bool = True
) -> Iterator[bytes]:
    """The lines of an OpenAI batch file: each design on each template in each colour.

    Args:
        reference: what stands for the artwork of a design that is not embedded.
        embed: whether small ones are (`embeds`).
    """
    look = wanted.look.body()
    for design in designs:
        artwork = design.embedded if embed and design.embedded is not None else reference(design)
        for template in wanted.templates:
            for colour in wanted.colours or (None,):
                parts = (template, design.name, *(() if colour is None else (colour.removeprefix("#"),)))
                body = {"template": template, "artwork": artwork, **look}
                if colour is not None:
                    body["background"] = colour
                yield _json({"custom_id": "/".join(parts), "method": "POST", "url": MOCKUPS_URL, "body": body})


def _read(path: Path, name: str) -> Design | Problem:
    try:
        data = path.read_bytes()
        check_name("its name", name)
        decode(data, "it", enough_px=_ENOUGH_PX)
    except OSError as error:
        return _unreadable(path, error)
    except (BadRequest, MalformedJob) as error:
        return Wrong(ascii(str(path))[1:-1] if not str(path).isprintable() else str(path), 1, str(error))
    small = base64.b64encode(data).decode() if len(data) <= EMBEDDED_BYTES else None
    return Design(name, path, digest(data), len(data), small)


def _unreadable(path: Path, error: OSError) -> Problem:
    return Wrong(str(path), 1, f"can't be read: {error.strerror}; name a picture that is there")


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
