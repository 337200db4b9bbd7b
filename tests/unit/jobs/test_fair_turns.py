"""Whose job is next: priority, then the tenant who had least, then deadline and order."""

from __future__ import annotations

from collections import Counter, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.jobs.ingress.slots import Slots
from cotenant.jobs.ingress.turns import FairShare, Turn

pytestmark = pytest.mark.unit


def serve(share: FairShare, queues: dict[str, int], *, slots: int, seconds: dict[str, float], jobs: int) -> list[str]:
    """The order in which `jobs` of the tenants' queues begin, on so many slots."""
    waiting = [Turn(tenant, 0, n) for n, tenant in enumerate(t for t, count in queues.items() for _ in range(count))]
    for turn in waiting:
        share.arrived(turn.tenant)
    running: deque[str] = deque()
    order: list[str] = []
    while len(order) < jobs:
        if len(running) == slots:
            done = running.popleft()
            share.ended(done, seconds[done])
            share.left(done)
        turn = waiting.pop(share.first(waiting))
        share.began(turn.tenant)
        running.append(turn.tenant)
        order.append(turn.tenant)
    return order


def test_a_few_jobs_of_one_tenant_do_not_wait_behind_a_thousand_of_another() -> None:
    order = serve(FairShare(), {"big": 1000, "small": 5}, slots=2, seconds={"big": 1, "small": 1}, jobs=20)
    assert order[:11].count("small") == 5


def test_time_is_shared_not_jobs() -> None:
    order = serve(FairShare(), {"slow": 500, "quick": 500}, slots=1, seconds={"slow": 9, "quick": 1}, jobs=200)
    count = Counter(order)
    assert count["quick"] / count["slow"] == pytest.approx(9, rel=0.25)


def test_who_was_away_earned_no_credit_and_owes_nothing() -> None:
    share = FairShare()
    serve(share, {"always": 200}, slots=1, seconds={"always": 1}, jobs=199)
    order = serve(share, {"back": 50, "always": 50}, slots=1, seconds={"always": 1, "back": 1}, jobs=40)
    assert abs(order.count("back") - order.count("always")) <= 2


def test_a_higher_priority_goes_first_whoever_had_how_much() -> None:
    share = FairShare()
    for tenant in ("poor", "rich"):
        share.arrived(tenant)
    share.began("rich")
    share.ended("rich", 1000)
    waiting = [Turn("poor", 0, 0), Turn("rich", 5, 1), Turn("rich", 5, 2), Turn("poor", -1, 3)]
    assert share.first(waiting) == 1


def test_within_a_tenant_the_nearer_deadline_goes_first_then_the_first_come() -> None:
    share = FairShare()
    share.arrived("acme")
    waiting = [Turn("acme", 0, 0), Turn("acme", 0, 1, 200.0), Turn("acme", 0, 2, 100.0), Turn("acme", 0, 3, 100.0)]
    assert share.first(waiting) == 2
    assert share.first(waiting[:1]) == 0


def test_tenants_who_are_away_are_forgotten_at_last() -> None:
    share = FairShare()
    for n in range(5000):
        share.arrived(f"t{n}")
        share.began(f"t{n}")
        share.ended(f"t{n}", 1.0)
        share.left(f"t{n}")
    assert len(share._used_s) <= 1001


@given(
    arrivals=st.lists(st.tuples(st.sampled_from("abc"), st.integers(-2, 2)), min_size=1, max_size=40),
    slots=st.integers(1, 4),
)
async def test_everybody_is_served_and_never_more_than_the_slots_run(
    arrivals: list[tuple[str, int]], slots: int
) -> None:
    import asyncio

    line = Slots()
    line.resize({"w": slots})
    most = served = 0

    async def job(tenant: str, priority: int) -> None:
        nonlocal most, served
        await line.take("w", tenant, priority=priority)
        most = max(most, line.running["w"])
        await asyncio.sleep(0)
        served += 1
        line.give("w", tenant, 0.5)

    await asyncio.wait_for(asyncio.gather(*(job(*arrival) for arrival in arrivals)), 10)
    assert served == len(arrivals)
    assert most <= slots
    assert line.running["w"] == line.waiting("w") == 0
