"""What we ask of a Kubernetes cluster. The real one is in `kube`, the shipped twin in `memory`.

Promises, for both (`tests/contracts/cluster.py`):

* `apply` is server-side apply by the field manager `cotenant`. A field that somebody else owns with another value is
  refused (`FieldsOwned`) and nothing of the object is changed, unless `force`. What an earlier apply set and this one
  leaves out is taken away. With `dry_run` the answer is the same, and nothing changes.
* `edit` changes single fields by a JSON patch, all of them or none. If the object is another than the patch tests for,
  it is `Changed`: read it again.
* `watch` tells every change after `since`, in order, and may end at any time without an error: whoever watches goes
  on from the last version told. A version that is too old is `Gone`: list again.
* A call that may be repeated is repeated by the edge itself; what is raised was not helped by that.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from cotenant.cluster.json_patch import Operation
from cotenant.cluster.objects import Kind, Object, Ref


@dataclass(frozen=True)
class Listing:
    """What there was, and at which version, to watch from."""

    items: tuple[Object, ...]
    version: str


@dataclass(frozen=True)
class Change:
    """What happened to an object. A bookmark is no change: it only tells a newer version."""

    type: Literal["added", "modified", "deleted", "bookmark"]
    object: Object
    version: str


@dataclass(frozen=True)
class Where:
    """Which cluster it is, as a user knows it."""

    context: str
    server: str
    user: str

    def __str__(self) -> str:
        return f"{self.context} ({self.server})"


class Clock(Protocol):
    def now(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """Seconds that never go back."""

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Cluster(Protocol):
    """A Kubernetes cluster. Every call may raise `ClusterError`."""

    @property
    def where(self) -> Where: ...

    def get(self, ref: Ref) -> Object | None:
        """The object, or None. Raises KindMissing: the cluster does not know such objects."""
        ...

    def list(self, kind: Kind, namespace: str | None = None, labels: Mapping[str, str] | None = None) -> Listing:
        """All of a kind, in one namespace or (None) in all. Raises KindMissing."""
        ...

    def create(self, thing: Mapping[str, Any]) -> Object:
        """Raises Changed: there is one of that name already."""
        ...

    def apply(self, thing: Mapping[str, Any], *, dry_run: bool = False, force: bool = False) -> Object:
        """Raises FieldsOwned, ManifestRefused, KindMissing, NamespaceMissing."""
        ...

    def edit(self, ref: Ref, operations: Sequence[Operation], *, dry_run: bool = False) -> Object | None:
        """The object after it, or None: it is not there. Raises Changed, ManifestRefused, KindMissing."""
        ...

    def delete(self, ref: Ref) -> bool:
        """Whether there was one. What belongs to it goes too, in the background."""
        ...

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
        """Changes after the version `since`, for at most `timeout_s`. Raises Gone."""
        ...
