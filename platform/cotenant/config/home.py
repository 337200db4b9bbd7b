"""Where this machine keeps what the platform makes: converted models, tokens, records of what runs, logs."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """`$COTENANT_HOME`, by default `~/.cache/cotenant`, as an absolute path; it need not exist yet."""
    return Path(os.environ.get("COTENANT_HOME") or "~/.cache/cotenant").expanduser().absolute()
