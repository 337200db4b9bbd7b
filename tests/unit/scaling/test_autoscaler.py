"""Everything that doors and Serve tell, and the numbers of replicas that come of it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.calls.demand import Asked, Line
from cotenant.scaling.autoscaler import DOOR_GONE_S, WORKLOAD_GONE_S, Autoscaler, Scaled
from cotenant.scaling.terms import Bounds

pytestmark = pytest.mark.unit

SCALED = Scaled(Bounds(slots=2, min=0, max=10, target_wait_s=5), wake_s=2, share_s=40, node_s=180)


def autoscaler(scaled: Scaled = SCALED) -> Autoscaler:
    made = Autoscaler()
    made.scale("w", scaled, 0.0)
    return made


def waits(count: int, oldest_s: float = 0.0, **more: object) -> dict[str, Asked]:
    return {"w": Asked(lines=(Line(count, float(count), oldest_s),), arrived=count, **more)}  # type: ignore[arg-type]


def test_a_job_at_a_door_brings_a_replica_and_none_is_left_when_it_is_done() -> None:
    scaler = autoscaler()
    scaler.told("ingress", {"w": Asked()}, 0.0)
    assert scaler.decide("w", 0.0).target.replicas == 0
    scaler.told("ingress", waits(1), 1.0)
    assert scaler.decide("w", 1.0).target.replicas == 1
    scaler.serve_has("w", 0, 1, 1.0)
    scaler.serve_has("w", 1, 1, 41.0)
    scaler.told("ingress", {"w": Asked(sent=1, ages_s=(0.1,), arrived=1)}, 41.0)
    assert scaler.decide("w", 41.0).target.replicas == 1
    # Kept for as long as it is worth its start, which needs a node, twice.
    scaler.told("ingress", {"w": Asked(arrived=1)}, 50.0)
    assert scaler.decide("w", 50.0).target.replicas == 1
    scaler.told("ingress", {"w": Asked(arrived=1)}, 50.0 + 360)
    assert scaler.decide("w", 50.0 + 361).target.replicas == 0


def test_what_was_sent_beyond_the_slots_waits() -> None:
    scaler = autoscaler()
    scaler.serve_has("w", 2, 2, 0.0)
    scaler.told("gateway", {"w": Asked(sent=3, ages_s=(1.0, 2.0, 3.0))}, 0.0)
    scaler.told("ingress", {"w": Asked(sent=3, ages_s=(4.0, 5.0, 6.0), lines=(Line(2, 2.0, 7.0),))}, 0.0)
    demand = scaler.decide("w", 0.0).demand
    assert (demand.running, demand.waiting) == (4, 4)
    held, sent = demand.queues
    assert (held.waiting, held.within_s) == (2, 5 - 7)
    # The two that were sent last wait; the older of them for two seconds.
    assert (sent.waiting, sent.within_s) == (2, 5 - 2)


def test_time_in_a_slot_is_learned_by_cost() -> None:
    scaler = autoscaler()
    for number in range(20):
        units = 1.0 + number % 5
        scaler.told("ingress", {"w": Asked(ended=((units, 3 * units),))}, number)
    scaler.told("ingress", {"w": Asked(lines=(Line(2, 20.0), Line(1)))}, 20.0)
    demand = scaler.decide("w", 20.0).demand
    costly, unknown = demand.queues
    assert costly.work_s == pytest.approx(2 * 3 * 10, rel=0.01)
    assert unknown.work_s == pytest.approx(demand.service_s)


def test_a_deadline_is_waited_for_half_of_the_time_that_is_left() -> None:
    scaler = autoscaler()
    scaler.told("ingress", {"w": Asked(lines=(Line(1, 1.0, oldest_s=100.0, left_s=600.0),))}, 0.0)
    assert scaler.decide("w", 0.0).demand.queues[0].within_s == 300.0


def test_more_behind_what_is_seen_brings_more_replicas_every_second() -> None:
    scaler, seen = autoscaler(), []
    for second in range(6):
        scaler.told("ingress", waits(33, oldest_s=1.0 + second, more=True, full_pulls=second), float(second))
        decision = scaler.decide("w", float(second))
        seen.append(decision.demand.waiting)
    assert seen == [33, 66, 132, 264, 528, 1056]
    assert decision.target.replicas == 10
    scaler.told("ingress", waits(33, oldest_s=7.0), 6.0)
    assert scaler.decide("w", 6.0).demand.waiting == 33


def test_what_is_counted_is_not_guessed_at_and_without_another_pull_the_guess_stays_small() -> None:
    scaler = autoscaler()
    lines = (Line(33, 33.0, 5.0), Line(500, None, 5.0, exact=True))
    for second in range(10):
        aged = tuple(replace(line, oldest_s=5.0 + second) for line in lines)
        scaler.told("ingress", {"w": Asked(lines=aged, more=True, full_pulls=1)}, float(second))
        waiting = scaler.decide("w", float(second)).demand.waiting
    assert waiting == 4 * 33 + 500


def test_an_autoscaler_that_starts_anew_takes_nothing_away_before_it_has_heard_all_doors() -> None:
    scaler = autoscaler()
    scaler.serve_has("w", 4, 4, 0.0)
    scaler.told("gateway", {}, 0.1)
    assert scaler.decide("w", 0.1).target.replicas == 4
    scaler.told("ingress", waits(40), 1.0)
    assert scaler.decide("w", 1.0).target.replicas >= 4


def test_changed_terms_lose_nothing_that_was_learned() -> None:
    scaler = autoscaler()
    for second in range(120):
        scaler.serve_has("w", 3, 3, float(second))
        scaler.told("ingress", {"w": Asked(arrived=5 * second, ended=((1.0, 1.0),))}, float(second))
    before = scaler.decide("w", 119.0)
    assert before.target.replicas >= 3
    scaler.scale("w", replace(SCALED, bounds=replace(SCALED.bounds, target_wait_s=6.0)), 119.0)
    after = scaler.decide("w", 119.0)
    assert after.demand == before.demand
    assert abs(after.target.replicas - before.target.replicas) <= 1
    scaler.scale("w", replace(SCALED, bounds=replace(SCALED.bounds, max=2)), 119.0)
    assert scaler.decide("w", 119.0).target.replicas == 2


def test_replicas_that_serve_again_at_once_teach_no_start() -> None:
    scaler = autoscaler()
    scaler.serve_has("w", 4, 4, 0.0)
    scaler.serve_has("w", 0, 4, 10.0)
    scaler.serve_has("w", 4, 4, 10.2)
    scaler.room_for("w", 1)
    scaler.serve_has("w", 4, 5, 20.0)
    scaler.told("here", {"w": Asked()}, 20.0)
    assert scaler.decide("w", 20.0).supply.starting == (40.0,)


def test_a_door_that_says_nothing_any_more_is_forgotten_with_what_it_saw() -> None:
    scaler = autoscaler()
    scaler.told("gone", waits(4), 0.0)
    scaler.told("here", waits(1), DOOR_GONE_S + 1)
    assert scaler.decide("w", DOOR_GONE_S + 1).demand.waiting == 5
    scaler.tidy(DOOR_GONE_S + 1)
    assert scaler.decide("w", DOOR_GONE_S + 1).demand.waiting == 1


def test_where_no_door_says_anything_what_is_there_stays() -> None:
    scaler = autoscaler()
    scaler.serve_has("w", 3, 3, 0.0)
    assert scaler.decide("w", 0.0).target.replicas == 3
    scaler.told("here", {"w": Asked()}, 0.0)
    scaler.serve_has("w", 3, 3, 100.0)
    scaler.tidy(100.0)
    assert scaler.decide("w", 100.0).target.replicas == 3


def test_what_came_before_a_door_was_heard_is_no_rate() -> None:
    scaler = autoscaler()
    scaler.told("here", {"w": Asked(arrived=1_000_000)}, 0.0)
    assert scaler.decide("w", 0.0).demand.arriving_per_s == 0
    for second in range(1, 200):
        scaler.told("here", {"w": Asked(arrived=1_000_000 + 2 * second)}, float(second))
    assert scaler.decide("w", 199.0).demand.arriving_per_s == pytest.approx(2, rel=0.05)


def test_a_workload_that_serve_has_no_more_is_forgotten_and_a_changed_one_keeps_what_was_learned() -> None:
    scaler = autoscaler()
    scaler.told("here", {"w": Asked(ended=((1.0, 7.0),))}, 0.0)
    scaler.scale("w", Scaled(Bounds(2, 0, 3)), 10.0)
    scaler.told("here", {"w": Asked()}, 10.0)
    assert scaler.decide("w", 10.0).demand.service_s == 7.0
    scaler.serve_has("w", 0, 0, 50.0)
    scaler.tidy(50.0 + WORKLOAD_GONE_S)
    assert scaler.workloads == ["w"]
    scaler.tidy(51.0 + WORKLOAD_GONE_S)
    assert scaler.workloads == []


def test_starts_are_watched_and_learned() -> None:
    scaler = autoscaler()
    scaler.room_for("w", 1)
    scaler.serve_has("w", 0, 2, 0.0)
    scaler.told("here", waits(1), 10.0)
    # One takes the share that is free, the other needs a node.
    assert scaler.decide("w", 10.0).supply.starting == (30.0, 170.0)
    scaler.serve_has("w", 1, 2, 20.0)
    scaler.serve_has("w", 1, 1, 21.0)
    scaler.told("here", waits(1), 21.0)
    decision = scaler.decide("w", 21.0)
    assert (decision.supply.resident, decision.supply.starting) == (1, ())
    scaler.room_for("w", 1)
    scaler.serve_has("w", 1, 2, 21.0)
    (left_s,) = scaler.decide("w", 21.0).supply.starting
    assert 20 < left_s < 40


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_never_zero_while_anything_waits_whatever_is_told_in_whatever_order(seed: int) -> None:
    rng = random.Random(seed)
    scaler, now, waiting = autoscaler(), 0.0, {"a": False, "b": False}
    heard: dict[str, float] = {}
    for _ in range(60):
        now += rng.choice([0.05, 0.2, 1.0, 5.0, 40.0])
        what = rng.randrange(4)
        if what == 0:
            door = rng.choice("ab")
            count, sent = rng.choice([0, 0, 1, 40]), rng.choice([0, 0, 1, 9])
            lines = (Line(count, float(count), rng.uniform(0, 60), rng.choice([None, 5.0, 9e4])),) if count else ()
            ended = tuple((rng.uniform(0, 9), rng.uniform(0, 60)) for _ in range(rng.randrange(3)))
            scaler.told(
                door, {"w": Asked(sent, (1.0,) * sent, lines, rng.random() < 0.3, rng.randrange(9), 5, ended)}, now
            )
            waiting[door], heard[door] = bool(count or sent), now
        elif what == 1:
            running = rng.randrange(4)
            scaler.serve_has("w", running, running + rng.randrange(4), now)
        elif what == 2:
            scaler.room_for("w", rng.randrange(5))
        else:
            scaler.serve_has("w", 0, 0, now)
            scaler.tidy(now)
            waiting = {door: it and now - heard.get(door, 0) <= DOOR_GONE_S for door, it in waiting.items()}
        if any(waiting.values()):
            target = scaler.decide("w", now).target
            assert 1 <= target.replicas <= 10
