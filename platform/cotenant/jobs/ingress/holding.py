"""One lane as the pump holds it: its source, the leases on its messages, and what is to be given back.

Always true: a message pulled here is leased in the books from before the request that brought it, and stays in them
until it is acked, given back or left to its lease.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from cotenant.errors import SourceUnavailable
from cotenant.jobs.clock import Clock
from cotenant.jobs.ingress.batcher import Batcher
from cotenant.jobs.ingress.leases import Leases
from cotenant.jobs.queue.source import Delivery, JobSource

#: Acks wait so long for others: a lease has seconds left when its job is done.
ACK_LINGER_S = 0.03
#: A lane whose pull has waited longer than this has no backlog.
BUSY_S = 0.25


class Holding:
    """What is held of one lane."""

    def __init__(self, lane: str, source: JobSource, lease_s: float, clock: Clock) -> None:
        self.lane = lane
        self.source = source
        self.changed = asyncio.Event()
        """Set whenever there may be more room than before."""
        self.pulling = False
        self._brought = False
        self._full = False
        self.full_pulls = 0
        """Pulls that brought as many messages as they asked for."""
        self._asked_at = 0.0
        self.set_up = False
        self._clock = clock
        self._leases = Leases(lease_s)
        self._acks = Batcher[str](source.ack, linger_s=ACK_LINGER_S, clock=clock)
        self._abandoned: list[str] = []

    @property
    def busy(self) -> bool:
        """Whether the last pull brought something, and the present one does not wait long."""
        return self._brought and not (self.pulling and self._clock.now() - self._asked_at > BUSY_S)

    @property
    def full(self) -> bool:
        """Whether the last pull brought all that it asked for, and the present one does not wait long."""
        return self._full and self.busy

    async def pull(self, limit: int) -> Sequence[Delivery]:
        """Up to `limit` messages, leased. Never to be cancelled while `pulling`. Raises SourceUnavailable."""
        asked_at = self._asked_at = self._clock.now()
        self.pulling = True
        try:
            if not self.set_up:
                await self.source.setup()
                self.set_up = True
            deliveries = await self.source.pull(limit)
        except SourceUnavailable:
            # An emulator that was restarted has forgotten its topics.
            self.set_up = False
            raise
        finally:
            self.pulling = False
        self._leases.hold((delivery.ack_id for delivery in deliveries), asked_at)
        self._brought, self._full = bool(deliveries), len(deliveries) >= limit
        self.full_pulls += self._full
        return deliveries

    async def extend(self) -> None:
        """Extend the leases that have half of their time left. Raises SourceUnavailable."""
        asked_at = self._clock.now()
        due = self._leases.due(asked_at)
        if due:
            await self.source.extend(due)
            self._leases.hold((ack_id for ack_id in due if ack_id in self._leases), asked_at)

    async def ack(self, ack_id: str) -> None:
        """Raises SourceUnavailable."""
        await self._acks.add(ack_id)

    async def give_back(self, ack_id: str, delay_s: float = 0.0) -> None:
        """Nack. If even that fails, the lease runs out and the message comes again by itself."""
        with contextlib.suppress(SourceUnavailable):
            await self.source.nack([ack_id], delay_s)

    def release(self, ack_id: str, *, settled: bool) -> None:
        """The message is not held any more; one that is not settled is to be given back."""
        self._leases.release(ack_id)
        if not settled:
            self._abandoned.append(ack_id)

    async def hand_back(self) -> int:
        """Give back, in one request, what was cut short; how many."""
        abandoned, self._abandoned = self._abandoned, []
        if abandoned:
            with contextlib.suppress(SourceUnavailable):
                await self.source.nack(abandoned)
        return len(abandoned)
