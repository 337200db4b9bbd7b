"""How often a call to the API server is repeated, and how long it waits before that. Pure.

Every call of ours may be repeated: reading, server-side apply and deleting come to the same however often they are
done. What the API server refuses for a reason (4xx but 429) is not repeated: it would say so again.
"""

from __future__ import annotations

from dataclasses import dataclass

WORTH_REPEATING = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Patience:
    """`attempts` in all; waits double from `first_s` to `longest_s`, unless the server says how long."""

    attempts: int = 6
    first_s: float = 0.25
    longest_s: float = 10.0
    #: A `Retry-After` is kept to up to this.
    longest_asked_s: float = 60.0

    def wait_s(self, attempt: int, retry_after_s: float | None = None) -> float | None:
        """How long to wait after the `attempt`-th one (from 1) failed. None: give up."""
        if attempt >= self.attempts:
            return None
        doubled = min(self.longest_s, self.first_s * 2.0 ** (attempt - 1))
        return doubled if retry_after_s is None else min(self.longest_asked_s, max(retry_after_s, self.first_s))


def retry_after_s(value: str | None) -> float | None:
    """Seconds of a `Retry-After` header. Kubernetes gives no dates there, and one is left unread."""
    try:
        seconds = float(value) if value is not None else None
    except ValueError:
        return None
    return seconds if seconds is not None and 0 <= seconds < float("inf") else None
