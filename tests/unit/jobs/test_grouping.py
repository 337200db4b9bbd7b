"""Calls of one moment share a trip and nothing else: who travels with whom, and whose end is whose."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.calls import Call, InMemoryBackend, Reply, Trip
from cotenant.errors import CotenantError, DeadlineExceeded, Overloaded, ReplicaDied, UnknownWorkload
from cotenant.jobs.ingress.grouping import Grouper
from tests.contracts.virtual_time import in_virtual_time, run

pytestmark = pytest.mark.unit


def order(name: str, sleep_s: float = 0.0, fail: bool = False, deadline_s: float | None = None) -> Call:
    body = json.dumps({"sleep_s": sleep_s, "fail": fail}).encode()
    return Call("/v1/x", body, request_id=name, deadline_s=deadline_s)


class Recorder(InMemoryBackend):
    """Two workloads, and a note of who travelled with whom and whose work was cut short."""

    def __init__(self, slots: int = 100) -> None:
        super().__init__({"writer": self._engine, "painter": self._engine}, slots=slots)
        self.trips: list[list[str]] = []
        self.alone: list[str] = []
        self.done: list[str] = []
        self.cut: list[str] = []

    async def call(self, workload: str, call: Call) -> Reply:
        self.alone.append(call.request_id)
        return await super().call(workload, call)

    def call_many(self, workload: str, calls: Sequence[Call]) -> Trip:
        self.trips.append([call.request_id for call in calls])
        return super().call_many(workload, calls)

    async def _engine(self, call: Call) -> Reply:
        wanted = json.loads(call.body)
        try:
            await asyncio.sleep(wanted["sleep_s"])
        except asyncio.CancelledError:
            self.cut.append(call.request_id)
            raise
        if wanted["fail"]:
            raise Overloaded(call.request_id)
        self.done.append(call.request_id)
        return Reply(200, call.request_id.encode())


@dataclass
class House:
    max_group: int = 4
    slots: int = 100
    backend: Recorder = field(init=False)
    grouper: Grouper = field(init=False)

    def __post_init__(self) -> None:
        self.backend = Recorder(self.slots)
        self.grouper = Grouper(self.backend, lambda _: self.max_group)

    def ask(self, call: Call, group: Hashable | None = "g", workload: str = "writer") -> asyncio.Task[Reply]:
        return asyncio.create_task(self.grouper.call(workload, call, group))


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def settling(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a test in virtual time and, when it has ended, let what it started end too; nothing may be left then."""

    @functools.wraps(test)
    async def wrapper() -> None:
        await test()
        await turns(20)

    return in_virtual_time(wrapper)


@settling
async def test_calls_of_one_moment_travel_together_and_each_gets_its_own_reply() -> None:
    house = House()
    replies = await asyncio.gather(*(house.ask(order(f"c{n}", sleep_s=n)) for n in range(3)))
    assert [reply.body for reply in replies] == [b"c0", b"c1", b"c2"]
    assert house.backend.trips == [["c0", "c1", "c2"]]
    assert (house.grouper.calls, house.grouper.trips) == (3, 1)


@settling
async def test_a_call_that_is_alone_in_its_moment_goes_the_cheaper_way_alone() -> None:
    house = House()
    await house.ask(order("c0"))
    await asyncio.sleep(1)
    await house.ask(order("c1"))
    assert house.backend.trips == []
    assert house.backend.alone == ["c0", "c1"]


@settling
async def test_calls_without_a_group_go_alone_whatever_else_happens_in_that_moment() -> None:
    house = House()
    await asyncio.gather(*(house.ask(order(f"c{n}"), group=None) for n in range(3)))
    assert house.backend.trips == []
    assert sorted(house.backend.alone) == ["c0", "c1", "c2"]


@settling
async def test_calls_of_different_groups_or_workloads_never_share_a_trip() -> None:
    house = House()
    await asyncio.gather(
        *(house.ask(order(f"a{n}"), "a") for n in range(2)),
        *(house.ask(order(f"b{n}"), "b") for n in range(2)),
        *(house.ask(order(f"p{n}"), "a", "painter") for n in range(2)),
    )
    assert sorted(house.backend.trips) == [["a0", "a1"], ["b0", "b1"], ["p0", "p1"]]


