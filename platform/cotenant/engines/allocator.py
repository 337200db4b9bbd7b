"""What a process does with memory that it freed."""

from __future__ import annotations

import ctypes

#: glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def give_back_freed() -> None:
    """Have glibc give large freed blocks back to the kernel, for the whole process; elsewhere do nothing.

    By default it raises its thresholds as pictures come and go, and keeps a third of the peak for the next one: with
    two renders of 2048 pixels a side at a time 2.4 GiB were held instead of 1.7 (docs/measurements.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 4 << 20)
        mallopt(_M_TRIM_THRESHOLD, 128 << 20)
