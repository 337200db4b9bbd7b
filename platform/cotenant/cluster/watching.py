"""One object followed by its changes, whatever happens to the watch.

Always true: what `next` gives is never older than what it gave before, and a watch that was dropped, cut short or is
too old to go on is taken up again from what is known.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any, cast

from cotenant.cluster.edge import Cluster
from cotenant.cluster.objects import Object, Ref
from cotenant.errors import Gone


class Watched:
    """Follows one object of a namespace."""

    def __init__(self, cluster: Cluster, ref: Ref) -> None:
        assert ref.namespace is not None
        self._cluster = cluster
        self._ref, self._namespace = ref, ref.namespace
        self._version: str | None = None
        self._thing: Object | None = None

    def next(self, timeout_s: float) -> Object | None:
        """The object after its next change, or as it stands after `timeout_s`. None: it is not there.

        Raises ClusterError.
        """
        if self._version is None:
            return self._listed()
        changes = self._cluster.watch(
            self._ref.kind, self._namespace, since=self._version, timeout_s=timeout_s, name=self._ref.name
        )
        try:
            with closing(cast(Any, changes)):
                for change in changes:
                    self._version = change.version or self._version
                    if change.type != "bookmark":
                        self._thing = None if change.type == "deleted" else change.object
                        return self._thing
        except Gone:
            self._version = None
            return self._listed()
        return self._thing

    def _listed(self) -> Object | None:
        listing = self._cluster.list(self._ref.kind, self._namespace)
        self._version = listing.version
        self._thing = next((each for each in listing.items if each["metadata"]["name"] == self._ref.name), None)
        return self._thing
