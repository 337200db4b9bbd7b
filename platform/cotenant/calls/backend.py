"""The edge between a door and the workloads: Serve in production, a dict of functions in tests.

`Backend` is all that gateway and ingress know of what is behind them. The Serve one lives in
`deployments/backend.py`; the in-memory one here ships, so that both doors can be run and tested without Ray.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cotenant.calls.reply import Call, Reply, StreamedReply
from cotenant.calls.trip import Together, Trip
from cotenant.errors import CallError, DeadlineExceeded, Overloaded, ReplicaDied, UnknownWorkload


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

    def call_many(self, workload: str, calls: Sequence[Call]) -> Trip:
        """Several calls on one trip to one replica, which begins at once. Calls that it has no slot for wait there.

        Each call ends as it would have by itself, only that its error is an answer too: nothing is raised. A replica
        that dies answers everything that was open with ReplicaDied, a full queue with Overloaded.
        """
        ...

    async def stream(self, workload: str, call: Call) -> StreamedReply:
        """The reply as soon as its status is known; its chunks as they are made."""
        ...

    async def status(self) -> Mapping[str, WorkloadStatus]:
        """Status by workload name. Cheap enough to ask once a second."""
        ...


Handler = Callable[[Call], Reply | StreamedReply | Awaitable[Reply | StreamedReply]]
_Run = Callable[[str, Call], Coroutine[Any, Any, Reply | StreamedReply]]


class InMemoryBackend:
    """A `Backend` over plain functions, with the slots and queue of the real thing and one replica a workload.

    What a function raises that is no CallError comes out of `call` and `stream` as it is: with that the doors' tests
    play a bug of the door's own.
    """

    def __init__(self, handlers: Mapping[str, Handler], *, slots: int = 2, queue: int = 256) -> None:
        self._handlers = dict(handlers)
        self._slots = {name: asyncio.Semaphore(slots) for name in handlers}
        self._waiting = dict.fromkeys(handlers, 0)
        self._working: dict[str, set[asyncio.Future[Reply | StreamedReply]]] = {name: set() for name in handlers}
        self._queue = queue
        self.down: dict[str, str] = {}

    async def call(self, workload: str, call: Call) -> Reply:
        return await self._in_time(self._run, workload, call)

    def call_many(self, workload: str, calls: Sequence[Call]) -> Trip:
        refusal = self._refusal(workload)
        if refusal is not None:
            return Together([_refuse(refusal) for _ in calls])
        return Together([self._in_time(self._work, workload, call) for call in calls])

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

    def kill(self, workload: str) -> None:
        """The replica dies with the calls that it works on; another one is there at once."""
        for working in self._working[workload]:
            working.cancel()

    async def _run(self, workload: str, call: Call) -> Reply | StreamedReply:
        refusal = self._refusal(workload)
        if refusal is not None:
            raise refusal
        self._waiting[workload] += 1
        try:
            await self._slots[workload].acquire()
        finally:
            self._waiting[workload] -= 1
        try:
            return await self._handle(workload, call)
        finally:
            self._slots[workload].release()

    async def _work(self, workload: str, call: Call) -> Reply | StreamedReply:
        """One call of a trip: it waits in the replica, not in the queue before it."""
        async with self._slots[workload]:
            return await self._handle(workload, call)

    async def _handle(self, workload: str, call: Call) -> Reply | StreamedReply:
        result = self._handlers[workload](call)
        return await self._see_through(workload, result) if inspect.isawaitable(result) else result

    async def _see_through(self, workload: str, work: Awaitable[Reply | StreamedReply]) -> Reply | StreamedReply:
        working = asyncio.ensure_future(work)
        self._working[workload].add(working)
        try:
            if await _ended(working):
                return working.result()
        finally:
            self._working[workload].discard(working)
        raise ReplicaDied(f"the replica of {workload} died with the request in it; send it again")

    def _refusal(self, workload: str) -> CallError | None:
        if workload not in self._handlers:
            return UnknownWorkload(f"no workload {workload!r}; here are {', '.join(self._handlers)}")
        if self._slots[workload].locked() and self._waiting[workload] >= self._queue:
            return Overloaded(f"{workload} has {self._queue} requests waiting; come back in a second")
        return None

    async def _in_time(self, run: _Run, workload: str, call: Call) -> Reply:
        working = asyncio.ensure_future(_whole(run, workload, call))
        if await _ended(working, call.deadline_s):
            return working.result()
        raise DeadlineExceeded(f"{workload} had no answer within {call.deadline_s or 0:g} s and was cancelled")


async def _ended(working: asyncio.Future[Any], within_s: float | None = None) -> bool:
    """Whether the work came to an end of its own. If its waiter is cancelled or its time is up, it is cancelled."""
    try:
        await asyncio.wait({working}, timeout=within_s)
    except asyncio.CancelledError:
        working.cancel()
        await asyncio.wait({working})
        if working.cancelled() or working.exception() is not None:  # else it had an answer all the same
            raise
    if not working.done():
        working.cancel()
        await asyncio.wait({working})
    return not working.cancelled()


async def _whole(run: _Run, workload: str, call: Call) -> Reply:
    reply = await run(workload, call)
    if isinstance(reply, Reply):
        return reply
    chunks = [chunk async for chunk in reply.chunks]
    return Reply(reply.status, b"".join(chunks), reply.content_type, reply.headers)


async def _refuse(refusal: CallError) -> Reply:
    raise refusal


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body
