"""A `Backend` that sends a request elsewhere when the cluster would let it wait too long.

What always holds: a request is in one place at a time; what came from another platform stays here; a request whose
template or model the other server lacks stays here; a request that the other server could not take, before any of its
answer came, is served here after all, within its deadline. Of a workload that spills, every reply says who made it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from cotenant.calls import Backend, Call, Reply, Served, StreamedReply, Together, Trip, WorkloadStatus
from cotenant.calls.hops import HERE, SERVED_BY
from cotenant.errors import (
    CallError,
    CotenantError,
    DeadlineExceeded,
    Overloaded,
    ReplicaDied,
    UnknownWorkload,
    WorkloadUnavailable,
)
from cotenant.telemetry.logs import event
from cotenant.telemetry.series import Metric, Row
from cotenant.upstream.decide import Bounds, Reason, slots_here
from cotenant.upstream.outlet import Outlet, Terms, Upstream

LOG = logging.getLogger("cotenant.spill")

METRICS = (
    Metric("cotenant_spilled_total", "counter", "Requests sent to another server, by why.", ("workload", "reason")),
    Metric(
        "cotenant_spill_failed_total",
        "counter",
        "Times that the other server could not be used.",
        ("workload", "error"),
    ),
    Metric("cotenant_spilled_now", "gauge", "Requests that another server works on.", ("workload",)),
)

#: Who waits for room elsewhere looks so often whether there is a replica here by now.
_LOOK_AGAIN_S = 0.25

R = TypeVar("R", Reply, StreamedReply)
Send = Callable[[Backend, Call], Awaitable[R]]


class SpillingBackend:
    """Of one door. Belongs to one event loop."""

    def __init__(
        self,
        backend: Backend,
        *,
        served: Callable[[str], Served],
        connect: Callable[[Terms], Upstream],
        running: Callable[[str], Awaitable[int]] | None = None,
        batch: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            served: a workload by its name.
            connect: makes the way to another server. Raises EnvironmentFault.
            running: how many replicas of a workload serve; as `backend` tells, if not given.
            batch: whether this door is an ingress: then only workloads whose jobs may spill do.
        """
        self._backend = backend
        self._served = served
        self._connect = connect
        self._running = running or self._as_told
        self._batch = batch
        self._clock = clock
        self._outlets: dict[str, Outlet] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._spilled: dict[tuple[str, str], int] = {}
        self._failed: dict[tuple[str, str], int] = {}

    def spill(self, terms: Sequence[Mapping[str, Any]]) -> None:
        """These workloads spill from now on, so. Requests that are elsewhere are seen to their end."""
        wanted = {one.workload: one for one in map(Terms.of, terms) if one.jobs or not self._batch}
        for name, outlet in list(self._outlets.items()):
            if wanted.get(name) != outlet.terms:
                self._close(self._outlets.pop(name))
        for name, one in wanted.items():
            if name not in self._outlets:
                try:
                    outlet = Outlet(one, self._connect(one), failed=self._broke, clock=self._clock)
                except CotenantError as fault:
                    # The platform serves without; what it can't do is told, not what it can taken away.
                    event(LOG, "spill_off", level=logging.ERROR, workload=name, reason=str(fault))
                    continue
                self._outlets[name] = outlet
                outlet.catalogue.refresh()
                event(LOG, "spill_on", workload=name, to=outlet.upstream.host, after_wait_s=one.after_wait_s)

    def rows(self) -> list[Row]:
        """The values of `METRICS`."""
        counts = [
            Row("cotenant_spilled_total", {"workload": name, "reason": reason}, count)
            for (name, reason), count in self._spilled.items()
        ]
        failures = [
            Row("cotenant_spill_failed_total", {"workload": name, "error": error}, count)
            for (name, error), count in self._failed.items()
        ]
        now = [
            Row("cotenant_spilled_now", {"workload": name}, outlet.elsewhere) for name, outlet in self._outlets.items()
        ]
        return [*counts, *failures, *now]

    async def call(self, workload: str, call: Call) -> Reply:
        outlet = self._outlets.get(workload)
        if outlet is None or call.method == "GET":
            return await self._backend.call(workload, call)
        return await self._place(outlet, call, lambda backend, timed: backend.call(workload, timed))

    def call_many(self, workload: str, calls: Sequence[Call]) -> Trip:
        """Where the workload spills, each goes by itself, since each may go elsewhere."""
        if workload not in self._outlets:
            return self._backend.call_many(workload, calls)
        return Together([self.call(workload, call) for call in calls])

    async def stream(self, workload: str, call: Call) -> StreamedReply:
        outlet = self._outlets.get(workload)
        if outlet is None:
            return await self._backend.stream(workload, call)
        return await self._place(outlet, call, lambda backend, timed: backend.stream(workload, timed))

    async def status(self) -> Mapping[str, WorkloadStatus]:
        """The cluster's. For an ingress, the room elsewhere counts as replicas, since it pulls by that."""
        status = await self._backend.status()
        if not self._batch:
            return status
        return {**status, **{name: self._with_room(outlet, status.get(name)) for name, outlet in self._outlets.items()}}

    def with_room(self, running: Mapping[str, int]) -> Mapping[str, int]:
        """Replicas by workload, the room elsewhere among them, as `status` has it."""
        return {
            name: self._with_room(self._outlets[name], WorkloadStatus(True, n)).replicas if name in self._outlets else n
            for name, n in running.items()
        }

    async def close(self) -> None:
        """Close the ways out; requests that are elsewhere end with an error."""
        outlets, self._outlets = list(self._outlets.values()), {}
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, *(outlet.close() for outlet in outlets), return_exceptions=True)

    # --- one call ---

    async def _place(self, outlet: Outlet, call: Call, send: Send[R]) -> R:
        """The reply, from wherever it is quickest to be had."""
        began = self._clock()
        bounds = outlet.bounds(
            self._served(outlet.terms.workload),
            doors=outlet.terms.ingresses if self._batch else outlet.terms.gateways,
        )
        replicas = 0
        while outlet.takes(call):
            replicas = await self._running(outlet.terms.workload)
            reason = outlet.why(bounds, replicas)
            if reason is None:
                break
            if replicas < 1 and outlet.full and outlet.open:
                # Here nothing moves before a replica is there; elsewhere a place may come free sooner.
                await self._held(outlet, self._timed(call, began), bounds)
                continue
            reply = await self._elsewhere(outlet, self._timed(call, began), reason, send)
            if reply is not None:
                return reply
            break
        try:
            return await self._here(outlet, self._timed(call, began), bounds, replicas, send)
        except Overloaded:
            if not outlet.takes(call) or outlet.full:
                raise
            reply = await self._elsewhere(outlet, self._timed(call, began), "queue_full", send)
            if reply is None:
                raise
            return reply

    async def _here(self, outlet: Outlet, call: Call, bounds: Bounds, replicas: int, send: Send[R]) -> R:
        room = replicas > 0 and outlet.has_room(slots_here(bounds, replicas))
        number = outlet.began_here(call.units, room=room)
        good = False
        try:
            reply = await send(self._backend, call)
            good = 200 <= reply.status < 300
        finally:
            if not good:
                outlet.ended_here(number, good=False)
        return _told(reply, HERE, lambda whole: outlet.ended_here(number, good=whole))

    async def _elsewhere(self, outlet: Outlet, call: Call, reason: Reason, send: Send[R]) -> R | None:
        """The other server's reply; None if there is none to be had, and the call is to be served here."""
        if not outlet.open or not await outlet.serves(call):
            return None
        name, host = outlet.terms.workload, outlet.upstream.host
        if not outlet.open or outlet.full:
            return None
        outlet.elsewhere += 1
        self._spilled[name, reason] = self._spilled.get((name, reason), 0) + 1
        event(LOG, "spilled", workload=name, reason=reason, to=host, request_id=call.request_id)
        away = True
        try:
            reply = await send(outlet.upstream, call)
            reply = await _begun(reply)
            outlet.worked()
            away = False
        except Overloaded as full:
            outlet.broke(full, "call", pause_s=full.retry_after_s)
            return None
        except UnknownWorkload as unknown:
            outlet.catalogue.lacks(outlet.name_in(call))
            self._broke(outlet.terms, "call", unknown)
            return None
        except (ReplicaDied, WorkloadUnavailable) as error:
            outlet.broke(error, "call")
            return None
        except DeadlineExceeded as late:
            # Its deadline, or ours: that shows when what is left of ours is looked at.
            self._broke(outlet.terms, "call", late)
            return None
        finally:
            if away:
                outlet.left()
        return _told(reply, host, lambda _: outlet.left())

    async def _held(self, outlet: Outlet, call: Call, bounds: Bounds) -> None:
        """Wait a moment for room elsewhere or a replica here. Raises Overloaded where as many do as may wait."""
        if outlet.held >= bounds.queue:
            raise Overloaded(
                f"{outlet.terms.workload} has no replica yet and {outlet.held} requests waiting; come back in a few "
                "seconds"
            )
        await outlet.room(_LOOK_AGAIN_S if call.deadline_s is None else min(_LOOK_AGAIN_S, call.deadline_s))

    def _timed(self, call: Call, began: float) -> Call:
        """The call with what is left of its time. Raises DeadlineExceeded if nothing is."""
        if call.deadline_s is None:
            return call
        left_s = call.deadline_s - (self._clock() - began)
        if left_s <= 0:
            raise DeadlineExceeded(f"no answer within {call.deadline_s:g} s, neither here nor elsewhere")
        return replace(call, deadline_s=left_s)

    # --- the other server ---

    def _broke(self, terms: Terms, what: str, error: Exception) -> None:
        key = terms.workload, type(error).__name__
        self._failed[key] = self._failed.get(key, 0) + 1
        reason = str(error) if isinstance(error, CallError) else None
        event(LOG, "spill_failed", level=logging.WARNING, error=error, workload=key[0], tried=what, reason=reason)

    def _close(self, outlet: Outlet) -> None:
        task = asyncio.create_task(_close_when_idle(outlet), name="cotenant-spill-close")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _with_room(self, outlet: Outlet, status: WorkloadStatus | None) -> WorkloadStatus:
        here = status or WorkloadStatus(False)
        if not outlet.open:
            return here
        more = -(-outlet.terms.max_concurrency // max(1, self._served(outlet.terms.workload).slots))
        # What an ingress divides by the number of ingresses, each of them has for itself.
        return WorkloadStatus(True, here.replicas + more * outlet.terms.ingresses, here.message)

    async def _as_told(self, workload: str) -> int:
        status = (await self._backend.status()).get(workload)
        return status.replicas if status is not None and status.ready else 0


async def _begun(reply: R) -> R:
    """The reply once something of its body is there: until then another server can take its place."""
    if isinstance(reply, Reply):
        return reply
    chunks = reply.chunks
    try:
        first = [await chunks.__anext__()]
    except StopAsyncIteration:
        first = []
    except BaseException:
        await _close_chunks(chunks)
        raise
    return replace(reply, chunks=_Chunks(chunks, first))


def _told(reply: R, by: str, ended: Callable[[bool], None]) -> R:
    """The reply with who made it; `ended` is told once when it is over, and whether it was whole."""
    headers = {**reply.headers, SERVED_BY: by}
    if isinstance(reply, Reply):
        ended(reply.ok)
        return replace(reply, headers=headers)
    return replace(reply, headers=headers, chunks=_Chunks(reply.chunks, [], ended))


class _Chunks(AsyncIterator[bytes]):
    """What was read already, then the rest as it comes."""

    def __init__(
        self, chunks: AsyncIterator[bytes], first: list[bytes], ended: Callable[[bool], None] = lambda _: None
    ) -> None:
        self._chunks = chunks
        self._first = first
        self._ended: Callable[[bool], None] | None = ended

    def __aiter__(self) -> _Chunks:
        return self

    async def __anext__(self) -> bytes:
        if self._first:
            return self._first.pop()
        try:
            return await self._chunks.__anext__()
        except BaseException as end:
            self._over(isinstance(end, StopAsyncIteration))
            raise

    async def aclose(self) -> None:
        self._over(False)
        await _close_chunks(self._chunks)

    def _over(self, whole: bool) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(whole)


async def _close_chunks(chunks: AsyncIterator[bytes]) -> None:
    close = getattr(chunks, "aclose", None)
    if close is not None:
        await close()


async def _close_when_idle(outlet: Outlet) -> None:
    outlet.catalogue.close()
    while outlet.busy:  # noqa: ASYNC110 - requests end by many ways, and this happens once a deploy
        await asyncio.sleep(0.2)
    await outlet.close()