@settling
async def test_a_trip_carries_no_more_than_a_replica_has_slots_for() -> None:
    house = House(max_group=4)
    await asyncio.gather(*(house.ask(order(f"c{n}")) for n in range(10)))
    assert [len(trip) for trip in house.backend.trips] == [4, 4, 2]


@settling
async def test_where_a_replica_has_one_slot_every_call_goes_alone() -> None:
    house = House(max_group=1)
    await asyncio.gather(*(house.ask(order(f"c{n}")) for n in range(3)))
    assert (house.backend.trips, len(house.backend.alone)) == ([], 3)


@settling
async def test_a_group_that_grows_with_every_turn_of_a_busy_loop_leaves_when_it_is_full() -> None:
    house = House(max_group=5)
    tasks = []
    for number in range(9):
        tasks.append(house.ask(order(f"c{number}")))
        await turns(1)
    await asyncio.gather(*tasks)
    assert [len(trip) for trip in house.backend.trips] == [5, 4]


@settling
async def test_a_quick_call_is_answered_while_a_companion_still_works() -> None:
    house = House()
    slow, quick = house.ask(order("slow", sleep_s=60)), house.ask(order("quick", sleep_s=1))
    began = asyncio.get_running_loop().time()
    assert (await quick).body == b"quick"
    assert asyncio.get_running_loop().time() - began == pytest.approx(1)
    assert not slow.done()
    await slow


@settling
async def test_an_error_reaches_the_call_that_it_belongs_to_and_no_other() -> None:
    house = House()
    asked = [
        order("c0"),
        order("c1", fail=True),
        order("c2", sleep_s=30, deadline_s=5),
        order("c3", sleep_s=1),
    ]
    fine, busy, late, slow = await asyncio.gather(*(house.ask(call) for call in asked), return_exceptions=True)
    assert isinstance(fine, Reply)
    assert isinstance(busy, Overloaded)
    assert str(busy) == "c1"
    assert isinstance(late, DeadlineExceeded)
    assert isinstance(slow, Reply)


@settling
async def test_a_dead_replica_reaches_every_companion_that_had_no_answer_yet() -> None:
    house = House()
    tasks = [house.ask(order(f"c{n}", sleep_s=n)) for n in range(3)]
    await asyncio.sleep(0.5)
    house.backend.kill("writer")
    first, *others = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(first, Reply)
    assert [type(other) for other in others] == [ReplicaDied, ReplicaDied]
    assert others[0] is not others[1]


@settling
async def test_a_workload_that_is_not_there_is_said_to_every_companion() -> None:
    house = House()
    tasks = [house.ask(order(f"c{n}"), workload="nobody") for n in range(2)]
    assert [type(e) for e in await asyncio.gather(*tasks, return_exceptions=True)] == [UnknownWorkload] * 2


# --- cancellation ---


@settling
async def test_a_call_cancelled_before_its_group_has_left_is_not_sent() -> None:
    house = House()
    tasks = [house.ask(order(f"c{n}")) for n in range(3)]
    await turns(1)
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert house.backend.trips == [["c0", "c2"]]


@settling
async def test_a_group_of_which_one_is_left_before_it_leaves_goes_alone() -> None:
    house = House()
    tasks = [house.ask(order(f"c{n}")) for n in range(3)]
    await turns(1)
    tasks[0].cancel()
    tasks[2].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (house.backend.trips, house.backend.alone) == ([], ["c1"])


@settling
async def test_a_group_that_everybody_left_before_it_leaves_is_not_sent() -> None:
    house = House()
    tasks = [house.ask(order(f"c{n}")) for n in range(3)]
    await turns(1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await turns(5)
    assert (house.backend.trips, house.backend.alone, house.grouper.trips) == ([], [], 0)
    assert (await house.ask(order("next"))).body == b"next"


@settling
async def test_cancelling_one_companion_ends_its_work_and_leaves_the_others_alone() -> None:
    house = House()
    tasks = [house.ask(order(f"c{n}", sleep_s=10)) for n in range(3)]
    await asyncio.sleep(5)
    tasks[1].cancel()
    replies = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(reply) for reply in replies] == [Reply, asyncio.CancelledError, Reply]
    assert house.backend.cut == ["c1"]


