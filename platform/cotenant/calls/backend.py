"""The edge between a door and the workloads: Serve in production, a dict of functions in tests.

`Backend` is all that gateway and ingress know of what is behind them. The Serve one lives in
`deployments/backend.py`; the in-memory one here ships, so that both doors can be run and tested without Ray.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from cotenant.calls.reply import Call, Reply, StreamedReply
from cotenant.errors import Overloaded, UnknownWorkload


@dataclass(frozen=True)
class WorkloadStatus:
    """How a workload is doing: `replicas` that are running now, and why none is, in words."""

    ready: bool
    replicas: int = 0
    message: str = ""


class Backend(Protocol):
    """Calls workloads by name.

    Every method raises only `CallError`s: UnknownWorkload, Overloaded, DeadlineExceeded (`call.deadline_s`),
    ReplicaDied, WorkloadUnavailable. Cancelling the awaiting task cancels the work behind it.
    """

    async def call(self, workload: str, call: Call) -> Reply:
        """The whole reply, engine errors (4xx, 5xx) included."""
        ...

    async def stream(self, workload: str, call: Call) -> StreamedReply:
        """The reply as soon as its status is known; its chunks as they are made."""
        ...

    async def status(self) -> Mapping[str, WorkloadStatus]:
        """Status by workload name. Cheap enough to ask once a second."""
        ...


Handler = Callable[[Call], Reply | StreamedReply | Awaitable[Reply | StreamedReply]]


class InMemoryBackend:
    """A `Backend` over plain functions, with the slots and queue of the real thing."""

    def __init__(self, handlers: Mapping[str, Handler], *, slots: int = 2, queue: int = 256) -> None:
        self._handlers = dict(handlers)
        self._slots = {name: asyncio.Semaphore(slots) for name in handlers}
        self._waiting = dict.fromkeys(handlers, 0)
        self._queue = queue
        self.down: dict[str, str] = {}

    async def call(self, workload: str, call: Call) -> Reply:
        reply = await self._run(workload, call)
        if isinstance(reply, Reply):
            return reply
        chunks = [chunk async for chunk in reply.chunks]
        return Reply(reply.status, b"".join(chunks), reply.content_type, reply.headers)

    async def stream(self, workload: str, call: Call) -> StreamedReply:
        reply = await self._run(workload, call)
        if isinstance(reply, StreamedReply):
            return reply
        return StreamedReply(reply.status, reply.content_type, _once(reply.body), reply.headers)

    async def status(self) -> Mapping[str, WorkloadStatus]:
        return {
            name: WorkloadStatus(False, 0, self.down[name]) if name in self.down else WorkloadStatus(True, 1)
            for name in self._handlers
        }

    async def _run(self, workload: str, call: Call) -> Reply | StreamedReply:
        if workload not in self._handlers:
            raise UnknownWorkload(f"no workload {workload!r}; here are {', '.join(self._handlers)}")
        if self._slots[workload].locked() and self._waiting[workload] >= self._queue:
            raise Overloaded(f"{workload} has {self._queue} requests waiting; come back in a second")
        self._waiting[workload] += 1
        try:
            await self._slots[workload].acquire()
        finally:
            self._waiting[workload] -= 1
        try:
            result = self._handlers[workload](call)
            return await result if inspect.isawaitable(result) else result
        finally:
            self._slots[workload].release()


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body
