"""How long a client would wait for a job to end, and how often the door looks meanwhile. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable

from cotenant.errors import RequestRefused

#: The longest that an answer is held back: under the minute after which proxies commonly give up, and under what a
#: gateway that is replaced has to finish its answers.
MAX_WAIT_S = 45.0
_FIRST_LOOK_S = 0.1
_SELDOMEST_S = 1.0


def wished_wait_s(wait_s: str | None, prefer: Iterable[str]) -> float:
    """Seconds from the query's `wait_s`, otherwise from `Prefer: wait=N` (RFC 7240); 0 without either.

    More than `MAX_WAIT_S` is that. A preference that can't be read is passed over, as the RFC has it.

    Raises:
        RequestRefused: `wait_s` is no number of seconds.
    """
    if wait_s is not None:
        seconds = _seconds(wait_s)
        if seconds is None:
            text = f"wait_s needs seconds, 0 or more, got {wait_s[:32]!r}"
            raise RequestRefused(text, param="wait_s", code="invalid_value")
        return seconds
    for preference in ",".join(prefer).split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() == "wait":
            return _seconds(value.strip().strip('"')) or 0.0
    return 0.0


def pause_s(waited_s: float) -> float:
    """Seconds until the next look at a job that was waited for so long: short jobs are seen soon, long ones seldom."""
    return min(_SELDOMEST_S, max(_FIRST_LOOK_S, waited_s / 4))


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return min(seconds, MAX_WAIT_S) if math.isfinite(seconds) and seconds >= 0 else None
