"""What the pump does besides doing jobs: turns, order, cancellation, deadlines, attempts, errands, its board."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from cotenant.calls import Call, Reply, error_reply
from cotenant.config import Jobs
from cotenant.errors import (
    ReplicaDied,
    StoreUnavailable,
)
from cotenant.jobs.errand import Errand
from cotenant.jobs.ingress.settlement import Outcome
from cotenant.jobs.model import Identity, Job, Wishes
from cotenant.jobs.queue.lanes import CLERK, lane_of
from cotenant.jobs.queue.source import Message
from cotenant.jobs.store.records import JobRecord, Records, pace_of
from tests.contracts.jobs_house import chat, echo, message, render
from tests.contracts.pump_house import JOBS, Office, World, failing, kill, wish

pytestmark = pytest.mark.unit


async def test_deliveries_spend_no_attempts_and_attempts_outlive_the_pump() -> None:
    handler, calls = failing(*[error_reply(500, "broke")] * 9)
    world = World({"writer": handler})
    await world.publish(chat("hopeless"))
    for _ in range(4):
        (delivery,) = await world.source.pull(1)
        await world.source.nack([delivery.ack_id])
    world.pump.start()
    await world.until(lambda: sum(calls.values()) == 2)
    await kill()
    world.pump = world.new_pump()
    world.pump.start()
    await world.settled()
    assert sum(calls.values()) == JOBS.max_attempts
    (dead,) = world.dead
    history = json.loads(dead.attributes["attempt_history"])
    assert [one["outcome"] for one in history] == ["engine_error"] * 3
    assert all("broke" in one["reason"] for one in history)
    assert dead.attributes["source_topic"] == "jobs"


async def test_a_replica_that_died_is_tried_again_at_once_without_a_redelivery() -> None:
    handler, calls = failing(ReplicaDied("killed"))
    world = World({"writer": handler})
    await world.publish(chat("one"))
    world.pump.start()
    await world.settled(within_s=2)
    assert sum(calls.values()) == 2
    assert world.events == ["object", "message", "ack"]


async def test_a_cancelled_job_that_runs_frees_its_slot_and_its_result_says_so() -> None:
    ended: list[str] = []

    async def slow(call: Call) -> Reply:
        try:
            await world.clock.sleep(1e6)
        except asyncio.CancelledError:
            ended.append(call.request_id)
            raise
        return echo(call)

    world = World({"mockups": slow})
    await world.publish(render("one"), render("two"), render("three"))
    world.pump.start()
    await world.until(lambda: world.pump.stats().running == 2)
    await world.store.cancel(Identity("acme", "b1", "one"))
    await world.until(lambda: len(world.store.results) == 1, within_s=3)
    assert world.line("one")["error"]["code"] == "cancelled"
    assert ended == [Identity("acme", "b1", "one").job_id]
    await world.until(lambda: world.pump.stats().running == 2, within_s=1)
    await world.until(lambda: world.pump.settled[Outcome.CANCELLED] == 1, within_s=1)
    assert Identity("acme", "b1", "one") not in await world.store.cancelled()


async def test_a_cancelled_batch_begins_no_further_job_and_every_line_gets_its_word() -> None:
    begun: list[str] = []

    async def slow(call: Call) -> Reply:
        begun.append(call.request_id)
        await world.clock.sleep(30)
        return echo(call)

    world = World({"mockups": slow})
    await world.publish(*[render(f"r{n}") for n in range(30)])
    world.pump.start()
    await world.until(lambda: len(begun) == 2)
    await world.store.cancel_batch("acme", "b1")
    await world.settled(within_s=60)
    assert len(begun) == 2
    assert {world.line(f"r{n}")["error"]["code"] for n in range(30)} == {"cancelled"}
    assert world.dead == []


async def test_a_job_that_finished_before_it_was_cancelled_keeps_its_result() -> None:
    world = World()
    await world.publish(chat("one"))
    world.pump.start()
    await world.settled()
    await world.store.cancel(Identity("acme", "b1", "one"))
    await world.publish(chat("one"))
    await world.settled()
    assert world.line("one")["response"]["status_code"] == 200


async def test_a_job_whose_deadline_passed_while_it_waited_is_not_begun() -> None:
    handler, calls = failing()

    async def slow(call: Call) -> Reply:
        await world.clock.sleep(20)
        return handler(call)  # type: ignore[return-value]

    world = World({"mockups": slow})
    soon = f"{world.clock.unix_s() + 10:.3f}"
    late = "2026-01-01T09:00:00Z"
    await world.source.publish(JOBS.topic, [wish(render(f"first{n}")) for n in range(2)])
    world.pump.start()
    await world.until(lambda: world.pump.stats().running == 2)
    await world.source.publish(JOBS.topic, [wish(render("soon"), deadline=soon), wish(render("late"), deadline=late)])
    await world.settled()
    assert world.line("soon")["error"]["code"] == "expired"
    assert world.line("late")["response"]["status_code"] == 200
    assert Identity("acme", "b1", "soon").job_id not in calls
    assert world.pump.settled[Outcome.EXPIRED] == 1


async def test_priority_and_fairness_among_tenants_decide_who_is_next() -> None:
    order: list[str] = []

    async def slow(call: Call) -> Reply:
        order.append(json.loads(call.body)["who"])
        await world.clock.sleep(1)
        return echo(call)

    world = World({"mockups": slow}, Jobs(lease_s=10, look_ahead=50))
    messages = [wish(render(f"big{n}", who="big"), tenant="big") for n in range(30)]
    messages += [wish(render(f"small{n}", who="small"), tenant="small") for n in range(3)]
    messages += [wish(render("urgent", who="urgent"), tenant="big", priority="5")]
    await world.source.publish(JOBS.topic, messages)
    world.pump.start()
    await world.settled()
    assert order.index("urgent") <= 3
    assert [n for n, who in enumerate(order) if who == "small"][-1] <= 10


@pytest.mark.parametrize(
    "attributes", [{"priority": "11"}, {"priority": "high"}, {"deadline": "soon"}, {"deadline": "2026-01-01T00:00:00"}]
)
async def test_wishes_that_mean_nothing_are_a_dead_letter(attributes: dict[str, str]) -> None:
    world = World()
    await world.source.publish(JOBS.topic, [wish(chat("one"), **attributes)])
    world.pump.start()
    await world.settled()
    assert next(iter(attributes)) in world.dead[0].attributes["reason"]


async def test_jobs_of_one_ordering_key_run_one_after_the_other_in_their_order() -> None:
    running: Counter[str] = Counter()
    order: list[str] = []
    handler, _ = failing(error_reply(500, "a hiccup"))

    async def slow(call: Call) -> Reply:
        body = json.loads(call.body)
        running[body["key"]] += 1
        assert running[body["key"]] == 1
        await world.clock.sleep(1)
        running[body["key"]] -= 1
        reply = handler(call)
        assert isinstance(reply, Reply)
        if reply.ok:
            order.append(body["n"])
        return reply

    world = World({"writer": slow}, Jobs(lease_s=10, look_ahead=20, max_attempts=3, ordering=True))
    messages = [
        Message(json.dumps(chat(f"{key}{n}", key=key, n=f"{key}{n}")).encode(), {"tenant": "acme", "batch": "b1"}, key)
        for n in range(4)
        for key in "ab"
    ]
    await world.source.publish(JOBS.topic, messages)
    world.pump.start()
    await world.settled()
    for key in "ab":
        assert [one for one in order if one[0] == key] == [f"{key}{n}" for n in range(4)]


async def test_what_waits_behind_a_keyed_job_that_is_handed_back_is_handed_back_too() -> None:
    begun: list[str] = []

    async def endless(call: Call) -> Reply:
        begun.append(json.loads(call.body)["n"])
        await world.clock.sleep(1e6)
        return echo(call)

    world = World({"writer": endless}, Jobs(lease_s=10, look_ahead=20, ordering=True))
    messages = [Message(json.dumps(chat(f"k{n}", n=n)).encode(), {"batch": "b1"}, "k") for n in range(3)]
    await world.lanes.open(lane_of("writer")).publish("jobs.writer", messages)
    world.pump.start()
    await world.until(lambda: begun)
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    draining = asyncio.create_task(world.pump.drain(1))
    await world.until(draining.done, within_s=10)
    assert begun == [0]
    assert world.lanes.unsettled == 3
    assert (complaints, world.pump._last_of_key) == ([], {})


async def test_jobs_left_in_the_lane_of_a_workload_that_is_gone_are_told_so() -> None:
    world = World()
    await Records(world.store.objects).remember_lane("sculptor")
    lane = world.lanes.open(lane_of("sculptor"))
    line = {"custom_id": "s", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "sculptor"}}
    await lane.publish("jobs.sculptor", [message(line)])
    world.pump.start()
    await world.settled()
    assert world.dead[0].attributes["outcome"] == "unknown_workload"
    assert world.dead[0].attributes["source_topic"] == "jobs.sculptor"


async def test_an_errand_is_seen_through_and_takes_no_slot() -> None:
    world = World()
    world.clerk = office = Office()
    world.pump = world.new_pump()
    await world.lanes.open(CLERK).publish("jobs-clerk", [Errand("batch", "acme", f"b{n}").message() for n in range(5)])
    await world.lanes.open(CLERK).publish("jobs-clerk", [Message(b"nonsense")])
    await world.publish(chat("one"))
    world.pump.start()
    await world.until(lambda: world.announced == ["one"], within_s=5)
    await world.settled()
    assert office.looks == {f"b{n}": 3 for n in range(5)}
    assert [m.attributes["outcome"] for m in world.dead] == ["malformed"]


async def test_a_webhook_is_told_before_the_ack_also_of_what_was_given_up() -> None:
    handler, _calls = failing(*[error_reply(500, "broke")] * 9)
    world = World({"mockups": handler})
    world.clerk = office = Office()
    office.fails = 3
    world.pump = world.new_pump()
    hook = {"webhook": "https://example.com/hook"}
    await world.source.publish(
        JOBS.topic, [wish(chat("good"), **hook), wish(render("bad"), **hook), wish(chat("none"))]
    )
    world.pump.start()
    await world.settled()
    assert sorted(office.told) == [("bad", 0), ("good", 200)]


async def test_a_job_submitted_by_itself_leaves_the_queue_when_it_has_ended_even_if_the_pump_died_in_between() -> None:
    world = World()
    records = Records(world.store.objects)
    wishes = Wishes(queued_at_s=world.clock.unix_s())
    job = Job(Identity("acme", "s1", "only"), "/v1/chat/completions", b'{"model":"tiny"}', wishes=wishes)
    record = JobRecord(job.identity, job.url, "writer", world.clock.unix_s(), job.sha256, wishes)
    await records.create_job(record)
    later = replace(
        record, identity=Identity("acme", "s2", "only"), wishes=Wishes(queued_at_s=world.clock.unix_s() + 1)
    )
    await records.create_job(later)
    assert await records.position(later) == 1
    leave = Records.leave_queue
    fails = True

    async def fail_once(self: Records, *arguments: Any) -> None:
        if fails:
            raise StoreUnavailable("down")
        await leave(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Records, "leave_queue", fail_once)
        await world.lanes.open(lane_of("writer")).publish("jobs.writer", [Message(job.line(), job.attributes)])
        world.pump.start()
        await world.until(lambda: world.announced)
        await kill()
        fails = False
        world.pump = world.new_pump()
        world.pump.start()
        await world.settled()
    assert await records.position(later) == 0


async def test_the_board_says_what_runs_and_how_fast_it_goes_and_goes_with_the_pump() -> None:
    async def slow(call: Call) -> Reply:
        await world.clock.sleep(4)
        return echo(call)

    world = World({"mockups": slow})
    records = Records(world.store.objects)
    await world.publish(*[render(f"r{n}") for n in range(6)])
    world.pump.start()
    await world.clock.advance(6)
    (board,) = await records.boards(world.clock.unix_s())
    assert len(board.running) == 2
    pace = pace_of([board, board], "mockups")
    assert (pace.slots, pace.running, pace.mean_s) == (4, 4, 4.0)
    await world.settled()
    draining = asyncio.create_task(world.pump.drain(5))
    await world.until(draining.done)
    assert await records.boards(world.clock.unix_s()) == ()
