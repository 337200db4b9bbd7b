"""The GPU suite as one command: tests/gpu, then every benchmark of benchmarks/gpu, and a report of both.

Needs a CUDA device and a Python with torch; what else a part needs and this machine lacks makes that part skip, with
the reason in the report. Nothing is installed into the Python it runs in: --wheels go into a temporary folder. It
starts nothing that outlives it, changes no setting of the GPU, and holds at most 60 % of the card. With
COTENANT_GPU_SUITE_DEVICE=cpu everything runs on a CPU at a small scale: a rehearsal, whose figures say nothing of GPUs.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks" / "gpu"
PATHS = (BENCHMARKS, ROOT / "platform", ROOT)
#: In this order: what matters most first, should time run out.
ORDER = ("sleep_wake.py", "neighbour.py", "colocation.py")
_LEAST_S = 20.0

WHEELS = """what to carry, as wheels in one folder (--wheels):
  tests at all              pytest pluggy iniconfig packaging pygments
  the agent, the engines    pydantic pydantic-core typing-inspection annotated-types typing-extensions pyyaml
  measuring GPU memory      nvidia-ml-py
  the renderer              mitsuba drjit trimesh numpy pillow
  the image engine          diffusers transformers accelerate safetensors huggingface-hub tokenizers (and their needs)
  vLLM itself               its own environment; give the command that environment's Python: PYTHON=… scripts/gpu_suite

Look first what the machine has (python3 -m pip list); of a package that is there carry no second one. The line, on a
machine with a package index, for a target with CPython 3.12 on x86-64 Linux:
  python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \\
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \\
    --platform manylinux1_x86_64 -d wheels NAME==VERSION …
