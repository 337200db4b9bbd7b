"""A trip through Serve: one Serve call carries several calls to a replica, which answers each over our relay.

The Serve call gives the replica, the place in its queue, the way to cancel, and the reason if it dies; the answers
come past it, so none waits for the slowest. What always holds: a call is answered in time or with DeadlineExceeded,
and the replica is told of every one that nobody waits for any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from cotenant.calls import Answer, Answers, Call, Trip
from cotenant.calls.relay import RelayStream
from cotenant.calls.wire import Decoder
from cotenant.errors import CallError, DeadlineExceeded, ReplicaDied, WorkloadUnavailable
from deployments.cargo import Cargo
from deployments.failures import told
from deployments.handles import ServeCall
from deployments.replica import ABANDON

#: How long the last answers may lag behind the end of the Serve call that sent them.
_LAST_ANSWERS_S = 10.0
#: How long the reason for a lost connection may lag behind the loss.
_REASON_S = 5.0

Begin = Callable[[Cargo], Coroutine[Any, Any, tuple[ServeCall, RelayStream]]]


class ServeTrip:
    """One trip. `begin` sends its cargo: the Serve call and the stream that is answered into, or a CallError raised."""

    def __init__(self, workload: str, calls: Sequence[Call], begin: Begin) -> None:
        self._workload = workload
        self._answers = Answers(len(calls))
        self._stream: RelayStream | None = None
        self._untold: list[int] = []
        loop = asyncio.get_running_loop()
        self._timers = [
            loop.call_later(call.deadline_s, self._late, index, call.deadline_s)
            for index, call in enumerate(calls)
            if call.deadline_s is not None
        ]
        cargo = Cargo(calls, self._answers.open)
        self._travelling = asyncio.create_task(self._travel(begin, cargo), name=f"trip-{workload}")

    def __aiter__(self) -> Trip:
        return self

    async def __anext__(self) -> Sequence[Answer]:
        answers = await self._answers.get()
        if not answers:
            await self.aclose()
            raise StopAsyncIteration
        return answers

    def abandon(self, index: int) -> None:
        if index in self._answers.open:
            self._answers.drop(index)
            self._give_up(index)

    async def aclose(self) -> None:
        for timer in self._timers:
            timer.cancel()
        for index in list(self._answers.open):
            self._answers.drop(index)
            self._travelling.cancel()
        await asyncio.wait({self._travelling})

    def _late(self, index: int, deadline_s: float) -> None:
        if index in self._answers.open:
            late = f"{self._workload} had no answer within {deadline_s:g} s and was cancelled"
            self._answers.put(index, DeadlineExceeded(late))
            self._give_up(index)

    def _give_up(self, index: int) -> None:
        """Nobody waits for this one: tell the replica, or end the trip if it was the last."""
        if not self._answers.open:
            self._travelling.cancel()
        elif self._stream is not None:
            self._stream.tell(ABANDON.pack(index))
        else:
            self._untold.append(index)

    async def _travel(self, begin: Begin, cargo: Cargo) -> None:
        try:
            call, self._stream = await begin(cargo)
        except CallError as error:
            self._answers.put_rest(error)
            return
        for index in self._untold:
            self._stream.tell(ABANDON.pack(index))
        arrived = False
        try:
            await self._read(call, self._stream)
            arrived = True
        except CallError as error:
            self._answers.put_rest(error)
        finally:
            self._stream.close()
            if not arrived:  # else it ends by itself, and to cancel it would only cost a message
                call.cancel()

    async def _read(self, call: ServeCall, stream: RelayStream) -> None:
        """Read answers until none is open. Raises the CallError that the rest ends with."""
        call.ending.add_done_callback(lambda ending: _fail_after(stream, ending))
        decoder = Decoder()
        try:
            while self._answers.open and (data := await stream.read()):
                for index, answer in decoder.feed(data):
                    self._answers.put(index, answer)
        except CallError as lost:
            raise await self._reason(call) or lost from None
        if self._answers.open:
            raise WorkloadUnavailable(f"{self._workload} ended a trip without all answers")

    async def _reason(self, call: ServeCall) -> CallError | None:
        """Why the stream failed, as the Serve call knows it; that may come a moment later."""
        await asyncio.wait({call.ending}, timeout=_REASON_S)
        if not call.ending.done():
            return None
        error = asyncio.CancelledError() if call.ending.cancelled() else call.ending.exception()
        return None if error is None else await told(self._workload, error)


def _fail_after(stream: RelayStream, ending: asyncio.Future[Any]) -> None:
    """The Serve call has ended, so the stream must end too: at once with an error, soon without one."""
    lost = ReplicaDied("the replica ended its call, but the last answers never came")
    if ending.cancelled() or ending.exception() is not None:
        stream.fail(lost)
    elif not stream.finished:
        ending.get_loop().call_later(_LAST_ANSWERS_S, stream.fail, lost)
