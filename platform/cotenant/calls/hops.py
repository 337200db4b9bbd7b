"""What one cotenant tells another beside a request: that it was sent on, that it is a job, how long it may take.

None of it is trusted with more than its sender may have anyway: a client that claims to be a job waits behind others,
one that claims to have been sent on is served here or not at all. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

#: The request was sent on by another platform (its value: which): it is worked on here, or refused.
SPILLED_FROM = "x-cotenant-spilled-from"
#: The request is a job; its value is the job's priority among jobs.
BATCH = "x-cotenant-batch"
#: Seconds that a job may take.
DEADLINE_S = "x-cotenant-deadline-s"
#: On a reply: the host that it was sent on to, or `HERE`.
SERVED_BY = "x-cotenant-served-by"
HERE = "cluster"

_MOST_PRIORITY = 10


@dataclass(frozen=True)
class Hop:
    """What the sender of a request said of it. `deadline_s` is a job's own, None where it names none."""

    spilled: bool = False
    batch: bool = False
    priority: int = 0
    deadline_s: float | None = None


def hop_of(headers: Mapping[str, str]) -> Hop:
    """What these headers (looked up by lower-case name) say. What can't be read is passed over."""
    batch = headers.get(BATCH)
    if batch is None:
        return Hop(spilled=SPILLED_FROM in headers)
    priority = _number(batch) or 0.0
    deadline_s = _number(headers.get(DEADLINE_S, ""))
    return Hop(
        spilled=SPILLED_FROM in headers,
        batch=True,
        priority=max(-_MOST_PRIORITY, min(_MOST_PRIORITY, int(priority))),
        deadline_s=deadline_s if deadline_s is not None and deadline_s > 0 else None,
    )


def is_from_elsewhere(headers: Mapping[str, str]) -> bool:
    """Whether a reply with these headers was made by another platform."""
    return headers.get(SERVED_BY, HERE) != HERE


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
