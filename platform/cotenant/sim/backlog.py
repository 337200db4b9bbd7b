"""The calls of a workload that wait: in which order they are begun, and what the policy is told of them.

Calls that may not wait longer than the workload's target go first, in the order in which they came. Those with a
deadline of their own, further away than that, follow: the nearest deadline first.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import NamedTuple

from cotenant.scaling.learning import ServiceTimes
from cotenant.scaling.terms import OF_THE_TIME_LEFT, Queue

#: Deadlines this near to each other are told to the policy as one.
_GRAIN_S = 30.0


class Call(NamedTuple):
    """One call on its way. Times are on the simulation's clock."""

    due_s: float
    """To be begun by then; infinite for what the workload's target holds for."""
    came_s: float
    service_s: float
    units: float

    @property
    def dated(self) -> bool:
        """Whether it has a deadline of its own."""
        return self.due_s != float("inf")


class Backlog:
    """What waits."""

    def __init__(self, target_wait_s: float) -> None:
        self._target_wait_s = target_wait_s
        self._prompt: deque[Call] = deque()
        self._prompt_units = 0.0
        self._dated: list[Call] = []
        self._grains: dict[int, list[float]] = {}
        """Of the dated: how many, and of how many units together, by their deadlines."""

    def __len__(self) -> int:
        return len(self._prompt) + len(self._dated)

    def add(self, call: Call) -> None:
        if call.dated:
            heapq.heappush(self._dated, call)
            self._grain(call, 1)
        else:
            self._prompt.append(call)
            self._prompt_units += call.units

    def again(self, calls: list[Call]) -> None:
        """What was begun and has to be begun again: before what came later."""
        for call in sorted(calls, key=lambda one: -one.came_s):
            if call.dated:
                self.add(call)
            else:
                self._prompt.appendleft(call)
                self._prompt_units += call.units

    def take(self) -> Call:
        """Whose turn it is. Raises IndexError if nothing waits."""
        if self._prompt:
            call = self._prompt.popleft()
            self._prompt_units = self._prompt_units - call.units if self._prompt else 0.0
            return call
        call = heapq.heappop(self._dated)
        self._grain(call, -1)
        return call

    def queues(self, now: float, times: ServiceTimes) -> tuple[Queue, ...]:
        """The most urgent first: what is prompt, then the dated in groups whose time left doubles."""
        found = []
        if self._prompt:
            within_s = self._target_wait_s - (now - self._prompt[0].came_s)
            found.append(_queue(len(self._prompt), self._prompt_units, within_s, times))
        group: list[float] = []
        until_s = 0.0
        for grain in sorted(self._grains):
            count, units = self._grains[grain]
            within_s = grain * _GRAIN_S - now
            if group and within_s > until_s:
                found.append(_queue(int(group[0]), group[1], OF_THE_TIME_LEFT * group[2], times))
                group = []
            if not group:
                group, until_s = [0.0, 0.0, within_s], 2 * max(within_s, self._target_wait_s)
            group[0] += count
            group[1] += units
        if group:
            found.append(_queue(int(group[0]), group[1], OF_THE_TIME_LEFT * group[2], times))
        return tuple(found)

    def _grain(self, call: Call, count: int) -> None:
        key = int(call.due_s // _GRAIN_S)
        grain = self._grains.setdefault(key, [0.0, 0.0])
        grain[0] += count
        grain[1] += count * call.units
        if not grain[0]:
            del self._grains[key]


def _queue(count: int, units: float, within_s: float, times: ServiceTimes) -> Queue:
    """Its work by what was learned; a second a call until anything was."""
    return Queue(count, count * (times.of(units / count) if times.known else 1.0), within_s)
