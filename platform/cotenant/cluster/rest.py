"""A cluster behind Kubernetes' REST interface: paths, repetition, and what each answer means.

It sends by a `Wire`, so it knows no HTTP library. Always true: an answer that says to come back later is waited for as
long as it says, a broken connection is tried again, and what is raised is one of our errors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import quote

from cotenant.cluster.edge import Change, Clock, Listing, SystemClock, Where
from cotenant.cluster.json_patch import Operation, document
from cotenant.cluster.objects import MANAGER, Kind, Object, Ref, ref_of, version_of
from cotenant.cluster.refusals import asked, does_not_apply, kind_missing, refused
from cotenant.cluster.retries import WORTH_REPEATING, Patience, retry_after_s
from cotenant.errors import Changed, ClusterBusy, ClusterError, Gone

APPLY = "application/apply-patch+yaml"
JSON_PATCH = "application/json-patch+json"
#: Seconds that a call may take, beyond what it is told to wait itself.
CALL_S = 30.0
#: Objects a page of a listing.
PAGE = 500
_CHANGES = frozenset({"added", "modified", "deleted", "bookmark"})


class WireBroken(Exception):
    """The connection could not be made, or ended before the answer did."""


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    content_type: str = "application/json"
    timeout_s: float = CALL_S
    stream: bool = False


class Reply(Protocol):
    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    def read(self) -> bytes:
        """The whole body. Raises WireBroken."""
        ...

    def chunks(self) -> Iterator[bytes]:
        """The body as it comes; closes the connection at its end. Raises WireBroken."""
        ...


class Wire(Protocol):
    def send(self, request: Request) -> Reply:
        """Raises WireBroken, NotConnected."""
        ...


@dataclass(frozen=True)
class _Resource:
    plural: str
    namespaced: bool


class RestCluster:
    """`edge.Cluster` over a wire."""

    def __init__(
        self, wire: Wire, where: Where, *, patience: Patience | None = None, clock: Clock | None = None
    ) -> None:
        self._wire = wire
        self._where = where
        self._patience = patience or Patience()
        self._clock = clock or SystemClock()
        self._resources: dict[str, dict[str, _Resource]] = {}

    @property
    def where(self) -> Where:
        return self._where

    def get(self, ref: Ref) -> Object | None:
        answer = self._ask(Request("GET", self._path(ref.kind, ref.namespace, ref.name)), asked("read", ref), ref)
        return answer if answer is None else _object(answer, ref)

    def list(self, kind: Kind, namespace: str | None = None, labels: Mapping[str, str] | None = None) -> Listing:
        what = f"list {kind.name}s" + (f" in {namespace}" if namespace else "")
        for _ in range(self._patience.attempts):
            try:
                return self._list(kind, namespace, labels, what)
            except Gone:  # the pages took longer than the server keeps a version
                continue
        raise ClusterBusy(f"can't {what}: there are more than can be listed before the server forgets; try again")

    def _list(self, kind: Kind, namespace: str | None, labels: Mapping[str, str] | None, what: str) -> Listing:
        items: list[Object] = []
        query = {"limit": str(PAGE), **_selector(labels)}
        path = self._path(kind, namespace)
        while True:
            page = self._ask(Request("GET", path, query), what) or {}
            items += [{"apiVersion": kind.api_version, "kind": kind.name, **each} for each in page.get("items") or ()]
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return Listing(tuple(items), str(metadata.get("resourceVersion") or ""))
            query["continue"] = str(metadata["continue"])

    def create(self, thing: Mapping[str, Any]) -> Object:
        ref = ref_of(thing)
        query = {"fieldManager": MANAGER}
        path = self._path(ref.kind, ref.namespace)
        answer = self._ask(
            Request("POST", path, query, json.dumps(thing).encode()), asked("create", ref), namespace=ref
        )
        return _object(answer, ref)

    def apply(self, thing: Mapping[str, Any], *, dry_run: bool = False, force: bool = False) -> Object:
        ref = ref_of(thing)
        query = {"fieldManager": MANAGER, "force": "true" if force else "false"}
        if dry_run:
            query["dryRun"] = "All"
        path = self._path(ref.kind, ref.namespace, ref.name)
        # Who else writes the state owns it; an older API server would call that a conflict.
        told = {key: value for key, value in thing.items() if key != "status"}
        request = Request("PATCH", path, query, json.dumps(told).encode(), APPLY)
        return _object(self._ask(request, asked("apply", ref), namespace=ref), ref)

    def edit(self, ref: Ref, operations: Sequence[Operation], *, dry_run: bool = False) -> Object | None:
        query = {"fieldManager": MANAGER} | ({"dryRun": "All"} if dry_run else {})
        path = self._path(ref.kind, ref.namespace, ref.name)
        request = Request("PATCH", path, query, json.dumps(document(operations)).encode(), JSON_PATCH)
        answer = self._ask(request, asked("edit", ref), ref)
        return answer if answer is None else _object(answer, ref)

    def delete(self, ref: Ref) -> bool:
        body = json.dumps({"propagationPolicy": "Background"}).encode()
        request = Request("DELETE", self._path(ref.kind, ref.namespace, ref.name), {}, body)
        return self._ask(request, asked("delete", ref), ref) is not None

    def watch(
        self,
        kind: Kind,
        namespace: str,
        *,
        since: str,
        timeout_s: float,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Iterator[Change]:
        query = {
            "watch": "true",
            "resourceVersion": since,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, round(timeout_s))),
            **_selector(labels),
        }
        if name is not None:
            query["fieldSelector"] = f"metadata.name={name}"
        request = Request("GET", self._path(kind, namespace), query, timeout_s=timeout_s + CALL_S, stream=True)
        what = f"watch {kind.name}s in {namespace}"
        reply = self._send(request, what)
        if reply.status != 200:
            raise refused(reply.status, reply.read(), what, namespace)
        try:
            for line in _lines(reply.chunks()):
                change = _change(line, what)
                if change is None:
                    return
                yield change
        except WireBroken:
            return

    def _path(self, kind: Kind, namespace: str | None = None, name: str | None = None) -> str:
        resource = self._resource(kind)
        parts = [_root(kind.api_version)]
        if namespace and resource.namespaced:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(resource.plural)
        if name:
            parts.append(quote(name, safe=""))
        return "/".join(parts)

    def _resource(self, kind: Kind) -> _Resource:
        """Raises KindMissing. A kind that is there stays; one that is not is asked for again."""
        known = self._resources.get(kind.api_version, {})
        if kind.name not in known:
            reply = self._send(Request("GET", _root(kind.api_version)), f"ask which kinds {kind.api_version} has")
            if reply.status == 404:
                raise kind_missing(kind)
            body = reply.read()
            if reply.status != 200:
                raise refused(reply.status, body, f"ask which kinds {kind.api_version} has")
            known = {
                each["kind"]: _Resource(each["name"], bool(each["namespaced"]))
                for each in _json(body).get("resources") or ()
                if "/" not in each["name"]
            }
            self._resources[kind.api_version] = known
        if kind.name not in known:
            raise kind_missing(kind)
        return known[kind.name]

    def _ask(
        self, request: Request, what: str, absent: Ref | None = None, *, namespace: Ref | None = None
    ) -> Object | None:
        """The answer's body as JSON; None for 404, if the thing itself may be `absent`."""
        attempt = 0
        while True:
            attempt += 1
            try:
                reply = self._send(request, what)
                body = reply.read()
            except WireBroken as broken:
                self._wait(attempt, None, what, str(broken))
                continue
            if reply.status == 404 and absent is not None:
                return None
            if 200 <= reply.status < 300:
                return _json(body)
            if request.content_type == JSON_PATCH and does_not_apply(reply.status, body):
                raise Changed(f"can't {what}: it is another than was read")
            about = namespace or absent
            error = refused(reply.status, body, what, about.namespace if about else None)
            # Two writers met within the server, or a create met another: from what is there now it may go well.
            if request.method == "PATCH" and isinstance(error, Changed) and attempt < self._patience.attempts:
                self._clock.sleep(self._patience.wait_s(attempt) or 0.0)
                continue
            raise error

    def _send(self, request: Request, what: str) -> Reply:
        """An answer that is not "later". Raises ClusterBusy."""
        attempt = 0
        while True:
            attempt += 1
            try:
                reply = self._wire.send(request)
            except WireBroken as broken:
                self._wait(attempt, None, what, str(broken))
                continue
            if reply.status not in WORTH_REPEATING:
                return reply
            try:
                body = reply.read()
            except WireBroken:
                body = b""
            wait_s = self._patience.wait_s(attempt, retry_after_s(reply.headers.get("Retry-After")))
            if wait_s is None:
                raise refused(reply.status, body, what)
            self._clock.sleep(wait_s)

    def _wait(self, attempt: int, asked_s: float | None, what: str, why: str) -> None:
        wait_s = self._patience.wait_s(attempt, asked_s)
        if wait_s is None:
            raise ClusterBusy(
                f"can't {what}: {self._where} does not answer ({why}); check that it is up and reachable from here"
            )
        self._clock.sleep(wait_s)


