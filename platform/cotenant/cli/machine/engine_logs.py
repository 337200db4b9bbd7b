"""What an engine's own processes said before they died: Serve's message often only says that they did.

vLLM's engine runs in a child of the replica and writes to the replica's worker log; the replica itself learns no
more than "see root cause above". This finds that cause.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

#: `(EngineCore pid=17) ValueError: …`, with or without a log prefix in between.
_CAUSE = re.compile(
    r"^\((?P<process>(?:EngineCore|Worker)\S*) pid=\d+\)\s(?:.*\]\s)?(?P<cause>[\w.]*(?:Error|Exception)\b.*)$"
)
_TAIL_BYTES = 200_000


def root_cause(ray_directory: Path, since_s: float) -> str | None:
    """The last error that an engine process logged after `since_s` (Unix time), and in which file; None if none."""
    for file in _recent(ray_directory / "session_latest" / "logs", since_s):
        for line in reversed(_tail(file).splitlines()):
            if found := _CAUSE.match(line.strip()):
                return f"{found['process']}: {found['cause']} (more in {file})"
    return None


def _recent(folder: Path, since_s: float) -> Iterator[Path]:
    """Worker logs written to since then, the latest first."""
    files = [(file.stat().st_mtime, file) for file in folder.glob("worker-*") if file.is_file()]
    yield from (file for written, file in sorted(files, reverse=True) if written >= since_s)


def _tail(file: Path) -> str:
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - _TAIL_BYTES))
        return stream.read().decode(errors="replace")
