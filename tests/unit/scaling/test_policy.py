"""Replicas from demand: what waits, what comes, how long starts take, what is kept and for how long."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.scaling.policy import AIMS, decide
from cotenant.scaling.terms import Bounds, Demand, Memory, Queue, Situation, Starts, Supply, Target

pytestmark = pytest.mark.unit

BOUNDS = Bounds(slots=2, min=0, max=10, target_wait_s=5)
STARTS = Starts(wake_s=2, share_s=40, node_s=180, free_shares=2)
NONE, NEW = Supply(), Memory()


def target(
    demand: Demand,
    supply: Supply = NONE,
    *,
    bounds: Bounds = BOUNDS,
    starts: Starts = STARTS,
    memory: Memory = NEW,
    now: float | None = None,
) -> Target:
    return decide(bounds, Situation(demand, supply, starts), memory, demand.at_s if now is None else now)[0]


def busy(running: int) -> Situation:
    return Situation(Demand(0.0, running=running, service_s=1.0), Supply(resident=-(-running // 2)), STARTS)


def waiting(count: int, work_s: float, within_s: float = 5.0) -> Demand:
    return Demand(0.0, queues=(Queue(count, work_s, within_s),), service_s=work_s / count)


# --- what waits ---------------------------------------------------------------------------------------------


def test_nothing_asked_for_is_nothing_there() -> None:
    assert target(Demand(0.0)) == Target(0)


def test_one_that_waits_brings_one() -> None:
    assert target(waiting(1, 0.3)).resident == 1


def test_as_many_as_have_it_behind_them_in_time() -> None:
    there = Supply(resident=1)
    assert target(waiting(10, 10.0), there).resident == 1
    # One alone would be done before another could help for a quarter of its start.
    assert target(waiting(60, 99.0), there).resident == 1
    assert target(waiting(60, 101.0), there).resident == 2
    # Two free shares take 40 s; the next one needs a node.
    assert target(waiting(60, 300.0), there).resident == 3


def test_sleepers_are_woken_before_anything_is_started() -> None:
    demand = waiting(40, 40.0)
    awake, asleep = target(demand, Supply(resident=1)), target(demand, Supply(resident=1, asleep=9))
    assert awake.needed == 1
    assert asleep.needed > 1


def test_what_already_starts_is_counted() -> None:
    demand = waiting(60, 300.0)
    first = target(demand, Supply(resident=1)).resident
    later = Supply(resident=1, starting=(20.0,) * (first - 1))
    assert target(demand, later, starts=replace(STARTS, free_shares=0)).resident == first == 3


def test_a_far_deadline_is_not_hurried_for() -> None:
    there = Supply(resident=1)
    assert target(waiting(500, 1000.0, within_s=5), there).resident == 3
    assert target(waiting(500, 1000.0, within_s=3600), there).resident == 1


def test_urgent_work_behind_much_that_has_time_is_seen() -> None:
    patient, urgent = Queue(1000, 2000.0, 20_000), Queue(8, 64.0, 10)
    there = Supply(resident=1, asleep=3)
    both = target(Demand(0.0, queues=(patient, urgent), service_s=2), there)
    assert both.needed == target(Demand(0.0, queues=(urgent,), service_s=2), there).needed == 4


# --- what comes ---------------------------------------------------------------------------------------------


def test_a_steady_stream_gets_what_keeps_waits_short() -> None:
    demand = Demand(0.0, running=8, arriving_per_s=4.0, service_s=2.0)
    assert target(demand, bounds=replace(BOUNDS, target_wait_s=0.1)).needed > target(demand).needed >= 5


def test_a_call_an_hour_holds_no_replica() -> None:
    assert target(Demand(0.0, arriving_per_s=1 / 3600, service_s=30), starts=replace(STARTS, free_shares=0)).needed == 0


# --- what is kept -------------------------------------------------------------------------------------------


def test_an_idle_replica_is_kept_for_a_multiple_of_what_it_takes_to_have_it_back() -> None:
    _, memory = decide(BOUNDS, busy(5), NEW, 0.0)
    keep_s = AIMS.patience * STARTS.share_s
    idle = Demand(keep_s)
    assert target(idle, memory=memory, now=keep_s).resident == 3
    assert target(replace(idle, at_s=keep_s + 1), memory=memory).resident == 0


def test_one_whose_node_would_be_gone_is_kept_longer() -> None:
    _, memory = decide(BOUNDS, busy(1), NEW, 0.0)
    later = Demand(200.0)
    assert target(later, memory=memory).resident == 0
    assert target(later, memory=memory, starts=replace(STARTS, free_shares=0)).resident == 1


def test_one_that_may_sleep_does_so_soon_and_goes_late() -> None:
    bounds = replace(BOUNDS, can_sleep=True)
    _, memory = decide(bounds, busy(3), NEW, 0.0)
    assert target(Demand(3.0), bounds=bounds, memory=memory) == Target(2, 0, needed=0)
    assert target(Demand(10.0), bounds=bounds, memory=memory) == Target(0, 2, needed=0)
    assert target(Demand(81.0), bounds=bounds, memory=memory) == Target(0)


def test_the_reason_says_what_asked_and_what_bounds() -> None:
    assert "60 calls wait" in target(waiting(60, 300.0)).why
    few = replace(BOUNDS, min=1, max=2)
    assert target(Demand(0.0, running=9), bounds=few).why == "5 needed (9 calls run), max is 2"
    assert target(Demand(0.0), bounds=few).why == "0 needed (0 calls run), min is 1"


# --- what always holds --------------------------------------------------------------------------------------

counts = st.integers(0, 200)
queues = st.lists(
    st.builds(
        lambda count, each_s, within_s: Queue(count, count * each_s, within_s),
        st.integers(1, 500),
        st.floats(0.01, 60),
        st.floats(-100, 4000),
    ),
    max_size=4,
).map(tuple)
demands = st.builds(
    Demand,
    at_s=st.just(1000.0),
    running=counts,
    queues=queues,
    arriving_per_s=st.floats(0, 50),
    service_s=st.floats(0, 30),
)
supplies = st.builds(
    Supply,
    resident=st.integers(0, 12),
    asleep=st.integers(0, 6),
    starting=st.lists(st.floats(0, 300), max_size=6).map(tuple),
)
starts = st.builds(
    Starts,
    wake_s=st.floats(0.1, 10),
    share_s=st.floats(10, 90),
    node_s=st.floats(90, 500),
    free_shares=st.integers(0, 8),
)
situations = st.builds(Situation, demands, supplies, starts)
bounds = st.builds(
    lambda slots, least, more, wait, sleeps: Bounds(slots, least, max(1, least + more), wait, sleeps),
    st.integers(1, 32),
    st.integers(0, 5),
    st.integers(0, 20),
    st.floats(0.05, 60),
    st.booleans(),
)
memories = st.lists(st.floats(0, 1000), max_size=20).map(lambda times: Memory(tuple(sorted(times, reverse=True))))


@given(bounds, situations, memories, st.floats(1000, 1100))
@settings(max_examples=400)
def test_bounds_hold_and_nothing_waits_before_an_empty_house(
    bounds: Bounds, situation: Situation, memory: Memory, now: float
) -> None:
    wanted, after = decide(bounds, situation, memory, now)
    assert bounds.min <= wanted.replicas <= bounds.max
    assert wanted.resident >= 0 and wanted.asleep >= 0
    assert bounds.can_sleep or wanted.asleep == 0
    if situation.demand.busy:
        assert wanted.resident >= 1
    assert list(after.needed_at_s) == sorted(after.needed_at_s, reverse=True)
    assert len(after.needed_at_s) <= max(bounds.max, len(memory.needed_at_s))


@given(bounds, situations, st.data())
@settings(max_examples=300)
def test_more_waiting_or_more_urgent_never_gives_fewer(
    bounds: Bounds, situation: Situation, data: st.DataObject
) -> None:
    def needed(one: Demand) -> int:
        return decide(bounds, replace(situation, demand=one), NEW, 1000.0)[0].needed

    demand = situation.demand

    further = Queue(5, data.draw(st.floats(0.1, 500)), data.draw(st.floats(-10, 4000)))
    assert needed(replace(demand, queues=(*demand.queues, further))) >= needed(demand)
    sooner = tuple(replace(queue, within_s=queue.within_s - 10) for queue in demand.queues)
    assert needed(replace(demand, queues=sooner)) >= needed(demand)
    faster = replace(demand, arriving_per_s=demand.arriving_per_s * 2)
    assert needed(faster) >= needed(demand)


@given(bounds, demands, starts)
def test_steady_demand_gives_a_steady_target(bounds: Bounds, demand: Demand, starts: Starts) -> None:
    supply, memory, now = Supply(resident=bounds.min), Memory(), 1000.0
    steady = replace(demand, queues=())
    targets = []
    for _ in range(50):
        wanted, memory = decide(bounds, Situation(replace(steady, at_s=now), supply, starts), memory, now)
        supply = Supply(resident=wanted.resident, asleep=wanted.asleep)
        targets.append(wanted)
        now += 1.0
    assert len(set(targets)) == 1


@given(bounds, situations, memories)
def test_demand_that_is_too_old_changes_nothing(bounds: Bounds, situation: Situation, memory: Memory) -> None:
    wanted, after = decide(bounds, situation, memory, situation.demand.at_s + AIMS.stale_s + 1)
    assert after == memory
    assert wanted.replicas == bounds.clamp(max(situation.supply.replicas, 1 if situation.demand.busy else 0))