def _root(api_version: str) -> str:
    return f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"


def _selector(labels: Mapping[str, str] | None) -> dict[str, str]:
    return {"labelSelector": ",".join(f"{key}={value}" for key, value in sorted(labels.items()))} if labels else {}


def _object(answer: Object | None, ref: Ref) -> Object:
    if not answer or "metadata" not in answer:
        raise ClusterError(f"the API server gave no {ref.kind.name} for {ref.name}; is a proxy in between?")
    return {"apiVersion": ref.kind.api_version, "kind": ref.kind.name, **answer}


def _json(body: bytes) -> Object:
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        start = re.sub(r"\s+", " ", body[:80].decode("utf-8", "replace"))
        raise ClusterError(f"what answers is no Kubernetes API server (it says {start!r}); check the context's server")
    return answer


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Whole lines only: what comes after the last newline was cut off, and will be told again."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line for line in lines if line.strip())


def _change(line: bytes, what: str) -> Change | None:
    """None: the line can't be read, so the connection is not to be trusted any more. Raises Gone and others."""
    try:
        told = json.loads(line)
        kind, thing = str(told["type"]).lower(), told["object"]
        if kind == "error":
            raise refused(int(thing.get("code") or 500), json.dumps(thing).encode(), what)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if kind not in _CHANGES or not isinstance(thing, dict):
        return None
    return Change(kind, thing, version_of(thing))  # type: ignore[arg-type]
