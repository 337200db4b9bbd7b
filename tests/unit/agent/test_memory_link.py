"""The in-memory twin of the GPU agent: a grant belongs to one ask, and what nobody takes goes back."""

from __future__ import annotations

import asyncio

import pytest

from cotenant.agent.memory_link import MemoryAgent, MemoryLink
from cotenant.errors import NoRoom, WorkloadUnavailable
from cotenant.gpu.ledger import Ledger, State, Tenant
from tests.contracts.tenancy_house import BATCH, INTERACTIVE, settle
from tests.contracts.virtual_time import in_virtual_time

pytestmark = pytest.mark.unit

HOLD_S, DELAY_S = 5.0, 0.5


def agent(*, delay_s: float = 0.0) -> MemoryAgent:
    clock = asyncio.get_running_loop().time
    return MemoryAgent(Ledger(10, min_hold_s=HOLD_S), clock=clock, delay_s=lambda: delay_s)


def join(home: MemoryAgent, name: str, *, pinned: bool = False, full: int = 8) -> tuple[MemoryLink, list[str]]:
    """A tenant's link, and by whom its lease was wanted so far."""
    recalls: list[str] = []
    return home.join(Tenant(name, full, full if pinned else 1, 0.0, pinned), recalls.append), recalls


def ask(link: MemoryLink) -> asyncio.Task[None]:
    return asyncio.create_task(link.ask(INTERACTIVE))


@in_virtual_time
async def test_what_one_gives_back_another_gets_and_recalls_come_in_time() -> None:
    home = agent()
    a, a_recalls = join(home, "a")
    b, _ = join(home, "b")
    await a.ask(INTERACTIVE)
    a.busy(INTERACTIVE)
    wants = ask(b)
    await asyncio.sleep(HOLD_S / 2)
    assert a_recalls == []
    await asyncio.sleep(HOLD_S)  # the ledger's time came in between
    assert a_recalls == ["b"]
    assert not wants.done()
    a.idle()
    a.slept()
    await wants
    assert home.ledger.holdings == {"a": 1, "b": 8}
    assert home.ledger.waiting == ()


@in_virtual_time
async def test_a_pinned_tenant_is_granted_by_joining_and_keeps_it() -> None:
    home = agent()
    a, a_recalls = join(home, "a", full=4)
    b, _ = join(home, "b", full=4)
    await asyncio.gather(a.ask(INTERACTIVE), b.ask(INTERACTIVE))
    a.idle()
    pinned, recalls = join(home, "pinned", pinned=True, full=3)
    assert a_recalls == ["pinned"]
    waits = [ask(pinned), ask(pinned)]
    await settle()
    assert not waits[0].done(), "what it is to hold is in use"
    waits[1].cancel()
    a.slept()
    await waits[0]
    pinned.slept()
    await pinned.ask(BATCH)
    assert home.ledger.state("pinned") is State.AWAKE
    assert recalls == []


@in_virtual_time
async def test_a_grant_returns_from_all_asks_and_is_given_back_once() -> None:
    home = agent(delay_s=DELAY_S)
    a, _ = join(home, "a")
    asks = [asyncio.create_task(a.ask(BATCH)), ask(a)]
    await asyncio.gather(*asks)
    assert home.ledger.state("a") is State.AWAKE
    await a.ask(BATCH)
    a.slept()
    await asyncio.sleep(2 * DELAY_S)
    assert home.ledger.state("a") is State.ASLEEP


@pytest.mark.parametrize("first", [0, 1])
@in_virtual_time
async def test_an_ask_cancelled_as_it_is_granted_leaves_the_grant_to_another_ask(first: int) -> None:
    home = agent(delay_s=DELAY_S)
    a, _ = join(home, "a")
    asks = [ask(a), ask(a)]
    asyncio.get_running_loop().call_later(2 * DELAY_S, asks[first].cancel)
    await asyncio.gather(*asks, return_exceptions=True)
    await asyncio.sleep(2 * DELAY_S)
    assert asks[first].cancelled()
    assert not asks[1 - first].cancelled()
    assert home.ledger.state("a") is State.AWAKE


@pytest.mark.parametrize("after_s", [0.0, DELAY_S / 2, DELAY_S, 1.5 * DELAY_S, 2 * DELAY_S])
@in_virtual_time
async def test_a_grant_for_which_all_asks_were_cancelled_goes_back(after_s: float) -> None:
    home = agent(delay_s=DELAY_S)
    a, _ = join(home, "a")
    asks = [ask(a), ask(a)]
    await settle()
    await asyncio.sleep(after_s)
    for each in asks:
        each.cancel()
    await asyncio.sleep(4 * DELAY_S)
    assert home.ledger.state("a") is State.ASLEEP
    assert home.ledger.waiting == ()
    await a.ask(INTERACTIVE)
    assert home.ledger.state("a") is State.AWAKE


