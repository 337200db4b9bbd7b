"""Programs that tests call: from the development environment if it has them, otherwise from the machine."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def tool(name: str) -> str | None:
    """Path of a program; None where there is none. Tests may run with an environment that isn't on PATH."""
    beside = shutil.which(name, path=str(Path(sys.executable).parent))
    return beside or shutil.which(name)
