"""Who waits for GPU memory, in order of turn."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import chain
from operator import attrgetter

from cotenant.gpu.tenants import Held
from cotenant.gpu.terms import Priority

_place = attrgetter("place")


class Waiting:
    """Interactive waiters and those whose patience is over, by when they asked; then the batch ones, likewise."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._first: list[Held] = []
        self._then: list[Held] = []
        self._places = 0

    def __bool__(self) -> bool:
        return bool(self._first or self._then)

    def __iter__(self) -> Iterator[Held]:
        return chain(self._first, self._then)

    @property
    def due_at(self) -> float:
        """When the patience of the next batch waiter is over; infinite if none waits."""
        return self._then[0].asked_at + self._patience_s if self._then else math.inf

    def add(self, held: Held, priority: Priority, now: float) -> None:
        self._places += 1
        held.asked, held.asked_at, held.place = priority, now, self._places
        held.raised = priority is Priority.INTERACTIVE
        (self._first if held.raised else self._then).append(held)

    def remove(self, held: Held) -> None:
        """Take it out. Nothing happens if it does not wait."""
        if held.asked is not None:
            queue = self._first if held.raised else self._then
            del queue[bisect_left(queue, held.place, key=_place)]
            held.asked = None

    def raise_to(self, held: Held, priority: Priority) -> bool:
        """Give a waiter a higher priority, in the place that it has by when it asked. False if it isn't higher."""
        if held.asked is None or priority <= held.asked:
            return False
        held.asked = priority
        self._raise(held)
        return True

    def age(self, now: float) -> None:
        """Batch waiters whose patience is over count as interactive from here on."""
        while now >= self.due_at:
            self._raise(self._then[0])

    def _raise(self, held: Held) -> None:
        if not held.raised:
            del self._then[bisect_left(self._then, held.place, key=_place)]
            held.raised = True
            insort(self._first, held, key=_place)
