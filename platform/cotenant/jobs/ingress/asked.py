"""What the ingress tells of the demand for its workloads: what runs, what waits and how long, and if more is behind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from cotenant.calls import Directory
from cotenant.calls.demand import Asked, Line
from cotenant.jobs.ingress.slots import Slots
from cotenant.jobs.ingress.work import Phase, Work

#: Jobs that have a deadline are told of in so many lines at the most.
_DEADLINES = 4
_AGES_AT_MOST = 64


def asked(
    works: Iterable[Work],
    behind: Iterable[tuple[str, Line]],
    slots: Slots,
    directory: Directory,
    *,
    full_pulls: Callable[[str], int | None],
    unix_s: float,
) -> dict[str, Asked]:
    """Demand by workload, for all of the directory. What has ended is told once.

    Args:
        works: everything that is held.
        behind: jobs of batches that are not published yet, by workload.
        full_pulls: of a workload's jobs, as `Asked` has it; None where no more of them wait in Pub/Sub.
        unix_s: the time of day.
    """
    waiting: dict[str, list[Work]] = defaultdict(list)
    ages: dict[str, list[float]] = defaultdict(list)
    unpublished: dict[str, list[Line]] = defaultdict(list)
    for name, line in behind:
        unpublished[name].append(line)
    for work in works:
        if not work.undone or not work.workload:
            continue
        if work.phase is Phase.WAITING:
            waiting[work.workload].append(work)
        elif work.phase is Phase.RUNNING:
            ages[work.workload].append(max(0.0, unix_s - work.delivery.published_at_s))
    told = {}
    for name in (served.name for served in directory.workloads):
        pulls = full_pulls(name) if waiting[name] else None
        told[name] = Asked(
            sent=len(ages[name]),
            ages_s=tuple(sorted(ages[name])[:_AGES_AT_MOST]),
            lines=(*_lines(waiting[name], unix_s), *unpublished[name]),
            more=pulls is not None,
            full_pulls=pulls or 0,
            arrived=slots.arrived(name),
            ended=slots.take_ended(name),
        )
    return told


def _lines(works: list[Work], unix_s: float) -> Iterable[Line]:
    """One line of those without a deadline, and a few of the others, the most urgent first."""
    timed = sorted((work for work in works if _deadline(work) is not None), key=lambda work: _deadline(work) or 0.0)
    free = [work for work in works if _deadline(work) is None]
    if free:
        yield _line(free, unix_s, None)
    each = -(-len(timed) // _DEADLINES) if timed else 1
    for first in range(0, len(timed), each):
        group = timed[first : first + each]
        yield _line(group, unix_s, (_deadline(group[0]) or 0.0) - unix_s)


def _line(works: list[Work], unix_s: float, left_s: float | None) -> Line:
    oldest_s = max(0.0, unix_s - min(work.delivery.published_at_s for work in works))
    return Line(len(works), sum(work.units for work in works), oldest_s, left_s)


def _deadline(work: Work) -> float | None:
    return work.job.wishes.deadline_at_s if work.job is not None else None
