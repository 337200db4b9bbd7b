"""A replica's tenancy: calls wait for the engine, and the engine keeps within its lease."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cotenant.agent.tenancy import Tenancy, Wakes
from cotenant.gpu.terms import Tier
from tests.contracts.tenancy_house import (
    BATCH,
    IDLE_S,
    INTERACTIVE,
    SLEEP_S,
    WAKE_S,
    House,
    ScriptedLink,
    WatchedEngine,
    house,
    settle,
    terms,
)
from tests.contracts.virtual_time import in_virtual_time

pytestmark = pytest.mark.unit


def now() -> float:
    return asyncio.get_running_loop().time()


async def asleep(**kwargs: float) -> House:
    """A tenancy whose engine was loaded and sleeps, with nothing said yet."""
    home = house(**kwargs)  # type: ignore[arg-type]
    await home.tenancy.start()
    home.tenancy.recall()
    await asyncio.sleep(SLEEP_S)
    await settle()
    assert home.tenancy.tier is Tier.ASLEEP
    home.link.said.clear()
    home.engine.log.clear()
    return home


async def step(awaitable: object) -> bool:
    """Run the first step of an awaitable by hand; whether it was over with that."""
    try:
        awaitable.__await__().send(None)  # type: ignore[attr-defined]
    except StopIteration:
        return True
    return False


# Residency.


@in_virtual_time
async def test_a_lease_of_an_always_resident_engine_costs_no_await_and_no_message() -> None:
    home = house("always")
    await home.tenancy.start()
    home.link.said.clear()
    lease = home.tenancy.lease(INTERACTIVE)
    assert await step(lease.__aenter__())
    assert home.tenancy.running == 1
    assert await step(lease.__aexit__(None, None, None))
    assert home.tenancy.running == 0
    await asyncio.sleep(10 * IDLE_S)
    assert home.link.said == []
    assert home.tenancy.tier is Tier.RESIDENT
    await home.tenancy.close()


@in_virtual_time
async def test_an_always_resident_engine_is_loaded_once_granted_and_never_recalled() -> None:
    home = house("always", link=ScriptedLink(grants=False))
    start = asyncio.create_task(home.tenancy.start())
    await asyncio.sleep(100)
    assert home.engine.log == []
    home.link.grant()
    await start
    home.tenancy.recall()
    await asyncio.sleep(100)
    assert home.engine.log == ["resident"]
    assert home.link.said == ["ask interactive"]
    await home.tenancy.close()


@in_virtual_time
async def test_start_loads_a_sleeper_and_the_agent_hears_that_it_is_idle() -> None:
    home = house("sleep")
    await home.tenancy.start()
    assert home.tenancy.tier is Tier.RESIDENT
    assert home.link.said == ["ask interactive", "busy interactive", "idle"]
    await home.tenancy.close()


@in_virtual_time
async def test_start_of_an_on_demand_workload_loads_nothing() -> None:
    home = house("on-demand")
    await home.tenancy.start()
    await asyncio.sleep(10 * IDLE_S)
    assert (home.tenancy.tier, home.engine.log, home.link.said) == (Tier.COLD, [], [])
    await home.tenancy.close()


@in_virtual_time
async def test_an_on_demand_engine_loads_for_a_call_and_goes_cold_when_idle() -> None:
    home = house("on-demand")
    await home.tenancy.start()
    assert await home.call(3.0) == WAKE_S
    await asyncio.sleep(IDLE_S + SLEEP_S)
    await settle()
    assert home.tenancy.tier is Tier.COLD
    assert home.engine.log == ["resident", "cold"]
    assert home.tenancy.wakes == Wakes(woken=0, loaded=1, slept=1, last_wake_s=WAKE_S)
    await home.call(1.0)
    assert home.tenancy.wakes == Wakes(woken=0, loaded=2, slept=1, last_wake_s=WAKE_S)
    await home.tenancy.close()


@in_virtual_time
async def test_a_sleeper_goes_to_sleep_after_idle_s_of_no_work_and_no_sooner() -> None:
    home = house()
    await home.tenancy.start()
    await asyncio.sleep(IDLE_S - 1)
    await home.call(5.0)  # used again just before
    ended = now()
    await asyncio.sleep(IDLE_S - 0.5)
    assert home.tenancy.tier is Tier.RESIDENT
    await asyncio.sleep(0.5 + SLEEP_S)
    await settle()
    assert home.tenancy.tier is Tier.ASLEEP
    assert now() == ended + IDLE_S + SLEEP_S
    assert home.link.said[-1] == "slept"
    await asyncio.sleep(10 * IDLE_S)
    assert home.link.said.count("slept") == 1
    assert home.tenancy.wakes == Wakes(woken=0, loaded=1, slept=1, last_wake_s=WAKE_S)
    await home.tenancy.close()


@in_virtual_time
async def test_work_that_takes_longer_than_idle_s_keeps_the_engine_awake() -> None:
    home = house()
    await home.tenancy.start()
    long = home.spawn(5 * IDLE_S)
    await asyncio.sleep(4 * IDLE_S)
    assert home.tenancy.running == 1
    await long
    assert home.engine.log == ["resident"]
    await home.tenancy.close()


@in_virtual_time
async def test_loads_from_cold_take_their_turn_and_wakes_do_not() -> None:
    turn = asyncio.Lock()
    entered = 0

    @asynccontextmanager
    async def take_turn() -> AsyncIterator[None]:
        nonlocal entered
        async with turn:
            entered += 1
            yield

    home = house()
    home.tenancy = Tenancy(terms(), home.engine, home.link, turn=take_turn, clock=now)
    async with turn:
        start = asyncio.create_task(home.tenancy.start())
        await asyncio.sleep(100)
        assert home.engine.moving is False
        assert home.link.said == ["ask interactive"], "the turn comes after the grant"
    await start
    assert (entered, home.tenancy.wakes.last_wake_s) == (1, WAKE_S)
    home.tenancy.recall()
    await settle()
    await home.call()
    assert (entered, home.tenancy.wakes) == (1, Wakes(woken=1, loaded=1, slept=1, last_wake_s=WAKE_S))
    await home.tenancy.close()


# Waiting.


@in_virtual_time
async def test_many_callers_wait_for_one_wake_and_are_all_served_by_it() -> None:
    home = await asleep()
    began = now()
    calls = [home.spawn(3.0, BATCH) for _ in range(50)] + [home.spawn(3.0, INTERACTIVE) for _ in range(50)]
    await settle()
    assert (home.tenancy.waiting, home.tenancy.running) == (100, 0)
    assert set(await asyncio.gather(*calls)) == {began + WAKE_S}
    assert home.engine.log == ["resident"]
    assert home.link.said == ["ask interactive", "busy interactive", "busy batch", "idle"]
    assert home.tenancy.wakes.woken == 1
    assert (home.tenancy.waiting, home.tenancy.running) == (0, 0)
    await home.tenancy.close()


@in_virtual_time
async def test_the_agent_hears_of_the_most_urgent_work_and_only_of_changes() -> None:
    home = house()
    await home.tenancy.start()
    home.link.said.clear()
    calls = [home.spawn(9.0, BATCH), home.spawn(1.0, INTERACTIVE), home.spawn(2.0, INTERACTIVE), home.spawn(3.0, BATCH)]
    await asyncio.gather(*calls)
    assert home.link.said == ["busy batch", "busy interactive", "busy batch", "idle"]
    await home.tenancy.close()


@in_virtual_time
async def test_a_wake_for_both_kinds_of_work_is_never_told_as_batch_work() -> None:
    """Else the agent would take the lease from it for any interactive caller of another workload."""
    home = await asleep()
    await asyncio.gather(home.spawn(5.0, BATCH), home.spawn(4.0, INTERACTIVE))
    assert home.link.said == ["ask interactive", "busy interactive", "busy batch", "idle"]
    await home.tenancy.close()


@in_virtual_time
async def test_an_interactive_caller_raises_a_waiting_batch_ask_which_keeps_its_place() -> None:
    home = await asleep()
    home.link.grants = False
    batch = [home.spawn(1.0, BATCH), home.spawn(1.0, BATCH)]
    await settle()
    assert home.link.said == ["ask batch"]
    interactive = [home.spawn(1.0), home.spawn(1.0)]
    await settle()
    assert home.link.said == ["ask batch", "ask interactive"], "raised, without a withdraw between"
    assert home.link.asks == 2
    home.link.grant()
    await asyncio.gather(*batch, *interactive)
    assert home.link.asks == 0
    assert home.link.said == ["ask batch", "ask interactive", "busy interactive", "idle"]
    await home.tenancy.close()


@in_virtual_time
async def test_a_batch_caller_behind_an_interactive_one_asks_for_nothing_more() -> None:
    home = await asleep()
    home.link.grants = False
    interactive, batch = home.spawn(1.0), home.spawn(1.0, BATCH)
    await settle()
    interactive.cancel()
    await settle()
    assert home.link.said == ["ask interactive"]
    home.link.grant()
    await batch
    assert home.link.said == ["ask interactive", "busy batch", "idle"]
    await home.tenancy.close()


# Callers that go away.


@in_virtual_time
async def test_when_all_callers_went_away_the_wish_is_withdrawn() -> None:
    home = await asleep()
    home.link.grants = False
    calls = [home.spawn(1.0, BATCH)]
    await settle()
    calls.append(home.spawn(1.0))
    await settle()
    calls[0].cancel()
    await settle()
    assert (home.link.asks, home.tenancy.waiting) == (2, 1), "one still waits"
    calls[1].cancel()
    await settle()
    assert (home.link.asks, home.tenancy.waiting) == (0, 0)
    assert home.link.said == ["ask batch", "ask interactive", "withdraw"]
    home.link.grants = True
    await home.call()
    assert home.engine.log == ["resident"]
    await home.tenancy.close()


@pytest.mark.parametrize("grant_first", [True, False], ids=["granted, then gone", "gone, then granted"])
@in_virtual_time
async def test_a_grant_at_the_moment_in_which_the_last_caller_goes_is_given_back(grant_first: bool) -> None:
    home = await asleep()
    home.link.grants = False
    call = home.spawn()
    await settle()
    if grant_first:
        home.link.grant()
        call.cancel()
    else:
        call.cancel()
        home.link.grant()
    await settle()
    assert home.link.said == ["ask interactive", "slept"]
    assert home.engine.log == []
    home.link.grants = True
    await home.call()
    await home.tenancy.close()


@pytest.mark.parametrize("hops", range(8))
@in_virtual_time
async def test_no_wake_begins_for_a_caller_that_is_gone(hops: int) -> None:
    home = await asleep()
    home.link.grants = False
    call = home.spawn()
    await settle()
    home.link.grant()
    for _ in range(hops):
        await asyncio.sleep(0)
    began = home.engine.moving
    call.cancel()
    await settle()
    assert home.engine.moving is began
    assert home.link.said == ["ask interactive"] + ["slept"] * (not began)
    assert began or hops < 7
    await home.tenancy.close()


@in_virtual_time
async def test_callers_that_go_while_it_wakes_leave_it_awake_and_idle() -> None:
    home = await asleep()
    await asyncio.sleep(10 * IDLE_S)
    call = home.spawn()
    await asyncio.sleep(WAKE_S / 2)
    call.cancel()
    await asyncio.sleep(WAKE_S / 2 + IDLE_S - 1)
    assert home.tenancy.tier is Tier.RESIDENT
    assert home.link.said == ["ask interactive", "idle"]
    await asyncio.sleep(1 + SLEEP_S)
    await settle()
    assert home.link.said == ["ask interactive", "idle", "slept"]
    await home.tenancy.close()


@pytest.mark.parametrize("hops", range(8))
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "with another"])
@in_virtual_time
async def test_a_caller_that_goes_around_the_moment_of_its_admission_leaves_nothing_at_work(
    hops: int, alone: bool
) -> None:
    home = await asleep()
    worked = False

    async def call() -> None:
        nonlocal worked
        async with home.tenancy.lease(INTERACTIVE):
            worked = True
            await home.engine.work(1.0)

    gone = asyncio.create_task(call())
    others = [] if alone else [home.spawn(4.0)]

    async def cancel() -> None:
        await woken.wait()
        for _ in range(hops):
            await asyncio.sleep(0)
        gone.cancel()

    woken = asyncio.Event()
    home.engine.on_tier = lambda tier, moving: None if moving else woken.set()
    await asyncio.gather(cancel(), gone, *others, return_exceptions=True)
    await settle()
    assert gone.cancelled()
    assert (home.tenancy.running, home.tenancy.waiting) == (0, 0)
    assert worked or hops < 7, "the last of them comes after admission"
    assert home.tenancy.tier is Tier.RESIDENT
    assert home.link.said[-1] == "idle"
    await home.tenancy.close()


@in_virtual_time
async def test_callers_that_go_while_a_load_awaits_its_turn_spare_the_load() -> None:
    turn = asyncio.Lock()

    @asynccontextmanager
    async def take_turn() -> AsyncIterator[None]:
        async with turn:
            yield

    home = house("on-demand")
    home.tenancy = Tenancy(terms("on-demand"), home.engine, home.link, turn=take_turn, clock=now)
    await home.tenancy.start()
    async with turn:
        call = home.spawn()
        await settle()
        assert home.link.said == ["ask interactive"]
        call.cancel()
    await settle()
    assert home.link.said == ["ask interactive", "slept"]
    assert home.engine.log == []
    async with turn:
        home.link.grants = False
        call = home.spawn()
        await settle()
        home.link.grant()
        call.cancel()
        await settle()
        assert home.link.said[2:] == ["ask interactive", "slept"], "no turn is waited for in vain"
    home.link.grants = True
    await home.call()
    await home.tenancy.close()


# Recalls.


@in_virtual_time
async def test_a_recall_at_work_lets_that_work_finish_sleeps_and_asks_anew_for_those_who_came_later() -> None:
    home = house()
    await home.tenancy.start()
    home.link.said.clear()
    began = now()
    first = home.spawn(10.0)
    await settle()
    home.tenancy.recall()
    later = home.spawn(1.0, BATCH)
    await asyncio.sleep(5.0)
    assert (home.tenancy.running, home.tenancy.waiting) == (1, 1)
    home.tenancy.recall()  # a reminder
    assert await first == began
    assert await later == began + 10.0 + SLEEP_S + WAKE_S
    assert home.link.said == ["busy interactive", "idle", "slept", "ask batch", "busy batch", "idle"]
    assert home.engine.log == ["resident", "asleep", "resident"]
    await asyncio.sleep(IDLE_S / 2)
    assert home.tenancy.tier is Tier.RESIDENT, "the reminder was for the lease given back"
    await home.tenancy.close()


@in_virtual_time
async def test_a_recall_of_an_idle_engine_puts_it_to_sleep_at_once() -> None:
    home = house()
    await home.tenancy.start()
    await settle()
    home.tenancy.recall()
    home.tenancy.recall()
    await asyncio.sleep(SLEEP_S)
    await settle()
    assert home.engine.log == ["resident", "asleep"]
    assert home.link.said.count("slept") == 1
    await home.tenancy.close()


@in_virtual_time
async def test_a_recall_while_it_wakes_waits_for_those_whom_the_wake_is_for() -> None:
    home = await asleep()
    began = now()
    call = home.spawn(4.0)
    await asyncio.sleep(WAKE_S / 2)
    home.tenancy.recall()
    late = home.spawn(2.0)
    assert await call == began + WAKE_S
    assert await late == began + WAKE_S, "it came before the wake was over"
    await asyncio.sleep(SLEEP_S)
    await settle()
    assert home.link.said == ["ask interactive", "busy interactive", "idle", "slept"]
    await home.tenancy.close()


@in_virtual_time
async def test_a_recall_while_it_wakes_for_nobody_any_more_puts_it_back_to_sleep() -> None:
    home = await asleep()
    call = home.spawn()
    await asyncio.sleep(WAKE_S / 2)
    call.cancel()
    home.tenancy.recall()
    await asyncio.sleep(WAKE_S / 2 + SLEEP_S)
    await settle()
    assert home.engine.log == ["resident", "asleep"]
    assert home.link.said == ["ask interactive", "idle", "slept"]
    await home.tenancy.close()


@in_virtual_time
async def test_a_recall_while_asleep_or_falling_asleep_is_of_no_account() -> None:
    home = house()
    await home.tenancy.start()
    home.tenancy.recall()
    await asyncio.sleep(SLEEP_S / 2)
    home.tenancy.recall()
    await asyncio.sleep(SLEEP_S)
    home.tenancy.recall()
    await settle()
    assert home.engine.log == ["resident", "asleep"]
    await home.call()
    await asyncio.sleep(IDLE_S / 2)
    assert home.tenancy.tier is Tier.RESIDENT
    await home.tenancy.close()


@in_virtual_time
async def test_a_recall_read_together_with_the_grant_is_obeyed_after_the_wake() -> None:
    home = await asleep()
    home.link.grants = False
    call = home.spawn(4.0)
    await settle()
    home.link.grant()
    home.tenancy.recall()
    await call
    await asyncio.sleep(SLEEP_S)
    await settle()
    assert home.engine.log == ["resident", "asleep"]
    await home.tenancy.close()


@in_virtual_time
async def test_a_call_that_comes_while_the_engine_falls_asleep_waits_and_wakes_it() -> None:
    home = house()
    await home.tenancy.start()
    await asyncio.sleep(IDLE_S + SLEEP_S / 2)
    assert home.engine.moving
    fell = now() + SLEEP_S / 2
    assert await home.call() == fell + WAKE_S
    assert home.engine.log == ["resident", "asleep", "resident"]
    await home.tenancy.close()


# Ends.


@in_virtual_time
async def test_close_fails_those_who_wait_and_lets_those_at_work_finish() -> None:
    home = house()
    await home.tenancy.start()
    at_work = home.spawn(10.0)
    await settle()
    home.tenancy.recall()
    waits = home.spawn()
    await settle()
    await home.tenancy.close()
    await settle()
    assert "painter is shutting down" in str(waits.exception())
    with pytest.raises(Exception, match="shutting down"):
        await home.call()
    await at_work
    assert home.tenancy.broken() is None
    await home.tenancy.close()


@in_virtual_time
async def test_close_while_it_wakes_fails_those_who_wait_for_it() -> None:
    home = await asleep()
    call = home.spawn()
    await asyncio.sleep(WAKE_S / 2)
    await home.tenancy.close()
    await settle()
    assert "shutting down" in str(call.exception())
    assert not home.engine.moving
    assert "slept" not in home.link.said, "memory may be held"
    assert home.tenancy.broken() is None


@pytest.mark.parametrize("granted", [True, False], ids=["granted", "not yet granted"])
@in_virtual_time
async def test_close_while_it_asks_holds_nothing(granted: bool) -> None:
    home = await asleep()
    home.link.grants = False
    call = home.spawn()
    await settle()
    if granted:
        home.link.grant()
        await asyncio.sleep(0)
    await home.tenancy.close()
    await settle()
    assert "shutting down" in str(call.exception())
    assert home.link.said == ["ask interactive", "slept" if granted else "withdraw"]


@pytest.mark.parametrize("hops", range(4))
@in_virtual_time
async def test_close_at_the_moment_at_which_a_call_ends_does_not_hang(hops: int) -> None:
    """`asyncio.wait_for` of Python 3.11 loses a cancellation that comes as what it waits for is done."""
    home = house()
    await home.tenancy.start()
    call = home.spawn(1.0)
    await call
    for _ in range(hops):
        await asyncio.sleep(0)
    await home.tenancy.close()
    assert home.tenancy.tier is Tier.RESIDENT


@in_virtual_time
async def test_close_before_and_right_after_start_leaves_nothing_behind() -> None:
    home = house("on-demand")
    early = home.spawn()
    await settle()
    await home.tenancy.close()
    with pytest.raises(Exception, match="shutting down"):
        await early
    home = house("on-demand")
    await home.tenancy.start()
    await home.tenancy.close()
    with pytest.raises(Exception, match="shutting down"):
        await home.call()


@in_virtual_time
async def test_a_start_that_is_cancelled_leaves_nothing_behind() -> None:
    home = house(link=ScriptedLink(grants=False))
    start = asyncio.create_task(home.tenancy.start())
    await settle()
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert home.link.said == ["ask interactive", "withdraw"]


@in_virtual_time
async def test_an_error_inside_a_lease_ends_it_and_is_the_callers() -> None:
    home = house(engine=WatchedEngine())
    await home.tenancy.start()
    with pytest.raises(ZeroDivisionError):
        async with home.tenancy.lease(BATCH):
            raise ZeroDivisionError
    assert home.tenancy.running == 0
    assert home.tenancy.broken() is None
    await home.tenancy.close()
