"""The ledger by example: who is granted, who is recalled, and when."""

from __future__ import annotations

import math

import pytest

from cotenant.errors import CotenantError
from cotenant.gpu.ledger import OVERCOMMITTED, Action, Grant, Ledger, NoRoom, Recall, State, Tenant
from cotenant.gpu.terms import Priority

pytestmark = pytest.mark.unit

BATCH, INTERACTIVE = Priority.BATCH, Priority.INTERACTIVE
HOLD_S, PATIENCE_S, REMIND_S = 5.0, 30.0, 60.0


def ledger(usable: int = 20, *tenants: Tenant, opens_at: float = -math.inf) -> Ledger:
    made = Ledger(usable, min_hold_s=HOLD_S, patience_s=PATIENCE_S, remind_s=REMIND_S, opens_at=opens_at)
    for tenant in tenants:
        made.join(tenant, 0.0)
    return made


def sleeper(tenant_id: str, full: int = 10, floor: int = 0, wake_s: float = 1.0) -> Tenant:
    return Tenant(tenant_id, full, floor, wake_s)


def pinned(tenant_id: str, full: int) -> Tenant:
    return Tenant(tenant_id, full, 0, 1.0, pinned=True)


def awake(made: Ledger, tenant_id: str, at: float, work: Priority | None = None) -> None:
    """Wake a tenant that has room, and let it work or rest."""
    assert made.ask(tenant_id, INTERACTIVE, at) == [Grant(tenant_id)]
    if work is None:
        assert made.idle(tenant_id, at) == []
    else:
        assert made.busy(tenant_id, at, work) == []


