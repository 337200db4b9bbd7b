"""Whom to recall when a tenant needs GPU memory that others hold: a pure choice, without memory of its own.

Idle tenants go before busy ones, the least recently used first; of two used at the same moment the one that wakes
sooner. Nobody is recalled whose memory is not needed: what the last one chosen made superfluous is dropped again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter

from cotenant.gpu.tenants import Held
from cotenant.gpu.terms import Priority

_by_use = attrgetter("used_at", "wake_s")
_by_work = attrgetter("work", "granted_at")


@dataclass(frozen=True)
class Choice:
    """Tenants to recall, in order of preference; empty if they would not suffice."""

    recall: tuple[Held, ...]
    retry_at: float
    """When a tenant that is still protected by its hold may be recalled; infinite if there is none."""


def choose(
    need_kib: int,
    idle: Iterable[Held],
    busy: Iterable[Held],
    *,
    asked: Priority,
    rank: Priority,
    now: float,
    partial: bool = False,
) -> Choice:
    """The tenants whose recall frees `need_kib`, or none if there aren't enough (`partial`: as many as there are).

    A busy tenant may be recalled once its hold is over, for a waiter of at least the rank of its work; and at any
    time for one that asked with a higher priority than that of its work.
    """
    chosen: list[Held] = []
    missing = need_kib
    retry_at = math.inf
    for held in sorted(idle, key=_by_use):
        if missing <= 0:
            break
        chosen.append(held)
        missing -= held.gives_kib
    if missing > 0:
        for held in sorted(busy, key=_by_work):
            work = held.work or Priority.BATCH
            if asked <= work:
                if rank < work:
                    continue
                if now < held.hold_until:
                    retry_at = min(retry_at, held.hold_until)
                    continue
            chosen.append(held)
            missing -= held.gives_kib
            if missing <= 0:
                break
    if missing > 0:
        return Choice(tuple(chosen) if partial else (), retry_at)
    if missing < 0 and len(chosen) > 1:
        for held in reversed(tuple(chosen)):
            if missing + held.gives_kib <= 0:
                chosen.remove(held)
                missing += held.gives_kib
    return Choice(tuple(chosen), math.inf)
