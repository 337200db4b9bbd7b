"""Which replica a call goes to: the one with the least work, where a trip counts as the calls that it still carries.

Serve's own router compares two replicas by how many *requests* each has. A trip is one request however many calls it
carries, and its answers overtake its end: by that count a replica that has just become free would look as busy as
one whose slots are all taken. What this caller has sent and not got back is counted exactly, call by call; what
others have sent is known as Serve knows it, by the number of requests that the replica last told.

Serve sends this module to the callers by value, so a class of it there is not the one that is imported here.
"""

from __future__ import annotations

import random
from typing import Any

from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from deployments.cargo import Cargo


class LeastWork(FIFOMixin, RequestRouter):  # type: ignore[misc]
    """Serve's request router for the workloads' deployments; lives in every process that calls them.

    First come, first served: without that, Serve tells waiting requests apart by an id that all calls made inside of
    one Serve request share.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sent: dict[ReplicaID, dict[str, list[Cargo | None]]] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas in the order of their work, each a rank of its own; equal ones in any order."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        ranked = sorted(candidate_replicas, key=lambda replica: (self._work(replica.replica_id), random.random()))
        return [[replica] for replica in ranked]

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        # Serve's public hook comes when the replica has accepted, which for a call by gRPC is when it has ended. From
        # here on `on_request_completed` comes once, whatever becomes of the request.
        replica = await super()._choose_replica_for_request(pending_request, is_retry=is_retry)
        cargo = pending_request.args[0] if pending_request.args else None
        sent = self._sent.setdefault(replica.replica_id, {})
        request_id = pending_request.metadata.internal_request_id
        sent.setdefault(request_id, []).append(cargo if isinstance(cargo, Cargo) else None)
        return replica

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        sent = self._sent.get(replica_id, {})
        alike = sent.get(internal_request_id)
        if not alike:
            return
        # Where several share the id, one that carries nothing any more is the likeliest to have ended.
        alike.remove(next((cargo for cargo in alike if cargo is not None and not cargo.open), alike[0]))
        if not alike:
            del sent[internal_request_id]

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        present = {replica.replica_id for replica in replicas}
        for gone in self._sent.keys() - present:
            del self._sent[gone]

    def _work(self, replica_id: ReplicaID) -> int:
        sent = [cargo for alike in self._sent.get(replica_id, {}).values() for cargo in alike]
        ours = sum(1 if cargo is None else len(cargo.open) for cargo in sent)
        requests = self.replica_queue_len_cache.get(replica_id) or 0
        return ours + max(0, requests - len(sent))


#: What a deployment says so that its callers route by work.
ROUTER = RequestRouterConfig(request_router_class="deployments.routing.LeastWork")
