"""Which jobs ran, when they came and how long they had a slot: what `cotenant record` makes a trace of.

A log beside the results, in small objects that are written once each: no result depends on it, and lines of the last
seconds are lost with an ingress that goes. Nothing of what a job says or answers is in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass

from cotenant.errors import StoreUnavailable
from cotenant.jobs.clock import Clock
from cotenant.jobs.store import keys
from cotenant.jobs.store.objects import Objects

#: Lines wait so long for others: a write for each job would be as much as its result.
LINGER_S = 5.0
#: Lines that are kept while the store does not answer; the oldest are dropped first.
_KEPT = 10_000


@dataclass(frozen=True)
class Ran:
    """One answered run of a job. Times are Unix time.

    `came_s` is when its message was published, for a job by itself when it was submitted, `began_s` when it had a slot;
    `units` is its cost (`calls.cost`).
    """

    workload: str
    tenant: str
    batch: str
    came_s: float
    seconds: float
    deadline_at_s: float | None = None
    units: float | None = None
    began_s: float | None = None


class RunLog:
    """What one ingress has run."""

    def __init__(self, objects: Objects, clock: Clock) -> None:
        self._objects = objects
        self._clock = clock
        self._name = secrets.token_hex(4)
        self._lines: list[bytes] = []
        self._writing: asyncio.Task[None] | None = None

    def ran(self, run: Ran) -> None:
        """Note a run; it is written a little later. Call inside the running loop."""
        self._lines.append(json.dumps(asdict(run)).encode())
        del self._lines[:-_KEPT]
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        while self._lines:
            await self._clock.sleep(LINGER_S)
            lines = self._lines
            self._lines = []
            key = keys.runs_key(self._clock.unix_s(), self._name)
            try:
                await self._objects.put(key, b"\n".join(lines))
            except StoreUnavailable:
                self._lines = (lines + self._lines)[-_KEPT:]


async def recorded(objects: Objects, since_s: float = 0.0) -> AsyncIterator[Ran]:
    """What was written from `since_s` (Unix time) on, in no order. Lines that are none are passed over.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    async for entry in objects.list(keys.RUNS, after=keys.runs_key(since_s, "")):
        for line in (await objects.get(entry.key) or b"").splitlines():
            with contextlib.suppress(ValueError, TypeError):
                yield Ran(**json.loads(line))
