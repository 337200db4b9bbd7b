"""Who may hold a GPU's memory: one ledger a GPU, a pure state machine told of every event and of the time.

Always true, as long as tenants hold no more than they were granted and obey recalls:

- What tenants hold, by the ledger's own grants, is at most `usable_kib`. Only two things exceed it: memory of unknown
  processes (`foreign`), and tenants that already held theirs when the ledger was made anew (`join(awake=True)`).
  Then nobody is granted more and tenants are recalled, but what the living hold is never cut.
- A pinned tenant is never recalled.
- Interactive waiters go before batch ones, then who asked first. A batch waiter older than `patience_s` counts as
  interactive from then on, so nothing that asks later goes before it any more.
- Memory that comes free is kept for the first in the queue. One behind passes only with memory that those ahead do
  not count on: all they wait for stays with the recalls already sent for them.
- A grant is worth having: until the tenant says what it works on, and then for `min_hold_s` after the seconds that
  its wake takes, it is recalled for nobody of its own rank. A waiter with interactive work recalls a tenant that
  said it does only batch work at any time; a recalled tenant finishes what it has in hand.
- So with k waiters before it, a waiter is granted after at most patience_s + (k + 1) * (wake_s + min_hold_s + work in
  hand + time to sleep), each the longest of any tenant. Exempt: a waiter that would not fit even if all others slept,
  because of foreign memory. It holds up nobody.

The tenant's side: `ask`, wait for the Grant, wake, say `busy` and `idle` as work comes and goes. At a Recall take no
new work, finish, sleep, then say `slept`; for new work `ask` again at once. Say `slept` once for each Grant, also
when sleeping unasked. A Recall that reaches a tenant already asleep was overtaken by its `slept`: ignore it. A Grant
that comes after `withdraw` counts: answer with `idle` or `slept`. A pinned tenant does not ask: its one Grant comes
from `join`, at once or when those who use its memory have slept.

Memory is in KiB, times in seconds of any clock that never runs backwards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cotenant.errors import NoRoom
from cotenant.gpu.books import Books
from cotenant.gpu.recalls import Choice, choose
from cotenant.gpu.tenants import Held, State, Tenant
from cotenant.gpu.terms import Priority
from cotenant.gpu.waiting import Waiting

__all__ = ["OVERCOMMITTED", "Action", "Grant", "Ledger", "NoRoom", "Recall", "State", "Tenant"]

OVERCOMMITTED = "(overcommitted)"
"""`Recall.wanted_by` when no tenant wants the memory, but more is held than there is."""


@dataclass(frozen=True)
class Grant:
    """`tenant` may hold its `full_kib` from now on."""

    tenant: str


@dataclass(frozen=True)
class Recall:
    """`tenant` is to finish what it has in hand, sleep, and then say `slept`."""

    tenant: str
    wanted_by: str


Action = Grant | Recall


class Ledger:
    """The memory of one GPU. Every method that changes it returns what is to be told to tenants, in order."""

    def __init__(
        self,
        usable_kib: int,
        *,
        min_hold_s: float = 5.0,
        patience_s: float = 30.0,
        remind_s: float = 30.0,
        opens_at: float = -math.inf,
    ) -> None:
        """
        Args:
            usable_kib: what tenants may hold together.
            min_hold_s: how long a woken tenant may use its grant undisturbed by its equals.
            patience_s: after this a batch waiter counts as interactive.
            remind_s: a recall not obeyed for so long is sent again by `tick`.
            opens_at: nothing is granted or recalled before this time: what the tenants of a dead agent still hold
                is known once they had time to join again.
        """
        self.usable_kib = usable_kib
        self._min_hold_s = min_hold_s
        self._remind_s = remind_s
        self._opens_at = opens_at
        self._books = Books(usable_kib)
        self._waiting = Waiting(patience_s)
        self._stuck: Held | None = None
        """The first waiter for whom nobody can be recalled yet: none behind it is served either."""
        self._short = False
        """Whether more is held than there is, even once all recalls are obeyed."""
        self._due = math.inf

    @property
    def holdings(self) -> Mapping[str, int]:
        """KiB that each tenant may hold now."""
        return self._books.holdings

    @property
    def waiting(self) -> tuple[str, ...]:
        """Tenants that wait for a Grant, the next one first."""
        pinned = (held.id for held in self._books.arriving.values() if held.tenant.pinned)
        return (*pinned, *(held.id for held in self._waiting))

    @property
    def recalled(self) -> Mapping[str, str]:
        """Tenants told to sleep that have not yet, and for whom."""
        return {held.id: held.wanted_by for held in self._books.recalled.values()}

    @property
    def free_kib(self) -> int:
        """KiB that nobody holds or is owed on arrival; negative when overcommitted."""
        return self._books.free

    @property
    def foreign_kib(self) -> int:
        """KiB that processes hold which are no tenants."""
        return self._books.foreign

    @property
    def due_at(self) -> float:
        """When `tick` may next have something to say if nothing happens before; infinite if never."""
        reminders = (held.recalled_at + self._remind_s for held in self._books.recalled.values())
        return min(self._due, min(reminders, default=math.inf))

    def state(self, tenant_id: str) -> State:
        """Where a tenant stands. This and all that name a tenant, but `leave`: KeyError if it is not here."""
        return self._books.tenants[tenant_id].state

    def join(self, tenant: Tenant, now: float, *, awake: bool = False) -> list[Action]:
        """A replica came. `awake`: it already holds its full memory (the agent before this one granted it).

        Raises:
            NoRoom: with it, some tenant could never wake, not even if all others slept. Not for `awake`: what is
                held can't be refused.
            ValueError: this id joined before and did not leave, or its sizes make no sense.
        """
        if tenant.id in self._books.tenants or not 0 <= tenant.floor_kib <= tenant.full_kib:
            raise ValueError(f"{tenant.id} can't join: it is here already, or its floor is not between 0 and full")
        held = Held(tenant, now)
        if awake:
            self._books.restore(held)
        else:
            self._books.arrive(held)
        return self._settle(now)

    def leave(self, tenant_id: str, now: float) -> list[Action]:
        """It died or ended: all it held is free. Nothing happens if it is not here."""
        held = self._books.tenants.get(tenant_id)
        if held is None:
            return []
        self._waiting.remove(held)
        self._books.remove(held)
        return self._settle(now)

    def ask(self, tenant_id: str, priority: Priority, now: float) -> list[Action]:
        """It wants to be awake. Nothing happens if it is, unless it is recalled: then it waits for its next turn.

        Asking again while it waits raises the priority if the new one is higher, and keeps its place.
        """
        held = self._books.tenants[tenant_id]
        if held.tenant.pinned or held.state is State.AWAKE:
            return []
        if held.asked is not None:
            return self._settle(now) if self._waiting.raise_to(held, priority) else []
        if held.gives_kib == 0 and held.state is State.ASLEEP:
            return [self._grant(held, now)]
        self._waiting.add(held, priority, now)
        if self._stuck is not None and now < self._due and (self._stuck.raised or not held.raised):
            # Behind one that can't be helped yet, so nothing can change for this one.
            self._due = min(self._due, self._waiting.due_at)
            return []
        return self._settle(now)

    def withdraw(self, tenant_id: str, now: float) -> list[Action]:
        """Nobody waits for it any more. Recalls already sent for it stand."""
        held = self._books.tenants[tenant_id]
        if held.asked is None:
            return []
        self._waiting.remove(held)
        return self._settle(now)

    def busy(self, tenant_id: str, now: float, priority: Priority = Priority.INTERACTIVE) -> list[Action]:
        """It has work in hand, the most urgent of which is of this priority."""
        held = self._books.tenants[tenant_id]
        lowered = held.work is not None and priority < held.work
        self._books.works(held, priority, now)
        if (lowered and (self._stuck is not None or self._short)) or now >= self._due:
            return self._settle(now)
        return []

    def idle(self, tenant_id: str, now: float) -> list[Action]:
        """It has no work in hand."""
        self._books.rests(self._books.tenants[tenant_id], now)
        if self._stuck is not None or self._short or now >= self._due:
            return self._settle(now)
        return []

    def slept(self, tenant_id: str, now: float) -> list[Action]:
        """It gave its memory back and holds its floor. Nothing happens if it was asleep, or is pinned."""
        held = self._books.tenants[tenant_id]
        if held.tenant.pinned or held.state < State.AWAKE:
            return []
        self._books.sleep(held)
        return self._settle(now)

    def foreign(self, kib: int, now: float) -> list[Action]:
        """So much is held by processes that are no tenants."""
        if kib == self._books.foreign:
            return []
        self._books.count_foreign(kib)
        return self._settle(now)

    def tick(self, now: float) -> list[Action]:
        """Time has passed: holds and patience may be over, recalls unheard. Call it at `due_at`, or now and then."""
        actions = self._settle(now) if now >= self._due else []
        for held in self._books.recalled.values():
            if now >= held.recalled_at + self._remind_s:
                held.recalled_at = now
                actions.append(Recall(held.id, held.wanted_by))
        return actions

    def _settle(self, now: float) -> list[Action]:
        """Admit, relieve, grant and recall all that can be now."""
        actions: list[Action] = []
        self._due, self._stuck, self._short = self._opens_at, None, False
        if now < self._opens_at:
            return actions
        self._due = math.inf
        books = self._books
        if books.arriving:
            self._admit(now, actions)
        if books.free + books.coming < 0:
            self._relieve(now, actions)
            self._short = books.free + books.coming < 0
        if self._waiting:
            self._waiting.age(now)
            self._serve(now, actions)
            self._due = min(self._due, self._waiting.due_at)
        return actions

    def _grant(self, held: Held, now: float) -> Grant:
        self._books.wake(held, now, self._min_hold_s)
        return Grant(held.id)

    def _recall(self, choice: Choice, wanted_by: str, now: float, actions: list[Action]) -> None:
        for held in choice.recall:
            self._books.recall(held, wanted_by, now)
            actions.append(Recall(held.id, wanted_by))

    def _admit(self, now: float, actions: list[Action]) -> None:
        """Let those arriving in for whom there is room; one that needs no more than its floor is awake with it."""
        for held in self._books.admit():
            if held.tenant.pinned:
                actions.append(Grant(held.id))
            elif held.asked is not None and held.gives_kib == 0:
                self._waiting.remove(held)
                actions.append(self._grant(held, now))

    def _relieve(self, now: float, actions: list[Action]) -> None:
        """More is held than there is: recall idle tenants; busy ones only for what tenants hold themselves."""
        books, high = self._books, Priority.INTERACTIVE
        wanted_by = next(iter(books.arriving), OVERCOMMITTED)
        missing = -books.free - books.coming
        choice = choose(missing, books.idle.values(), (), asked=high, rank=high, now=now, partial=True)
        self._recall(choice, wanted_by, now, actions)
        missing = -books.free - books.coming - books.foreign
        if missing > 0:
            choice = choose(missing, (), books.busy.values(), asked=high, rank=high, now=now, partial=True)
            self._recall(choice, wanted_by, now, actions)
            self._due = min(self._due, choice.retry_at)

    def _serve(self, now: float, actions: list[Action]) -> None:
        """Go down the queue: grant what has room, recall for what has not, stop at the first that can't be helped."""
        books = self._books
        coming = list(books.recalled.values())
        heard = counted = ahead = 0
        slack: float = math.inf
        granted: list[Held] = []
        for held in self._waiting:
            need = held.gives_kib
            if need <= books.free and need <= slack and held.state is State.ASLEEP:
                granted.append(held)
                actions.append(self._grant(held, now))
                slack -= need
                continue
            if books.never_fits(held):
                continue
            ahead += need
            # Each waiter counts on the earliest recalls that suffice for it and all ahead, and on no later ones.
            while books.free + counted < ahead and heard < len(coming):
                counted += coming[heard].gives_kib
                heard += 1
            missing = ahead - books.free - counted
            if missing > 0:
                rank = Priority.INTERACTIVE if held.raised else Priority.BATCH
                asked = held.asked or Priority.BATCH
                choice = choose(missing, books.idle.values(), books.busy.values(), asked=asked, rank=rank, now=now)
                if not choice.recall:
                    self._stuck = held
                    self._due = min(self._due, choice.retry_at)
                    break
                self._recall(choice, held.id, now, actions)
                counted += sum(chosen.gives_kib for chosen in choice.recall)
            slack = min(slack, books.free + counted - ahead)
        for held in granted:
            self._waiting.remove(held)
