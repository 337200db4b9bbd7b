"""What one start finds out and the next can have from a file: which back end works, and shadows that were baked.

Always true: what is kept is what would be found anew. Its key names all that decides it (the code, the libraries, this
processor and driver, the template's own bytes), a file that can't be read counts as none, and a folder that can't be
written to costs only time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from cotenant.config.home import cache
from cotenant.engines.mockup.template import Floats

_PACKAGES = ("mitsuba", "drjit", "numpy", "trimesh")


def key(*parts: object) -> str:
    """The key of what follows from these parts on this machine with these libraries."""
    told = hashlib.sha256("\0".join((*_machine(), *map(str, parts))).encode())
    return told.hexdigest()[:32]


def variant(name: str) -> dict[str, Any] | None:
    """What was kept of a choice of back end."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((_folder() / f"{name}.variant.json").read_text())
        return found if isinstance(found, dict) else None
    return None


def keep_variant(name: str, chosen: dict[str, Any]) -> None:
    _write(_folder() / f"{name}.variant.json", json.dumps(chosen).encode())


def drop_variant(name: str) -> None:
    with contextlib.suppress(OSError):
        (_folder() / f"{name}.variant.json").unlink()


def shadow(name: str) -> Floats | None:
    """A shadow map that was kept."""
    with contextlib.suppress(OSError, ValueError, EOFError):
        found = np.load(io.BytesIO((_folder() / f"{name}.shadow.npy").read_bytes()), allow_pickle=False)
        if found.dtype == np.float32 and found.ndim == 2 and np.isfinite(found).all():
            return np.asarray(found)
    return None


def keep_shadow(name: str, baked: Floats) -> None:
    out = io.BytesIO()
    np.save(out, baked, allow_pickle=False)
    _write(_folder() / f"{name}.shadow.npy", out.getvalue())


def _folder() -> Path:
    return cache("mockup")


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, whoever else writes it."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(content)
        draft.replace(path)


@functools.cache
def _machine() -> tuple[str, ...]:
    """Processor, driver and libraries: of another of them nothing is taken over."""
    facts = [platform.machine(), platform.python_version()]
    for file, wanted in (("/proc/cpuinfo", ("model name", "flags", "Features")), ("/proc/driver/nvidia/version", ())):
        with contextlib.suppress(OSError):
            lines = Path(file).read_text(errors="replace").splitlines()
            facts += sorted({line for line in lines if not wanted or line.startswith(wanted)})
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            facts.append(f"{package} {version(package)}")
    return tuple(facts)
