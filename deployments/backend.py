"""The `Backend` of a running platform: calls workloads through Serve handles, streams through the relay.

This is the one place where Ray's exceptions become `CallError`s. A handle to each workload's application is made
once and kept; Serve keeps its view of the replicas current. Both doors use it: the gateway streams, the ingress
only calls.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

import ray
from ray import serve
from ray.exceptions import (
    RayActorError,
    RayTaskError,
    TaskCancelledError,
)
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
    RequestCancelledError,
)
from ray.serve.handle import DeploymentHandle, DeploymentResponse
from ray.serve.schema import ApplicationStatus, ReplicaState

from cotenant.calls import Call, Reply, StreamedReply, WorkloadStatus
from cotenant.calls.relay import RelayServer, RelayStream
from cotenant.errors import (
    BudgetExceeded,
    CallError,
    DeadlineExceeded,
    Overloaded,
    ReplicaDied,
    UnknownWorkload,
    WorkloadUnavailable,
)
from cotenant.telemetry.logs import event
from deployments import obituaries

LOG = logging.getLogger("cotenant.backend")

#: A status is asked of the controller at most this often.
STATUS_AGE_S = 1.0
#: How long the last chunks may lag behind the end of the Serve call that sent them.
_LAST_CHUNKS_S = 10.0


class ServeBackend:
    """Calls the Serve application named after a workload. Lives in one event loop."""

    def __init__(self, *, relay_host: str | None = None) -> None:
        """`relay_host` is where the relay listens for token chunks: this node's address by default."""
        self._relay_host = relay_host
        self._handles: dict[str, DeploymentHandle] = {}
        self._relay: RelayServer | None = None
        self._relay_starting = asyncio.Lock()
        self._watches: set[asyncio.Task[None]] = set()
        self._status: dict[str, WorkloadStatus] = {}
        self._status_at = 0.0
        self._asking: asyncio.Task[None] | None = None

    async def call(self, workload: str, call: Call) -> Reply:
        response = (await self._handle(workload)).call.remote(call)
        try:
            reply: Reply = await asyncio.wait_for(_outcome(response), call.deadline_s)
        except asyncio.CancelledError:
            _cancel(response)
            raise
        except Exception as error:
            _cancel(response)
            raise await _told(workload, call, error) from error
        return reply

    async def stream(self, workload: str, call: Call) -> StreamedReply:
        relay = await self._listening()
        handle = await self._handle(workload)
        stream = relay.open()
        response = handle.stream.remote(call, stream.target)
        watch = asyncio.create_task(_watch(workload, call, response, stream))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)
        chunks = _Chunks(response, stream, watch)
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

    async def close(self) -> None:
        """Stop the relay; streams that are open end with an error."""
        if self._relay is not None:
            await self._relay.close()

    async def _ask(self) -> None:
        try:
            status = await asyncio.to_thread(serve.status)
        except Exception as error:
            raise WorkloadUnavailable(f"Serve does not tell how its applications are: {_last_line(error)}") from error
        self._status = {
            name: WorkloadStatus(
                # An application that runs with no replica was scaled to zero: a call brings one back.
                ready=(running := _running(app)) > 0 or app.status == ApplicationStatus.RUNNING,
                replicas=running,
                message="" if running else (_last_line(app.message) or app.status.value.lower()),
            )
            for name, app in status.applications.items()
        }
        self._status_at = time.monotonic()

    async def _handle(self, workload: str) -> DeploymentHandle:
        handle = self._handles.get(workload)
        if handle is None:
            try:
                handle = await asyncio.to_thread(serve.get_app_handle, workload)
            except RayServeException as error:
                status = await self.status()
                if workload in status:
                    raise WorkloadUnavailable(f"{workload} is not ready: {status[workload].message}") from error
                raise UnknownWorkload(f"no application {workload!r} runs here") from error
            except Exception as error:
                raise WorkloadUnavailable(f"Serve can't say where {workload} runs: {_last_line(error)}") from error
            self._handles[workload] = handle
        return handle

    async def _listening(self) -> RelayServer:
        async with self._relay_starting:
            if self._relay is None:
                relay = RelayServer()
                await relay.start(self._relay_host or ray.util.get_node_ip_address())
                self._relay = relay
        return self._relay


class _Chunks(AsyncIterator[bytes]):
    """The chunks of one streamed call. Closing them before their end cancels the work."""

    def __init__(self, response: DeploymentResponse, stream: RelayStream, watch: asyncio.Task[None]) -> None:
        self._response = response
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
            _cancel(self._response)
        self._stream.close()


async def _watch(workload: str, call: Call, response: DeploymentResponse, stream: RelayStream) -> None:
    """See the Serve call behind a stream to its end, and end the stream with it if that went wrong."""
    try:
        await asyncio.wait_for(_outcome(response), call.deadline_s)
    except asyncio.CancelledError:
        raise
    except Exception as error:
        stream.fail(await _told(workload, call, error))
        _cancel(response)
        return
    if not stream.finished:
        await asyncio.sleep(_LAST_CHUNKS_S)
        stream.fail(ReplicaDied(f"{workload} finished a stream, but its last chunks never came"))


async def _outcome(response: DeploymentResponse) -> Any:
    """What the call returned. A call that we cancelled ends as a cancellation, not as an error nobody asks for."""
    try:
        return await response
    except TaskCancelledError:
        if response.cancelled():
            raise asyncio.CancelledError from None
        raise


def _cancel(response: DeploymentResponse) -> None:
    """Cancel the call in the replica, or before it gets there; nothing to do if it has ended in an error."""
    with suppress(Exception):
        response.cancel()


def _running(app: Any) -> int:
    if app.status in (ApplicationStatus.DELETING, ApplicationStatus.NOT_STARTED):
        return 0
    return min((d.replica_states.get(ReplicaState.RUNNING, 0) for d in app.deployments.values()), default=0)


async def _told(workload: str, call: Call, error: BaseException) -> CallError:
    """What a failure means, once the GPU agent was heard: it leaves word of the replicas that it stopped."""
    actor_id = getattr(error, "actor_id", None) if isinstance(error, RayActorError) else None
    if actor_id:
        try:
            why = await asyncio.to_thread(obituaries.find, actor_id)
        except Exception as unheard:
            event(LOG, "obituary_unread", level=logging.WARNING, workload=workload, error=unheard)
        else:
            if why is not None:
                return BudgetExceeded(f"{why}; the request was not repeated")
    return _meaning(workload, call, error)


def _meaning(workload: str, call: Call, error: BaseException) -> CallError:
    """The CallError that a failure of Serve, Ray or the deadline means."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, (BackPressureError, CallError)):
        error = error.cause
    match error:
        case CallError():
            return error
        case asyncio.TimeoutError():
            return DeadlineExceeded(f"{workload} had no answer within {call.deadline_s or 0:g} s and was cancelled")
        case BackPressureError():
            return Overloaded(f"{workload} has a full queue; come back in a second")
        case RayActorError() | ReplicaUnavailableError() | RequestCancelledError() | TaskCancelledError():
            return ReplicaDied(f"the replica of {workload} died with the request in it; send it again")
        case DeploymentUnavailableError():
            return WorkloadUnavailable(f"{workload} has no replica that could start; its log says why")
    return WorkloadUnavailable(f"{workload} failed: {_last_line(error) or type(error).__name__}")


def _last_line(text: object) -> str:
    """What a text that may hold a remote traceback ends with: the exception's own words."""
    lines = str(text).strip().splitlines()
    return lines[-1].strip() if lines else ""
