"""The cheapest settings that keep waits short: a search over simulations of one and the same day.

First a coarse grid of what matters most (spare nodes, patience), then steps along one setting at a time from the best
so far, until no step helps or the runs are used up; last, what was changed to no avail is changed back. Every run
plays the same calls, and the n-th start takes as long in each (common random numbers), so a difference is the
settings' doing. Same scene, same search: same answer.
"""

from __future__ import annotations

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
    while best is not None and len(made) < enough:
        before = best
        for one in _steps(best.settings, start, maxima):
            # From the best so far, not from where the round began: a step that helped is kept.
            yield from tried(replace(best.settings, **one))
        if best is before:
            break
    assert best is not None
    for one in _undone(best.settings, start):
        back = replace(best.settings, **one)
        if back not in made:
            if len(made) >= most:
                return
            made[back] = play(back)
        trial = made[back]
        if trial.excess <= best.excess and trial.usd <= (1 + _SLIGHT) * best.usd:
            best = trial
        yield trial, best


def _undone(settings: Settings, start: Settings) -> Iterator[dict[str, Any]]:
    """One setting at a time as it was."""
    for name in (field.name for field in fields(Settings) if field.name != "mins"):
        if getattr(settings, name) != getattr(start, name):
            yield {name: getattr(start, name)}
    for number, (new, old) in enumerate(zip(settings.mins, start.mins, strict=True)):
        if new != old:
            yield {"mins": (*settings.mins[:number], old, *settings.mins[number + 1 :])}


def _steps(settings: Settings, start: Settings, maxima: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """One setting at a time, a level up or down."""
    for name in (field.name for field in fields(Settings) if field.name != "mins"):
        levels = sorted({*LEVELS[name], getattr(start, name)})
        at = levels.index(getattr(settings, name))
        for near in (at - 1, at + 1):
            if 0 <= near < len(levels):
                yield {name: type(getattr(start, name))(levels[near])}
    for number, most in enumerate(maxima):
        for least in (settings.mins[number] - 1, settings.mins[number] + 1):
            if 0 <= least <= most:
                yield {"mins": (*settings.mins[:number], least, *settings.mins[number + 1 :])}