--no-deps fetches no needs: name each; keep pydantic-core at the version that pydantic asks for."""


@dataclass
class Outcome:
    """How one part went."""

    name: str
    seconds: float
    status: str
    """ok, failed, or skipped."""
    notes: list[str] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=WHEELS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "gpu_suite", help="folder for the report")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to use beside what is installed")
    parser.add_argument("--minutes", type=float, default=8.0, help="no part is begun that time does not allow (8)")
    parser.add_argument("--only", choices=("tests", "benchmarks"), help="leave the other out")
    parser.add_argument("--skip-vllm", action="store_true", help="leave vLLM out even if it is installed")
    parser.add_argument("-k", dest="select", help="pytest's -k: only the tests that match")
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.minutes * 60
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    (out / "records.jsonl").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="cotenant-wheels-") as target:
        paths = [str(path) for path in PATHS]
        if arguments.wheels is not None:
            problem = carried(arguments.wheels, Path(target))
            if problem:
                print(problem, file=sys.stderr)
                return 2
            paths.insert(0, target)
        before = os.environ.get("PYTHONPATH")
        # For the processes it starts, and for this one, which reads the machine and the records through the kit.
        os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *([before] if before else [])])
        os.environ["COTENANT_GPU_SUITE_OUT"] = str(out)
        os.environ.setdefault("PYTHONUNBUFFERED", "1")
        sys.path[:0] = paths
        return suite(arguments, out, deadline)


def carried(wheels: Path, target: Path) -> str:
    """Unpack the wheels into `target`; what is wrong with them, or nothing."""
    files = sorted(str(path) for path in wheels.glob("*.whl"))
    if not files:
        return f"--wheels needs a folder with .whl files; {wheels} has none"
    command = ("-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--target")
    made = subprocess.run(
        [sys.executable, *command, str(target), *files], capture_output=True, text=True, timeout=300, check=False
    )
    return f"the wheels can't be installed: {made.stderr.strip()[-600:]}" if made.returncode else ""


def suite(arguments: argparse.Namespace, out: Path, deadline: float) -> int:
    from gpukit import machine, records  # noqa: PLC0415 - found once the paths are set

    if importlib.util.find_spec("torch") is None:
        print(f"the GPU suite needs torch, and {sys.executable} has none; set PYTHON to one that has", file=sys.stderr)
        return 2
    facts = machine.facts()
    if not facts["cuda_devices"] and os.environ.get(machine.DEVICE_ENV) != "cpu":
        print(
            f"the GPU suite needs a CUDA device, and torch {facts['torch']} finds none; see what nvidia-smi says, or "
            f"rehearse with {machine.DEVICE_ENV}=cpu",
            file=sys.stderr,
        )
        return 2
    label = machine.label()
    print(f"{label}\n{hardware(facts)}\n", flush=True)
    parts: list[Callable[[], Outcome]] = []
    if arguments.only != "benchmarks":
        parts.append(lambda: tests(out, arguments.select, deadline))
    if arguments.only != "tests":
        names = [*ORDER, *sorted({path.name for path in BENCHMARKS.glob("*.py")} - set(ORDER))]
        options = {"sleep_wake.py": ["--skip-vllm"]} if arguments.skip_vllm else {}
        parts += [functools.partial(benchmark, name, options.get(name, []), out, deadline) for name in names]
    try:
        outcomes = [part() for part in parts]
    finally:
        end_mps(out)
    write(out, label, facts, outcomes, records.read(out))
    print(f"\nreport: {out / 'report.md'}, {out / 'report.json'}")
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


def end_mps(out: Path) -> None:
    """End the MPS daemon of a test that was killed before it could; no other is touched."""
    note = out / "mps"
    if note.exists():
        folder = Path(note.read_text())
        environment = {**os.environ, "CUDA_MPS_PIPE_DIRECTORY": str(folder / "pipes")}
        subprocess.run(["nvidia-cuda-mps-control"], input="quit\n", env=environment, text=True, timeout=60, check=False)
        shutil.rmtree(folder, ignore_errors=True)
        note.unlink()


def hardware(facts: dict[str, Any]) -> str:
    """What the machine is, in lines."""
    libraries = ", ".join(f"{name} {version}" for name, version in facts["libraries"].items())
    return "\n".join(
        (
            f"GPU: {facts['name'] or 'none'}, {facts['total_mib']} MiB, driver {facts['driver'] or '-'}, "
            f"CUDA {facts['cuda'] or '-'}",
            f"CPU: {facts['cpu']}, {facts['cpus']} cores, {facts['ram_mib']} MiB; {facts['system']}",
            f"Python {facts['python']}; {libraries}",
        )
    )


def tests(out: Path, select: str | None, deadline: float) -> Outcome:
    """tests/gpu, by pytest."""
    if importlib.util.find_spec("pytest") is None:
        print("SKIPPED tests: pytest is not installed")
        return Outcome("tests/gpu", 0.0, "skipped", ["pytest is not installed; carry it with --wheels"])
    junit = out / "junit.xml"
    junit.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "pytest", "tests/gpu", "-q", "-s", "-p", "no:asyncio", "-p", "no:cacheprovider",
        f"--junitxml={junit}",
    ]  # fmt: skip
    outcome = run("tests/gpu", command + (["-k", select] if select else []), out, deadline)
    if junit.exists():
        outcome.notes += counted(junit)
    return outcome


def counted(junit: Path) -> list[str]:
    """How many passed, and each that did not, with its reason."""
    lines = []
    cases = list(ElementTree.parse(junit).getroot().iter("testcase"))  # noqa: S314 - pytest wrote it
    ended = {kind: [case for case in cases if case.find(kind) is not None] for kind in ("failure", "error", "skipped")}
    other = sum(len(found) for found in ended.values())
    lines.append(f"{len(cases) - other} of {len(cases)} tests passed")
    for kind, found in ended.items():
        for case in found:
            why = case.find(kind)
            assert why is not None
            reason = (why.get("message") or "").splitlines() or [""]
            lines.append(f"{kind}: {case.get('classname')}::{case.get('name')}: {reason[0][:240]}")
    return lines


def benchmark(name: str, options: list[str], out: Path, deadline: float) -> Outcome:
    """One script of benchmarks/gpu; what it says that it skipped or failed is noted."""
    outcome = run(name, [sys.executable, str(BENCHMARKS / name), *options], out, deadline)
    log = out / f"{name}.log"
    if log.exists():
        said = log.read_text(errors="replace").splitlines()
        outcome.notes += [line for line in said if line.startswith(("SKIPPED", "FAILED"))]
        if outcome.status == "ok" and any(note.startswith(f"SKIPPED {Path(name).stem}:") for note in outcome.notes):
            outcome.status = "skipped"
        if outcome.status == "failed" and not outcome.notes:
            outcome.notes += said[-3:]
    return outcome


def run(name: str, command: list[str], out: Path, deadline: float) -> Outcome:
    """Run a part until it ends or time is up, its output shown and kept beside the report."""
    left = deadline - time.monotonic()
    if left < _LEAST_S:
        print(f"SKIPPED {name}: no time left")
        return Outcome(name, 0.0, "skipped", ["no time left; raise --minutes"])
    print(f"== {name}", flush=True)
    began = time.monotonic()
    with (out / f"{name.replace('/', '_')}.log").open("w") as log:
        child = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        watch = Watch(child, left)
        assert child.stdout is not None
        for line in child.stdout:
            print(line, end="", flush=True)
            log.write(line)
        status = child.wait()
        watch.over()
    seconds = time.monotonic() - began
    if watch.fired:
        return Outcome(name, seconds, "failed", [f"stopped after {seconds:.0f} s: out of time"])
    return Outcome(name, seconds, "ok" if status == 0 else "failed", [] if status == 0 else [f"exit status {status}"])


class Watch:
    """Ends a process and what it started when time is up."""

    def __init__(self, child: subprocess.Popen[str], seconds: float) -> None:
        self._child = child
        self.fired = False
        self._timer = threading.Timer(seconds, self._fire)
        self._timer.daemon = True
        self._timer.start()

    def over(self) -> None:
        self._timer.cancel()

    def _fire(self) -> None:
        self.fired = True
        try:
            # The session that was made for it: itself and every process under test.
            os.killpg(self._child.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def write(out: Path, label: str, facts: dict[str, Any], outcomes: list[Outcome], made: list[Any]) -> None:
    """report.json and report.md: first the run, then sections ready for docs/measurements.md."""
    report = {
        "label": label,
        "machine": facts,
        "parts": [vars(outcome) for outcome in outcomes],
        "records": [vars(record) for record in made],
    }
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    lines = [
        f"# GPU suite: {label}",
        "",
        "```",
        hardware(facts),
        "```",
        "",
        "| part | seconds | status |",
        "|---|---|---|",
    ]
    lines += [f"| {one.name} | {one.seconds:.0f} | {one.status} |" for one in outcomes]
    lines += ["", *(f"- {one.name}: {note}" for one in outcomes for note in one.notes), ""]
    lines += [record.markdown(label) for record in made]
    (out / "report.md").write_text("\n".join(lines))


if __name__ == "__main__":
    raise SystemExit(main())