@settling
async def test_a_trip_whose_members_are_all_cancelled_ends() -> None:
    house = House()
    tasks = [house.ask(order(f"c{n}", sleep_s=1000)) for n in range(3)]
    await asyncio.sleep(5)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await turns(10)
    assert sorted(house.backend.cut) == ["c0", "c1", "c2"]
    assert len(asyncio.all_tasks()) == 1


@settling
async def test_a_call_cancelled_as_its_answer_arrives_harms_nobody() -> None:
    house = House()
    tasks = [house.ask(order(f"c{n}", sleep_s=10)) for n in range(2)]
    await asyncio.sleep(10)
    for number in range(8):
        tasks[0].cancel()
        await turns(number)
    reply = await tasks[1]
    assert reply.body == b"c1"
    await asyncio.gather(tasks[0], return_exceptions=True)


# --- whatever happens ---


@dataclass(frozen=True)
class Plan:
    """One call: when it is asked for, of which group, how long it works, how it ends, when its caller leaves."""

    at_s: float
    group: str | None
    workload: str
    sleep_s: float
    fail: bool
    leaves_after_s: float | None
    turns: int


plans = st.builds(
    Plan,
    at_s=st.sampled_from([0.0, 0.0, 0.0, 1.0, 2.5]),
    group=st.sampled_from([None, "a", "a", "b"]),
    workload=st.sampled_from(["writer", "painter"]),
    sleep_s=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    fail=st.booleans(),
    leaves_after_s=st.sampled_from([None, None, None, 0.0, 0.5, 1.0, 2.0]),
    turns=st.integers(0, 4),
)


@settings(max_examples=300, deadline=None)
@given(plan=st.lists(plans, max_size=14), max_group=st.integers(1, 5), slots=st.integers(1, 6))
def test_whatever_is_asked_and_cancelled_each_call_gets_its_own_end(
    plan: list[Plan], max_group: int, slots: int
) -> None:
    async def scenario() -> None:
        house = House(max_group, slots)

        async def one(number: int, wanted: Plan) -> str:
            await asyncio.sleep(wanted.at_s)
            await turns(wanted.turns)
            name = f"{number}:{wanted.workload}:{wanted.group}"
            task = house.ask(order(name, wanted.sleep_s, wanted.fail), wanted.group, wanted.workload)
            if wanted.leaves_after_s is not None:
                await asyncio.sleep(wanted.leaves_after_s)
                await turns(wanted.turns)
                task.cancel()
            (end,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(end, asyncio.CancelledError):
                assert wanted.leaves_after_s is not None
                return "left"
            if wanted.fail:
                assert isinstance(end, Overloaded)
                assert str(end) == name
                return "failed"
            assert isinstance(end, Reply)
            assert end.body == name.encode()
            return "answered"

        ends = await asyncio.gather(*(one(number, wanted) for number, wanted in enumerate(plan)))
        await turns(20)
        sent = [name for trip in house.backend.trips for name in trip] + house.backend.alone
        assert len(sent) == len(set(sent)), "nothing is sent twice"
        assert house.grouper.calls == len(sent)
        for trip in house.backend.trips:
            assert 2 <= len(trip) <= max_group
            assert len({name.split(":", 1)[1] for name in trip}) == 1
            assert not any(name.endswith(":None") for name in trip)
        assert ends.count("answered") <= len(house.backend.done)

    run(scenario(), collect=False)


@settings(max_examples=100, deadline=None)
@given(
    asked=st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 1.0, 5.0])), min_size=1, max_size=10),
    dies_at_s=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
)
def test_a_replica_that_dies_at_any_time_leaves_nobody_waiting(
    asked: list[tuple[int, float]], dies_at_s: float
) -> None:
    async def scenario() -> None:
        house = House()
        tasks = []
        for number, (pause, sleep_s) in enumerate(asked):
            await turns(pause)
            tasks.append(house.ask(order(f"c{number}", sleep_s)))
        await asyncio.sleep(dies_at_s)
        house.backend.kill("writer")
        for end in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(end, Reply | CotenantError)
        await turns(10)

    run(scenario(), collect=False)
