"""Which replica a call goes to: the one with the least work, where a trip counts as the calls that it still carries.

Serve's own router compares two replicas by how many *requests* each has. A trip is one request however many calls it
carries, and its answers overtake its end: by that count a replica that has just become free would look as busy as
one whose slots are all taken. What this caller has sent and not got back is counted exactly, call by call; what
others have sent is known as Serve knows it, by the number of requests that the replica last told.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence, Set
from typing import Any

from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, ReplicaResult, RequestRouter, RunningReplica

from cotenant.calls import Call


class Cargo:
    """The calls of a trip. They travel as a list; here it is known which of them are still `open`."""

    def __init__(self, calls: Sequence[Call], open: Set[int]) -> None:
        self.calls = list(calls)
        self.open = open

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (self.calls,)


class LeastWork(FIFOMixin, RequestRouter):  # type: ignore[misc]
    """Serve's request router for the workloads' deployments; lives in every process that calls them.

    First come, first served: without that, Serve tells waiting requests apart by an id that all calls made inside of
    one Serve request share.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sent: dict[ReplicaID, dict[object, Cargo | None]] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas in the order of their work, each a rank of its own; equal ones in any order."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        ranked = sorted(candidate_replicas, key=lambda replica: (self._work(replica.replica_id), random.random()))
        return [[replica] for replica in ranked]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult) -> None:
        cargo = pending_request.args[0] if pending_request.args else None
        request = object()
        self._sent.setdefault(replica_id, {})[request] = cargo if isinstance(cargo, Cargo) else None
        # Serve's own hook for the end may come before this one.
        loop = asyncio.get_running_loop()
        result.add_done_callback(lambda _: loop.call_soon_threadsafe(self._ended, replica_id, request))

    def _ended(self, replica_id: ReplicaID, request: object) -> None:
        self._sent.get(replica_id, {}).pop(request, None)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        present = {replica.replica_id for replica in replicas}
        for gone in self._sent.keys() - present:
            del self._sent[gone]

    def _work(self, replica_id: ReplicaID) -> int:
        sent = self._sent.get(replica_id, {})
        ours = sum(1 if cargo is None else len(cargo.open) for cargo in sent.values())
        requests = self.replica_queue_len_cache.get(replica_id) or 0
        return ours + max(0, requests - len(sent))


#: What a deployment says so that its callers route by work.
ROUTER = RequestRouterConfig(request_router_class="deployments.routing.LeastWork")
