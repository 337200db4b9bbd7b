"""Slots by class: interactive work never waits for batch work, batch work gets what is left, nobody for ever."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.agent.memory_link import MemoryAgent
from cotenant.agent.tenancy import Tenancy
from cotenant.engines.admission import Admission
from cotenant.gpu.ledger import Ledger, Tenant
from cotenant.gpu.terms import Priority
from tests.contracts.tenancy_house import WatchedEngine, settle, terms
from tests.contracts.virtual_time import in_virtual_time, run

pytestmark = pytest.mark.unit

INTERACTIVE, BATCH = Priority.INTERACTIVE, Priority.BATCH
NAMES = ("one", "two")


class Calls:
    """Calls that stay in until they are told to go."""

    def __init__(self, slots: int) -> None:
        self.admission = Admission(slots)
        self.inside: list[str] = []
        self._free: dict[str, asyncio.Event] = {}

    def come(self, name: str, priority: Priority) -> asyncio.Task[None]:
        self._free[name] = asyncio.Event()
        return asyncio.create_task(self._call(name, priority), name=name)

    def go(self, *names: str) -> None:
        for name in names:
            self._free[name].set()

    async def _call(self, name: str, priority: Priority) -> None:
        async with self.admission.entered(priority):
            self.inside.append(name)
            try:
                await self._free[name].wait()
            finally:
                self.inside.remove(name)


@in_virtual_time
async def test_interactive_calls_enter_beside_batch_jobs_that_fill_the_slots() -> None:
    calls = Calls(2)
    tasks = [calls.come(name, BATCH) for name in ("a", "b", "c")]
    await settle()
    tasks += [calls.come(name, INTERACTIVE) for name in ("x", "y", "z")]
    await settle()
    assert calls.inside == ["a", "b", "x", "y"]
    assert (calls.admission.waiting(INTERACTIVE), calls.admission.waiting(BATCH)) == (1, 1)
    assert (calls.admission.inside(INTERACTIVE), calls.admission.inside(BATCH)) == (2, 2)
    calls.go("a", "x")
    await settle()
    assert calls.inside == ["b", "y", "z"], "the batch job waits until fewer than two calls are in"
    calls.go("y", "z")
    await settle()
    assert calls.inside == ["b", "c"]
    calls.go("b", "c")
    await asyncio.gather(*tasks)


@in_virtual_time
async def test_each_class_is_served_oldest_first_and_interactive_before_batch() -> None:
    calls = Calls(1)
    order = [("x", INTERACTIVE), ("a", BATCH), ("b", BATCH), ("y", INTERACTIVE), ("z", INTERACTIVE)]
    tasks = [calls.come(name, priority) for name, priority in order]
    served = []
    for _ in order:
        await settle()
        served += calls.inside
        calls.go(*calls.inside)
    await asyncio.gather(*tasks)
    assert served == ["x", "y", "z", "a", "b"]


@in_virtual_time
async def test_a_newcomer_does_not_overtake_one_of_its_class_that_was_just_let_in() -> None:
    calls = Calls(1)
    first, second = calls.come("x", INTERACTIVE), calls.come("y", INTERACTIVE)
    await settle()
    calls.go("x")
    await first
    third = calls.come("z", INTERACTIVE)
    await settle()
    assert calls.inside == ["y"]
    calls.go("y", "z")
    await asyncio.gather(second, third)


@in_virtual_time
async def test_a_caller_that_goes_away_while_it_waits_or_as_it_is_let_in_costs_no_slot() -> None:
    calls = Calls(1)
    holds, leaves, late, stays = (calls.come(name, INTERACTIVE) for name in ("x", "y", "late", "z"))
    await settle()
    leaves.cancel()
    await settle()
    assert calls.admission.waiting(INTERACTIVE) == 2
    calls.go("x")
    await holds  # "late" has its place now, but has not run yet
    late.cancel()
    await settle()
    assert calls.inside == ["z"]
    calls.go("z")
    await asyncio.gather(leaves, late, stays, return_exceptions=True)
    assert (calls.admission.inside(INTERACTIVE), calls.admission.waiting(INTERACTIVE)) == (0, 0)


@in_virtual_time
async def test_a_waiter_cancelled_in_the_very_step_in_which_a_slot_falls_free_leaves_it_to_the_next() -> None:
    calls = Calls(1)
    holds, leaves, stays = (calls.come(name, BATCH) for name in ("a", "b", "c"))
    await settle()
    calls.go("a")
    leaves.cancel()
    await asyncio.gather(holds, leaves, return_exceptions=True)
    await settle()
    assert calls.inside == ["c"]
    calls.go("c")
    await stays


def test_a_replica_without_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one slot"):
        Admission(0)


@dataclass(frozen=True)
class Visit:
    at: float
    seconds: float
    priority: Priority
    leaves_after: float | None
    hops: int = 0


quarters = st.integers(0, 16).map(lambda quarter: quarter / 4)
visits = st.lists(
    st.builds(
        Visit,
        at=quarters,
        seconds=quarters,
        priority=st.sampled_from(Priority),
        leaves_after=st.none() | quarters,
        hops=st.integers(0, 4),
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=200, deadline=None)
@given(slots=st.integers(1, 3), chosen=visits)
def test_under_any_interleaving_no_room_is_wasted_and_none_is_overdrawn(slots: int, chosen: list[Visit]) -> None:
    async def scenario() -> None:
        admission = Admission(slots)

        def check() -> None:
            interactive, batch = admission.inside(INTERACTIVE), admission.inside(BATCH)
            assert interactive <= slots
            assert batch <= slots
            if admission.waiting(INTERACTIVE):
                assert interactive == slots, "an interactive call waits although there is a slot"
            if admission.waiting(BATCH):
                assert interactive + batch >= slots, "a batch job waits although there is a slot"

        async def visit(each: Visit) -> None:
            await asyncio.sleep(each.at)
            for _ in range(each.hops):
                await asyncio.sleep(0)
            async with admission.entered(each.priority):
                check()
                await asyncio.sleep(each.seconds)
            check()

        async def caller(each: Visit) -> None:
            task = asyncio.create_task(visit(each))
            if each.leaves_after is not None:
                await asyncio.wait([task], timeout=each.at + each.leaves_after)
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled() or task.exception() is None, task.exception()
            check()

        await asyncio.gather(*(caller(each) for each in chosen))
        assert [admission.inside(each) + admission.waiting(each) for each in Priority] == [0, 0]

    run(scenario(), collect=False)


@settings(max_examples=60, deadline=None)
@given(chosen=visits, recalls=st.lists(quarters, max_size=4), slots=st.integers(1, 2))
def test_slots_before_leases_serve_everybody_while_engines_sleep_and_wake(
    chosen: list[Visit], recalls: list[float], slots: int
) -> None:
    """Two replicas of which only one can be awake, their leases recalled now and then: no deadlock, no misuse."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        agent = MemoryAgent(Ledger(12, min_hold_s=0.5, patience_s=2.0, remind_s=4.0), clock=loop.time)
        engines = [WatchedEngine(wake_s=repeat(0.25), sleep_s=repeat(0.25)) for _ in NAMES]
        admissions = [Admission(slots) for _ in NAMES]
        tenancies: list[Tenancy] = []
        for number, name in enumerate(NAMES):
            link = agent.join(Tenant(name, 10, 1, 0.25, False), lambda _, number=number: tenancies[number].recall())
            tenancies.append(Tenancy(terms(workload=name, idle_s=0.5), engines[number], link, clock=loop.time))
        await asyncio.gather(*(tenancy.start() for tenancy in tenancies))

        async def caller(number: int, each: Visit) -> None:
            await asyncio.sleep(each.at)
            async with admissions[number % 2].entered(each.priority), tenancies[number % 2].lease(each.priority):
                await engines[number % 2].work(each.seconds)

        async def recaller(at: float) -> None:
            await asyncio.sleep(at)
            for tenancy in tenancies:
                tenancy.recall()

        await asyncio.gather(*(caller(*each) for each in enumerate(chosen)), *(recaller(at) for at in recalls))
        assert [engine.misuse for engine in engines] == [[], []]
        await asyncio.sleep(20)
        for tenancy in tenancies:
            assert tenancy.broken() is None
            await tenancy.close()

    run(scenario(), collect=False)
