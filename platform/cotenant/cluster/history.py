"""What was applied to an environment, by revision, and which of it was healthy: kept beside it, in ConfigMaps. Pure.

A revision holds the manifests' text (compressed) but never a Secret. Always true: the newest healthy one is kept,
however many came after it, so there is a way back.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from cotenant.cluster.objects import CONFIG_MAP, Object, Ref, has_labels, labels_of
from cotenant.cluster.order import REVISION
from cotenant.errors import NoRevision

State = Literal["applied", "healthy", "failed"]

KEEP = 10
#: Most bytes of a ConfigMap that Kubernetes stores, less room for what is around the data.
MOST_BYTES = 1024 * 1024 - 32 * 1024


@dataclass(frozen=True)
class Revision:
    number: int
    digest: str
    at: str
    """When it was applied, in UTC."""
    by: str
    state: State
    name: str
    reason: str = ""
    rollback_of: int | None = None
    generation: int = 0
    """Of the RayService, as the apply left it; 0 while unknown."""
    text: bytes = b""
    """The manifests as compressed JSON."""

    def things(self) -> list[Object]:
        """The manifests. Raises NoRevision: they are damaged."""
        try:
            text = gzip.decompress(self.text)
            things = json.loads(text)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise NoRevision(f"revision {self.number} is damaged ({error}); go back to another with --to") from error
        if digest_of(things) != self.digest:
            raise NoRevision(f"revision {self.number} is not what was applied then; go back to another with --to")
        return list(things)


def digest_of(things: Sequence[Mapping[str, Any]]) -> str:
    return hashlib.sha256(_text(things)).hexdigest()


def _text(things: Sequence[Mapping[str, Any]]) -> bytes:
    return json.dumps(things, sort_keys=True, separators=(",", ":")).encode()


def storable(things: Iterable[Mapping[str, Any]]) -> list[Object]:
    """`things` without Secrets: what they hold is not to be read by whoever may read a ConfigMap."""
    return [dict(thing) for thing in things if thing.get("kind") != "Secret"]


def new_revision(
    earlier: Iterable[Revision],
    things: Sequence[Mapping[str, Any]],
    *,
    name: str,
    at: str,
    by: str,
    rollback_of: int | None = None,
) -> Revision:
    kept = storable(things)
    number = max((each.number for each in earlier), default=0) + 1
    text = gzip.compress(_text(kept), mtime=0)
    return Revision(number, digest_of(kept), at, by, "applied", name, rollback_of=rollback_of, text=text)


def config_map(revision: Revision, namespace: str, labels: Mapping[str, str]) -> Object:
    """A revision as it is kept. Raises NoRevision: it is too big to be kept."""
    encoded = base64.b64encode(revision.text).decode()
    if len(encoded) > MOST_BYTES:
        raise NoRevision(
            f"the manifests come to {len(encoded) / 1024:.0f} KiB compressed, more than a ConfigMap holds "
            f"({MOST_BYTES / 1024:.0f} KiB), so there would be no way back; make them smaller"
        )
    told: dict[str, Any] = {
        "digest": revision.digest,
        "at": revision.at,
        "by": revision.by,
        "state": revision.state,
        "reason": revision.reason[:2000],
        "generation": str(revision.generation),
        "rollback-of": "" if revision.rollback_of is None else str(revision.rollback_of),
    }
    return {
        "apiVersion": CONFIG_MAP.api_version,
        "kind": CONFIG_MAP.name,
        "metadata": {
            "name": f"{revision.name}-revision-{revision.number}",
            "namespace": namespace,
            "labels": {**labels, REVISION: str(revision.number)},
        },
        "data": told,
        "binaryData": {"manifests.json.gz": encoded},
    }


def revisions(config_maps: Iterable[Object], labels: Mapping[str, str]) -> tuple[Revision, ...]:
    """The revisions of an environment, oldest first. What can't be read is left out."""
    found = [_read(each) for each in config_maps if has_labels(each, labels) and REVISION in labels_of(each)]
    return tuple(sorted((each for each in found if each is not None), key=lambda each: each.number))


def _read(thing: Object) -> Revision | None:
    told = thing.get("data") or {}
    number = labels_of(thing)[REVISION]
    state = told.get("state")
    if not number.isdecimal() or state not in ("applied", "healthy", "failed") or "digest" not in told:
        return None
    try:
        text = base64.b64decode((thing.get("binaryData") or {}).get("manifests.json.gz") or "", validate=True)
    except binascii.Error:
        text = b""
    before = str(told.get("rollback-of") or "")
    generation = str(told.get("generation") or "0")
    return Revision(
        number=int(number),
        digest=str(told["digest"]),
        at=str(told.get("at") or ""),
        by=str(told.get("by") or ""),
        state=state,
        name=str(thing["metadata"]["name"]).rpartition("-revision-")[0],
        reason=str(told.get("reason") or ""),
        rollback_of=int(before) if before.isdecimal() else None,
        generation=int(generation) if generation.isdecimal() else 0,
        text=text,
    )


def marked(revision: Revision, state: State, reason: str = "") -> Revision:
    return replace(revision, state=state, reason=reason)


def too_many(known: Sequence[Revision], keep: int = KEEP) -> tuple[Revision, ...]:
    """The oldest beyond `keep`, but never the newest healthy one."""
    newest_healthy = max((each.number for each in known if each.state == "healthy"), default=None)
    return tuple(each for each in known[: max(0, len(known) - keep)] if each.number != newest_healthy)


def way_back(known: Sequence[Revision], to: int | None = None) -> Revision:
    """The revision to go back to: number `to`, or the last healthy one that differs from what was applied last.

    Raises NoRevision, naming what there is.
    """
    if not known:
        raise NoRevision("there is nothing to go back to: this environment was never deployed by cotenant deploy")
    have = ", ".join(f"{each.number} ({each.state})" for each in known)
    if to is not None:
        chosen = next((each for each in known if each.number == to), None)
        if chosen is None:
            raise NoRevision(f"there is no revision {to}; there are {have}")
        return chosen
    current = known[-1]
    for each in reversed(known[:-1]):
        if each.state == "healthy" and each.digest != current.digest:
            return each
    raise NoRevision(
        f"no revision before {current.number} was healthy and other than it; there are {have}: name one with --to"
    )


def ref(revision: Revision, namespace: str) -> Ref:
    return Ref(CONFIG_MAP, f"{revision.name}-revision-{revision.number}", namespace)
