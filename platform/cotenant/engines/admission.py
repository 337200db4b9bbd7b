"""How much of each class a replica has in hand: interactive work in its own slots, batch work in what those leave.

Serve lets more calls into a replica than it has slots, so that batch jobs which fill the slots keep no interactive
call waiting in the router; who may begin is decided here. Always true:

- at most `slots` interactive calls are in, and a batch call enters only while fewer than `slots` calls are in;
- so interactive work never waits for batch work here, only for interactive work; what both need (the renderer, the
  denoiser) is shared out chunk by chunk (`precedence`);
- no more than twice the slots are in hand, which is what a budget counts (`gpu.fit`);
- each class is served oldest first; whoever waits is let in or goes away.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cotenant.gpu.terms import Priority


class Admission:
    """The slots of one replica. Belongs to one event loop; tasks, clock and engine are other people's."""

    def __init__(self, slots: int) -> None:
        if slots < 1:
            raise ValueError(f"a replica needs at least one slot, not {slots}")
        self.slots = slots
        self._inside = dict.fromkeys(Priority, 0)
        #: In order; dicts, since one that goes away leaves from the middle.
        self._waiters: dict[Priority, dict[asyncio.Future[None], None]] = {priority: {} for priority in Priority}

    def inside(self, priority: Priority) -> int:
        """Calls of that class that are in."""
        return self._inside[priority]

    def waiting(self, priority: Priority) -> int:
        """Calls of that class that wait."""
        return sum(not turn.done() for turn in self._waiters[priority])

    @asynccontextmanager
    async def entered(self, priority: Priority) -> AsyncIterator[None]:
        """A place of that class, once there is one. Costs nothing while there is room."""
        if self.waiting(priority) or not self._room(priority):
            await self._turn(priority)
        else:
            self._inside[priority] += 1
        try:
            yield
        finally:
            self._leave(priority)

    def _room(self, priority: Priority) -> bool:
        counted = self._inside[priority] if priority is Priority.INTERACTIVE else sum(self._inside.values())
        return counted < self.slots

    async def _turn(self, priority: Priority) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[priority][turn] = None
        try:
            await turn
        except asyncio.CancelledError:
            self._waiters[priority].pop(turn, None)
            if not turn.cancelled():  # it had just been let in
                self._leave(priority)
            raise

    def _leave(self, priority: Priority) -> None:
        self._inside[priority] -= 1
        for each in sorted(Priority, reverse=True):
            while self._waiters[each] and self._room(each):
                turn = next(iter(self._waiters[each]))
                del self._waiters[each][turn]
                if not turn.done():
                    self._inside[each] += 1
                    turn.set_result(None)
