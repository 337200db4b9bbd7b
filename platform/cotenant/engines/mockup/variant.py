"""Which Mitsuba back end works here: CUDA, then LLVM, then scalar. Found out in child processes.

A wrong guess can't be caught: LLVM 15 and 16 abort the process that compiles with them, and a broken driver may
too. So each candidate renders a small picture in a process of its own first, with the exact library this process
will then use; Dr.Jit's own search for an LLVM is never relied on. What was found is kept (`kept`), since it costs a
second of every start, until the library, the driver, the processor or Mitsuba is another one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from cotenant.config.home import cache
from cotenant.engines.mockup import kept
from cotenant.errors import EnvironmentFault

Choice = Literal["auto", "cuda", "llvm", "scalar"]
VARIANTS = {"cuda": "cuda_ad_rgb", "llvm": "llvm_ad_rgb", "scalar": "scalar_rgb"}
LIBRARY = "DRJIT_LIBLLVM_PATH"
#: Where Dr.Jit keeps compiled kernels; by default in the home of the user, which a container forgets.
KERNELS = "DRJIT_CACHE_DIR"
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
    """The fastest back end that a probe found working, now or at an earlier start.

    Raises:
        EnvironmentFault: none works, or not the one asked for.
    """
    name = _key(choice)
    with contextlib.suppress(TypeError):
        return Variant(**(kept.variant(name) or {}))
    chosen = probed(choice)
    kept.keep_variant(name, dataclasses.asdict(chosen))
    return chosen


def probed(choice: Choice = "auto") -> Variant:
    """As `choose`, by probes of now."""
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
    """Mitsuba with the variant set, in this process. Raises ImportError if it is not to be had any more."""
    os.environ[LIBRARY] = variant.llvm or NO_LLVM
    _keep_kernels()
    mi = importlib.import_module("mitsuba")
    try:
        mi.set_variant(variant.name)
    except ImportError:
        for short in ("auto", *VARIANTS):
            kept.drop_variant(_key(short))
        raise
    mi.set_log_level(mi.LogLevel.Error)
    return mi


def _key(choice: str) -> str:
    """Of what a choice depends on besides this machine: which LLVM there is, and which GPUs may be seen."""
    library, _ = llvm_library()
    told = os.environ.get(LIBRARY), os.environ.get("CUDA_VISIBLE_DEVICES")
    if library is None or not Path(library).is_file():
        return kept.key(choice, library, *told)
    facts = Path(library).resolve().stat()
    return kept.key(choice, library, facts.st_size, facts.st_mtime_ns, *told)


def _keep_kernels() -> None:
    if KERNELS not in os.environ:
        folder = cache("drjit")
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            os.environ[KERNELS] = str(folder)


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
    _keep_kernels()
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
