"""How many messages are pulled, who gets a slot, which leases are extended, what travels together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from cotenant.calls import WorkloadStatus
from cotenant.jobs.ingress.batcher import Batcher
from cotenant.jobs.ingress.leases import Leases
from cotenant.jobs.ingress.slots import SETTLING_AT_MOST, Slots, ahead, on_the_way, room, slot_limits
from tests.contracts.jobs_house import DIRECTORY

pytestmark = pytest.mark.unit


def test_slots_are_running_replicas_times_slots_of_each() -> None:
    status = {"writer": WorkloadStatus(True, 3), "mockups": WorkloadStatus(True, 1)}
    assert slot_limits(DIRECTORY, status) == {"writer": 12, "mockups": 2}


def test_a_workload_without_replicas_keeps_one_slot_that_can_wake_it() -> None:
    assert slot_limits(DIRECTORY, {"writer": WorkloadStatus(False, 0, "starts")}) == {"writer": 1, "mockups": 1}


@pytest.mark.parametrize(("ingresses", "writer", "mockups"), [(1, 12, 2), (2, 6, 1), (5, 3, 1), (99, 1, 1)])
def test_ingresses_share_the_slots_evenly_and_none_has_no_slot(ingresses: int, writer: int, mockups: int) -> None:
    status = {"writer": WorkloadStatus(True, 3), "mockups": WorkloadStatus(True, 1)}
    assert slot_limits(DIRECTORY, status, ingresses=ingresses) == {"writer": writer, "mockups": mockups}


@pytest.mark.parametrize(
    ("undone", "held", "want"),
    [
        pytest.param(0, 0, 8, id="idle"),
        pytest.param(5, 5, 3, id="some room"),
        pytest.param(8, 8, 0, id="full"),
        pytest.param(2, 2 * 8 + SETTLING_AT_MOST - 1, 1, id="results pile up before a store that is down"),
        pytest.param(12, 12, 0, id="slots went away"),
    ],
)
def test_only_what_free_slots_and_the_look_ahead_take_is_pulled(undone: int, held: int, want: int) -> None:
    assert room(slots=6, look_ahead=2, undone=undone, held=held) == want


@pytest.mark.parametrize(
    ("slots", "mean_s", "jobs"),
    [
        pytest.param(8, 0.0, 2, id="nothing known"),
        pytest.param(2, 1.4, 2, id="renders"),
        pytest.param(8, 0.05, 40, id="short jobs"),
        pytest.param(8, 0.001, 64, id="hardly any work"),
    ],
)
def test_so_many_short_jobs_are_held_as_last_while_one_pulls(slots: int, mean_s: float, jobs: int) -> None:
    assert ahead(slots=slots, look_ahead=2, mean_s=mean_s) == jobs


@pytest.mark.parametrize(
    ("slots", "mean_s", "jobs"),
    [
        pytest.param(8, 0.0, 0, id="nothing known"),
        pytest.param(8, 1.4, 0, id="renders"),
        pytest.param(8, 0.08, 3, id="short jobs"),
        pytest.param(8, 0.001, 4, id="hardly any work"),
        pytest.param(1, 0.001, 0, id="one slot"),
    ],
)
def test_of_short_jobs_a_few_wait_in_the_replica(slots: int, mean_s: float, jobs: int) -> None:
    assert on_the_way(slots=slots, mean_s=mean_s) == jobs


@pytest.mark.parametrize(("seconds", "sent"), [(2.0, 4), (0.05, 6)])
async def test_what_is_sent_ahead_of_a_slot_is_told_as_waiting(seconds: float, sent: int) -> None:
    slots = Slots()
    slots.resize({"writer": 4})
    await slots.take("writer", "shop")
    slots.give("writer", "shop", seconds)
    takes = [asyncio.create_task(slots.take("writer", "shop")) for _ in range(10)]
    await asyncio.sleep(0.01)
    assert sum(take.done() for take in takes) == sent
    assert slots.running["writer"] == 4
    assert slots.waiting("writer") == 6
    for take in takes[sent:]:
        take.cancel()
    await asyncio.sleep(0.01)
    for _ in range(sent):
        slots.give("writer", "shop", seconds)
    assert slots.running["writer"] == slots.waiting("writer") == 0


async def test_slots_are_given_in_turn_and_a_cancelled_wait_costs_none() -> None:
    slots = Slots()
    slots.resize({"w": 1})
    await slots.take("w", "acme")
    order: list[int] = []

    async def wait_for_turn(n: int) -> None:
        await slots.take("w", "acme")
        order.append(n)

    waiting = [asyncio.create_task(wait_for_turn(n)) for n in range(3)]
    await asyncio.sleep(0)
    assert slots.waiting("w") == 3
    waiting[0].cancel()
    await asyncio.sleep(0)
    slots.give("w", "acme", 1.0)
    await asyncio.sleep(0)
    assert order == [1]
    slots.give("w", "acme", 1.0)
    await waiting[2]
    assert order == [1, 2]
    slots.give("w", "acme", 1.0)
    assert slots.running["w"] == 0


async def test_a_turn_that_was_given_to_a_task_just_cancelled_goes_to_the_next() -> None:
    slots = Slots()
    slots.resize({"w": 1})
    await slots.take("w", "acme")
    first, second = (asyncio.create_task(slots.take("w", "acme")) for _ in range(2))
    await asyncio.sleep(0)
    slots.give("w", "acme", 1.0)
    first.cancel()
    await asyncio.wait_for(second, 1)
    assert slots.running["w"] == 1


async def test_more_replicas_let_waiting_jobs_run() -> None:
    slots = Slots()
    slots.resize({"w": 1})
    await slots.take("w", "acme")
    waiting = asyncio.create_task(slots.take("w", "acme"))
    await asyncio.sleep(0)
    slots.resize({"w": 2})
    await asyncio.wait_for(waiting, 1)
    assert slots.total == 2


def test_a_lease_is_extended_when_half_of_it_is_left() -> None:
    leases = Leases(lease_s=60)
    leases.hold(["a", "b"], now=0)
    leases.hold(["c"], now=10)
    assert leases.due(29.9) == []
    assert leases.due(30) == ["a", "b"]
    leases.hold(["a"], now=30)
    leases.release("b")
    assert leases.due(40) == ["c"]
    assert leases.due(60) == ["a", "c"]


async def test_what_comes_during_a_flush_travels_together_in_the_next() -> None:
    flushed: list[list[int]] = []
    go_on = asyncio.Event()

    async def flush(items: Sequence[int]) -> None:
        flushed.append(list(items))
        await go_on.wait()

    batcher = Batcher[int](flush, max_items=3)
    adds = [asyncio.create_task(batcher.add(0))]
    await asyncio.sleep(0.01)
    adds += [asyncio.create_task(batcher.add(n)) for n in range(1, 6)]
    await asyncio.sleep(0.01)
    go_on.set()
    await asyncio.gather(*adds)
    assert flushed == [[0], [1, 2, 3], [4, 5]]


async def test_a_flush_that_fails_fails_everything_in_it_and_nothing_else() -> None:
    async def flush(items: Sequence[int]) -> None:
        if 1 in items:
            raise OSError("down")

    batcher = Batcher[int](flush, max_items=2)
    outcomes = await asyncio.gather(*(batcher.add(n) for n in range(4)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [OSError, OSError, type(None), type(None)]
