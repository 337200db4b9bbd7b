"""The search for settings: bounded, the same each time, never worse than what is there."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.scaling.terms import Bounds
from cotenant.sim.model import Request, Scene, SimPool, SimWorkload
from cotenant.sim.run import simulate
from cotenant.sim.scalers import Cotenant
from cotenant.sim.tuning import Settings, Trial, attempt, present, search, under

pytestmark = pytest.mark.unit

START = Settings(0, 60.0, 2.0, 0.25, 0.05, (0,))
POOL = SimPool(max_nodes=8)
WORKLOAD = SimWorkload("mockups", Bounds(2, 0, 4, 5.0), 0.5)


def scene(seed: int = 1) -> Scene:
    calls = sorted(Request(at + i * 0.2, 0, 1.0) for at in (300, 1500, 2700) for i in range(60))
    return Scene((POOL,), (WORKLOAD,), calls, 3000.0, seed=seed)


OUTCOME = simulate(Scene((POOL,), (WORKLOAD,), [], 1.0), Cotenant())


def made_up(settings: Settings, ideal: Settings) -> Trial:
    """Costs grow with the distance from the ideal; too few spare nodes miss the limit."""
    usd = 1.0 + abs(settings.spare - ideal.spare) + abs(settings.patience - ideal.patience)
    usd += abs(settings.mins[0] - ideal.mins[0])
    return Trial(settings, OUTCOME, usd, usd, max(0, ideal.spare - settings.spare))


@given(st.integers(0, 3), st.sampled_from([0.5, 1.0, 2.0, 4.0, 8.0]), st.integers(0, 4), st.integers(1, 200))
def test_a_simple_valley_is_walked_to_its_bottom_within_the_runs(
    spare: int, patience: float, least: int, most: int
) -> None:
    ideal = replace(START, spare=spare, patience=patience, mins=(least,))
    tried: list[Settings] = []

    def play(settings: Settings) -> Trial:
        tried.append(settings)
        return made_up(settings, ideal)

    trials = list(search(play, START, (4,), most=most))
    assert len(tried) == len(set(tried)) <= most
    assert trials[0][0].settings == START
    bests = [best.rank for _, best in trials]
    assert bests == sorted(bests, reverse=True)
    if most >= 150:
        assert trials[-1][1].settings == ideal


def test_what_makes_no_difference_stays_as_it_is() -> None:
    trials = list(search(lambda one: Trial(one, OUTCOME, 1.0, 1.0, 0.0), START, (4,), most=200))
    assert trials[-1][1].settings == START


def test_a_change_that_helped_only_on_the_way_is_taken_back() -> None:
    def play(settings: Settings) -> Trial:
        late = 0.0 if settings.spare else 1.0 - 0.1 * (settings.idle_s > 60)
        return Trial(settings, OUTCOME, 1.0 + settings.spare, 1.0, late)

    *_, (_, best) = search(play, replace(START, mins=()), (), most=200)
    assert best.settings == replace(START, spare=1, mins=())


def test_tuning_never_answers_worse_than_it_began_and_the_same_each_time() -> None:
    first, again = (list(search(lambda one: attempt(scene, one), START, (4,), most=20)) for _ in range(2))
    assert [(trial.settings, trial.rank) for trial, _ in first] == [(trial.settings, trial.rank) for trial, _ in again]
    assert first[-1][1].rank <= first[0][0].rank
    assert first[-1][1].excess < first[0][0].excess


def test_settings_are_kept_within_what_the_file_allows() -> None:
    played = under(scene(), replace(START, spare=50, mins=(9,)))
    assert (played.pools[0].spare_nodes, played.workloads[0].bounds.min) == (8, 4)
    assert present(scene()) == START


def test_a_wider_limit_is_missed_by_less() -> None:
    assert attempt(scene, START, 1000.0).excess == 0 < attempt(scene, START, 1.0).excess
