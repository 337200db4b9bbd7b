"""How many messages are worth pulling from each lane now: what the free slots and a few jobs ahead of them can take."""

from __future__ import annotations

from collections.abc import Callable

from cotenant.config import Jobs
from cotenant.jobs.ingress.census import Census
from cotenant.jobs.ingress.holding import Holding
from cotenant.jobs.ingress.slots import PEEK, SETTLING_AT_MOST, ahead, room
from cotenant.jobs.ingress.work import Steps, Work
from cotenant.jobs.queue.lanes import CLERK, MAIN, lane_of, workload_of

#: Errands held at once, and messages of a lane whose workload is gone.
ERRANDS_AT_ONCE = 64
STRAYS_AT_ONCE = 16
#: Messages of the main lane that are moved at once to the lane of a workload that has a backlog there.
MOVED_AT_ONCE = 8


class Rooms:
    """The room of each workload and lane, as the slots, the status and what is held stand."""

    def __init__(self, jobs: Jobs, steps: Steps, census: Census, holding_of: Callable[[str], Holding]) -> None:
        self._jobs = jobs
        self._steps = steps
        self._census = census
        self._holding_of = holding_of

    def wanted(self, lane: str) -> int:
        """Messages to pull from a lane now; none is worth it below one."""
        census = self._census
        served = {served.name for served in self._steps.directory.workloads}
        workload = workload_of(lane)
        if lane == CLERK:
            return ERRANDS_AT_ONCE - census.held_of_lane(lane)
        if workload is not None and workload not in served:
            return STRAYS_AT_ONCE - census.held_of_lane(lane)
        # Of what was just pulled it is not known yet whose it is.
        unknown = census.unknown_of_lane(lane)
        if workload is not None:
            return self._worth_a_pull(workload, self.of(workload) - unknown)
        # What can't be moved because its lane's topic does not answer stays here; it is bounded too.
        most = sum(self._steps.slots.limit(name) + self._ahead(name) for name in served)
        bound = 2 * most - max(census.undone_of_lane(lane), census.held_of_lane(lane) - SETTLING_AT_MOST)
        return min(sum(self._main_share(name) for name in served) - unknown, bound)

    def of(self, workload: str, besides: Work | None = None) -> int:
        """Room of a workload; with `besides` as if that work of its were not held."""
        mine = besides is not None and besides.workload == workload
        return room(
            slots=self._steps.slots.limit(workload),
            look_ahead=self._ahead(workload),
            undone=self._census.undone(workload) - (mine and besides is not None and besides.undone),
            held=self._census.held(workload) - mine,
        )

    def for_main(self, workload: str, besides: Work | None = None) -> int:
        """Room of a workload that jobs of the main lane may take: none while it has a backlog in its own lane."""
        return 0 if self._holding_of(lane_of(workload)).busy else self.of(workload, besides)

    def full_pulls(self, workload: str) -> int | None:
        """Pulls that came back full, where more jobs of the workload may wait; None where all of them are seen."""
        own, main = self._holding_of(lane_of(workload)), self._holding_of(MAIN)
        if own.full or (main.full and self.of(workload) <= 0):
            return own.full_pulls + main.full_pulls
        return None

    def _main_share(self, workload: str) -> int:
        """Of a pull from the main lane, what is for one workload: its room, or a few to be moved to its busy lane."""
        if self._holding_of(lane_of(workload)).busy:
            return MOVED_AT_ONCE
        return self._worth_a_pull(workload, self.of(workload))

    def _worth_a_pull(self, workload: str, room: int) -> int:
        """The room, unless enough is at hand and a little later one pull does for several."""
        slots = self._steps.slots
        enough = slots.waiting(workload) >= slots.limit(workload)
        return 0 if enough and room < self._ahead(workload) // 2 else room

    def _ahead(self, workload: str) -> int:
        """Jobs to hold beyond the slots."""
        slots = self._steps.slots
        status = self._steps.status.get(workload)
        at_zero = status is not None and status.ready and not status.replicas
        least = max(PEEK, self._jobs.look_ahead) if at_zero else self._jobs.look_ahead
        return ahead(slots=slots.limit(workload), look_ahead=least, mean_s=slots.mean_s(workload))
