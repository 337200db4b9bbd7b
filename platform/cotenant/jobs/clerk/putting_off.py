"""Errands that wait long: taken off the queue, kept in the store, published again when they are due.

A held errand takes one of few places in an ingress. A receiver of webhooks that is down for a day, or a tenant's
hundredth batch, must not keep that place from others. The errand is kept before its message is acked, and deleted
after it was published again: it can come twice, and not be lost.
"""

from __future__ import annotations

from collections.abc import Callable

from cotenant.config import Jobs
from cotenant.jobs.desk.batches import PublishTo
from cotenant.jobs.desk.paging import gathered
from cotenant.jobs.errand import Errand
from cotenant.jobs.queue.lanes import CLERK, topic_of
from cotenant.jobs.queue.source import Message
from cotenant.jobs.store import keys
from cotenant.jobs.store.objects import Objects

#: Errands brought back in one go.
_AT_ONCE = 500


class PuttingOff:
    """The errands that are put off. Both methods may raise StoreUnavailable; `bring_back` SourceUnavailable."""

    def __init__(self, objects: Objects, publish: PublishTo, jobs: Jobs, now: Callable[[], float]) -> None:
        self._objects = objects
        self._publish = publish
        self._topic = topic_of(jobs, CLERK)
        self._now = now

    async def put_off(self, errand: Errand, seconds: float) -> None:
        """Once this returns the errand's message may go: it comes again after `seconds`."""
        data = errand.message().data
        await self._objects.put(keys.put_off_key(self._now() + seconds, data), data)

    async def bring_back(self) -> int:
        """Publish what is due; how many errands."""
        now = self._now()
        due: list[str] = []
        async for entry in self._objects.list(keys.PUT_OFF):
            if keys.put_off_until(entry.key) <= now:
                due.append(entry.key)
            elif self._objects.ordered:
                break
        due = sorted(due)[:_AT_ONCE]
        found = await gathered(self._objects.get, due)
        errands = [Message(data, Errand.parse(data).attributes) for data in found if data is not None]
        if errands:
            await self._publish(self._topic, errands)
        await self._objects.delete(due)
        return len(errands)
