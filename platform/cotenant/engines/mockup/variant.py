"""Which Mitsuba back end works here: CUDA, then LLVM, then scalar. Found out in child processes.

A wrong guess can't be caught: LLVM 15 and 16 abort the process that compiles with them, and a broken driver may
too. So each candidate renders a small picture in a process of its own first, with the exact library this process
will then use; Dr.Jit's own search for an LLVM is never relied on.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from cotenant.errors import EnvironmentFault

Choice = Literal["auto", "cuda", "llvm", "scalar"]
VARIANTS = {"cuda": "cuda_ad_rgb", "llvm": "llvm_ad_rgb", "scalar": "scalar_rgb"}
LIBRARY = "DRJIT_LIBLLVM_PATH"
OLDEST_LLVM, NEWEST_LLVM = 17, 24
NO_LLVM = "/nonexistent/libLLVM.so"
PROBE_TIMEOUT_S = 120.0

_PROBE = """
import sys, mitsuba as mi
mi.set_variant(sys.argv[1])
import numpy as np
scene = mi.load_dict({"type": "scene", "integrator": {"type": "path"}, "light": {"type": "constant"},
    "ball": {"type": "sphere", "bsdf": {"type": "twosided", "surface": {"type": "principled"}}},
    "sensor": {"type": "perspective", "to_world": mi.ScalarTransform4f().look_at([0, 0, 5], [0, 0, 0], [0, 1, 0]),
        "film": {"type": "hdrfilm", "width": 16, "height": 16, "rfilter": {"type": "box"}}}})
image = np.array(mi.render(scene, spp=4))
assert image.shape[:2] == (16, 16) and np.isfinite(image).all() and image.max() > 0
print("rendered")
"""


@dataclass(frozen=True)
class Variant:
    """The back end to use, why it is this one, and the LLVM library it needs (None unless llvm)."""

    name: str
    reason: str
    llvm: str | None = None


def choose(choice: Choice = "auto") -> Variant:
    """The fastest back end that a probe found working. Raises EnvironmentFault if none is, or not the one asked for."""
    passed_over: list[str] = []
    for short, name in VARIANTS.items():
        if choice not in ("auto", short):
            continue
        library, problem = llvm_library() if short == "llvm" else (None, None)
        problem = problem or _probe(name, library)
        if problem is None:
            told = f"asked for {short}" if choice != "auto" else "the fastest that works here"
            why = f"{told}; {'; '.join(passed_over)}" if passed_over else told
            return Variant(name, f"{why} ({library})" if library else why, library)
        passed_over.append(f"{short}: {problem}")
    raise EnvironmentFault(
        f"mockups need a working Mitsuba back end ({choice}), none is: {'; '.join(passed_over)};"
        f" install libllvm19 and set {LIBRARY}, or reinstall mitsuba"
    )


def load(variant: Variant) -> ModuleType:
    """Mitsuba with the variant set, in this process."""
    os.environ[LIBRARY] = variant.llvm or NO_LLVM
    mi = importlib.import_module("mitsuba")
    mi.set_variant(variant.name)
    mi.set_log_level(mi.LogLevel.Error)
    return mi


def llvm_library() -> tuple[str | None, str | None]:
    """The LLVM to use, or why there is none: the environment's choice, else the newest known good one."""
    told = os.environ.get(LIBRARY)
    if told:
        if not Path(told).is_file():
            return None, f"{LIBRARY}={told} is not a file"
        version = llvm_version(Path(told).resolve().name) or llvm_version(Path(told).name)
        if version is not None and version < OLDEST_LLVM:
            return None, f"{LIBRARY} is LLVM {version}, which aborts; {OLDEST_LLVM} or newer works"
        return told, None
    for version in range(NEWEST_LLVM, OLDEST_LLVM - 1, -1):
        for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"):
            for name in (f"libLLVM-{version}.so", f"libLLVM.so.{version}.1", f"libLLVM-{version}.so.1"):
                if (path := Path(folder, name)).is_file():
                    return str(path), None
    return None, f"no LLVM {OLDEST_LLVM} or newer is installed (Debian: libllvm19)"


def llvm_version(name: str) -> int | None:
    """The major version in an LLVM library's file name: `libLLVM-19.so`, `libLLVM.so.19.1`."""
    match = re.search(r"libLLVM(?:-|\.so\.)(\d+)", name)
    return int(match[1]) if match else None


def _probe(variant: str, library: str | None) -> str | None:
    """Renders a small picture in a child process; None if it came out, otherwise what happened."""
    environment = {**os.environ, LIBRARY: library or NO_LLVM}
    try:
        child = subprocess.run(
            [sys.executable, "-c", _PROBE, variant],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"a 16 x 16 picture took over {PROBE_TIMEOUT_S:.0f} s"
    if child.returncode == 0 and "rendered" in child.stdout:
        return None
    if child.returncode < 0:
        return f"a test render was killed by signal {-child.returncode}"
    lines = [line.strip() for line in child.stderr.splitlines() if line.strip()]
    return lines[-1][:200] if lines else f"a test render ended with {child.returncode}"
