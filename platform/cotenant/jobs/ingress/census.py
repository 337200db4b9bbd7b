"""How much is held of each workload and of each lane, counted as it changes: asked many times for every job."""

from __future__ import annotations

from collections import Counter

from cotenant.jobs.ingress.work import Work


class Census:
    """Counts of works held. Each work is noted whenever it may count differently, and dropped at its end."""

    def __init__(self) -> None:
        self._noted: dict[int, tuple[str, str, bool]] = {}
        self._held: Counter[str] = Counter()
        self._undone: Counter[str] = Counter()
        self._held_of_lane: Counter[str] = Counter()
        self._undone_of_lane: Counter[str] = Counter()
        self._unknown_of_lane: Counter[str] = Counter()

    def note(self, work: Work) -> None:
        """The work is new, or its workload is known now, or it is done."""
        now = (work.lane, work.workload, work.undone)
        if self._noted.get(id(work)) != now:
            self.drop(work)
            self._noted[id(work)] = now
            self._add(now, 1)

    def drop(self, work: Work) -> None:
        """The work is not held any more."""
        before = self._noted.pop(id(work), None)
        if before is not None:
            self._add(before, -1)

    def held(self, workload: str) -> int:
        return self._held[workload]

    def undone(self, workload: str) -> int:
        """Held and still in need of a slot."""
        return self._undone[workload]

    def held_of_lane(self, lane: str) -> int:
        return self._held_of_lane[lane]

    def undone_of_lane(self, lane: str) -> int:
        return self._undone_of_lane[lane]

    def unknown_of_lane(self, lane: str) -> int:
        """Undone, and nobody knows yet whose they are."""
        return self._unknown_of_lane[lane]

    def _add(self, noted: tuple[str, str, bool], by: int) -> None:
        lane, workload, undone = noted
        self._held_of_lane[lane] += by
        self._undone_of_lane[lane] += by * undone
        if workload:
            self._held[workload] += by
            self._undone[workload] += by * undone
        else:
            self._unknown_of_lane[lane] += by * undone
