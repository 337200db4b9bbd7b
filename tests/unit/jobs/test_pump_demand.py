"""What an ingress tells of demand: what runs, what waits and how urgently, what lies behind, what ended."""

from __future__ import annotations

import asyncio
from datetime import datetime, timezone
from typing import Any

import pytest

from cotenant.calls import Call, Reply, WorkloadStatus
from cotenant.calls.demand import Asked, Line
from cotenant.jobs.ingress.slots import PEEK
from cotenant.jobs.queue.source import Message
from tests.contracts.jobs_house import chat, message, render
from tests.contracts.pump_house import World

pytestmark = pytest.mark.unit


class Held(World):
    """Mockups that end when told."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

        async def wait(call: Call) -> Reply:
            await self.go.wait()
            return Reply(200, b"\x89PNG", "image/png")

        super().__init__({"mockups": wait})

    @property
    def asked(self) -> Asked:
        return self.pump.asked()["mockups"]


def due(custom_id: str, unix_s: float, **body: Any) -> Message:
    line = message(render(custom_id, **body))
    at = datetime.fromtimestamp(unix_s, timezone.utc).isoformat()
    return Message(line.data, {**line.attributes, "deadline": at}, line.ordering_key)


async def test_what_runs_and_what_waits_with_its_cost_and_its_age() -> None:
    world = Held()
    await world.publish(*[render(f"r{n}", size=1000, samples=2) for n in range(4)])
    world.pump.start()
    await world.until(lambda: world.asked.sent == 2)
    await world.clock.advance(10)
    seen = world.asked
    assert (seen.sent, seen.arrived, seen.more) == (2, 4, False)
    (line,) = seen.lines
    assert (line.waiting, line.units, line.left_s) == (2, 4.0, None)
    assert 10 <= line.oldest_s <= 12
    assert all(age >= 10 for age in seen.ages_s)
    world.go.set()
    await world.settled()
    seen = world.asked
    assert (seen.sent, seen.lines) == (0, ())
    assert [units for units, _ in seen.ended] == [2.0] * 4
    assert world.asked.ended == ()
    assert world.pump.asked()["writer"] == Asked()


async def test_those_with_a_deadline_are_told_apart_the_most_urgent_first() -> None:
    world = Held()
    now = world.clock.unix_s()
    await world.publish(*[render(f"r{n}") for n in range(2)])
    messages = [due(f"due{n}", now + 100 * (n + 1)) for n in range(2)]
    world.pump.start()
    await world.until(lambda: world.asked.sent == 2)
    await world.source.publish(world.jobs.topic, messages)
    await world.until(lambda: world.asked.waiting == 2)
    first, second = world.asked.lines
    assert first.left_s is not None and second.left_s is not None
    assert first.left_s < 100 < second.left_s < 200


async def test_more_waits_behind_while_pulls_come_back_full() -> None:
    world = Held()
    await world.publish(*[render(f"r{n}") for n in range(40)])
    world.pump.start()
    await world.until(lambda: world.asked.waiting and world.asked.more)
    assert world.asked.waiting < 38
    world.go.set()
    await world.settled()
    assert not world.asked.more


async def test_at_zero_more_is_looked_at_and_as_soon_as_replicas_are_heard_of_slots_are_filled() -> None:
    world = Held()
    serving = 0

    async def status() -> dict[str, WorkloadStatus]:
        return {"writer": WorkloadStatus(True, 1), "mockups": WorkloadStatus(True, serving)}

    world.backend.status = status  # type: ignore[method-assign]
    await world.publish(*[render(f"r{n}") for n in range(PEEK + 30)])
    world.pump.start()
    await world.until(lambda: world.asked.waiting + world.asked.sent > PEEK)
    assert world.asked.sent == 1
    serving = 3
    world.pump.serving({"mockups": 3, "writer": 0})
    await world.clock.advance(0.25)
    assert world.asked.sent == 6


async def test_lines_of_a_batch_that_are_not_published_yet_are_counted() -> None:
    world = Held()

    class Clerk:
        def behind(self) -> list[tuple[str, Line]]:
            return [("mockups", Line(500, oldest_s=3.0, exact=True)), ("gone", Line(1))]

    world.pump._clerk = Clerk()  # type: ignore[assignment]
    await world.publish(chat("c"), *[render(f"r{n}") for n in range(3)])
    world.pump.start()
    await world.until(lambda: world.asked.sent == 2)
    assert [line.waiting for line in world.asked.lines] == [1, 500]
    world.go.set()


async def test_what_a_job_waits_for_a_first_replica_is_no_work_and_a_refusal_teaches_nothing() -> None:
    world = Held()
    serving = 0

    async def status() -> dict[str, WorkloadStatus]:
        return {"writer": WorkloadStatus(True, 1), "mockups": WorkloadStatus(True, serving)}

    world.backend.status = status  # type: ignore[method-assign]
    await world.publish(render("r"))
    world.pump.start()
    await world.until(lambda: world.asked.sent == 1)
    await world.clock.advance(45)
    serving = 1
    world.pump.serving({"mockups": 1})
    await world.clock.advance(2)
    world.go.set()
    await world.settled()
    ((_, seconds),) = world.asked.ended
    assert seconds <= 3

    refusing = World({"mockups": lambda call: Reply(400, b"no")})
    await refusing.publish(render("r"))
    refusing.pump.start()
    await refusing.settled()
    assert refusing.pump.asked()["mockups"].ended == ()
