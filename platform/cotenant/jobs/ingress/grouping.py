"""Calls of one moment made into one trip, where an engine works on several at a time anyway.

A call to a replica costs the ingress the same whether it is small or large. So calls for the same workload that are
asked for in the same moment share a trip, and nothing else: each is answered, fails and is cancelled by itself. What
is one moment the loop says, not a timer: a group leaves when it is full, or when a turn of the loop has brought no
further member. An idle loop sends a lone call at once, and the busier it is the more it sends together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from cotenant.calls import Backend, Call, Reply, Trip
from cotenant.errors import CallError, WorkloadUnavailable


@dataclass(eq=False)
class _Member:
    """One call and who waits for it. `answer` is a reply, or None for a call that has to go alone."""

    call: Call
    answer: asyncio.Future[Reply | None]


@dataclass(eq=False)
class _Group:
    """Calls that will leave together."""

    workload: str
    members: list[_Member] = field(default_factory=list)
    counted: int = 0
    """How many there were when the loop last came round."""


class Grouper:
    """Sends calls to a backend, together where that can be. Belongs to one event loop."""

    def __init__(self, backend: Backend, max_group: Callable[[str], int]) -> None:
        """`max_group` says how many calls a trip to a workload may carry: the slots of one of its replicas."""
        self._backend = backend
        self._max_group = max_group
        self._gathering: dict[tuple[str, Hashable], _Group] = {}
        self._readers: set[asyncio.Task[None]] = set()
        self.calls = 0
        """Calls that were sent."""
        self.trips = 0
        """What they took to be sent: trips, and calls that went alone."""

    async def call(self, workload: str, call: Call, group: Hashable | None = None) -> Reply:
        """The reply to `call`, which may travel with others of its `group`; without one it goes alone.

        Raises the CallErrors of `Backend.call`. Cancelling it cancels this call and leaves its companions alone.
        """
        if group is not None and self._max_group(workload) > 1:
            answer = await self._together(workload, call, group)
            if answer is not None:
                return answer
        self.calls += 1
        self.trips += 1
        return await self._backend.call(workload, call)

    async def _together(self, workload: str, call: Call, group: Hashable) -> Reply | None:
        loop = asyncio.get_running_loop()
        key = workload, group
        gathering = self._gathering.get(key)
        if gathering is None:
            gathering = self._gathering[key] = _Group(workload)
            loop.call_soon(self._next_turn, key, gathering)
        member = _Member(call, loop.create_future())
        gathering.members.append(member)
        if len(gathering.members) >= self._max_group(workload):
            self._leave(key, gathering)
        return await member.answer

    def _next_turn(self, key: tuple[str, Hashable], group: _Group) -> None:
        """The loop has come round: the group leaves, unless it has grown since the last time."""
        if self._gathering.get(key) is not group:
            return
        if group.counted < len(group.members):
            group.counted = len(group.members)
            asyncio.get_running_loop().call_soon(self._next_turn, key, group)
        else:
            self._leave(key, group)

    def _leave(self, key: tuple[str, Hashable], group: _Group) -> None:
        del self._gathering[key]
        members = [member for member in group.members if not member.answer.done()]
        if len(members) == 1:
            members[0].answer.set_result(None)
        elif members:
            self.calls += len(members)
            self.trips += 1
            trip = self._backend.call_many(group.workload, [member.call for member in members])
            for index, member in enumerate(members):
                member.answer.add_done_callback(_abandon_if_cancelled(trip, index))
            reader = asyncio.create_task(_read(trip, members), name=f"group-{group.workload}")
            self._readers.add(reader)
            reader.add_done_callback(self._readers.discard)


def _abandon_if_cancelled(trip: Trip, index: int) -> Callable[[asyncio.Future[Reply | None]], None]:
    def abandon(answer: asyncio.Future[Reply | None]) -> None:
        if answer.cancelled():
            trip.abandon(index)

    return abandon


async def _read(trip: Trip, members: list[_Member]) -> None:
    """Hand each member its answer. None is left without one, whatever ends the trip."""
    try:
        async for answers in trip:
            for index, answer in answers:
                waiting = members[index].answer
                if waiting.done():
                    continue
                if isinstance(answer, CallError):
                    waiting.set_exception(answer)
                else:
                    waiting.set_result(answer)
    finally:
        for member in members:
            if not member.answer.done():
                member.answer.set_exception(WorkloadUnavailable("the trip ended without this answer"))
        await trip.aclose()
