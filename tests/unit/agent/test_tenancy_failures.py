"""A replica's tenancy when something fails: nobody waits in vain, and no lease is given back that is still used."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cotenant.agent.tenancy import MAX_FAILURES, Tenancy, Wakes
from cotenant.errors import EnvironmentFault, NoRoom, WorkloadUnavailable
from cotenant.gpu.terms import Tier
from tests.contracts.tenancy_house import BATCH, IDLE_S, SLEEP_S, WAKE_S, WatchedEngine, house, settle, terms
from tests.contracts.virtual_time import in_virtual_time

pytestmark = pytest.mark.unit


@in_virtual_time
async def test_start_raises_what_the_engine_raised_as_the_cause() -> None:
    error = RuntimeError("no such weights")
    home = house(engine=WatchedEngine(wake_fails=[error]))
    with pytest.raises(WorkloadUnavailable, match="painter did not wake: RuntimeError: no such weights") as caught:
        await home.tenancy.start()
    assert caught.value.__cause__ is error
    assert home.engine.log == ["failed to be resident", "cold"]
    assert home.link.said == ["ask interactive", "slept"]


@in_virtual_time
async def test_an_error_of_our_own_reaches_the_caller_as_it_is() -> None:
    error = EnvironmentFault("weights are missing; fetch them")
    home = house("always", engine=WatchedEngine(wake_fails=[error]))
    with pytest.raises(EnvironmentFault) as caught:
        await home.tenancy.start()
    assert caught.value is error
    assert home.link.said == ["ask interactive"], "what is pinned is not given back"


@in_virtual_time
async def test_a_failed_wake_fails_all_who_wait_gives_the_memory_back_and_the_next_call_tries_again() -> None:
    home = house("on-demand", engine=WatchedEngine(wake_fails=[OSError("disk")]))
    await home.tenancy.start()
    calls = [home.spawn(), home.spawn(1.0, BATCH)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [str(result) for result in results] == ["painter did not wake: OSError: disk"] * 2
    assert home.tenancy.tier is Tier.COLD
    assert home.link.said == ["ask interactive", "slept"]
    assert home.tenancy.wakes == Wakes()
    await home.call()
    assert home.tenancy.wakes == Wakes(loaded=1, last_wake_s=WAKE_S)
    assert home.tenancy.broken() is None
    await home.tenancy.close()


@in_virtual_time
async def test_a_sleeper_that_fails_to_wake_is_cold_and_loads_the_next_time() -> None:
    home = house()
    await home.tenancy.start()
    await asyncio.sleep(IDLE_S + SLEEP_S)
    home.engine.wake_fails = [MemoryError()]
    with pytest.raises(WorkloadUnavailable):
        await home.call()
    assert home.tenancy.tier is Tier.COLD
    await home.call()
    assert home.tenancy.wakes == Wakes(woken=0, loaded=2, slept=1, last_wake_s=WAKE_S)
    await home.tenancy.close()


@in_virtual_time
async def test_wakes_that_fail_in_a_row_are_a_broken_replica_and_one_that_succeeds_mends_it() -> None:
    fails: list[BaseException | None] = [OSError(), OSError(), None, *[OSError("disk")] * MAX_FAILURES]
    home = house("on-demand", engine=WatchedEngine(wake_fails=fails))
    await home.tenancy.start()
    for failed in fails[:3]:
        result = await asyncio.gather(home.call(), return_exceptions=True)
        assert isinstance(result[0], WorkloadUnavailable) is (failed is not None)
        assert home.tenancy.broken() is None
    home.tenancy.recall()
    for _ in range(MAX_FAILURES):
        assert home.tenancy.broken() is None
        with pytest.raises(WorkloadUnavailable):
            await home.call()
    assert home.tenancy.broken() == "the engine failed to wake 3 times in a row: OSError: disk"
    await home.call()
    assert home.tenancy.broken() is None
    await home.tenancy.close()


@in_virtual_time
async def test_memory_that_a_failed_wake_does_not_give_back_stays_leased_and_the_replica_is_broken() -> None:
    wake, sleep = RuntimeError("out of memory"), RuntimeError("worker is gone")
    home = house("on-demand", engine=WatchedEngine(wake_fails=[wake], sleep_fails=[sleep]))
    await home.tenancy.start()
    with pytest.raises(WorkloadUnavailable, match="out of memory") as caught:
        await home.call()
    assert caught.value.__cause__ is wake
    assert home.link.said == ["ask interactive"]
    broken = home.tenancy.broken()
    assert broken is not None
    assert "out of memory" in broken
    assert "worker is gone" in broken
    with pytest.raises(WorkloadUnavailable, match="painter can't go on: its engine did not wake"):
        await home.call()
    assert home.link.said == ["ask interactive"], "it does not try again"
    await home.tenancy.close()
    assert home.tenancy.broken() == broken


@pytest.mark.parametrize("recalled", [True, False])
@in_virtual_time
async def test_an_engine_that_does_not_sleep_keeps_its_lease_and_takes_no_more_calls(recalled: bool) -> None:
    home = house(engine=WatchedEngine(sleep_fails=[RuntimeError("worker is gone")]))
    await home.tenancy.start()
    if recalled:
        home.tenancy.recall()
    else:
        await asyncio.sleep(IDLE_S)
    await settle()
    assert home.engine.moving
    waits = home.spawn()
    await asyncio.sleep(SLEEP_S)
    await settle()
    assert "painter can't go on" in str(waits.exception())
    assert home.tenancy.broken() == "its engine did not sleep: RuntimeError: worker is gone"
    assert "slept" not in home.link.said
    with pytest.raises(WorkloadUnavailable):
        await home.call()
    await home.tenancy.close()


@in_virtual_time
async def test_what_the_agent_refuses_is_told_to_all_who_wait_and_asked_again_for_the_next() -> None:
    home = house("on-demand")
    await home.tenancy.start()
    home.link.refuses = NoRoom("5 GiB needed, 3 to be had")
    calls = [home.spawn(), home.spawn()]
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert [str(error) for error in errors] == ["painter gets no GPU memory: 5 GiB needed, 3 to be had"] * 2
    assert isinstance(errors[0], WorkloadUnavailable)
    assert errors[0].__cause__ is home.link.refuses
    home.link.refuses = None
    await home.call()
    assert home.tenancy.broken() is None
    await home.tenancy.close()


@in_virtual_time
async def test_a_refusal_of_one_ask_withdraws_the_other() -> None:
    home = house("on-demand")
    await home.tenancy.start()
    home.link.grants = False
    calls = [home.spawn(1.0, BATCH)]
    await settle()
    calls.append(home.spawn())
    await settle()
    home.link.refuse(NoRoom("none"))
    await asyncio.gather(*calls, return_exceptions=True)
    assert home.link.asks == 0
    assert home.link.said == ["ask batch", "ask interactive", "withdraw"]
    await home.tenancy.close()


@in_virtual_time
async def test_a_grant_that_comes_with_a_refusal_is_given_back() -> None:
    home = house("on-demand")
    await home.tenancy.start()
    home.link.grants = False
    batch = home.spawn(1.0, BATCH)
    await settle()
    interactive = home.spawn()
    await settle()
    home.link.refuse(NoRoom("none"))
    home.link.grant()
    await asyncio.gather(batch, interactive, return_exceptions=True)
    assert isinstance(batch.exception(), WorkloadUnavailable)
    assert home.link.said == ["ask batch", "ask interactive", "slept"]
    assert home.engine.log == []
    await home.tenancy.close()


@in_virtual_time
async def test_a_link_that_fails_in_no_known_way_breaks_the_replica_and_tells_all_who_wait() -> None:
    home = house("on-demand")
    await home.tenancy.start()
    home.link.refuses = OSError("broken pipe")
    with pytest.raises(WorkloadUnavailable, match="can't go on"):
        await home.call()
    assert home.tenancy.broken() == "its tenancy's driver failed: OSError: broken pipe"
    with pytest.raises(WorkloadUnavailable, match="broken pipe"):
        await home.call()
    await home.tenancy.close()


@in_virtual_time
async def test_an_engine_that_cancels_its_own_wake_breaks_the_replica() -> None:
    home = house("on-demand", engine=WatchedEngine(wake_fails=[asyncio.CancelledError()]))
    await home.tenancy.start()
    with pytest.raises(WorkloadUnavailable, match="can't go on"):
        await home.call()
    assert home.tenancy.broken() == "its tenancy's driver was cancelled"
    assert "slept" not in home.link.said
    await home.tenancy.close()


@in_virtual_time
async def test_an_engine_that_swallows_its_cancellation_can_be_closed() -> None:
    class Stubborn(WatchedEngine):
        async def wake(self) -> None:
            try:
                await super().wake()
            except asyncio.CancelledError:
                self.log.append("swallowed")

    home = house("on-demand", engine=Stubborn())
    await home.tenancy.start()
    call = home.spawn()
    await asyncio.sleep(WAKE_S / 2)
    await home.tenancy.close()
    await asyncio.gather(call, return_exceptions=True)
    assert home.engine.log == ["swallowed"]


@in_virtual_time
async def test_a_turn_that_can_t_be_taken_is_a_wake_that_failed() -> None:
    @asynccontextmanager
    async def no_turn() -> AsyncIterator[None]:
        raise EnvironmentFault("the agents' folder is not ours")
        yield

    home = house("on-demand")
    home.tenancy = Tenancy(terms("on-demand"), home.engine, home.link, turn=no_turn)
    await home.tenancy.start()
    with pytest.raises(EnvironmentFault):
        await home.call()
    assert home.link.said == ["ask interactive", "slept"]
    await home.tenancy.close()


@in_virtual_time
async def test_callers_that_went_away_before_a_wake_failed_leave_no_error_unseen() -> None:
    home = house("on-demand", engine=WatchedEngine(wake_fails=[OSError("disk")]))
    await home.tenancy.start()
    gone = home.spawn()
    told = home.spawn()
    await settle()
    asyncio.get_running_loop().call_later(WAKE_S + SLEEP_S, gone.cancel)
    await asyncio.gather(gone, told, return_exceptions=True)
    assert isinstance(told.exception(), WorkloadUnavailable)
    await home.tenancy.close()


@in_virtual_time
async def test_failures_are_logged_with_the_workload(caplog: pytest.LogCaptureFixture) -> None:
    home = house("on-demand", engine=WatchedEngine(wake_fails=[OSError("disk")], sleep_fails=[OSError("stuck")]))
    await home.tenancy.start()
    with caplog.at_level(logging.INFO, "cotenant.tenancy"):
        await asyncio.gather(home.call(), return_exceptions=True)
    assert [record.message for record in caplog.records] == ["wake_failed", "tenancy_broke"]
    assert [getattr(record, "fields", {})["workload"] for record in caplog.records] == ["painter"] * 2
    await home.tenancy.close()