class TestJoining:
    def test_a_pinned_tenant_holds_its_memory_from_the_start(self) -> None:
        made = ledger()
        assert made.join(pinned("always", 8), 0.0) == [Grant("always")]
        assert made.holdings == {"always": 8}
        assert made.free_kib == 12

    def test_a_sleeper_holds_its_floor(self) -> None:
        made = ledger(20, sleeper("a", 10, 2))
        assert made.holdings == {"a": 2}
        assert made.state("a") is State.ASLEEP

    def test_one_that_could_never_wake_is_refused(self) -> None:
        made = Ledger(20 * 2**20)
        made.join(pinned("always", 12 * 2**20), 0.0)
        with pytest.raises(NoRoom, match=r"big needs 10\.0 GiB to be awake, but it can have 8\.0 of this GPU's 20\.0"):
            made.join(sleeper("big", 10 * 2**20, 2**20), 0.0)
        assert made.holdings == {"always": 12 * 2**20}
        assert issubclass(NoRoom, CotenantError)

    def test_one_beside_which_another_could_never_wake_is_refused(self) -> None:
        made = Ledger(20 * 2**20)
        made.join(sleeper("big", 16 * 2**20, 2**20), 0.0)
        with pytest.raises(NoRoom, match=r"big needs 16\.0 GiB to be awake, but beside new it can have 15\.0"):
            made.join(pinned("new", 5 * 2**20), 0.0)

    @pytest.mark.parametrize(
        "again",
        [
            pytest.param(sleeper("a"), id="the same id twice"),
            pytest.param(sleeper("b", 4, 5), id="a floor above the full size"),
            pytest.param(sleeper("b", 4, -1), id="a negative floor"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, again: Tenant) -> None:
        with pytest.raises(ValueError, match="can't join"):
            ledger(20, sleeper("a")).join(again, 0.0)

    def test_a_pinned_tenant_waits_for_those_who_use_its_memory(self) -> None:
        made = ledger(20, sleeper("a"), sleeper("b"))
        awake(made, "a", 0.0)
        awake(made, "b", 1.0)
        assert made.join(pinned("always", 10), 2.0) == [Recall("a", "always")]
        assert (made.state("always"), made.holdings["always"], made.free_kib) == (State.ARRIVING, 0, -10)
        assert made.waiting == ("always",)
        assert made.slept("a", 3.0) == [Grant("always")]
        assert made.holdings == {"a": 0, "b": 10, "always": 10}

    def test_busy_tenants_make_room_for_a_pinned_one_once_their_hold_is_over(self) -> None:
        made = ledger(20, sleeper("a"), sleeper("b"))
        awake(made, "a", 0.0, INTERACTIVE)
        awake(made, "b", 1.0, INTERACTIVE)
        assert made.join(pinned("always", 10), 2.0) == []
        assert made.due_at == 1 + HOLD_S
        assert made.tick(1 + HOLD_S) == [Recall("a", "always")]
        assert made.leave("a", 7.0) == [Grant("always")]

    def test_one_that_dies_while_it_arrives_is_owed_nothing(self) -> None:
        made = ledger(20, sleeper("a"), sleeper("b"))
        awake(made, "a", 0.0)
        awake(made, "b", 0.0)
        made.join(pinned("always", 10), 2.0)
        assert made.leave("always", 3.0) == []
        assert made.free_kib == 0

    def test_a_tenant_whose_floor_is_all_it_needs_waits_for_nothing_else(self) -> None:
        made = ledger(20, sleeper("a"), sleeper("b"), sleeper("light", 2, 2))
        assert made.ask("light", BATCH, 0.0) == [Grant("light")]
        assert made.slept("light", 0.5) == []
        assert made.leave("light", 1.0) == []
        awake(made, "a", 1.0)
        awake(made, "b", 2.0)
        assert made.join(sleeper("light", 2, 2), 3.0) == [Recall("a", "light")]
        assert made.ask("light", BATCH, 3.0) == []
        assert made.waiting == ("light",)
        assert made.slept("a", 4.0) == [Grant("light")]


class TestAsking:
    def test_it_is_granted_at_once_if_there_is_room(self) -> None:
        made = ledger(20, sleeper("a"), sleeper("b"))
        assert made.ask("a", BATCH, 0.0) == [Grant("a")]
        assert made.ask("b", BATCH, 0.0) == [Grant("b")]
        assert made.holdings == {"a": 10, "b": 10}

    def test_one_that_is_awake_or_pinned_has_nothing_to_ask(self) -> None:
        made = ledger(20, sleeper("a"), pinned("always", 5))
        awake(made, "a", 0.0)
        assert made.ask("a", INTERACTIVE, 1.0) == []
        assert made.ask("always", INTERACTIVE, 1.0) == []
        assert made.slept("always", 1.0) == []
        assert made.holdings["always"] == 5
        assert made.waiting == ()

    def test_interactive_goes_before_batch_and_then_who_asked_first(self) -> None:
        made = ledger(10, *(sleeper(name) for name in "abcde"))
        awake(made, "a", 0.0, INTERACTIVE)
        for name, priority in (("b", BATCH), ("c", INTERACTIVE), ("d", BATCH), ("e", INTERACTIVE)):
            assert made.ask(name, priority, 1.0) == []
        assert made.waiting == ("c", "e", "b", "d")

    def test_asking_again_raises_the_priority_and_keeps_the_place(self) -> None:
        made = ledger(10, *(sleeper(name) for name in "abcd"))
        awake(made, "a", 0.0, INTERACTIVE)
        for name, priority in (("b", BATCH), ("c", INTERACTIVE), ("d", BATCH)):
            made.ask(name, priority, 1.0)
        made.ask("b", INTERACTIVE, 2.0)
        assert made.waiting == ("b", "c", "d")
        made.ask("b", BATCH, 3.0)
        assert made.waiting == ("b", "c", "d")
        made.ask("b", INTERACTIVE, 3.0)
        assert made.waiting == ("b", "c", "d")

    def test_a_batch_waiter_counts_as_interactive_once_its_patience_is_over(self) -> None:
        made = ledger(10, *(sleeper(name) for name in "abcd"))
        awake(made, "a", 0.0, INTERACTIVE)
        assert made.ask("b", BATCH, 1.0) == []
        assert made.due_at == 1 + PATIENCE_S
        made.tick(100.0)
        assert made.recalled == {"a": "b"}
        made.ask("c", INTERACTIVE, 101.0)
        assert made.waiting == ("b", "c")
        assert made.slept("a", 102.0) == [Grant("b")]

    def test_an_aged_batch_waiter_that_asks_for_interactive_work_breaks_into_batch_work(self) -> None:
        made = ledger(10, sleeper("a", wake_s=500.0), sleeper("b"))
        made.ask("a", BATCH, 0.0)
        made.ask("b", BATCH, 1.0)
        assert made.busy("a", 100.0, BATCH) == [], "equals wait for the hold"
        assert made.ask("b", INTERACTIVE, 101.0) == [Recall("a", "b")]

    def test_the_patience_of_one_behind_a_waiter_that_cant_be_helped_is_kept_in_mind(self) -> None:
        made = ledger(10, sleeper("a", wake_s=500.0), sleeper("b"), sleeper("c"))
        made.ask("a", INTERACTIVE, 0.0)
        assert made.ask("b", INTERACTIVE, 1.0) == []
        assert made.due_at == 500 + HOLD_S
        assert made.ask("c", BATCH, 2.0) == []
        assert made.due_at == 2 + PATIENCE_S

    def test_a_withdrawn_waiter_is_out_of_the_queue(self) -> None:
        made = ledger(10, *(sleeper(name) for name in "abc"))
        awake(made, "a", 0.0, INTERACTIVE)
        made.ask("b", INTERACTIVE, 1.0)
        made.ask("c", INTERACTIVE, 1.0)
        made.withdraw("b", 2.0)
        assert made.withdraw("b", 2.0) == []
        assert made.waiting == ("c",)
        assert made.slept("a", 3.0) == [Grant("c")]

    def test_what_comes_free_is_kept_for_a_large_waiter(self) -> None:
        made = ledger(20, sleeper("a", 8), sleeper("b", 8), sleeper("large", 18), sleeper("small", 4))
        awake(made, "a", 0.0, INTERACTIVE)
        awake(made, "b", 0.0, INTERACTIVE)
        assert made.ask("large", INTERACTIVE, 1.0) == []
        assert made.ask("small", INTERACTIVE, 1.0) == [], "4 are free, and the large one waits for them"
        assert set(made.tick(6.0)) == {Recall("a", "large"), Recall("b", "large")}
        assert made.slept("a", 7.0) == []
        assert made.slept("b", 7.0) == [Grant("large")]
        assert made.waiting == ("small",)

    def test_a_small_one_passes_with_memory_that_nobody_ahead_waits_for(self) -> None:
        made = ledger(20, sleeper("a", 16), sleeper("middle", 10), sleeper("small", 4))
        awake(made, "a", 0.0)
        assert made.ask("middle", INTERACTIVE, 1.0) == [Recall("a", "middle")]
        assert made.ask("small", BATCH, 1.0) == [Grant("small")], "once a sleeps, 6 are left over"
        assert made.slept("a", 2.0) == [Grant("middle")]

    def test_no_more_pass_than_is_left_over(self) -> None:
        made = ledger(
            20, sleeper("middle", 12), sleeper("one", 4), sleeper("two", 4), sleeper("three", 2), opens_at=5.0
        )
        made.join(sleeper("held", 10), 0.0, awake=True)
        for name, priority in (("middle", INTERACTIVE), ("one", BATCH), ("two", BATCH), ("three", BATCH)):
            made.ask(name, priority, 1.0)
        assert made.tick(5.0) == [Recall("held", "middle"), Grant("one"), Grant("two")], "the last 2 are middle's"
        assert made.slept("held", 6.0) == [Grant("middle")]

    def test_a_small_one_does_not_pass_on_a_recall_that_those_ahead_do_not_count_on(self) -> None:
        made = ledger(20, sleeper("a", 6), sleeper("b", 10), sleeper("c", 6), sleeper("d", 10), sleeper("small", 2))
        awake(made, "a", 0.0)
        awake(made, "b", 1.0)
        assert made.ask("d", INTERACTIVE, 2.0) == [Recall("a", "d")]
        assert made.ask("c", INTERACTIVE, 2.0) == [Recall("b", "c")]
        assert made.ask("small", INTERACTIVE, 2.0) == [], "d counts on all 4 that are free and on a"
        assert made.slept("a", 3.0) == [Grant("d")]
        assert made.slept("b", 3.0) == [Grant("c"), Grant("small")]


class TestRecalling:
    def test_the_least_recently_used_idle_tenant_goes_first(self) -> None:
        made = ledger(20, *(sleeper(name) for name in "abc"))
        awake(made, "a", 0.0)
        awake(made, "b", 1.0)
        made.busy("a", 2.0, INTERACTIVE)
        made.idle("a", 3.0)
        assert made.ask("c", BATCH, 4.0) == [Recall("b", "c")]
        assert made.recalled == {"b": "c"}
        assert made.slept("b", 5.0) == [Grant("c")]

    def test_a_recall_is_sent_once_and_again_only_if_unheard_for_long(self) -> None:
        made = ledger(20, *(sleeper(name) for name in "abc"))
        awake(made, "a", 0.0)
        awake(made, "b", 1.0)
        assert made.ask("c", BATCH, 2.0) == [Recall("a", "c")]
        assert made.tick(3.0) == made.idle("b", 4.0) == made.foreign(0, 5.0) == []
        assert made.tick(2 + REMIND_S) == [Recall("a", "c")]
        assert made.tick(3 + REMIND_S) == []
        assert made.due_at == 2 + 2 * REMIND_S

    def test_a_busy_equal_is_recalled_only_after_its_hold(self) -> None:
        made = ledger(10, sleeper("a"), sleeper("b"))
        awake(made, "a", 0.0, INTERACTIVE)
        assert made.ask("b", INTERACTIVE, 1.0) == []
        assert made.due_at == 1 + HOLD_S
        assert made.tick(5.9) == []
        assert made.tick(6.0) == [Recall("a", "b")]

    def test_an_event_at_the_due_time_does_what_the_tick_would(self) -> None:
        made = ledger(10, sleeper("a"), sleeper("b"))
        awake(made, "a", 0.0, INTERACTIVE)
        made.ask("b", INTERACTIVE, 1.0)
        assert made.busy("a", 6.0, INTERACTIVE) == [Recall("a", "b")]

    def test_one_that_turns_idle_is_recalled_at_once_for_a_waiter(self) -> None:
        made = ledger(10, sleeper("a"), sleeper("b"))
        awake(made, "a", 0.0, INTERACTIVE)
        made.ask("b", BATCH, 1.0)
        assert made.idle("a", 1.5) == [Recall("a", "b")]

    def test_interactive_work_need_not_wait_for_batch_work(self) -> None:
        made = ledger(10, sleeper("a"), sleeper("b"))
        awake(made, "a", 0.0, BATCH)
        assert made.ask("b", INTERACTIVE, 0.1) == [Recall("a", "b")]

    def test_a_tenant_that_has_not_spoken_since_its_grant_is_spared(self) -> None:
        made = ledger(10, sleeper("a"), sleeper("b"))
        assert made.ask("a", BATCH, 0.0) == [Grant("a")]
        assert made.ask("b", INTERACTIVE, 0.1) == []
        assert made.busy("a", 1.0, BATCH) == [Recall("a", "b")], "now it has work, which it finishes"

    def test_batch_does_not_break_into_interactive_work_before_its_patience_is_over(self) -> None:
        made = ledger(10, sleeper("a"), sleeper("b"))
        awake(made, "a", 0.0, INTERACTIVE)
        assert made.ask("b", BATCH, 10.0) == []
        assert made.tick(39.9) == []
        assert made.tick(10 + PATIENCE_S) == [Recall("a", "b")]

    def test_a_recalled_tenant_that_asks_again_waits_for_its_next_turn(self) -> None:
        made = ledger(10, sleeper("a"), sleeper("b"))
        awake(made, "a", 0.0)
        made.ask("b", INTERACTIVE, 1.0)
        assert made.ask("a", INTERACTIVE, 1.5) == []
        assert made.waiting == ("b", "a")
        assert made.slept("a", 2.0) == [Grant("b")]
        assert made.idle("b", 3.0) == [Recall("b", "a")]
        assert made.slept("b", 4.0) == [Grant("a")]

    def test_a_recalled_tenant_is_not_granted_again_before_it_slept(self) -> None:
        made = ledger(10, sleeper("a"), sleeper("b"))
        awake(made, "a", 0.0)
        made.ask("b", INTERACTIVE, 1.0)
        made.ask("a", INTERACTIVE, 1.5)
        assert made.withdraw("b", 1.6) == []
        assert made.slept("a", 2.0) == [Grant("a")]

    def test_two_waiters_are_helped_at_the_same_time(self) -> None:
        made = ledger(20, *(sleeper(name) for name in "abcd"))
        awake(made, "a", 0.0)
        awake(made, "b", 1.0)
        assert made.ask("c", INTERACTIVE, 2.0) == [Recall("a", "c")]
        assert made.ask("d", INTERACTIVE, 2.0) == [Recall("b", "d")]

    def test_two_that_wait_already_are_helped_at_the_same_time_too(self) -> None:
        made = ledger(20, sleeper("c"), sleeper("d"), opens_at=5.0)
        made.join(sleeper("a"), 0.0, awake=True)
        made.join(sleeper("b"), 1.0, awake=True)
        made.ask("c", INTERACTIVE, 2.0)
        made.ask("d", BATCH, 2.0)
        assert made.tick(5.0) == [Recall("a", "c"), Recall("b", "d")]

    def test_interactive_work_is_not_held_up_by_a_batch_waiter_that_cant_be_helped(self) -> None:
        made = ledger(10, sleeper("a"), sleeper("b"), sleeper("c"))
        awake(made, "a", 0.0, BATCH)
        assert made.ask("b", BATCH, 1.0) == []
        assert made.ask("c", INTERACTIVE, 1.0) == [Recall("a", "c")]

    def test_nobody_is_recalled_for_one_who_would_still_not_fit(self) -> None:
        made = ledger(20, sleeper("a"), sleeper("b"), sleeper("large", 20))
        awake(made, "a", 0.0)
        awake(made, "b", 1.0, INTERACTIVE)
        assert made.ask("large", INTERACTIVE, 2.0) == []
        assert made.tick(7.0) == [Recall("a", "large"), Recall("b", "large")]

    def test_the_dead_free_their_memory_for_those_who_wait(self) -> None:
        made = ledger(10, sleeper("a"), sleeper("b"))
        awake(made, "a", 0.0, INTERACTIVE)
        made.ask("b", INTERACTIVE, 1.0)
        assert made.leave("a", 1.1) == [Grant("b")]
        assert made.leave("a", 1.2) == []
        assert made.holdings == {"b": 10}

    def test_nothing_is_left_of_a_waiter_that_died(self) -> None:
        made = ledger(10, sleeper("a"), sleeper("b"), sleeper("c"))
        awake(made, "a", 0.0)
        assert made.ask("b", INTERACTIVE, 1.0) == [Recall("a", "b")]
        assert made.leave("b", 1.1) == []
        assert made.waiting == ()
        assert made.slept("a", 2.0) == []
        assert made.free_kib == 10

    def test_sleeping_unasked_gives_memory_back(self) -> None:
        made = ledger(10, sleeper("a", 10, 1))
        awake(made, "a", 0.0)
        assert made.slept("a", 300.0) == []
        assert made.slept("a", 301.0) == []
        assert made.holdings == {"a": 1}
        assert made.due_at == math.inf


class TestForeignMemory:
    def test_it_counts_against_what_is_free(self) -> None:
        made = ledger(20, sleeper("a"), sleeper("b"))
        assert made.foreign(4, 0.0) == []
        assert (made.foreign_kib, made.free_kib) == (4, 16)
        awake(made, "a", 1.0)
        assert made.ask("b", INTERACTIVE, 2.0) == [Recall("a", "b")], "16 are not enough for both"

    def test_idle_tenants_are_recalled_when_it_takes_too_much_and_busy_ones_never(self) -> None:
        made = ledger(20, sleeper("a"), sleeper("b"))
        awake(made, "a", 0.0, BATCH)
        awake(made, "b", 0.0)
        assert made.foreign(15, 1.0) == [Recall("b", OVERCOMMITTED)]
        assert made.holdings == {"a": 10, "b": 10}, "what the living hold is never cut"
        assert made.slept("b", 2.0) == []
        assert made.tick(1000.0) == []
        assert made.idle("a", 1001.0) == [Recall("a", OVERCOMMITTED)]

    def test_nobody_is_granted_more_meanwhile(self) -> None:
        made = ledger(20, sleeper("a", 15), sleeper("b", 4))
        awake(made, "a", 0.0, BATCH)
        made.foreign(6, 1.0)
        assert made.ask("b", BATCH, 2.0) == []
        assert made.foreign(1, 3.0) == [Grant("b")]

    def test_one_that_cant_fit_beside_it_holds_up_nobody(self) -> None:
        made = ledger(20, sleeper("large", 18), sleeper("small", 5))
        made.foreign(8, 0.0)
        assert made.ask("large", INTERACTIVE, 1.0) == []
        assert made.ask("small", BATCH, 1.0) == [Grant("small")]
        assert made.foreign(0, 2.0) == []
        assert made.busy("small", 2.0, BATCH) == [Recall("small", "large")]


class TestAfterTheAgentsDeath:
    def test_what_tenants_hold_is_taken_as_it_is(self) -> None:
        made = ledger(20, opens_at=5.0)
        assert made.join(sleeper("asks"), 0.0) == []
        assert made.ask("asks", INTERACTIVE, 0.0) == [], "who holds what is not known yet"
        assert made.join(sleeper("a"), 1.0, awake=True) == []
        assert made.join(pinned("always", 5), 1.0, awake=True) == []
        assert made.busy("a", 1.0, INTERACTIVE) == []
        assert made.due_at == 5.0
        assert made.tick(5.0) == [Recall("a", "asks")]
        assert made.slept("a", 6.0) == [Grant("asks")]
        assert made.holdings == {"asks": 10, "a": 0, "always": 5}

    def test_a_pinned_tenant_that_joins_before_it_opens_is_granted_when_it_does(self) -> None:
        made = ledger(20, opens_at=5.0)
        assert made.join(pinned("always", 5), 0.0) == []
        assert made.tick(5.0) == [Grant("always")]

    def test_more_than_there_is_is_accepted_and_recalled(self) -> None:
        made = ledger(20)
        for name in "abc":
            made.join(sleeper(name, 8), 0.0, awake=True)
            made.busy(name, 0.0, INTERACTIVE)
        assert made.recalled == {"c": OVERCOMMITTED}, "it had not said yet that it is busy"
        assert made.free_kib == -4
        assert made.slept("c", 1.0) == []
        assert made.free_kib == 4

    def test_busy_ones_are_recalled_too_when_tenants_hold_too_much(self) -> None:
        made = ledger(20, opens_at=5.0)
        for name in "bcd":
            made.join(sleeper(name, 8), 0.0, awake=True)
            made.busy(name, 0.0, INTERACTIVE)
        assert made.tick(5.0) == [Recall("b", OVERCOMMITTED)]

    def test_busy_turning_to_batch_work_can_be_what_relieves(self) -> None:
        made = ledger(20, sleeper("a", 8), sleeper("b", 8))
        made.ask("a", INTERACTIVE, 0.0)
        made.ask("b", INTERACTIVE, 0.0)
        assert made.join(sleeper("c", 8), 1.0, awake=True) == [Recall("c", OVERCOMMITTED)]
        made.leave("c", 1.0)
        made.join(pinned("always", 8), 1.0, awake=True)
        assert made.recalled == {}
        assert made.busy("a", 2.0, BATCH) == [Recall("a", OVERCOMMITTED)]


def test_whoever_never_joined_is_an_error() -> None:
    with pytest.raises(KeyError):
        ledger().ask("nobody", BATCH, 0.0)
    with pytest.raises(KeyError):
        ledger().state("nobody")


def test_actions_are_values() -> None:
    actions: list[Action] = [Grant("a"), Recall("a", "b")]
    assert actions == [Grant("a"), Recall("a", "b")]
