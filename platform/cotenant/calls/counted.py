"""A `Backend` that counts what goes through it, so that scaling hears of calls before their replicas do.

What is sent on to another platform counts too: it is sent there because the cluster is too small for it, which is what
scaling is to hear of. Its time teaches nothing of how long work takes here.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from cotenant.calls.backend import Backend, WorkloadStatus
from cotenant.calls.demand import Asked, Pace
from cotenant.calls.hops import is_from_elsewhere
from cotenant.calls.reply import Call, Reply, StreamedReply
from cotenant.calls.trip import Trip


class CountedBackend:
    """Counts the calls and streams of `backend`; trips are passed on uncounted."""

    def __init__(
        self,
        backend: Backend,
        *,
        has_room: Callable[[str, int], bool] = lambda workload, sent: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`has_room` says whether a call does not have to wait for a slot, beside so many that were sent before it."""
        self._backend = backend
        self._has_room = has_room
        self._clock = clock
        self._paces: dict[str, Pace] = defaultdict(Pace)

    def asked(self) -> dict[str, Asked]:
        """How it stands, by workload. What has ended is told once."""
        now = self._clock()
        return {name: pace.asked(now) for name, pace in self._paces.items()}

    async def call(self, workload: str, call: Call) -> Reply:
        if call.method == "GET":
            return await self._backend.call(workload, call)
        counted = _Counted(self, workload, call)
        try:
            reply = await self._backend.call(workload, call)
            counted.good = reply.ok and not is_from_elsewhere(reply.headers)
        finally:
            counted.over()
        return reply

    def call_many(self, workload: str, calls: Sequence[Call]) -> Trip:
        return self._backend.call_many(workload, calls)

    async def stream(self, workload: str, call: Call) -> StreamedReply:
        counted = _Counted(self, workload, call)
        try:
            reply = await self._backend.stream(workload, call)
        except BaseException:
            counted.over()
            raise
        counted.good = 200 <= reply.status < 300 and not is_from_elsewhere(reply.headers)
        return StreamedReply(reply.status, reply.content_type, _Chunks(reply.chunks, counted), reply.headers)

    async def status(self) -> Mapping[str, WorkloadStatus]:
        return await self._backend.status()


class _Counted:
    """One call under way."""

    def __init__(self, door: CountedBackend, workload: str, call: Call) -> None:
        self._clock = door._clock
        self._pace = door._paces[workload]
        self._units = call.units if door._has_room(workload, self._pace.sent) else None
        self._number: int | None = self._pace.began(self._clock())
        self.good = False

    def over(self) -> None:
        """It has ended; said again, nothing happens."""
        number, self._number = self._number, None
        if number is not None:
            self._pace.over(number, self._clock(), self._units if self.good else None)


class _Chunks(AsyncIterator[bytes]):
    """Passes chunks on; the call is over with the last one, or when the reader goes."""

    def __init__(self, chunks: AsyncIterator[bytes], counted: _Counted) -> None:
        self._chunks = chunks
        self._counted = counted

    def __aiter__(self) -> _Chunks:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self._chunks.__anext__()
        except BaseException as end:
            self._counted.good = self._counted.good and isinstance(end, StopAsyncIteration)
            self._counted.over()
            raise

    async def aclose(self) -> None:
        # One that is closed before its end took less than it would have.
        self._counted.good = False
        self._counted.over()
        close = getattr(self._chunks, "aclose", None)
        if close is not None:
            await close()
