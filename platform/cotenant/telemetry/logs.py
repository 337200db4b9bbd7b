"""Log lines for machines: one JSON object each, through the standard library's logging.

What never gets into a line: prompts, artwork, keys. A line is an `action` with named scalar fields that the
caller chose one by one, and an exception is logged as its type and stack without its text, because the text of
a foreign exception may quote the request that caused it.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import datetime, timezone
from typing import TextIO

Scalar = str | int | float | bool | None

_LONGEST_TEXT = 300
_STACK_FRAMES = 12

_encode = json.JSONEncoder(default=str).encode


def event(
    logger: logging.Logger,
    action: str,
    *,
    level: int = logging.INFO,
    error: BaseException | None = None,
    **fields: Scalar,
) -> None:
    """Log that `action` happened (a verb phrase in snake case), with its fields and the error behind it."""
    if logger.isEnabledFor(level):
        # Made here, since `Logger.log` would walk the stack for a caller that no line shows.
        record = logging.LogRecord(logger.name, level, "", 0, action, (), None)
        record.fields, record.cause = fields, error
        logger.handle(record)


class JsonFormatter(logging.Formatter):
    """`{"time", "level", "logger", "action", …fields}`; fields of None are left out, long texts cut."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Scalar | list[str]] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "action": record.getMessage(),
        }
        for name, value in getattr(record, "fields", {}).items():
            if value is not None:
                line[name] = value[:_LONGEST_TEXT] if isinstance(value, str) else value
        cause = getattr(record, "cause", None) or (record.exc_info[1] if record.exc_info else None)
        if cause is not None:
            frames = traceback.extract_tb(cause.__traceback__)[-_STACK_FRAMES:]
            line["error"] = type(cause).__name__
            line["stack"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        return _encode(line)


def configure_logs(stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Send everything under the logger `cotenant` to `stream` (stderr) as JSON lines. Safe to call again."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("cotenant")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
