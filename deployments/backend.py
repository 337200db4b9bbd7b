"""The `Backend` of a running platform: calls workloads through Serve handles, streams and trips through the relay.

Both doors use it: the gateway streams, the ingress sends several calls on one trip. What Ray and Serve raise becomes
a `CallError` on the way (`deployments/failures.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import ray
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus, ReplicaState

from cotenant.calls import Call, Reply, StreamedReply, Trip, WorkloadStatus
from cotenant.calls.relay import RelayServer, RelayStream
from cotenant.errors import CallError, DeadlineExceeded, ReplicaDied, UnknownWorkload, WorkloadUnavailable
from deployments.cargo import Cargo
from deployments.failures import last_line, told
from deployments.gate import Gate
from deployments.handles import Handles, ServeCall
from deployments.trips import ServeTrip

#: A status is asked of the controller at most this often.
STATUS_AGE_S = 1.0
#: How long the last chunks may lag behind the end of the Serve call that sent them.
_LAST_CHUNKS_S = 10.0
#: Answers of a trip that wait for their reader: as many as its calls can have, whatever their size.
_ALL_ANSWERS_BYTES = 8 << 30


class ServeBackend:
    """Calls the Serve application named after a workload. Lives in one event loop."""

    def __init__(self, *, relay_host: str | None = None, gate: Gate | None = None) -> None:
        """`relay_host` is where the relay listens for token chunks: this node's address by default. At the `gate`
        calls wait for a workload that has no replica; without one they do so in Serve."""
        self._relay_host = relay_host
        self._gate = gate
        self._handles = Handles()
        self._relay: RelayServer | None = None
        self._relay_starting = asyncio.Lock()
        self._watches: set[asyncio.Task[None]] = set()
        self._status: dict[str, WorkloadStatus] = {}
        self._status_at = 0.0
        self._asking: asyncio.Task[None] | None = None

    async def call(self, workload: str, call: Call) -> Reply:
        handle = await self._handle(workload, "call", [call], large_reply=True)
        serving = ServeCall(handle.remote(call))
        reply: Reply = await _result(workload, serving, call.deadline_s)
        return reply

    def call_many(self, workload: str, calls: Sequence[Call]) -> Trip:
        async def begin(cargo: Cargo) -> tuple[ServeCall, RelayStream]:
            relay = await self._listening()
            handle = await self._handle(workload, "calls", cargo.calls, large_reply=False)
            stream = relay.open(max_pending_bytes=_ALL_ANSWERS_BYTES)
            return ServeCall(handle.remote(cargo, stream.target)), stream

        return ServeTrip(workload, calls, begin)

    async def stream(self, workload: str, call: Call) -> StreamedReply:
        relay = await self._listening()
        handle = await self._handle(workload, "stream", [call], large_reply=False)
        stream = relay.open()
        serving = ServeCall(handle.remote(call, stream.target))
        watch = asyncio.create_task(_watch(workload, call, serving, stream))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)
        chunks = _Chunks(serving, stream, watch)
        try:
            start = await stream.started()
        except BaseException:
            await chunks.aclose()
            raise
        return StreamedReply(start.status, start.content_type, chunks, start.headers)

    async def status(self) -> Mapping[str, WorkloadStatus]:
        if time.monotonic() - self._status_at > STATUS_AGE_S:
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask())
            await asyncio.shield(self._asking)
        return self._status

    async def replicas(self, workload: str) -> int:
        """How many replicas of it serve: as its handle has heard, or else as Serve's controller last said."""
        heard = self._handles.replicas(workload)
        if heard is None:
            status = (await self.status()).get(workload)
            return status.replicas if status is not None else 0
        return heard

    async def close(self) -> None:
        """Stop the relay; streams that are open end with an error."""
        if self._relay is not None:
            await self._relay.close()

    async def _ask(self) -> None:
        try:
            details = await asyncio.to_thread(_details)
        except Exception as error:
            raise WorkloadUnavailable(f"Serve does not tell how its applications are: {last_line(error)}") from error
        self._status = {
            name: WorkloadStatus(
                # An application that runs with no replica was scaled to zero: a call brings one back.
                ready=(running := _running(app)) > 0 or app["status"] == ApplicationStatus.RUNNING,
                replicas=running,
                message="" if running else (last_line(app["message"]) or app["status"].lower()),
            )
            for name, app in details["applications"].items()
        }
        self._status_at = time.monotonic()

    async def _handle(
        self, workload: str, method: str, calls: Sequence[Call], *, large_reply: bool
    ) -> DeploymentHandle:
        try:
            handle = await self._handles.get(workload, method, calls, large_reply=large_reply)
            # What only looks is counted by nobody, so only Serve would wake a workload for it.
            if self._gate is not None and any(call.method != "GET" for call in calls):
                await self._gate.passed(workload, lambda: self._handles.has_replica(workload), len(calls))
            return handle
        except CallError:
            raise
        except RayServeException as error:
            status = await self.status()
            if workload in status:
                raise WorkloadUnavailable(f"{workload} is not ready: {status[workload].message}") from error
            raise UnknownWorkload(f"no application {workload!r} runs here") from error
        except Exception as error:
            raise WorkloadUnavailable(f"Serve can't say where {workload} runs: {last_line(error)}") from error

    async def _listening(self) -> RelayServer:
        async with self._relay_starting:
            if self._relay is None:
                relay = RelayServer()
                await relay.start(self._relay_host or ray.util.get_node_ip_address())
                self._relay = relay
        return self._relay


