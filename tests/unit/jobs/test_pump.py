"""The pump on the in-memory twin, under a clock that the tests own: how every job ends, whatever fails."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.calls import Call, Directory, Reply, error_reply
from cotenant.errors import (
    DeadlineExceeded,
    Overloaded,
    ReplicaDied,
    UnknownWorkload,
    WorkloadUnavailable,
)
from cotenant.jobs.ingress.rooms import MOVED_AT_ONCE
from cotenant.jobs.ingress.settlement import Outcome
from cotenant.jobs.ingress.work import Phase
from cotenant.jobs.model import MAX_INLINE_BYTES, Identity, Result, error_line
from cotenant.jobs.queue.lanes import lane_of
from cotenant.jobs.queue.source import Message
from tests.contracts.jobs_house import DIRECTORY, chat, echo, message, render
from tests.contracts.pump_house import JOBS, World, failing, kill

pytestmark = pytest.mark.unit


async def test_a_job_becomes_an_object_then_a_message_then_an_ack() -> None:
    world = World()
    await world.publish(chat("one", temperature=0))
    world.pump.start()
    await world.settled()
    assert world.events == ["object", "message", "ack"]
    assert world.line("one")["response"]["body"]["echo"]["temperature"] == 0
    (announced,) = world.lanes.topics[JOBS.results]
    assert announced.attributes == {
        "tenant": "acme",
        "batch": "b1",
        "custom_id": "one",
        "status": "200",
        "outcome": "done",
    }
    assert json.loads(announced.data) == world.line("one")


async def test_a_picture_is_asked_for_as_bytes_and_a_large_one_lies_beside_the_result() -> None:
    accepts: list[str] = []

    def large(call: Call) -> Reply:
        accepts.append(call.accept)
        return Reply(200, b"x" * MAX_INLINE_BYTES, "image/png")

    world = World({"mockups": large})
    await world.publish(render("big"), chat("text"))
    world.pump.start()
    await world.settled()
    assert accepts == ["image/*"]
    body = world.line("big")["response"]["body"]
    assert body["bytes"] == MAX_INLINE_BYTES
    assert world.store.objects.objects[body["object"].removeprefix("memory:///")] == b"x" * MAX_INLINE_BYTES


async def test_a_redelivery_finds_the_result_repeats_the_message_and_does_no_work() -> None:
    handler, calls = failing()
    world = World({"writer": handler})
    await world.publish(chat("one"))
    world.pump.start()
    await world.settled()
    await world.publish(chat("one"))
    await world.until(lambda: world.pump.settled[Outcome.ALREADY_DONE] == 1)
    assert sum(calls.values()) == 1
    assert len(world.store.results) == 1
    assert world.announced == ["one", "one"]


async def test_the_same_job_twice_at_once_is_worked_on_once() -> None:
    calls = 0
    world = World()

    async def slow(call: Call) -> Reply:
        nonlocal calls
        calls += 1
        await world.clock.sleep(5)
        return echo(call)

    world = World({"writer": slow})
    await world.publish(chat("one"), chat("one"), chat("one"))
    world.pump.start()
    await world.settled()
    assert calls == 1
    assert world.pump.settled == {Outcome.DONE: 1, Outcome.ALREADY_DONE: 2}


async def test_a_job_that_another_ingress_did_while_it_waited_here_is_not_run_again() -> None:
    handler, calls = failing()

    async def slow(call: Call) -> Reply:
        await world.clock.sleep(5)
        return handler(call)  # type: ignore[return-value]

    world = World({"mockups": slow})
    await world.publish(*[render(f"r{n}") for n in range(3)])
    world.pump.start()
    await world.until(lambda: world.pump.stats().running == 2 and world.pump.stats().waiting == 1)
    (late,) = [work.job for work in world.pump._held.values() if work.phase is Phase.WAITING and work.job is not None]
    await world.store.create_result(Result(late.identity, late.sha256, error_line(late.identity, "cancelled", "")))
    await world.settled()
    assert late.identity.job_id not in calls
    assert world.pump.settled == {Outcome.DONE: 2, Outcome.ALREADY_DONE: 1}


async def test_another_job_under_a_taken_identity_is_a_dead_letter_and_never_gets_the_wrong_result() -> None:
    world = World()
    await world.publish(chat("one", n=1))
    world.pump.start()
    await world.settled()
    before = world.line("one")
    await world.publish(chat("one", n=2))
    await world.until(lambda: world.dead)
    await world.settled()
    assert world.dead[0].attributes["outcome"] == "conflict"
    assert "another custom_id or batch" in world.dead[0].attributes["reason"]
    assert world.line("one") == before
    assert world.announced == ["one"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"{", "is not JSON"), (b"[]", "this is a list"), (json.dumps({"custom_id": "x"}).encode(), "missing")],
)
async def test_a_malformed_message_is_a_dead_letter_as_it_came_with_the_reason(data: bytes, reason: str) -> None:
    world = World()
    await world.publish(data)
    world.pump.start()
    await world.settled()
    (dead,) = world.dead
    assert dead.data == data
    assert dead.attributes["outcome"] == "malformed"
    assert reason in dead.attributes["reason"]
    assert dead.attributes["batch"] == "b1"
    assert world.store.results == []


async def test_a_job_for_a_workload_that_is_not_here_is_a_dead_letter_and_its_batch_is_told() -> None:
    world = World()
    await world.publish(chat("lost", model="tinny"))
    world.pump.start()
    await world.settled()
    assert world.dead[0].attributes["outcome"] == "unknown_workload"
    assert "did you mean 'tiny'" in world.dead[0].attributes["reason"]
    line = await world.store.buried(Identity("acme", "b1", "lost"))
    assert json.loads(line or b"")["error"]["code"] == "unknown_workload"


async def test_what_the_engine_refuses_is_a_result_not_a_dead_letter() -> None:
    handler, calls = failing(error_reply(400, "max_tokens is negative"))
    world = World({"writer": handler})
    await world.publish(chat("wrong"))
    world.pump.start()
    await world.settled()
    assert world.line("wrong")["response"]["status_code"] == 400
    assert (sum(calls.values()), world.dead) == (1, [])
    assert world.pump.settled == {Outcome.REFUSED: 1}


async def test_a_job_that_wants_a_stream_is_refused_in_its_result() -> None:
    handler, calls = failing()
    world = World({"writer": handler})
    await world.publish(chat("stream", stream=True))
    world.pump.start()
    await world.settled()
    assert world.line("stream")["response"]["body"]["error"]["param"] == "stream"
    assert not calls


@pytest.mark.parametrize(
    "ending",
    [
        pytest.param(error_reply(500, "out of memory"), id="engine error"),
        pytest.param(ReplicaDied("killed"), id="replica died"),
        pytest.param(DeadlineExceeded("too slow"), id="deadline"),
        pytest.param(ValueError("a bug in the renderer"), id="a bug"),
        pytest.param(WorkloadUnavailable("broken, yet ready"), id="unavailable"),
    ],
)
async def test_a_failed_run_is_repeated_and_given_up_after_the_last_attempt(ending: Reply | Exception) -> None:
    handler, calls = failing(ending, ending)
    world = World({"writer": handler})
    await world.publish(chat("shaky"))
    world.pump.start()
    await world.settled()
    assert world.line("shaky")["response"]["status_code"] == 200
    assert sum(calls.values()) == 3

    handler, calls = failing(*[ending] * 9)
    world = World({"writer": handler})
    await world.publish(chat("hopeless"))
    world.pump.start()
    await world.settled()
    (dead,) = world.dead
    assert sum(calls.values()) == JOBS.max_attempts
    assert (dead.attributes["outcome"], dead.attributes["attempts"]) == ("attempts_exhausted", "3")
    assert "gave up after 3 attempts, the last:" in dead.attributes["reason"]
    line = json.loads(await world.store.buried(Identity("acme", "b1", "hopeless")) or b"")
    assert line["error"]["code"] == "attempts_exhausted"


async def test_overload_holds_a_job_and_spends_none_of_its_attempts() -> None:
    handler, calls = failing(*[Overloaded("full")] * 8, *[error_reply(429, "full")] * 8)
    world = World({"writer": handler})
    await world.publish(chat("patient"))
    world.pump.start()
    await world.settled()
    assert sum(calls.values()) == 17
    assert world.pump.settled == {Outcome.DONE: 1}


async def test_a_store_that_is_down_delays_a_job_and_the_work_is_not_repeated() -> None:
    calls = 0

    async def work(call: Call) -> Reply:
        nonlocal calls
        calls += 1
        world.store.down = True
        return echo(call)

    world = World({"writer": work})
    await world.publish(chat("one"))
    world.pump.start()
    await world.until(lambda: world.pump.stats().settling == 1)
    await world.clock.advance(500)
    assert world.lanes.unsettled == 1
    world.store.down = False
    await world.settled()
    assert calls == 1
    assert world.pump.settled == {Outcome.DONE: 1}


@pytest.mark.parametrize(
    ("what", "down_s", "announced"),
    [
        pytest.param(JOBS.results, 200, 1, id="results topic"),
        pytest.param(JOBS.subscription, 3, 1, id="subscription, for less than the lease"),
        pytest.param(JOBS.subscription, 200, 2, id="subscription, so long that the message comes again"),
    ],
)
async def test_a_queue_that_is_down_after_the_work_delays_the_end_and_repeats_no_work(
    what: str, down_s: float, announced: int
) -> None:
    calls = 0

    async def work(call: Call) -> Reply:
        nonlocal calls
        calls += 1
        world.lanes.down.add(what)
        return echo(call)

    world = World({"writer": work})
    await world.publish(chat("one"))
    world.pump.start()
    await world.until(lambda: calls == 1)
    await world.clock.advance(down_s)
    world.lanes.down.clear()
    await world.until(lambda: world.lanes.unsettled == 0)
    assert calls == 1
    assert len(world.store.results) == 1
    assert world.announced == ["one"] * announced


async def test_a_dead_letter_topic_that_is_down_delays_the_dead_letter() -> None:
    world = World()
    world.lanes.down.add(JOBS.dead_letter)
    await world.publish(b"{")
    world.pump.start()
    await world.clock.advance(100)
    assert world.lanes.unsettled == 1
    world.lanes.down.clear()
    await world.settled()
    assert len(world.dead) == 1


async def test_a_queue_that_is_down_at_the_start_is_waited_for() -> None:
    world = World()
    await world.publish(chat("one"))
    world.lanes.down.add(JOBS.subscription)
    world.pump.start()
    await world.clock.advance(300)
    assert "does not answer" in world.pump.stats().last_trouble
    assert world.pump.stuck() is None
    world.lanes.down.clear()
    await world.settled()
    assert world.announced == ["one"]


async def test_a_workload_that_is_not_ready_holds_its_jobs_without_spending_attempts() -> None:
    down = True

    def handler(call: Call) -> Reply:
        if down:
            raise UnknownWorkload("its application is not there yet")
        return echo(call)

    world = World({"writer": handler})
    world.backend.down["writer"] = "starts"
    await world.publish(chat("one"))
    world.pump.start()
    await world.clock.advance(400)
    assert world.lanes.unsettled == 1
    down = False
    world.backend.down.clear()
    await world.settled()
    assert world.pump.settled == {Outcome.DONE: 1}


async def test_a_workload_that_comes_up_right_after_a_call_found_it_missing_costs_no_job() -> None:
    handler, calls = failing(UnknownWorkload("its application is not there yet"))
    world = World({"writer": handler})
    await world.publish(chat("early"))
    world.pump.start()
    await world.settled()
    assert (world.dead, sum(calls.values())) == ([], 2)
    assert world.pump.settled == {Outcome.DONE: 1}


async def test_jobs_of_a_workload_that_is_down_do_not_keep_others_from_getting_through() -> None:
    world = World({"mockups": failing(*[WorkloadUnavailable("down")] * 10_000)[0]})
    world.backend.down["mockups"] = "crashed"
    await world.publish(*[render(f"r{n}") for n in range(40)], *[chat(f"c{n}") for n in range(20)])
    world.pump.start()
    await world.until(lambda: world.pump.settled[Outcome.DONE] == 20, within_s=120)
    assert world.pump.settled[Outcome.FORWARDED] > 0
    assert world.dead == []


async def test_no_more_is_held_than_slots_and_look_ahead_take() -> None:
    world = World()

    async def slow(call: Call) -> Reply:
        await world.clock.sleep(3)
        return echo(call)

    world = World({"writer": slow, "mockups": slow})
    await world.publish(*[chat(f"c{n}") for n in range(60)])
    world.pump.start()
    # Twice while jobs come by both of its lanes, and what is on its way from one to the other.
    room = 2 * (4 + JOBS.look_ahead) + 2 * MOVED_AT_ONCE
    while world.lanes.unsettled:
        stats = world.pump.stats()
        assert stats.running <= 4
        assert stats.waiting + stats.running <= room
        await world.clock.advance(0.25)
    assert len(world.store.results) == 60


async def test_a_backlog_in_a_workloads_lane_does_not_keep_the_main_lane_waiting() -> None:
    world = World()

    async def slow(call: Call) -> Reply:
        await world.clock.sleep(1)
        return echo(call)

    world = World({"mockups": slow})
    lane = world.lanes.open(lane_of("mockups"))
    await lane.publish("jobs.mockups", [message(render(f"r{n}")) for n in range(20)])
    world.pump.start()
    world.pump.reconfigure(Directory(DIRECTORY.workloads[1:]))
    await world.clock.advance(2)
    await world.publish(render("by the main lane"))
    for batch in range(10):
        await lane.publish("jobs.mockups", [message(render(f"more{batch}-{n}")) for n in range(6)])
        await world.clock.advance(3)
    assert "by the main lane" in world.announced
    assert world.lanes.unsettled > 10
    await world.settled()


async def test_jobs_that_can_not_be_moved_to_their_lane_are_not_hoarded() -> None:
    world = World({"mockups": failing(*[WorkloadUnavailable("down")] * 10_000)[0]})
    world.backend.down["mockups"] = "crashed"
    world.lanes.down.add("jobs.mockups")
    await world.publish(*[render(f"r{n}") for n in range(200)])
    world.pump.start()
    await world.clock.advance(120)
    assert world.pump.stats().waiting <= 2 * (4 + 2 + 2 * JOBS.look_ahead)
    world.lanes.down.clear()
    await world.publish(chat("behind them"))
    await world.until(lambda: world.announced == ["behind them"], within_s=60)


async def test_a_job_longer_than_its_lease_is_not_delivered_again() -> None:
    world = World()
    calls = 0

    async def long(call: Call) -> Reply:
        nonlocal calls
        calls += 1
        await world.clock.sleep(20 * JOBS.lease_s)
        return echo(call)

    world = World({"writer": long})
    extensions = 0
    extend = world.source.extend

    async def counted(ack_ids: Sequence[str]) -> None:
        nonlocal extensions
        extensions += 1
        await extend(ack_ids)

    world.source.extend = counted  # type: ignore[method-assign]
    await world.publish(chat("long"))
    world.pump.start()
    await world.settled()
    assert calls == 1
    assert extensions <= 40


async def test_a_dead_letters_attributes_stay_within_pubsubs_limits() -> None:
    world = World()
    many = {f"key-{n}": "v" for n in range(100)}
    await world.source.publish(JOBS.topic, [Message(b"{" + b"\xc3" * 5000, many)])
    world.pump.start()
    await world.settled()
    (dead,) = world.dead
    assert len(dead.attributes) <= 100
    assert all(len(value.encode()) <= 1024 for value in dead.attributes.values())
    assert "reason" in dead.attributes


ENDINGS = st.sampled_from(["ok", "ok", "ok", "500", "died", "overload", "bug", "refused", "slow"])
FAULTS = st.sampled_from(["store", JOBS.results, JOBS.dead_letter, JOBS.subscription, "mockups", "drain", "kill"])


@settings(max_examples=60, deadline=None)
@given(
    endings=st.lists(ENDINGS, min_size=1, max_size=30),
    faults=st.lists(st.tuples(FAULTS, st.integers(0, 40)), max_size=5),
    duplicates=st.lists(st.integers(0, 11), max_size=6),
)
def test_whatever_fails_every_job_ends_once(
    endings: list[str], faults: list[tuple[str, int]], duplicates: list[int]
) -> None:
    asyncio.run(_chaos(endings, faults, duplicates))


async def _chaos(endings: list[str], faults: list[tuple[str, int]], duplicates: list[int]) -> None:
    turn = iter(endings)

    async def engine(call: Call) -> Reply:
        match next(turn, "ok"):
            case "500":
                return error_reply(500, "broke")
            case "died":
                raise ReplicaDied("died")
            case "overload":
                raise Overloaded("full")
            case "bug":
                raise ValueError("bug")
            case "refused":
                return error_reply(400, "no")
            case "slow":
                await world.clock.sleep(25)
        return echo(call)

    world = World({"writer": engine, "mockups": engine})
    lines = [chat(f"j{n}") if n % 3 else render(f"j{n}") for n in range(12)]
    await world.publish(*lines, *[lines[n] for n in duplicates], b"not a job")
    world.pump.start()
    for fault, lasts_s in faults:
        match fault:
            case "store":
                world.store.down = True
            case "mockups":
                world.backend.down["mockups"] = "down"
            case "drain":
                draining = asyncio.create_task(world.pump.drain(lasts_s))
                await world.until(draining.done)
                world.pump = world.new_pump()
                world.pump.start()
            case "kill":
                await kill()
                world.pump = world.new_pump()
                world.pump.start()
            case _:
                world.lanes.down.add(fault)
        await world.clock.advance(lasts_s)
        world.store.down = False
        world.backend.down.clear()
        world.lanes.down.clear()
    await world.settled(within_s=4000)

    buried = {key.split("/")[-1] for key in world.store.objects.objects if "/dead/" in key}
    finished = {key.split("/")[-1] for key in world.store.results}
    assert len(finished | buried) == 12
    assert len(world.store.results) == len(finished)
    reasons = Counter(m.attributes.get("outcome") for m in world.dead)
    assert reasons["malformed"] >= 1
    assert set(reasons) <= {"malformed", "attempts_exhausted"}
    given_up = {json.loads(m.data)["custom_id"] for m in world.dead if m.attributes.get("outcome") != "malformed"}
    assert {f"j{n}" for n in range(12)} - given_up <= set(world.announced)
    await kill()


async def test_a_message_with_no_room_for_the_reason_is_buried_and_keeps_no_other_from_it() -> None:
    world = World()
    world.pump.start()
    largest = Message(b"{not json" + b"x" * 9_999_900, {"tenant": "acme"})
    await world.source.publish(JOBS.topic, [largest, message(b"{not json either")])
    await world.settled()
    assert sorted(len(letter.data) for letter in world.dead) == [16, 9_999_909]
