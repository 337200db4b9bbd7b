"""The cheapest settings that keep waits short: a search over simulations of one and the same day.

First a coarse grid of what matters most (spare nodes and patience; as many replicas kept as there were on average, or
a few more), then steps along one setting at a time from the best so far, until no step helps or the runs are used up;
last, what was changed to no avail is changed back. Every run plays the same calls, and the n-th start takes as long in
each (common random numbers), so a difference is the settings' doing. Same scene, same search: same answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from cotenant.scaling.policy import AIMS, Aims
from cotenant.sim.model import Scene
from cotenant.sim.run import Outcome, simulate
from cotenant.sim.scalers import Cotenant

#: What is tried of each setting; the present value is tried too.
LEVELS: dict[str, tuple[float, ...]] = {
    "spare": (0, 1, 2, 3, 4, 6, 8),
    "idle_s": (30.0, 60.0, 120.0, 300.0, 600.0, 1200.0),
    "patience": (0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
    "stretch": (0.0, 0.1, 0.25, 0.5, 1.0, 2.0),
    "late": (0.01, 0.02, 0.05, 0.1, 0.2),
}
#: Spare nodes and patience.
_GRID = tuple(product((0, 1, 2), (1.0, 2.0, 8.0)))
_NAMED = tuple(LEVELS)
#: So many calls may wait longer, or be begun after their deadline.
_LATE = 0.05
#: A saving below this part is none: the present setting stays.
_SLIGHT = 0.005


@dataclass(frozen=True)
class Settings:
    """What is searched."""

    spare: int
    """Nodes of every pool that are kept ready and empty, within its max."""
    idle_s: float
    patience: float
    stretch: float
    late: float
    mins: tuple[int, ...]
    """`replicas.min`, by workload."""

    @property
    def aims(self) -> Aims:
        return replace(AIMS, patience=self.patience, stretch=self.stretch, late=self.late)


@dataclass(frozen=True)
class Trial:
    """What came of some settings."""

    settings: Settings
    outcome: Outcome
    usd: float
    gpu_hours: float
    excess: float
    """By how much limits were missed, as parts of them, added up; 0 if none was."""

    @property
    def rank(self) -> tuple[float, float, float]:
        """The less the better."""
        return (round(self.excess, 6), round(self.usd, 6), round(self.gpu_hours, 6))


def present(scene: Scene) -> Settings:
    """The settings that a scene has, under the policy's own aims."""
    pool = scene.pools[scene.workloads[0].pool]
    mins = tuple(one.bounds.min for one in scene.workloads)
    return Settings(pool.spare_nodes, pool.idle_s, AIMS.patience, AIMS.stretch, AIMS.late, mins)


def under(scene: Scene, settings: Settings) -> Scene:
    """The scene with other settings; pools keep within their max, workloads too."""
    used = {one.pool for one in scene.workloads}
    pools = tuple(
        replace(pool, spare_nodes=min(settings.spare, pool.max_nodes), idle_s=settings.idle_s) if n in used else pool
        for n, pool in enumerate(scene.pools)
    )
    workloads = tuple(
        replace(one, bounds=replace(one.bounds, min=min(least, one.bounds.max)))
        for one, least in zip(scene.workloads, settings.mins, strict=True)
    )
    return replace(scene, pools=pools, workloads=workloads)


def attempt(scene: Callable[[], Scene], settings: Settings, p95_s: float | None = None) -> Trial:
    """Play the scene under some settings.

    Args:
        scene: the scene, its calls from their beginning.
        p95_s: the wait to keep under for all workloads; each one's own target if None.
    """
    played = under(scene(), settings)
    outcome = simulate(played, Cotenant(aims=settings.aims))
    excess = float(outcome.undone)
    for spec, waits, dated, overdue in zip(
        played.workloads, outcome.waits, outcome.dated, outcome.overdue, strict=True
    ):
        limit_s = p95_s if p95_s is not None else spec.bounds.target_wait_s
        excess += max(0.0, waits.quantile(1 - _LATE) / limit_s - 1)
        excess += max(0.0, overdue / max(1, dated.count) / _LATE - 1)
    usd = outcome.cost_usd(tuple(pool.usd_per_h for pool in played.pools))
    return Trial(settings, outcome, usd, sum(outcome.spent.node_s) / 3600, excess)


def search(
    play: Callable[[Settings], Trial], start: Settings, maxima: tuple[int, ...], *, most: int
) -> Iterator[tuple[Trial, Trial]]:
    """Each trial as it is made, and the best until then; the first is that of `start`, the last best is the answer.

    Args:
        maxima: `replicas.max`, by workload.
        most: simulations at the most.
    """
    made: dict[Settings, Trial] = {}
    best: Trial | None = None

    enough = max(1, most - len(fields(Settings)) - len(maxima))

    def tried(settings: Settings) -> Iterator[tuple[Trial, Trial]]:
        nonlocal best
        if settings in made or len(made) >= enough:
            return
        made[settings] = trial = play(settings)
        if best is None or trial.rank < best.rank:
            best = trial
        yield trial, best

    yield from tried(start)
    for spare, patience in _GRID:
        yield from tried(replace(start, spare=spare, patience=patience))
    for more in (0, 1, 2):
        mins = (_usual(made[start].outcome, number) + more for number in range(len(maxima)))
        yield from tried(replace(start, mins=tuple(map(min, mins, maxima))))
    while best is not None and len(made) < enough:
        before = best
        for what, value in _steps(best.settings, start, maxima):
            # From the best so far, not from where the round began: a step that helped is kept.
            yield from tried(_with(best.settings, what, value))
        if best is before:
            break
    assert best is not None
    for what, value in _undone(best.settings, start):
        back = _with(best.settings, what, value)
        if back not in made:
            if len(made) >= most:
                return
            made[back] = play(back)
        trial = made[back]
        if trial.excess <= best.excess and trial.usd <= (1 + _SLIGHT) * best.usd:
            best = trial
        yield trial, best


def _usual(outcome: Outcome, number: int) -> int:
    """Replicas of a workload that were there on average, rounded up."""
    return math.ceil(outcome.spent.replica_s[number] / max(1.0, outcome.ended_s))


def _with(settings: Settings, what: str | int, value: Any) -> Settings:
    """The settings with one of them changed: by its name, or the minimum of a workload."""
    if isinstance(what, str):
        return replace(settings, **{what: value})
    return replace(settings, mins=(*settings.mins[:what], value, *settings.mins[what + 1 :]))


def _undone(settings: Settings, start: Settings) -> Iterator[tuple[str | int, Any]]:
    """One setting at a time as it was."""
    for name in _NAMED:
        if getattr(settings, name) != getattr(start, name):
            yield name, getattr(start, name)
    for number, (new, old) in enumerate(zip(settings.mins, start.mins, strict=True)):
        if new != old:
            yield number, old


def _steps(settings: Settings, start: Settings, maxima: tuple[int, ...]) -> Iterator[tuple[str | int, Any]]:
    """One setting at a time: a replica more or fewer at the least, twice or half as many; of the others a level."""
    for number, most in enumerate(maxima):
        now = settings.mins[number]
        for least in sorted({now // 2, max(0, now - 1), min(most, now + 1), min(most, 2 * now)} - {now}):
            yield number, least
    for name in _NAMED:
        levels = sorted({*LEVELS[name], getattr(start, name)})
        at = levels.index(getattr(settings, name))
        for near in (at - 1, at + 1):
            if 0 <= near < len(levels):
                yield name, type(getattr(start, name))(levels[near])
