"""The calls of a replica: those who are going away are neither let in nor told anything."""

from __future__ import annotations

import pytest

from cotenant.agent.callers import Callers
from cotenant.gpu.terms import Priority
from tests.contracts.tenancy_house import BATCH, INTERACTIVE
from tests.contracts.virtual_time import in_virtual_time

pytestmark = pytest.mark.unit


@in_virtual_time
async def test_only_who_still_waits_is_let_in_and_work_is_told_once() -> None:
    told: list[Priority | None] = []
    callers = Callers(told.append)
    gone, batch, urgent = callers.wait(INTERACTIVE), callers.wait(BATCH), callers.wait(INTERACTIVE)
    assert (callers.wanted, callers.waiting, callers.running) == (INTERACTIVE, 3, 0)
    gone.cancel()
    urgent.cancel()
    assert callers.wanted is BATCH
    callers.admit()
    assert (callers.wanted, callers.waiting, callers.running) == (None, 0, 1)
    assert not callers.leave(gone), "it was not let in"
    assert callers.leave(batch), "it was, and is to end"
    callers.begin(INTERACTIVE)
    callers.begin(BATCH)
    for priority in (BATCH, INTERACTIVE, BATCH):
        callers.end(priority)
    assert told == [BATCH, INTERACTIVE, BATCH, None]


@in_virtual_time
async def test_only_who_still_waits_is_refused() -> None:
    callers = Callers(lambda work: None)
    gone, waits = callers.wait(BATCH), callers.wait(BATCH)
    gone.cancel()
    callers.refuse(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await waits
    assert not callers.leave(waits)
    assert (callers.waiting, callers.running) == (0, 0)
