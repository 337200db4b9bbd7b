"""The ledger under any interleaving of events, with tenants that obey: what it promises holds at every moment.

The tenants here are models of real ones: messages reach them later, in order, or are lost when the agent dies.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cotenant.gpu.ledger import OVERCOMMITTED, Action, Grant, Ledger, NoRoom, Recall, State, Tenant
from cotenant.gpu.terms import Priority

pytestmark = pytest.mark.unit

USABLE = 24
MIN_HOLD_S, PATIENCE_S, REMIND_S, WAKE_S, WORK_S, SETTLE_S = 5.0, 30.0, 60.0, 3.0, 2.0, 1.0
PRIORITIES = st.sampled_from(Priority)
PICK = st.integers(0, 7)
NEW = st.tuples(
    st.integers(4, 18), st.integers(0, 2), st.sampled_from([False, False, False, True]), st.sampled_from([0.0, WAKE_S])
)
"""Full KiB (half of it if pinned), floor KiB, pinned, seconds to wake."""


@dataclass
class Replica:
    """A tenant, by what it has been told so far."""

    tenant: Tenant
    holds: bool = False
    recalled: bool = False
    asking: Priority | None = None
    asked: Priority = Priority.BATCH
    asked_at: float = 0.0
    inbox: list[Action] = field(default_factory=list)
    working: Priority | None = None
    used_at: float = 0.0
    place: int = 0

    @property
    def gives(self) -> int:
        return 0 if self.tenant.pinned else self.tenant.full_kib - self.tenant.floor_kib

    @property
    def always(self) -> int:
        return self.tenant.full_kib - self.gives

    @property
    def really_holds(self) -> int:
        if self.holds:
            return self.tenant.full_kib
        return 0 if self.tenant.pinned else self.tenant.floor_kib


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.replicas: dict[str, Replica] = {}
        self.foreign_kib = 0
        self.count = self.asks = 0
        self.ledger = self.fresh()

    def fresh(self, opens_at: float = -math.inf) -> Ledger:
        return Ledger(USABLE, min_hold_s=MIN_HOLD_S, patience_s=PATIENCE_S, remind_s=REMIND_S, opens_at=opens_at)

    @initialize(news=st.lists(NEW, min_size=3, max_size=6))
    def start(self, news: list[tuple[int, int, bool, float]]) -> None:
        for new in news:
            self.join(new)

    def one_of(self, pick: int, can: Callable[[Replica], bool] = lambda replica: True) -> Replica | None:
        """One of the replicas that can; None if there is none."""
        able = [replica for replica in self.replicas.values() if can(replica)]
        return able[pick % len(able)] if able else None

    # What reaches the tenants, and what is checked about it.

    def send(self, actions: list[Action], *, reminders: bool = False) -> None:
        granted = []
        for action in actions:
            replica = self.replicas[action.tenant]
            replica.inbox.append(action)
            if isinstance(action, Grant):
                self.check_grant(replica)
                granted.append(replica)
                replica.asking = None
                replica.working = Priority.INTERACTIVE
                replica.used_at = self.now
            elif not reminders:
                self.check_recall(action, replica)
        self.check_order([g for g in granted if g.gives])

    def check_grant(self, replica: Replica) -> None:
        assert replica.asking is not None, "granted without asking"
        assert not replica.holds, "granted twice"
        assert sum(isinstance(action, Grant) for action in replica.inbox) == 1, "granted twice"
        assert self.ledger.state(replica.tenant.id) >= State.AWAKE

    def check_recall(self, recall: Recall, replica: Replica) -> None:
        assert not replica.tenant.pinned, "a pinned tenant was recalled"
        arriving = {t for t in self.replicas if self.ledger.state(t) is State.ARRIVING}
        assert recall.wanted_by in {*self.ledger.waiting, *arriving, OVERCOMMITTED}, "recalled for nobody"
        assert self.ledger.state(recall.tenant) is State.RECALLED
        if replica.working is not None:
            return
        for other in self.replicas.values():
            if self.ledger.state(other.tenant.id) is State.AWAKE and other.working is None:
                same = other.gives == replica.gives
                assert not (same and other.used_at < replica.used_at), "a less recently used equal was spared"

    def check_order(self, granted: list[Replica]) -> None:
        """Nobody is passed by an equal, nor by one that takes what those ahead wait for."""
        if self.foreign_kib:
            return
        coming = sum(self.replicas[tenant_id].gives for tenant_id in self.ledger.recalled)
        for replica in granted:
            ahead = [other for other in self.replicas.values() if other.asking is not None and not other.tenant.pinned]
            ahead = [other for other in ahead if self.turn(other) < self.turn(replica)]
            for other in ahead:
                if self.ledger.state(other.tenant.id) is State.ASLEEP:
                    assert other.gives > replica.gives, "passed by an equal"
            assert not ahead or self.ledger.free_kib + coming >= sum(other.gives for other in ahead)

    def turn(self, replica: Replica) -> tuple[bool, int]:
        patient = replica.asked is Priority.BATCH and self.now < replica.asked_at + PATIENCE_S
        return patient, replica.place

    # Events. Each picks one of the tenants that it can happen to.

    @rule(new=NEW)
    def join(self, new: tuple[int, int, bool, float]) -> None:
        full, floor, pinned, wake_s = new
        self.count += 1
        tenant = Tenant(f"t{self.count}", full // 2 if pinned else full, min(floor, full // 2), wake_s, pinned)
        replica = Replica(tenant, asking=Priority.INTERACTIVE if pinned else None, used_at=self.now)
        try:
            actions = self.ledger.join(tenant, self.now)
        except NoRoom:
            everyone = [replica, *self.replicas.values()]
            assert sum(r.always for r in everyone) + max(r.gives for r in everyone) > USABLE
            assert tenant.id not in self.ledger.holdings
            return
        self.replicas[tenant.id] = replica
        self.send(actions)

    @rule(pick=PICK)
    def die(self, pick: int) -> None:
        replica = self.one_of(pick)
        if replica is None or len(self.replicas) < 3:
            return
        del self.replicas[replica.tenant.id]
        self.send(self.ledger.leave(replica.tenant.id, self.now))

    @rule(pick=PICK, priority=PRIORITIES, times=st.integers(1, 3))
    def ask(self, pick: int, priority: Priority, times: int) -> None:
        for each in range(pick, pick + times):
            replica = self.one_of(each, lambda r: not r.tenant.pinned and (not r.holds or r.recalled))
            if replica is None:
                return
            if self.ledger.state(replica.tenant.id) is not State.AWAKE:
                self.note(replica, priority)
            self.send(self.ledger.ask(replica.tenant.id, priority, self.now))

    def note(self, replica: Replica, priority: Priority) -> None:
        if replica.asking is None:
            self.asks += 1
            replica.place, replica.asked_at = self.asks, self.now
            replica.asking = priority
        replica.asking = replica.asked = max(priority, replica.asking)

    @rule(pick=PICK)
    def withdraw(self, pick: int) -> None:
        replica = self.one_of(pick, lambda r: not r.tenant.pinned and r.asking is not None)
        if replica is None:
            return
        replica.asking = None
        actions = self.ledger.withdraw(replica.tenant.id, self.now)
        assert replica.tenant.id not in self.ledger.waiting
        self.send(actions)

    @rule(pick=PICK, everyone=st.booleans())
    def hear(self, pick: int, everyone: bool) -> None:
        one = self.one_of(pick, lambda r: bool(r.inbox))
        for replica in list(self.replicas.values()) if everyone else [one]:
            if replica is not None:
                self.listen(replica)

    def listen(self, replica: Replica) -> None:
        while replica.inbox:
            if isinstance(replica.inbox.pop(0), Grant):
                replica.holds = True
            elif replica.holds:
                replica.recalled = True

    @rule(pick=PICK, priority=PRIORITIES)
    def busy(self, pick: int, priority: Priority) -> None:
        replica = self.one_of(pick, lambda r: r.holds and not (r.recalled and r.working is None))
        if replica is None:
            return
        replica.working, replica.used_at = priority, self.now
        self.send(self.ledger.busy(replica.tenant.id, self.now, priority))

    @rule(pick=PICK)
    def idle(self, pick: int) -> None:
        replica = self.one_of(pick, lambda r: r.holds)
        if replica is not None:
            self.rest(replica)

    def rest(self, replica: Replica) -> None:
        replica.working, replica.used_at = None, self.now
        self.send(self.ledger.idle(replica.tenant.id, self.now))

    @rule(pick=PICK, told=st.booleans())
    def sleep(self, pick: int, told: bool) -> None:
        """Because it was recalled, or of its own accord."""
        replica = self.one_of(pick, lambda r: r.holds and not r.tenant.pinned and r.recalled >= told)
        if replica is not None:
            self.sleep_now(replica)

    def sleep_now(self, replica: Replica) -> None:
        replica.holds = replica.recalled = False
        replica.working = None
        self.send(self.ledger.slept(replica.tenant.id, self.now))

    @rule(kib=st.one_of(st.just(0), st.integers(0, USABLE + 4)))
    def foreign(self, kib: int) -> None:
        self.foreign_kib = kib
        self.send(self.ledger.foreign(kib, self.now))

    @rule(seconds=st.sampled_from([0.1, 1.0, 4.0, 9.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.tick()

    def tick(self) -> None:
        reminded = set(self.ledger.recalled)
        actions = self.ledger.tick(self.now)
        self.send([action for action in actions if action.tenant not in reminded])
        self.send([action for action in actions if action.tenant in reminded], reminders=True)

    @rule(order=st.randoms(use_true_random=False), lost=st.booleans())
    def agent_dies(self, order: random.Random, lost: bool) -> None:
        """All join a fresh ledger, in any order, with what they hold; what was on its way arrived or was lost."""
        self.ledger = self.fresh(opens_at=self.now + SETTLE_S)
        assert self.ledger.foreign(self.foreign_kib, self.now) == []
        replicas = list(self.replicas.values())
        order.shuffle(replicas)
        for replica in replicas:
            if lost:
                replica.inbox.clear()
            self.listen(replica)
            self.join_again(replica)
        self.now += SETTLE_S
        self.tick()

    def join_again(self, replica: Replica) -> None:
        tenant = replica.tenant
        replica.recalled, replica.used_at = False, self.now
        assert self.ledger.join(tenant, self.now, awake=replica.holds) == []
        if replica.holds:
            replica.asking = None
            if replica.working is not None:
                assert self.ledger.busy(tenant.id, self.now, replica.working) == []
            return
        replica.working = None
        if tenant.pinned:
            replica.asking = Priority.INTERACTIVE
        elif replica.asking is not None:
            priority, replica.asking = replica.asking, None
            self.note(replica, priority)
            assert self.ledger.ask(tenant.id, priority, self.now) == []

    # What always holds.

    @invariant()
    def no_more_is_held_than_there_is(self) -> None:
        held = self.ledger.holdings
        assert sum(held.values()) <= USABLE
        assert set(held) == set(self.replicas), "the dead hold nothing"
        for tenant_id, replica in self.replicas.items():
            tenant, state = replica.tenant, self.ledger.state(tenant_id)
            expected = {State.ARRIVING: 0, State.ASLEEP: tenant.floor_kib}.get(state, tenant.full_kib)
            assert held[tenant_id] == expected
            assert replica.really_holds <= held[tenant_id] or state is State.ARRIVING

    @invariant()
    def who_waits_has_asked(self) -> None:
        waiting = self.ledger.waiting
        assert len(set(waiting)) == len(waiting)
        assert set(waiting) >= {r.tenant.id for r in self.replicas.values() if r.asking is not None}

    @invariant()
    def free_memory_is_what_nobody_holds(self) -> None:
        arriving = [r for t, r in self.replicas.items() if self.ledger.state(t) is State.ARRIVING]
        owed = sum(r.always for r in arriving)
        assert self.ledger.free_kib == USABLE - sum(self.ledger.holdings.values()) - owed - self.foreign_kib

    @invariant()
    def the_next_decision_lies_ahead(self) -> None:
        assert self.ledger.due_at > self.now

    def teardown(self) -> None:
        """However it stands: once foreign memory is gone and tenants obey, every waiter is granted in time."""
        self.foreign(0)
        waiting = self.ledger.waiting
        ends_at = self.now + PATIENCE_S + (len(waiting) + 1) * (WAKE_S + MIN_HOLD_S + WORK_S)
        work_ends: dict[str, float] = {}
        granted: set[str] = set()
        steps = 0
        while self.ledger.waiting or any(replica.inbox for replica in self.replicas.values()):
            steps += 1
            assert self.now <= ends_at and steps < 1000, f"{self.ledger.waiting} wait too long"
            for replica in self.replicas.values():
                granted |= {action.tenant for action in replica.inbox if isinstance(action, Grant)}
                self.obey(replica, work_ends)
            if not any(replica.inbox for replica in self.replicas.values()) and self.ledger.waiting:
                self.now = min([self.ledger.due_at, *(end for end in work_ends.values() if end > self.now)])
                assert self.now < math.inf, f"{self.ledger.waiting} wait for nothing"
                self.tick()
        assert granted >= set(waiting)

    def obey(self, replica: Replica, work_ends: dict[str, float]) -> None:
        """Hear, work to the end, then sleep if recalled."""
        tenant_id = replica.tenant.id
        self.listen(replica)
        if replica.holds and replica.working is not None:
            if work_ends.setdefault(tenant_id, self.now + WORK_S) > self.now:
                return
            self.rest(replica)
        work_ends.pop(tenant_id, None)
        if replica.recalled:
            self.sleep_now(replica)


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
