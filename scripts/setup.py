#!/usr/bin/env python3
"""Sets up `.venv` from the committed lock, with what a bare Debian machine has: python3, venv and pip.

Standard library only. Missing system packages are installed when run as root; otherwise the exact command is
printed. Indexes, certificates and the place of the CPU torch wheel come from pip's own configuration or the
environment, so nothing about where packages come from is written here. Running it again costs a second.
"""

from __future__ import annotations

import argparse
import ctypes.util
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOCK = ROOT / "requirements" / "cpu.lock"
STAMP = VENV / "cotenant.stamp"
UV_VERSION = "0.13.9"
#: Imported once at set-up, so that their bytecode is on disk: every engine process imports them again, and
#: compiling source is most of a cold start. Each is a root of what the platform imports at run time.
WARM_IMPORTS = (
    "vllm.entrypoints.openai.api_server",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.llama",
    "ray.serve.llm",
    "ray.dashboard.dashboard",
    "google.pubsub_v1",
    "mitsuba",
    "trimesh",
    "openai",
)


@dataclass(frozen=True)
class SystemPackage:
    """A Debian package, why it is wanted, and how to tell that it is there."""

    name: str
    why: str
    present: Callable[[], bool]
    required: bool = True


def _has_venv() -> bool:
    return (
        subprocess.run([sys.executable, "-c", "import ensurepip, venv"], check=False, capture_output=True).returncode
        == 0
    )


def _has_llvm() -> bool:
    folder = Path("/usr/lib/x86_64-linux-gnu")
    return bool(os.environ.get("DRJIT_LIBLLVM_PATH")) or any(folder.glob("libLLVM*19*"))


SYSTEM_PACKAGES = (
    SystemPackage("python3-venv", "virtual environments", _has_venv),
    SystemPackage("libllvm19", "fast CPU rendering (without it mockups render 4x slower)", _has_llvm, required=False),
    SystemPackage("libnuma1", "vLLM on a CPU", lambda: ctypes.util.find_library("numa") is not None),
    SystemPackage("libatomic1", "Mitsuba", lambda: ctypes.util.find_library("atomic") is not None),
    SystemPackage("libgomp1", "torch's threads", lambda: ctypes.util.find_library("gomp") is not None),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-system", action="store_true", help="install no system packages")
    arguments = parser.parse_args()
    if sys.version_info[:2] != (3, 11):
        sys.exit(f"setup: needs Python 3.11 (the lock is made for it), this is {sys.version.split()[0]}")
    if not arguments.no_system:
        install_system_packages()
    wanted = _fingerprint()
    if STAMP.exists() and STAMP.read_text() == wanted:
        return
    begun = time.monotonic()
    create_venv()
    install_lock()
    warm_bytecode()
    STAMP.write_text(wanted)
    say(f"ready in {time.monotonic() - begun:.0f} s")


def install_system_packages() -> None:
    missing = [package for package in SYSTEM_PACKAGES if not package.present()]
    if not missing:
        return
    names = [package.name for package in missing]
    for package in missing:
        say(f"missing: {package.name} ({package.why})")
    command = ["apt-get", "install", "-y", "--no-install-recommends", *names]
    if os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        with Step(f"apt-get install {' '.join(names)}"):
            subprocess.run(["apt-get", "update", "-qq"], env=environment, check=False, stdout=subprocess.DEVNULL)
            done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        if done.returncode == 0:
            return
        say(done.stderr.strip()[-500:])
    required = [package for package in missing if package.required]
    text = f"sudo {' '.join(command)}"
    if required:
        sys.exit(f"setup: run this, then start again:\n  {text}")
    say(f"going on without; to have it: {text}")


def create_venv() -> None:
    if not PYTHON.exists():
        with Step("create .venv"):
            run([sys.executable, "-m", "venv", str(VENV)])
    with Step(f"install uv {UV_VERSION}"):
        run([str(PYTHON), "-m", "pip", "install", "--quiet", f"uv=={UV_VERSION}"])


def install_lock() -> None:
    """Install the lock and the project itself. `--no-deps`: the lock is whole, and torchvision must stay out."""
    environment, flags = uv_settings()
    uv = [str(VENV / "bin" / "uv"), "pip", "install", "--python", str(PYTHON), "--no-deps"]
    if not sys.stderr.isatty():
        uv.append("--quiet")
    with Step("download and install the lock (200 packages, about 1.3 GB)"):
        run([*uv, "--index-strategy", "unsafe-best-match", *flags, "-r", str(LOCK)], environment)
    with Step("install cotenant"):
        run([*uv, *flags, "--editable", str(ROOT)], environment)


def uv_settings() -> tuple[dict[str, str], list[str]]:
    """Environment and flags that make uv look where pip is configured to look."""

    def setting(name: str) -> str:
        from_environment = os.environ.get("PIP_" + name.upper().replace("-", "_"))
        if from_environment:
            return from_environment
        asked = [str(PYTHON), "-m", "pip", "config", "get", f"global.{name}"]
        found = subprocess.run(asked, capture_output=True, text=True, check=False)
        return found.stdout.strip() if found.returncode == 0 else ""

    environment = dict(os.environ)
    for ours, theirs in (("UV_DEFAULT_INDEX", "index-url"), ("SSL_CERT_FILE", "cert")):
        if not environment.get(ours) and (value := setting(theirs)):
            environment[ours] = value
    if not environment.get("UV_INDEX"):
        extra = [url for url in setting("extra-index-url").split() if _reachable(url)]
        if extra:
            environment["UV_INDEX"] = " ".join(extra)
    if not environment.get("UV_FIND_LINKS"):
        environment["UV_FIND_LINKS"] = ",".join(setting("find-links").split())
    has_torch = any(
        any(Path(place.removeprefix("file://")).glob("torch-*+cpu*.whl"))
        for place in environment["UV_FIND_LINKS"].split(",")
        if place and Path(place.removeprefix("file://")).is_dir()
    )
    return environment, [] if has_torch else ["--torch-backend", "cpu"]


def _reachable(url: str) -> bool:
    return not url.startswith("file://") or Path(url.removeprefix("file://")).is_dir()


def warm_bytecode() -> None:
    """Import what the engines import, with bytecode kept."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"VLLM_LOGGING_LEVEL": "ERROR", "RAY_USAGE_STATS_ENABLED": "0"}
    code = "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
    with Step("compile what the engines import"):
        run([str(PYTHON), "-W", "ignore", "-c", code, *WARM_IMPORTS], environment)


class Step:
    """Prints what is being done and, when it is done, how long it took."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        self.begun = time.monotonic()
        say(f"{self.what} ...")

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            say(f"{self.what}: {time.monotonic() - self.begun:.0f} s")


def run(command: list[str], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode:
        sys.exit(f"setup: failed ({done.returncode}): {' '.join(command[:8])} ...")


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def _fingerprint() -> str:
    parts = [LOCK.read_bytes(), (ROOT / "pyproject.toml").read_bytes(), Path(__file__).read_bytes(), str(ROOT).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


if __name__ == "__main__":
    main()
