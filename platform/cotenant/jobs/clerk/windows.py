"""How much of a batch is out at a time, and when to look again. Pure.

A batch of 50,000 lines is not published at once: what is out can't be overtaken by another tenant, costs leases, and
is hard to take back. So a *window* of lines is out, wide enough that no slot waits for the next look, and shared
among a tenant's batches. Looking costs requests to the store, so it is done no more often than it can show something.
"""

from __future__ import annotations

from cotenant.jobs.store.records import WorkloadPace

#: Lines of one batch and workload that are out at least where a batch is alone, at least in any case, and at most.
BASE_WINDOW, MIN_WINDOW, MAX_WINDOW = 64, 16, 2000
MIN_LOOK_S, FIRST_LOOK_S, MAX_LOOK_S = 0.25, 0.5, 15.0
#: Looking may take so much of the time between two looks.
LOOK_SHARE = 0.1
#: Keys that a listing gives in one request, and lines that are asked for by name at once.
_LISTED_AT_ONCE, _ASKED_AT_ONCE = 1000, 32


def window(pace: WorkloadPace, *, look_s: float, batches: int) -> int:
    """Lines of a batch that may be out at once for one workload.

    Args:
        pace: of the workload, all ingresses together.
        look_s: seconds between two looks: the slots must have work for twice as long.
        batches: the tenant's batches that are being seen through.
    """
    consumed = 2 * look_s * pace.slots / pace.mean_s if pace.mean_s > 0 else 0.0
    whole = max(BASE_WINDOW, 4 * pace.slots, round(consumed))
    return min(MAX_WINDOW, max(MIN_WINDOW, whole // max(1, batches)))


def to_publish(*, unpublished: int, out: int, window: int) -> int:
    """Lines to publish now."""
    return max(0, min(unpublished, window - out))


def next_look_s(*, before_s: float, moved: bool, out: int, pace: WorkloadPace, looked_s: float) -> float:
    """Seconds until the next look.

    Where the pace is known, about a quarter of what is out should have ended by then; where nothing moved, half as
    long again as before.

    Args:
        before_s: the pause before this look.
        moved: whether lines have ended since.
        out: lines published and not ended.
        pace: of the workload that has most of them.
        looked_s: what this look took.
    """
    if not moved:
        wanted = before_s * 1.5
    elif pace.mean_s > 0 and pace.slots > 0:
        wanted = out * pace.mean_s / pace.slots / 4
    else:
        wanted = FIRST_LOOK_S
    return min(MAX_LOOK_S, max(MIN_LOOK_S, wanted, looked_s / LOOK_SHARE))


def cheaper_to_list(*, published: int, out: int) -> bool:
    """Whether to learn what has ended from a listing of all results rather than by asking for each line."""
    return published / _LISTED_AT_ONCE < out / _ASKED_AT_ONCE
