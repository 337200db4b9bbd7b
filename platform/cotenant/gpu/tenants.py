"""A tenant of a GPU: what it is, and where it stands in the ledger."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from cotenant.gpu.terms import Priority


@dataclass(frozen=True)
class Tenant:
    """One replica on a GPU. Memory in KiB."""

    id: str
    full_kib: int
    """What it may hold while awake."""
    floor_kib: int
    """What it holds asleep."""
    wake_s: float
    """Seconds from asleep to awake: the cost of recalling it."""
    pinned: bool = False
    """`residency: always`: holds `full_kib` from its grant to its end and is never recalled."""


class State(enum.IntEnum):
    """Where a tenant stands with its memory."""

    ARRIVING = 0
    """Joined, but what it holds at all times has no room yet."""
    ASLEEP = 1
    AWAKE = 2
    RECALLED = 3
    """Awake, and told to sleep."""


class Held:
    """A tenant's entry in the ledger."""

    __slots__ = (
        "asked",
        "asked_at",
        "gives_kib",
        "granted_at",
        "hold_until",
        "id",
        "place",
        "raised",
        "recalled_at",
        "state",
        "tenant",
        "used_at",
        "wake_s",
        "wanted_by",
        "work",
    )

    def __init__(self, tenant: Tenant, now: float) -> None:
        self.tenant = tenant
        self.id = tenant.id
        self.wake_s = tenant.wake_s
        self.gives_kib = 0 if tenant.pinned else tenant.full_kib - tenant.floor_kib
        """What sleeping frees and waking takes."""
        self.state = State.ARRIVING
        self.used_at = now
        self.granted_at = now
        self.hold_until = now
        """Before this, a busy tenant is not recalled for one of its own rank."""
        self.work: Priority | None = None
        """The most urgent work in hand; None if idle."""
        self.asked: Priority | None = None
        """The priority with which it waits; None if it does not."""
        self.asked_at = now
        self.place = 0
        """Number of its ask: who asked earlier has the lower."""
        self.raised = False
        """Whether it waits among the interactive ones: by priority, or because its patience is over."""
        self.wanted_by = ""
        self.recalled_at = now

    @property
    def always_kib(self) -> int:
        """What it holds at all times."""
        return self.tenant.full_kib - self.gives_kib
