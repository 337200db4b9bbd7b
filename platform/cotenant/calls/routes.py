"""Which workload a request is for: by its route, and by the model or template that its body names.

Both doors decide with this one table, so whatever the gateway serves a job can ask for. Pure.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cotenant.config.model import Kind, Platform
from cotenant.errors import UnknownWorkload


@dataclass(frozen=True)
class Route:
    """A POST route that both doors serve, the kind of workload behind it, and whether it may stream."""

    url: str
    kind: Kind
    streams: bool = False


ROUTES: tuple[Route, ...] = (
    Route("/v1/chat/completions", "llm", streams=True),
    Route("/v1/completions", "llm", streams=True),
    Route("/v1/mockups", "mockup"),
    Route("/v1/images/generations", "image"),
    Route("/v1/images/edits", "image"),
)
#: What a model of another kind can't do for a route of this one.
_DOES_NOT: Mapping[Kind, str] = {"llm": "writes no text", "image": "makes no pictures"}
#: Characters of a name that nobody serves which its refusal repeats.
_LONGEST_NAME = 200
BY_URL: Mapping[str, Route] = {route.url: route for route in ROUTES}


@dataclass(frozen=True)
class Served:
    """One workload as the doors know it. `models` are the names a request may ask for, the public one first."""

    name: str
    kind: Kind
    models: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    slots: int = 1
    queue: int = 256
    deadline_s: float = 300.0


@dataclass(frozen=True)
class Directory:
    """Everything served, and the answer to "who takes this request?"."""

    workloads: tuple[Served, ...]

    @classmethod
    def of(cls, platform: Platform) -> Directory:
        """The directory of a platform's workloads."""
        return cls(
            tuple(
                Served(
                    name=name,
                    kind=workload.kind,
                    models=(*workload.models, name) if workload.models else (),
                    templates=tuple(template_name(t) for t in workload.mockup.templates) if workload.mockup else (),
                    slots=workload.slots,
                    queue=workload.queue,
                    deadline_s=workload.deadline_s,
                )
                for name, workload in platform.workloads.items()
            )
        )

    @classmethod
    def from_plain(cls, workloads: Iterable[Mapping[str, Any]]) -> Directory:
        """The directory that `to_plain` spelled out: the doors get it that way, in Serve's `user_config`."""
        plain: list[dict[str, Any]] = [
            {key: tuple(value) if isinstance(value, list) else value for key, value in workload.items()}
            for workload in workloads
        ]
        return cls(tuple(Served(**workload) for workload in plain))

    def to_plain(self) -> list[dict[str, Any]]:
        """This directory as YAML and JSON can hold it."""
        return [
            {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(served).items()}
            for served in self.workloads
        ]

    def named(self, name: str) -> Served:
        """The workload called `name`. Raises UnknownWorkload."""
        for served in self.workloads:
            if served.name == name:
                return served
        raise UnknownWorkload(f"no workload {name!r}; {_choices(name, (served.name for served in self.workloads))}")

    def of_kind(self, kind: Kind) -> tuple[Served, ...]:
        return tuple(served for served in self.workloads if served.kind == kind)

    def route(self, url: str, body: Mapping[str, Any]) -> Served:
        """The workload for a POST of `body` to `url`.

        An image request that names no model goes to the only image workload there is.

        Raises:
            UnknownWorkload: no such route, or nobody serves the model or template that the body names.
        """
        route = BY_URL.get(url)
        if route is None:
            raise UnknownWorkload(f"no route POST {url}; {_choices(url, BY_URL)}")
        candidates = self.of_kind(route.kind)
        if not candidates:
            raise UnknownWorkload(f"this platform has no {route.kind} workload, so it does not serve {url}")
        if route.kind != "mockup":
            wanted = body.get("model")
            if route.kind == "image" and wanted is None and len(candidates) == 1:
                return candidates[0]
            others = {name for served in self.workloads if served not in candidates for name in served.models}
            if isinstance(wanted, str) and wanted in others - {name for s in candidates for name in s.models}:
                have = _here(s.models[0] for s in candidates if s.models)
                raise UnknownWorkload(f"the model {_clipped(wanted)!r} {_DOES_NOT[route.kind]}; {have}")
            return _pick(wanted, candidates, "model", {s.name: s.models for s in candidates})
        template = body.get("template")
        return _pick(template, candidates, "template", {s.name: s.templates for s in candidates})


def template_name(template: str) -> str:
    """What requests call a template: the file's stem for a path, otherwise the name itself."""
    return template.rsplit("/", 1)[-1].removesuffix(".glb")


def _pick(wanted: Any, candidates: Iterable[Served], what: str, names: Mapping[str, tuple[str, ...]]) -> Served:
    if not isinstance(wanted, str) or not wanted:
        have = _here(name for group in names.values() for name in (group if what == "template" else group[:1]))
        raise UnknownWorkload(f"the body needs {what}, a string; {have}")
    for served in candidates:
        if wanted in names[served.name]:
            return served
    everyone = [name for group in names.values() for name in group]
    raise UnknownWorkload(f"the {what} {_clipped(wanted)!r} does not exist; {_choices(wanted, everyone)}")


def _clipped(name: str) -> str:
    """What of a stranger's name is looked at for a message: it may be as long as a body, and the loop waits."""
    return name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "…"


def _choices(wanted: str, known: Iterable[str]) -> str:
    known = list(dict.fromkeys(known))
    near = difflib.get_close_matches(_clipped(wanted), known, n=1)
    return f"did you mean {near[0]!r}?" if near else _here(known)


def _here(names: Iterable[str]) -> str:
    names = list(dict.fromkeys(names))
    return f"here {'is' if len(names) == 1 else 'are'} {', '.join(names)}"
