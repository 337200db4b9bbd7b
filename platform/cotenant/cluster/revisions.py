"""An environment's history, kept in the cluster beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cotenant.cluster import history
from cotenant.cluster.edge import Cluster
from cotenant.cluster.history import Revision
from cotenant.cluster.objects import CONFIG_MAP, Target
from cotenant.cluster.rayservice import read
from cotenant.cluster.rollout import find_service
from cotenant.cluster.verdict import standing_now
from cotenant.errors import Changed, KindMissing


class Revisions:
    """Reads and writes it."""

    def __init__(self, cluster: Cluster, target: Target) -> None:
        self._cluster = cluster
        self._target = target

    def known(self) -> tuple[Revision, ...]:
        """Oldest first; none where the namespace is new."""
        listed = self._cluster.list(CONFIG_MAP, self._target.namespace, self._target.labels)
        return history.revisions(listed.items, self._target.labels)

    def begin(
        self, things: Sequence[Mapping[str, Any]], *, at: str, by: str, rollback_of: int | None = None
    ) -> Revision:
        """Note what is about to be applied. The same as last time is noted once. Raises NoRevision."""
        for _ in range(5):
            known = self.known()
            made = history.new_revision(known, things, name=self._target.name, at=at, by=by, rollback_of=rollback_of)
            if known and known[-1].digest == made.digest:
                return known[-1]
            try:
                self._cluster.create(history.config_map(made, self._target.namespace, self._target.labels))
            except Changed:  # somebody else deploys too, and was first with that number
                continue
            for old in history.too_many((*known, made)):
                self._cluster.delete(history.ref(old, self._target.namespace))
            return made
        raise Changed(f"others deploy {self._target.name} at the same time; wait for them, then deploy again")

    def keep(self, revision: Revision) -> Revision:
        """Write what was learned of a revision."""
        self._cluster.apply(history.config_map(revision, self._target.namespace, self._target.labels), force=True)
        return revision

    def catch_up(self) -> tuple[Revision, ...]:
        """Mark the last revision if it came up since, as after `--no-wait`; then what is known."""
        known = self.known()
        if not known or known[-1].state != "applied" or not known[-1].generation:
            return known
        try:
            service = find_service(self._cluster, self._target)
        except KindMissing:
            return known
        state = read(service) if service is not None else None
        same = state is not None and state.generation == known[-1].generation
        if state is None or not same or standing_now(state).standing != "healthy":
            return known
        return (*known[:-1], self.keep(history.marked(known[-1], "healthy")))