class _Chunks(AsyncIterator[bytes]):
    """The chunks of one streamed call. Closing them before their end cancels the work."""

    def __init__(self, serving: ServeCall, stream: RelayStream, watch: asyncio.Task[None]) -> None:
        self._serving = serving
        self._stream = stream
        self._watch = watch

    def __aiter__(self) -> _Chunks:
        return self

    async def __anext__(self) -> bytes:
        data = await self._stream.read()
        if not data:
            raise StopAsyncIteration
        return data

    async def aclose(self) -> None:
        # After a complete stream the Serve call ends by itself; to cancel it would only cost a message.
        if not self._stream.complete:
            self._watch.cancel()
            self._serving.cancel()
        self._stream.close()


async def _result(workload: str, serving: ServeCall, within_s: float | None) -> Any:
    """What the call returned. Raises the CallError that came of it instead; one that takes too long is cancelled."""
    if not await serving.ended(within_s):
        raise DeadlineExceeded(f"{workload} had no answer within {within_s or 0:g} s and was cancelled")
    try:
        return serving.ending.result()
    except (Exception, asyncio.CancelledError) as error:
        raise await told(workload, error) from error


async def _watch(workload: str, call: Call, serving: ServeCall, stream: RelayStream) -> None:
    """See the Serve call behind a stream to its end, and end the stream with it if that went wrong."""
    try:
        await _result(workload, serving, call.deadline_s)
    except CallError as error:
        stream.fail(error)
        return
    if not stream.finished:
        await asyncio.sleep(_LAST_CHUNKS_S)
        stream.fail(ReplicaDied(f"{workload} finished a stream, but its last chunks never came"))


def _details() -> dict[str, Any]:
    """What `serve.status` is made of. Making it costs a door 15 ms a time, a hundredth of a core."""
    client = _get_global_client(raise_if_no_controller_running=False)
    details: dict[str, Any] = {"applications": {}} if client is None else client.get_serve_details()
    return details


def _running(app: Mapping[str, Any]) -> int:
    if app["status"] in (ApplicationStatus.DELETING, ApplicationStatus.NOT_STARTED):
        return 0
    return min(
        (sum(r["state"] == ReplicaState.RUNNING for r in d["replicas"]) for d in app["deployments"].values()), default=0
    )
