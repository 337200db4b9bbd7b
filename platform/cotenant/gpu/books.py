"""The books of one GPU's memory: who holds what, and what that leaves. Counts only; decides nothing.

All in KiB. Always: `free` is usable memory less foreign memory, less what all tenants hold, less what is owed to
those arriving; `coming` is what tenants under recall will give back.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter

from cotenant.errors import NoRoom
from cotenant.gpu.tenants import Held, State
from cotenant.gpu.terms import Priority

_KIB_PER_GIB = 2**20


class Books:
    """Every tenant of a GPU is in `tenants`; beside that by state, as far as its state matters to a choice."""

    def __init__(self, usable_kib: int) -> None:
        self.usable = usable_kib
        self.tenants: dict[str, Held] = {}
        self.arriving: dict[str, Held] = {}
        # Awake tenants whose sleep would free something, by whether they have work in hand.
        self.idle: dict[str, Held] = {}
        self.busy: dict[str, Held] = {}
        self.recalled: dict[str, Held] = {}
        self.free = usable_kib
        self.coming = 0
        self.foreign = 0
        self._owed = 0
        self._always = 0

    @property
    def holdings(self) -> Mapping[str, int]:
        return {held.id: self._holds(held) for held in self.tenants.values()}

    def never_fits(self, held: Held) -> bool:
        """Whether a tenant could not be awake beside the foreign memory even if all others slept."""
        return self._always + held.gives_kib + self.foreign > self.usable

    def arrive(self, held: Held) -> None:
        """A tenant comes that holds nothing yet.

        Raises:
            NoRoom: with it, some tenant could never wake.
        """
        self._refuse_if_too_much(held)
        self.tenants[held.id] = self.arriving[held.id] = held
        self._always += held.always_kib
        self._owed += held.always_kib
        self.free -= held.always_kib

    def restore(self, held: Held) -> None:
        """A tenant comes that is awake already."""
        self.tenants[held.id] = held
        self._always += held.always_kib
        self.free -= held.tenant.full_kib
        held.state = State.AWAKE
        if held.gives_kib:
            self.idle[held.id] = held

    def admit(self) -> list[Held]:
        """Give arriving tenants what they always hold, in order of arrival, as far as it has room."""
        admitted: list[Held] = []
        for held in tuple(self.arriving.values()):
            if held.always_kib > self.free + self._owed:
                break
            del self.arriving[held.id]
            self._owed -= held.always_kib
            held.state = State.AWAKE if held.tenant.pinned else State.ASLEEP
            admitted.append(held)
        return admitted

    def remove(self, held: Held) -> None:
        del self.tenants[held.id]
        self._set_aside(held)
        self._always -= held.always_kib
        self.free += self._holds(held)
        if self.arriving.pop(held.id, None) is not None:
            self._owed -= held.always_kib
            self.free += held.always_kib

    def wake(self, held: Held, now: float, hold_s: float) -> None:
        """Give a sleeping tenant its memory. Until it speaks, it counts as busy with interactive work."""
        held.state = State.AWAKE
        held.work = Priority.INTERACTIVE
        held.used_at = held.granted_at = now
        held.hold_until = now + held.wake_s + hold_s
        self.free -= held.gives_kib
        if held.gives_kib:
            self.busy[held.id] = held

    def recall(self, held: Held, wanted_by: str, now: float) -> None:
        self._set_aside(held)
        held.state, held.wanted_by, held.recalled_at = State.RECALLED, wanted_by, now
        self.recalled[held.id] = held
        self.coming += held.gives_kib

    def sleep(self, held: Held) -> None:
        """An awake tenant gave its memory back."""
        self._set_aside(held)
        held.state, held.work = State.ASLEEP, None
        self.free += held.gives_kib

    def works(self, held: Held, priority: Priority, now: float) -> None:
        held.work, held.used_at = priority, now
        if self.idle.pop(held.id, None) is not None:
            self.busy[held.id] = held

    def rests(self, held: Held, now: float) -> None:
        held.work, held.used_at = None, now
        if self.busy.pop(held.id, None) is not None:
            self.idle[held.id] = held

    def count_foreign(self, kib: int) -> None:
        self.free += self.foreign - kib
        self.foreign = kib

    def _holds(self, held: Held) -> int:
        if held.state is State.ARRIVING:
            return 0
        return held.tenant.full_kib if held.state >= State.AWAKE else held.always_kib

    def _set_aside(self, held: Held) -> None:
        """Take a tenant out of those that may be, or are, recalled."""
        self.idle.pop(held.id, None)
        self.busy.pop(held.id, None)
        if self.recalled.pop(held.id, None) is not None:
            self.coming -= held.gives_kib

    def _refuse_if_too_much(self, new: Held) -> None:
        always = self._always + new.always_kib
        widest = max((new, *self.tenants.values()), key=attrgetter("gives_kib"))
        if always + widest.gives_kib <= self.usable:
            return
        others = always - widest.always_kib
        beside = "" if widest is new else f" beside {new.id}"
        raise NoRoom(
            f"{widest.id} needs {widest.tenant.full_kib / _KIB_PER_GIB:.1f} GiB to be awake, but{beside} it can have "
            f"{(self.usable - others) / _KIB_PER_GIB:.1f} of this GPU's {self.usable / _KIB_PER_GIB:.1f} GiB: the "
            "others never give back the rest; lower a budget, or let it start on another GPU"
        )
