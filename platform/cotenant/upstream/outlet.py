"""One workload's way out: what is under way here and there, whether the other server can be used, what it serves."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

import orjson

from cotenant.calls import Backend, Call, Served
from cotenant.config.model import Kind
from cotenant.upstream.catalogue import Catalogue
from cotenant.upstream.decide import Bounds, Reason, Seen, why_elsewhere

#: A server that failed is left alone for so long, and for twice as long each time it fails again.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 60.0
#: Of what is known of the speed of calls, what each further one leaves.
_KEPT = 0.9
#: Nobody has asked for so long: whoever started a replica for the last request has given that up.
_FORGOTTEN_S = 120.0


class Upstream(Backend, Protocol):
    """A backend elsewhere."""

    host: str

    async def ask(self, path: str, *, within_s: float) -> Any: ...

    async def close(self) -> None: ...


@dataclass(frozen=True)
class Terms:
    """A workload that spills, as `manifests.spill` spells it."""

    workload: str
    kind: Kind
    url: str
    after_wait_s: float
    max_concurrency: int
    start_s: float
    key_env: str | None = None
    google: bool = False
    model: str | None = None
    jobs: bool = False
    gateways: int = 1
    ingresses: int = 1
    spilled_from: str = "cotenant"

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Terms:
        """What a newer platform says more is passed over."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in plain.items() if name in known})


class Outlet:
    """Of one workload at one door. Belongs to one event loop."""

    def __init__(
        self,
        terms: Terms,
        upstream: Upstream,
        *,
        failed: Callable[[Terms, str, Exception], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`failed` is told of every time that the other server could not be used, with what was tried."""
        self.terms = terms
        self.upstream = upstream
        self.elsewhere = 0
        self._holders: list[asyncio.Future[None]] = []
        self._clock = clock
        self._failed = failed
        self._here: dict[int, tuple[float, float, bool]] = {}
        self._numbers = itertools.count()
        self._seconds = self._units = 0.0
        self._spilling = False
        self._failures = 0
        self._closed_until = float("-inf")
        self._none_since: float | None = None
        self._asked_at = float("-inf")
        self.catalogue = Catalogue(
            terms.kind,
            lambda path, within_s: upstream.ask(path, within_s=within_s),
            failed=lambda error: self.broke(error, "catalogue"),
            clock=clock,
        )

    @property
    def open(self) -> bool:
        """Whether the other server is to be tried."""
        return self._clock() >= self._closed_until

    @property
    def busy(self) -> bool:
        return self.elsewhere > 0

    @property
    def full(self) -> bool:
        """Whether as many calls are elsewhere as may be."""
        return self.elsewhere >= self.terms.max_concurrency

    @property
    def held(self) -> int:
        """Calls that wait for room elsewhere, since nothing serves here."""
        return len(self._holders)

    def left(self) -> None:
        """A call is not elsewhere any more; the one that has waited longest for its place looks again."""
        self.elsewhere -= 1
        for holder in self._holders:
            if not holder.done():
                holder.set_result(None)
                return

    async def room(self, within_s: float) -> None:
        """Return when there may be room elsewhere, or some time has passed."""
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._holders.append(mine)
        try:
            await asyncio.wait({mine}, timeout=within_s)
        finally:
            self._holders.remove(mine)

    def takes(self, call: Call) -> bool:
        """Whether such a call may be sent on at all."""
        return not call.spilled and (self.terms.jobs or not call.batch)

    def bounds(self, served: Served, *, doors: int) -> Bounds:
        terms = self.terms
        return Bounds(terms.after_wait_s, served.slots, served.queue, terms.start_s, max(1, doors))

    def why(self, bounds: Bounds, replicas: int) -> Reason | None:
        """Why the next call is to go elsewhere, as `decide` has it."""
        now = self._clock()
        if replicas > 0:
            self._none_since = None
        elif self._none_since is None or now - self._asked_at > _FORGOTTEN_S:
            self._none_since = now
        self._asked_at = now
        seen = Seen(
            replicas=replicas,
            calls=len(self._here),
            units=sum(units for _, units, _ in self._here.values()),
            s_per_unit=self._seconds / self._units if self._units else None,
            oldest_s=now - next(iter(self._here.values()))[0] if self._here else 0.0,
            starting_s=now - self._none_since if self._none_since is not None else 0.0,
        )
        reason = why_elsewhere(bounds, seen, spilling=self._spilling)
        self._spilling = reason is not None
        return reason

    def began_here(self, units: float, *, room: bool) -> int:
        """A call was sent to the replicas; its number. `room`: whether it has a slot at once, so its time tells."""
        number = next(self._numbers)
        self._here[number] = self._clock(), units, room
        return number

    def ended_here(self, number: int, *, good: bool) -> None:
        """That call has ended; said again, nothing happens."""
        began = self._here.pop(number, None)
        if began is None:
            return
        at, units, room = began
        if good and room and units > 0:
            self._seconds = self._seconds * _KEPT + self._clock() - at
            self._units = self._units * _KEPT + units

    def has_room(self, slots: float) -> bool:
        return len(self._here) < slots

    async def serves(self, call: Call) -> bool:
        """Whether the other server has what this call names."""
        return await self.catalogue.has(self.name_in(call))

    def name_in(self, call: Call) -> str | None:
        """The template or model that the other server is to have for this call; None if it may be any."""
        if self.terms.kind != "mockup" and self.terms.model is not None:
            return self.terms.model
        try:
            body = orjson.loads(call.body)
        except orjson.JSONDecodeError:
            return None
        name = body.get("template" if self.terms.kind == "mockup" else "model") if isinstance(body, dict) else None
        return name if isinstance(name, str) else None

    def worked(self) -> None:
        """The other server has answered."""
        self._failures = 0

    def broke(self, error: Exception, what: str, *, pause_s: float | None = None) -> None:
        """The other server could not be used: it is left alone for a while, `pause_s` where it said how long."""
        if pause_s is None:
            pause_s = min(_FIRST_PAUSE_S * 2 ** min(self._failures, 10), _LONGEST_PAUSE_S)
            self._failures += 1
        self._closed_until = max(self._closed_until, self._clock() + pause_s)
        self._failed(self.terms, what, error)

    async def close(self) -> None:
        self.catalogue.close()
        await self.upstream.close()
