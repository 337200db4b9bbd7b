"""Handles to the workloads' replicas, and which of Serve's two ways a call takes.

Through Ray's actors a Serve call is a stream of two objects, whatever it returns; through Serve's own gRPC it is one
message there and one back, for less than half of the CPU time. But a gRPC message has a limit,
`RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH`, which the receiver enforces: a reply that is too large would be lost after
the work was done. So what is known to be small goes by gRPC, and a reply of unknown size only where the limit was
raised for the whole cluster; `cotenant up` does so.

The handles route in the loop that calls: a gRPC call can be cancelled only there. Ray is pinned to one version, and
this file is the one that knows more of its handles than is documented.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ray import serve
from ray.serve._private.constants import RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH as LIMIT_BYTES
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from cotenant.calls import Call

#: A limit of this much was raised on purpose, and no reply of an engine comes near it.
ROOMY_BYTES = 128 << 20
#: What a call is beside its body and its files.
_ENVELOPE_BYTES = 64 << 10


class Handles:
    """A handle a workload, made once and kept; Serve keeps its view of the replicas current."""

    def __init__(self) -> None:
        self._handles: dict[str, DeploymentHandle] = {}
        self._methods: dict[tuple[str, str, bool], DeploymentHandle] = {}

    async def get(self, workload: str, method: str, calls: Sequence[Call], *, large_reply: bool) -> DeploymentHandle:
        """The handle to `method`, by the cheapest way that takes these calls. Raises what Serve raises."""
        direct = (LIMIT_BYTES >= ROOMY_BYTES or not large_reply) and _size(calls) < LIMIT_BYTES
        key = workload, method, direct
        if key not in self._methods:
            known = await asyncio.to_thread(serve.get_app_handle, workload)
            if workload not in self._handles:
                handle = DeploymentHandle(known.deployment_name, known.app_name)
                handle._init(_run_router_in_separate_loop=False)
                self._handles[workload] = handle
            self._methods[key] = self._handles[workload].options(method_name=method, _by_reference=not direct)
        return self._methods[key]

    def has_replica(self, workload: str) -> bool:
        """Whether a replica of the workload serves, as far as its handle has heard."""
        return bool(self.replicas(workload))

    def replicas(self, workload: str) -> int | None:
        """How many replicas of the workload serve, as far as its handle has heard; None where it has heard nothing."""
        router = getattr(self._handles.get(workload), "_router", None)
        asyncio_router = getattr(router, "_asyncio_router", None)
        chooser = getattr(asyncio_router, "request_router", None)
        return len(chooser.curr_replicas) if chooser is not None else None


class ServeCall:
    """One call under way. `ending` is done when it has ended; it was looked at, so nobody need await it."""

    def __init__(self, response: DeploymentResponse) -> None:
        self._response = response
        self.ending: asyncio.Future[Any] = asyncio.ensure_future(self._end())
        self.ending.add_done_callback(_look_at)

    async def ended(self, within_s: float | None) -> bool:
        """Wait for the end. A call that outlasts this, or whose waiter is cancelled, is cancelled."""
        try:
            await asyncio.wait({self.ending}, timeout=within_s)
        finally:
            if not self.ending.done():
                self.cancel()
        return self.ending.done()

    def cancel(self) -> None:
        """Cancel the call in the replica, or before it gets there; nothing to do if it has ended."""
        with suppress(Exception):
            self._response.cancel()
        self.ending.cancel()

    async def _end(self) -> Any:
        try:
            return await self._response
        except asyncio.CancelledError:
            # Assigned to a replica in the very moment of its cancellation, it would go on unseen.
            assigned = self._response._replica_result_future
            if assigned.done() and not assigned.cancelled() and assigned.exception() is None:
                assigned.result().cancel()
            raise


def _look_at(ending: asyncio.Future[Any]) -> None:
    if not ending.cancelled():
        ending.exception()


def _size(calls: Sequence[Call]) -> int:
    """Bytes of the message that carries `calls`, at most."""
    return sum(_ENVELOPE_BYTES + len(call.body) + sum(map(len, call.files.values())) for call in calls)
