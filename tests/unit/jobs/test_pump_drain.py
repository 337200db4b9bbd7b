"""The pump on the in-memory twin: how it drains, and whether it is stuck or only busy."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from cotenant.calls import Call, Directory, Reply, Served, WorkloadStatus
from cotenant.errors import (
    WorkloadUnavailable,
)
from cotenant.jobs.ingress.pump import STUCK_AFTER_S
from cotenant.jobs.queue.lanes import MAIN, lane_of
from tests.contracts.jobs_house import DIRECTORY, chat, echo, render
from tests.contracts.pump_house import World

pytestmark = pytest.mark.unit


async def test_a_drain_finishes_what_runs_and_hands_back_what_waits() -> None:
    world = World()

    async def slow(call: Call) -> Reply:
        await world.clock.sleep(5)
        return echo(call)

    world = World({"writer": slow})
    await world.publish(*[chat(f"c{n}") for n in range(12)])
    world.pump.start()
    await world.until(lambda: world.pump.stats().running == 4 and world.pump.stats().waiting)
    draining = asyncio.create_task(world.pump.drain(30))
    await world.until(draining.done, within_s=30)
    assert len(world.store.results) == 4
    assert world.lanes.unsettled == 8
    again = [await world.lanes.open(lane).pull(20) for lane in (MAIN, lane_of("writer"))]
    assert sum(len(some) for some in again) == 8


async def test_a_drain_out_of_time_hands_back_what_still_runs() -> None:
    world = World()

    async def endless(call: Call) -> Reply:
        await world.clock.sleep(1e6)
        return echo(call)

    world = World({"writer": endless})
    await world.publish(*[chat(f"c{n}") for n in range(6)])
    world.pump.start()
    await world.until(lambda: world.pump.stats().running == 4)
    draining = asyncio.create_task(world.pump.drain(3))
    await world.until(draining.done, within_s=10)
    assert {delivery.attempt for delivery in await world.source.pull(20)} <= {1, 2}
    assert world.pump.stats().running == world.pump.stats().waiting == 0
    assert world.lanes.unsettled == 6


async def test_a_drain_while_a_pull_is_on_its_way_hands_back_what_it_brings() -> None:
    world = World()
    asked, answer = asyncio.Event(), asyncio.Event()
    pull = world.source.pull

    async def late_pull(limit: int) -> Any:
        asked.set()
        await answer.wait()
        return await pull(limit)

    world.source.pull = late_pull  # type: ignore[method-assign]
    await world.publish(chat("one"))
    world.pump.start()
    await world.until(asked.is_set)
    draining = asyncio.create_task(world.pump.drain(0))
    await asyncio.sleep(0)
    answer.set()
    await world.until(draining.done, within_s=10)
    (delivery,) = await pull(1)
    assert delivery.attempt == 2


async def test_a_pump_full_of_long_jobs_is_well_though_nobody_tells_it_of_the_workloads() -> None:
    async def long(call: Call) -> Reply:
        await world.clock.sleep(1e6)
        return echo(call)

    async def silent() -> Mapping[str, WorkloadStatus]:
        raise WorkloadUnavailable("the controller is dead")

    world = World({"writer": long, "mockups": long})
    await world.publish(*[chat(f"c{n}") for n in range(20)], *[render(f"r{n}") for n in range(20)])
    world.pump.start()
    await world.until(lambda: world.pump.stats().running == 6)
    world.backend.status = silent  # type: ignore[method-assign]
    for _ in range(2 * int(STUCK_AFTER_S)):
        await world.clock.advance(1)
        assert world.pump.stuck() is None


async def test_a_lane_that_is_opened_while_a_drain_hands_back_does_not_end_the_drain() -> None:
    async def endless(call: Call) -> Reply:
        await world.clock.sleep(1e6)
        return echo(call)

    world = World({"writer": endless})
    await world.publish(chat("one"))
    nack = world.source.nack

    async def nack_meanwhile(ack_ids: Sequence[str], delay_s: float = 0.0) -> None:
        world.pump.reconfigure(Directory((*DIRECTORY.workloads, Served("sculptor", "llm", models=("stone",)))))
        await nack(ack_ids, delay_s)

    world.source.nack = nack_meanwhile  # type: ignore[method-assign]
    world.pump.start()
    await world.until(lambda: world.pump.stats().running == 1)
    draining = asyncio.create_task(world.pump.drain(0))
    await world.until(draining.done, within_s=30)
    await draining
    assert len(await world.source.pull(1)) == 1


async def test_a_pump_that_stands_still_is_found_out() -> None:
    world = World()

    async def hanging_pull(limit: int) -> Any:
        await asyncio.Event().wait()

    world.source.pull = hanging_pull  # type: ignore[method-assign]
    world.pump.start()
    await world.clock.advance(STUCK_AFTER_S - 10)
    assert world.pump.stuck() is None
    await world.clock.advance(20)
    assert "pull loop of the ingress has stood still" in (world.pump.stuck() or "")


async def test_a_busy_pump_with_no_room_is_not_stuck() -> None:
    world = World()

    async def endless(call: Call) -> Reply:
        await world.clock.sleep(1e6)
        return echo(call)

    world = World({"writer": endless})
    await world.publish(*[chat(f"c{n}") for n in range(20)])
    world.pump.start()
    await world.clock.advance(STUCK_AFTER_S * 3)
    assert world.pump.stuck() is None


async def test_a_status_that_fails_is_asked_again() -> None:
    world = World()
    ask = world.backend.status
    fails = 3

    async def flaky_status() -> Mapping[str, WorkloadStatus]:
        nonlocal fails
        fails -= 1
        if fails >= 0:
            raise RuntimeError("the controller restarts")
        return await ask()

    world.backend.status = flaky_status  # type: ignore[method-assign]
    await world.publish(chat("one"))
    world.pump.start()
    await world.settled()
    assert world.announced == ["one"]
