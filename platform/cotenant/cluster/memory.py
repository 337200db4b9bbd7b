"""A cluster in memory that honours the contract of the real one: for tests, and for whoever embeds us.

It stores what it is given, without defaults and without controllers: nothing makes pods of a RayService. Whoever plays
the operator uses `set_status`, and whoever plays another client `patch`. Time passes by its clock: a watch with nothing
to tell waits on it.
"""

from __future__ import annotations

import copy
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cotenant.cluster import fields
from cotenant.cluster.edge import Change, Clock, Listing, SystemClock, Where
from cotenant.cluster.fields import Ownership
from cotenant.cluster.json_patch import Operation, patched
from cotenant.cluster.objects import (
    EVENT,
    MANAGER,
    NAMESPACE,
    RAY_CLUSTER,
    RAY_SERVICE,
    Kind,
    Object,
    Ref,
    has_labels,
    kind_of,
    ref_of,
    version_of,
)
from cotenant.cluster.refusals import asked, fields_owned, kind_missing
from cotenant.errors import Changed, Gone, ManifestRefused, NamespaceMissing

#: Kinds that belong to the whole cluster.
CLUSTER_WIDE = frozenset(
    {
        NAMESPACE,
        Kind("scheduling.k8s.io/v1", "PriorityClass"),
        Kind("rbac.authorization.k8s.io/v1", "ClusterRole"),
        Kind("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
        Kind("cloud.google.com/v1", "ComputeClass"),
    }
)
#: Kinds whose state is a resource of its own, which `apply` does not touch.
_WITH_STATUS = frozenset({RAY_CLUSTER, RAY_SERVICE, Kind("apps/v1", "Deployment")})
#: How often a waiting watch looks, where another thread may write.
_LOOK_S = 0.02


@dataclass
class _Stored:
    thing: Object
    owners: tuple[Ownership, ...]


@dataclass(frozen=True)
class _Happened:
    version: int
    ref: Ref
    change: Change


class InMemoryCluster:
    """`edge.Cluster` without a cluster. `lacks` are kinds that it does not know, as without an operator."""

    def __init__(
        self,
        *,
        lacks: tuple[Kind, ...] = (),
        namespaces: tuple[str, ...] = ("default",),
        clock: Clock | None = None,
        where: Where | None = None,
    ) -> None:
        self._where = where or Where("memory", "in memory", "tester")
        self._lacks = frozenset(lacks)
        self._clock = clock or SystemClock()
        self._lock = threading.RLock()
        self._version = 1
        self._forgotten = 0
        self._stored: dict[Ref, _Stored] = {}
        self._log: list[_Happened] = []
        for name in namespaces:
            self.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

    @property
    def where(self) -> Where:
        return self._where

    def get(self, ref: Ref) -> Object | None:
        with self._lock:
            self._require_kind(ref.kind)
            stored = self._stored.get(self._at(ref))
            return self._shown(stored) if stored else None

    def list(self, kind: Kind, namespace: str | None = None, labels: Mapping[str, str] | None = None) -> Listing:
        with self._lock:
            self._require_kind(kind)
            items = [
                self._shown(stored)
                for ref, stored in sorted(
                    self._stored.items(), key=lambda each: (each[0].namespace or "", each[0].name)
                )
                if ref.kind == kind
                and (namespace is None or ref.namespace in (namespace, None))
                and has_labels(stored.thing, labels or {})
            ]
            return Listing(tuple(items), str(self._version))

    def create(self, thing: Mapping[str, Any]) -> Object:
        with self._lock:
            ref = self._checked(thing, "create")
            if ref in self._stored:
                raise Changed(f"can't {asked('create', ref)}: it already exists")
            made, owners = fields.applied({}, self._settable(thing), (), MANAGER)
            return self._store(ref, made, (Ownership(MANAGER, False, owners[-1].paths),), dry_run=False)

    def apply(self, thing: Mapping[str, Any], *, dry_run: bool = False, force: bool = False) -> Object:
        with self._lock:
            ref = self._checked(thing, "apply")
            stored = self._stored.get(ref)
            wanted = self._settable(thing)
            asked_version = version_of(thing)
            if asked_version and (stored is None or asked_version != version_of(stored.thing)):
                raise Changed(f"can't {asked('apply', ref)}: the object has been modified")
            live, owners = (stored.thing, stored.owners) if stored else ({}, ())
            found = fields.conflicts(live, wanted, owners, MANAGER)
            if found and not force:
                raise fields_owned(asked("apply", ref), found)
            after, owners = fields.applied(live, wanted, owners, MANAGER)
            return self._store(ref, after, owners, dry_run=dry_run)

    def edit(self, ref: Ref, operations: Sequence[Operation], *, dry_run: bool = False) -> Object | None:
        with self._lock:
            self._require_kind(ref.kind)
            stored = self._stored.get(self._at(ref))
            if stored is None:
                return None
            after = patched(stored.thing, operations)
            if after is None:
                raise Changed(f"can't {asked('edit', ref)}: it is another than was read")
            owners = fields.written(stored.thing, after, stored.owners, MANAGER)
            return self._store(self._at(ref), after, owners, dry_run=dry_run)

    def delete(self, ref: Ref) -> bool:
        with self._lock:
            self._require_kind(ref.kind)
            stored = self._stored.pop(self._at(ref), None)
            if stored is None:
                return False
            self._version += 1
            stored.thing["metadata"]["resourceVersion"] = str(self._version)
            self._tell("deleted", self._at(ref), self._shown(stored))
            if ref.kind == NAMESPACE:
                for inner in [each for each in self._stored if each.namespace == ref.name]:
                    self.delete(inner)
            return True

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
        with self._lock:
            self._require_kind(kind)
        told, until = int(since or 0), self._clock.now() + timeout_s
        while True:
            with self._lock:
                if told < self._forgotten:
                    raise Gone(f"can't watch {kind.name}s in {namespace}: too old resource version: {told}")
                news = [each for each in self._log if each.version > told]
            for each in news:
                told = each.version
                ref, thing = each.ref, each.change.object
                here = ref.kind == kind and ref.namespace == namespace and name in (None, ref.name)
                if here and has_labels(thing, labels or {}):
                    yield copy.deepcopy(each.change)
            left_s = until - self._clock.now()
            if left_s <= 0:
                return
            if not news:
                self._clock.sleep(min(left_s, _LOOK_S if isinstance(self._clock, SystemClock) else left_s))

    def patch(self, ref: Ref, changes: Mapping[str, Any], *, manager: str = "somebody") -> Object:
        """Change an object as another client does: a JSON merge patch, by its own field manager."""
        with self._lock:
            stored = self._stored[self._at(ref)]
            after = _merged(stored.thing, changes)
            if ref.kind in _WITH_STATUS and "status" in stored.thing:
                after["status"] = stored.thing["status"]
            owners = fields.written(stored.thing, after, stored.owners, manager)
            return self._store(self._at(ref), after, owners, dry_run=False)

    def set_status(self, ref: Ref, status: Mapping[str, Any], *, manager: str = "operator") -> Object:
        """Replace an object's state, as its controller does."""
        with self._lock:
            stored = self._stored[self._at(ref)]
            after = {**copy.deepcopy(stored.thing), "status": copy.deepcopy(dict(status))}
            owners = fields.written(stored.thing, after, stored.owners, manager)
            return self._store(self._at(ref), after, owners, dry_run=False)

    def put(self, thing: Mapping[str, Any]) -> Object:
        """Make or replace a whole object, state included, as the kubelet or the scheduler does with its own."""
        with self._lock:
            ref = self._at(ref_of(thing))
            before = self._stored[ref].thing if ref in self._stored else {}
            after = {**copy.deepcopy(dict(thing)), "metadata": {**before.get("metadata", {}), **thing["metadata"]}}
            owners = (Ownership("kubelet", False, fields.owned_paths(after)),)
            return self._store(ref, after, owners, dry_run=False)

    def compact(self) -> None:
        """Forget what happened, as etcd does every few minutes: an older version can't be watched from any more."""
        with self._lock:
            self._log.clear()
            self._forgotten = self._version

    def _require_kind(self, kind: Kind) -> None:
        if kind in self._lacks:
            raise kind_missing(kind)

    def _at(self, ref: Ref) -> Ref:
        return Ref(ref.kind, ref.name, None if ref.kind in CLUSTER_WIDE else ref.namespace)

    def _checked(self, thing: Mapping[str, Any], verb: str) -> Ref:
        ref = self._at(ref_of(thing))
        self._require_kind(ref.kind)
        if ref.kind not in CLUSTER_WIDE:
            if not ref.namespace:
                raise ManifestRefused(f"can't {asked(verb, ref)}: it has no namespace")
            if Ref(NAMESPACE, ref.namespace) not in self._stored and ref.kind != EVENT:
                raise NamespaceMissing(
                    f'can\'t {asked(verb, ref)}: namespaces "{ref.namespace}" not found; create the namespace first'
                )
        return ref

    @staticmethod
    def _settable(thing: Mapping[str, Any]) -> Object:
        """What a client may set: not the state, where that is a resource of its own, nor what the server fills in."""
        kept = copy.deepcopy(dict(thing))
        if kind_of(thing) in _WITH_STATUS:
            kept.pop("status", None)
        kept["metadata"] = {key: value for key, value in kept["metadata"].items() if key != "resourceVersion"}
        return kept

    def _store(self, ref: Ref, after: Object, owners: tuple[Ownership, ...], *, dry_run: bool) -> Object:
        before = self._stored.get(ref)
        known = before.thing.get("metadata", {}) if before else {}
        after = copy.deepcopy(after)
        after |= {"apiVersion": ref.kind.api_version, "kind": ref.kind.name}
        metadata = after.setdefault("metadata", {})
        metadata["name"] = ref.name
        if ref.namespace:
            metadata["namespace"] = ref.namespace
        metadata["uid"] = known.get("uid") or str(uuid.uuid4())
        metadata["creationTimestamp"] = known.get("creationTimestamp") or "2026-01-01T00:00:00Z"
        if "spec" in after:
            same = before is not None and before.thing.get("spec") == after["spec"]
            metadata["generation"] = known.get("generation", 0) + (0 if same else 1)
        metadata["resourceVersion"] = known.get("resourceVersion", "0")
        stored = _Stored(after, owners)
        if before is not None and before.thing == after and set(before.owners) == set(owners):
            return self._shown(before)
        if dry_run:
            return self._shown(stored)
        self._version += 1
        metadata["resourceVersion"] = str(self._version)
        self._stored[ref] = stored
        self._tell("modified" if before else "added", ref, self._shown(stored))
        return self._shown(stored)

    def _tell(self, what: Literal["added", "modified", "deleted"], ref: Ref, thing: Object) -> None:
        self._log.append(_Happened(self._version, ref, Change(what, thing, version_of(thing))))

    @staticmethod
    def _shown(stored: _Stored) -> Object:
        thing = copy.deepcopy(stored.thing)
        thing["metadata"]["managedFields"] = [
            {
                "manager": owner.manager,
                "operation": "Apply" if owner.applied else "Update",
                "apiVersion": thing["apiVersion"],
                "fieldsType": "FieldsV1",
                "fieldsV1": fields.fields_v1(owner.paths),
            }
            for owner in stored.owners
        ]
        return thing


def _merged(thing: Mapping[str, Any], changes: Mapping[str, Any]) -> Object:
    """RFC 7386: objects merge, None takes away, the rest replaces."""
    after = copy.deepcopy(dict(thing))
    for key, value in changes.items():
        if value is None:
            after.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(after.get(key), dict):
            after[key] = _merged(after[key], value)
        else:
            after[key] = copy.deepcopy(value)
    return after
