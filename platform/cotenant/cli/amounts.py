"""Seconds, bytes and times of day as people read them, and durations as they write them. Pure."""

from __future__ import annotations

import re
from datetime import datetime, timezone

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 7 * 86_400.0}
_DURATION = re.compile(r"^(?:\d+(?:\.\d+)?[smhdw])+$")


def duration_s(text: str) -> float | None:
    """Seconds of `90s`, `2h`, `1h30m` or `7d`; None for anything else."""
    if not _DURATION.match(text.strip().lower()):
        return None
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhdw])", text.strip().lower())
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def time_text(seconds: float) -> str:
    """A duration in its two largest units: 0.85 s, 12 s, 3 min 5 s, 2 h 10 min, 3 d 4 h."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    rest = round(seconds)
    for unit, size, smaller, small in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if rest >= size:
            more = rest % size // small
            return f"{rest // size} {unit}" + (f" {more} {smaller}" if more else "")
    return f"{rest} s"


def size_text(size_bytes: int) -> str:
    """A size in binary units: 512 B, 3.4 KiB, 20 MiB."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


def when_text(at_s: float) -> str:
    """A Unix time in the machine's zone, to the second."""
    return datetime.fromtimestamp(at_s, tz=timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M:%S")
