"""The in-memory twin of a GPU agent and its links: several tenancies of one process share a real ledger.

It serves where there is no agent to talk to, and is what the tests of sharing run on. It keeps the real one's
promises and has its faults: what is said travels in order, both ways, and takes time where `delay_s` says so. So a
recall can be overtaken by `slept` and a grant by `withdraw`, as on a socket. It measures nothing and stops nobody.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from cotenant.errors import WorkloadUnavailable
from cotenant.gpu.ledger import Action, Grant, Ledger, Tenant
from cotenant.gpu.terms import Priority

Said = Callable[[Ledger, float], Sequence[Action]]


def _at_once() -> float:
    return 0.0


class MemoryAgent:
    """Lends one GPU's memory to the links made by `join`. Belongs to one running event loop.

    Args:
        ledger: whom to ask; with a `clock` of its own, call `tick` when that has moved on.
        clock: what the ledger is told of the time, in seconds.
        delay_s: how long the next message travels; asked for each, and never overtaken by a later one.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        clock: Callable[[], float] = time.monotonic,
        delay_s: Callable[[], float] = _at_once,
    ) -> None:
        self.ledger = ledger
        self._clock = clock
        self._delay_s = delay_s
        self._links: dict[str, MemoryLink] = {}
        self._unsent: deque[Action] = deque()
        self._sending = False
        self._timer: asyncio.TimerHandle | None = None

    def join(self, tenant: Tenant, on_recall: Callable[[str], None]) -> MemoryLink:
        """A link for `tenant`, who is told by `on_recall` that its lease is wanted, and by whom.

        Raises:
            NoRoom: with it, some tenant of this GPU could never wake.
            ValueError: this id is here already.
        """
        actions = self.ledger.join(tenant, self._clock())
        link = self._links[tenant.id] = MemoryLink(self, tenant, on_recall, self._delay_s)
        self._send(actions)
        return link

    def leave(self, link: MemoryLink) -> None:
        """Its tenant ended or died: all it held is free."""
        if self._links.get(link.tenant.id) is link:
            del self._links[link.tenant.id]
            self._send(self.ledger.leave(link.tenant.id, self._clock()))

    def tick(self) -> None:
        """Time has passed. Called by itself when the ledger's time comes, if the clock is the loop's."""
        self._send(self.ledger.tick(self._clock()))

    def told(self, link: MemoryLink, said: Said) -> None:
        """What a tenant said, as what the ledger is to do about it. Nothing happens if the tenant has left."""
        if self._links.get(link.tenant.id) is link:
            self._send(said(self.ledger, self._clock()))

    def _send(self, actions: Iterable[Action]) -> None:
        """Tell tenants what the ledger says, in its order also where one answers before the next is told."""
        self._unsent.extend(actions)
        if not self._sending:
            self._sending = True
            try:
                while self._unsent:
                    action = self._unsent.popleft()
                    if action.tenant in self._links:
                        self._links[action.tenant].tell(action)
            finally:
                self._sending = False
        self._arm()

    def _arm(self) -> None:
        """Be called when the ledger next has something to say by itself."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_in_s = self.ledger.due_at - self._clock()
        if due_in_s < float("inf"):
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due_in_s), self.tick)


class MemoryLink:
    """One tenant's line to a `MemoryAgent`; made by its `join`."""

    def __init__(
        self, agent: MemoryAgent, tenant: Tenant, on_recall: Callable[[str], None], delay_s: Callable[[], float]
    ) -> None:
        self._agent = agent
        self.tenant = tenant
        self._on_recall = on_recall
        self._to_agent = _Wire(delay_s)
        self._from_agent = _Wire(delay_s)
        self._asks: list[asyncio.Future[None]] = []
        self._granted = False
        self._taken = False
        """Whether an ask returned with the grant: then it is the tenant who gives it back."""
        self._left = False

    async def ask(self, priority: Priority) -> None:
        """Return when the whole budget is granted. Raises WorkloadUnavailable if the link is, or gets, closed."""
        if self._left:
            raise self._closed()
        if not self._granted:
            await self._wait(priority)
        self._taken = True

    def busy(self, priority: Priority) -> None:
        self._say(lambda ledger, now: ledger.busy(self.tenant.id, now, priority))

    def idle(self) -> None:
        self._say(lambda ledger, now: ledger.idle(self.tenant.id, now))

    def slept(self) -> None:
        if not self.tenant.pinned:
            self._granted = self._taken = False
            self._say(lambda ledger, now: ledger.slept(self.tenant.id, now))

    def close(self) -> None:
        """Leave: as a replica that ends, and as one that is killed."""
        self._left = True
        self._agent.leave(self)
        for ask in self._asks:
            if not ask.done():
                ask.set_exception(self._closed())

    def tell(self, action: Action) -> None:
        """What the agent says, to be heard when it has travelled."""
        self._from_agent.carry(lambda: self._hear(action))

    async def _wait(self, priority: Priority) -> None:
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asks.append(mine)
        try:
            self._say(lambda ledger, now: ledger.ask(self.tenant.id, priority, now))
            await mine
        except asyncio.CancelledError:
            last = len(self._asks) == 1
            if last and not self._granted:
                self._say(lambda ledger, now: ledger.withdraw(self.tenant.id, now))
            elif last and not self._taken:
                self.slept()
            raise
        finally:
            self._asks.remove(mine)

    def _hear(self, action: Action) -> None:
        if self._left:
            return
        if not isinstance(action, Grant):
            if self._granted:
                self._on_recall(action.wanted_by)
            return
        self._granted = True
        if not self._asks:
            self.slept()  # nobody waits for it any more
        for ask in self._asks:
            if not ask.done():
                ask.set_result(None)

    def _say(self, said: Said) -> None:
        if not self._left:
            self._to_agent.carry(lambda: self._agent.told(self, said))

    def _closed(self) -> WorkloadUnavailable:
        return WorkloadUnavailable(f"{self.tenant.id} has closed its link to the GPU agent")


class _Wire:
    """Carries messages one way, in order."""

    def __init__(self, delay_s: Callable[[], float]) -> None:
        self._delay_s = delay_s
        self._under_way: deque[Callable[[], None]] = deque()
        self._last_at = float("-inf")

    def carry(self, message: Callable[[], None]) -> None:
        delay = self._delay_s()
        if delay <= 0 and not self._under_way:
            message()
            return
        loop = asyncio.get_running_loop()
        self._last_at = max(self._last_at, loop.time() + delay)
        self._under_way.append(message)
        loop.call_at(self._last_at, self._arrive)

    def _arrive(self) -> None:
        self._under_way.popleft()()
