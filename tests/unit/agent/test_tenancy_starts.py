"""What a tenancy records of its loads and wakes: what was waited for, and nothing of what came to nothing."""

from __future__ import annotations

import asyncio

import pytest

from cotenant.errors import WorkloadUnavailable
from tests.contracts.tenancy_house import IDLE_S, SLEEP_S, WAKE_S, ScriptedLink, WatchedEngine, house, settle
from tests.contracts.virtual_time import in_virtual_time

pytestmark = pytest.mark.unit


@in_virtual_time
async def test_a_load_and_a_wake_are_recorded_with_what_they_waited_for() -> None:
    home = house(link=ScriptedLink(grants=False))
    started = asyncio.create_task(home.tenancy.start())
    await asyncio.sleep(3.0)
    home.link.grant()
    await started
    await asyncio.sleep(IDLE_S + SLEEP_S)
    await settle()
    call = home.spawn()
    await asyncio.sleep(1.0)
    home.link.grant()
    await call
    assert [(one.kind, one.seconds()) for one in home.starts] == [
        ("load", {"turn": 3.0, "weights": WAKE_S}),
        ("wake", {"turn": 1.0, "wake": WAKE_S}),
    ]
    await home.tenancy.close()


@in_virtual_time
async def test_a_failed_wake_and_one_that_nobody_waits_for_any_more_are_not_recorded() -> None:
    home = house("on-demand", engine=WatchedEngine(wake_fails=[OSError("disk")]), link=ScriptedLink(grants=False))
    await home.tenancy.start()
    gone = home.spawn()
    await settle()
    gone.cancel()
    await settle()
    failed = home.spawn()
    await settle()
    home.link.grant()
    with pytest.raises(WorkloadUnavailable):
        await failed
    assert home.starts == []
    await home.tenancy.close()