@in_virtual_time
async def test_an_ask_that_follows_a_withdrawn_one_gets_its_late_grant() -> None:
    home = agent(delay_s=DELAY_S)
    a, _ = join(home, "a")
    gone = ask(a)
    await asyncio.sleep(1.5 * DELAY_S)
    gone.cancel()
    await settle()
    began = asyncio.get_running_loop().time()
    await a.ask(INTERACTIVE)
    assert asyncio.get_running_loop().time() == began + DELAY_S / 2
    await asyncio.sleep(4 * DELAY_S)
    assert home.ledger.state("a") is State.AWAKE


@in_virtual_time
async def test_a_recall_that_slept_overtook_is_not_heard() -> None:
    home = agent(delay_s=DELAY_S)
    a, a_recalls = join(home, "a")
    b, _ = join(home, "b")
    await a.ask(INTERACTIVE)
    a.idle()
    await asyncio.sleep(DELAY_S)
    wants = ask(b)
    await asyncio.sleep(1.5 * DELAY_S)  # the recall is on its way
    a.slept()
    again = ask(a)
    await wants
    assert a_recalls == []
    b.idle()
    b.slept()
    await again
    assert a_recalls == []


@in_virtual_time
async def test_who_closes_its_link_frees_what_it_held_and_is_not_heard_any_more() -> None:
    home = agent(delay_s=DELAY_S)
    a, _ = join(home, "a")
    b, _ = join(home, "b")
    await a.ask(INTERACTIVE)
    b_asks, again = ask(b), ask(b)
    await asyncio.sleep(DELAY_S)
    a.busy(INTERACTIVE)
    a.close()
    await b_asks
    await again
    assert home.ledger.holdings == {"b": 8}
    waits = ask(join(home, "c")[0])
    await settle()
    b.close()
    b.close()
    b.idle()
    with pytest.raises(WorkloadUnavailable, match="b has closed its link"):
        await b.ask(BATCH)
    await waits


@in_virtual_time
async def test_closing_a_link_fails_the_asks_that_wait_on_it() -> None:
    home = agent(delay_s=DELAY_S)
    a, _ = join(home, "a")
    waits, gone = ask(a), ask(a)
    await settle()
    gone.cancel()
    a.close()
    with pytest.raises(WorkloadUnavailable):
        await waits
    await asyncio.sleep(4 * DELAY_S)
    assert home.ledger.holdings == {}


@in_virtual_time
async def test_a_grant_for_one_who_has_left_is_not_heard() -> None:
    home = agent(delay_s=DELAY_S)
    a, _ = join(home, "a")
    waits = ask(a)
    await asyncio.sleep(1.5 * DELAY_S)
    assert home.ledger.state("a") is State.AWAKE
    a.close()
    with pytest.raises(WorkloadUnavailable):
        await waits
    await asyncio.sleep(DELAY_S)
    assert home.ledger.holdings == {}


@in_virtual_time
async def test_who_answers_a_recall_at_once_is_not_heard_before_the_others_are_told() -> None:
    home = MemoryAgent(Ledger(10), clock=asyncio.get_running_loop().time)
    told: list[str] = []

    def a_recalled(wanted_by: str) -> None:
        told.append(f"a for {wanted_by}")
        a.slept()
        gone.close()

    a = home.join(Tenant("a", 3, 0, 0.0), a_recalled)
    stays = home.join(Tenant("stays", 3, 0, 0.0), lambda wanted_by: told.append(f"stays for {wanted_by}"))
    gone = home.join(Tenant("gone", 3, 0, 0.0), lambda wanted_by: told.append(f"gone for {wanted_by}"))
    wide = home.join(Tenant("wide", 10, 0, 0.0), lambda wanted_by: None)
    for link in (a, stays, gone):
        await link.ask(INTERACTIVE)
        link.idle()
    wants = ask(wide)
    await settle()
    assert told == ["a for wide", "stays for wide"], "one that has left is not told"
    stays.slept()
    await wants
    assert home.ledger.holdings == {"a": 0, "stays": 0, "wide": 10}


@in_virtual_time
async def test_a_tenant_that_could_never_wake_is_refused() -> None:
    home = agent()
    with pytest.raises(NoRoom):
        join(home, "a", full=11)
    assert home.ledger.holdings == {}
