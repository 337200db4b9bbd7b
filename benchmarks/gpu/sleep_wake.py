#!/usr/bin/env python3
"""Waking against loading again: the stand-in LLM, vLLM where it is installed, and the image engine on diffusers.

Five ways to have a model on the GPU again, from warm to cold: woken from pinned host memory; read by the same process
from a file in the page cache; the same after the file was dropped from the page cache; and by a new process, which
also imports torch and makes a CUDA context. Freed memory is the whole device's, by NVML. Always checked: the answer
after is the answer before.

    python benchmarks/gpu/sleep_wake.py --shape 1B
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpukit import meter as meters
from gpukit.child import Child, ChildFailed
from gpukit.decoder import LABEL, SHAPES
from gpukit.machine import ceiling_mib, on_cuda, pick, require_room
from gpukit.meter import Meter
from gpukit.records import Record, median, record

_SOURCE = "benchmarks/gpu/sleep_wake.py"
_COLUMNS = ("how the model comes back", "seconds", "times the wake")


class AnswerChanged(Exception):
    """A move lost something."""


def same(before: str, after: str) -> None:
    """Raises AnswerChanged if they differ."""
    if before != after:
        raise AnswerChanged(f"the model answers {after} where it answered {before} before")


def drop_from_page_cache(folder: Path) -> bool:
    """Have the kernel forget the files' pages; False where it does not do so (a RAM disk)."""
    for file in folder.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            try:
                os.fsync(handle)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)
    return _filesystem(folder) not in ("tmpfs", "ramfs")


def _filesystem(folder: Path) -> str:
    """The type of the file system that `folder` lies on."""
    best, kind = "", ""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, found, *_ = line.split()
        if str(folder.resolve()).startswith(mount) and len(mount) > len(best):
            best, kind = mount, found
    return kind


def stand_in(shape: str, cycles: int, folder: Path) -> None:
    """The stand-in LLM."""
    weights = SHAPES[shape].parameters * 2 / 2**20
    require_room(3 * weights)
    notes, rows = [], []
    with Child("llm") as child:
        facts = child.ask("model", kind="llm", shape=shape, timeout_s=300)
        saved = child.ask("model_do", what="save", folder=str(folder), timeout_s=300)["did"]["format"]
        before = child.ask("model_do", what="answer")["did"]
        meter = Meter([child.pid])
        awake = meter.settled_mib()
        first_sleep = child.ask("model_do", what="sleep")["did"]
        asleep = meter.settled_mib()
        slept, woke = [], []
        for cycle in range(cycles):
            if cycle:
                slept.append(child.ask("model_do", what="sleep")["did"])
            woke.append(child.ask("model_do", what="wake")["did"])
        same(before, child.ask("model_do", what="answer")["did"])
        child.ask("model_drop")
        reloads: dict[str, list[float]] = {"cached": [], "dropped": []}
        on_disk = False
        for how, times in reloads.items():
            for _ in range(3):
                if how == "dropped":
                    on_disk = drop_from_page_cache(folder)
                times.append(child.ask("model", kind="llm", shape=shape, folder=str(folder), timeout_s=300)["seconds"])
                same(before, child.ask("model_do", what="answer")["did"])
                child.ask("model_drop")
    began = time.monotonic()
    with Child("fresh") as fresh:
        fresh.ask("model", kind="llm", shape=shape, folder=str(folder), timeout_s=300)
        same(before, fresh.ask("model_do", what="answer")["did"])
        start_s = time.monotonic() - began
    wake = median(woke)
    where = "from disk" if on_disk else "from a RAM disk, which has no page cache to drop"
    for name, seconds in (
        (f"woken from pinned host memory (median of {cycles})", wake),
        (f"{saved} file read again, in the page cache (median of 3)", median(reloads["cached"])),
        (f"{saved} file read again, {where} (median of 3)", median(reloads["dropped"])),
        ("new process until its first answer, file in the page cache", start_s),
    ):
        rows.append((name, f"{seconds:.3f}", f"{seconds / wake:.1f}"))
    notes.append(
        f"{LABEL}, {facts['parameters'] / 1e6:,.0f} M parameters, {weights:.0f} MiB of weights and "
        f"{facts['cache_mib']:.0f} MiB of KV cache in bfloat16. Asleep it gives back {awake - asleep:.0f} MiB. Sleep: "
        f"{median(slept or [first_sleep]):.3f} s (the first {first_sleep:.3f} s, since it makes the pinned pages). "
        f"Answers after equal answers before."
    )
    data = {
        "wake_s": wake,
        "reload_s": reloads,
        "start_s": start_s,
        "freed_mib": awake - asleep,
        "weights_mib": weights,
    }
    record(Record("Waking against loading again: the stand-in LLM", _SOURCE, _COLUMNS, rows, notes, data))


def vllm(shape: str, folder: Path) -> None:
    """vLLM on the same checkpoint, with the platform's arguments for a budget."""
    vram_gib = min(24.0, ceiling_mib() / 1024 / 2) if on_cuda() else 3.0
    usable_gib = ceiling_mib() / 1024 if on_cuda() else vram_gib
    with Child("vllm") as child:
        began = time.monotonic()
        facts = child.ask(
            "model", kind="vllm", folder=str(folder), vram_gib=vram_gib, usable_gib=usable_gib, timeout_s=300
        )
        before = child.ask("model_do", what="answer", timeout_s=180)["did"]
        start_s = time.monotonic() - began
        meter = Meter([child.pid])
        awake = meter.settled_mib()
        rows, freed = [], {}
        for level in (1, 2) if on_cuda() else (1,):
            slept, woke = [], []
            for _ in range(3):
                slept.append(child.ask("model_do", what="sleep", level=level)["did"])
                freed[level] = awake - meter.settled_mib()
                woke.append(child.ask("model_do", what="wake", level=level)["did"])
                same(before, child.ask("model_do", what="answer")["did"])
            name = f"woken from sleep level {level}" if on_cuda() else "woken (weights read again, KV pages given back)"
            wake = median(woke)
            rows.append((name, f"{wake:.3f}", f"{start_s / wake:.1f} times faster than a start"))
            rows.append((f"asleep it gives back {freed[level]:.0f} MiB; sleep takes", f"{median(slept):.3f}", ""))
    rows.append(("start until the first answer, torch imported before", f"{start_s:.3f}", ""))
    notes = (f"vLLM {facts['version']} on the stand-in's {shape} checkpoint, vram_gib {vram_gib:g}; medians of 3.",)
    record(Record("Waking against starting: vLLM", _SOURCE, ("vLLM", "seconds", ""), rows, notes))


def images(width: int, cycles: int, folder: Path) -> None:
    """The image engine on a pipeline of random weights, as wide as it is told."""
    from cotenant.engines.image.tiny import build

    build(folder, width=width)
    home = folder.parent / "home"
    vram_gib = min(16.0, ceiling_mib() / 1024 / 2) if on_cuda() else 2.5
    given: dict[str, Any] = {
        "kind": "images", "folder": str(folder), "vram_gib": vram_gib, "usable_gib": ceiling_mib() / 1024,
        "side": pick(256, 64), "home": str(home),
    }  # fmt: skip
    with Child("images") as child:
        first = child.ask("model", **given, timeout_s=300)
        before = child.ask("model_do", what="answer", timeout_s=300)["did"]
        meter = Meter([child.pid])
        awake = meter.settled_mib()
        slept, woke, cold = [], [], []
        asleep = awake
        for _ in range(cycles):
            slept.append(child.ask("model_do", what="sleep")["did"])
            asleep = meter.settled_mib()
            woke.append(child.ask("model_do", what="wake")["did"])
        same(before, child.ask("model_do", what="answer", timeout_s=300)["did"])
        for _ in range(3):
            child.ask("model_do", what="sleep_cold")
            cold.append(child.ask("model_do", what="wake")["did"])
        same(before, child.ask("model_do", what="answer", timeout_s=300)["did"])
    wake = median(woke)
    rows = [
        (f"woken from asleep (median of {cycles})", f"{wake:.3f}", "1.0"),
        ("woken from cold, files in the page cache (median of 3)", f"{median(cold):.3f}", f"{median(cold) / wake:.1f}"),
        ("first load, diffusers imported meanwhile", f"{first['seconds']:.3f}", f"{first['seconds'] / wake:.1f}"),
    ]
    notes = (
        f"A Stable Diffusion pipeline of random weights, UNet {width} channels wide, {first['weights_mib']:.0f} MiB "
        f"held. Asleep it gives back {awake - asleep:.0f} MiB; sleep {median(slept):.3f} s. Pictures equal before "
        "and after.",
        *(() if on_cuda() else ("On a CPU asleep means that the weights are dropped: host memory is the GPU's here.",)),
    )
    record(Record("Waking against loading again: the image engine", _SOURCE, _COLUMNS, rows, notes))


def absent(*modules: str) -> str:
    """Which of these are not installed, in words; empty if all are."""
    names = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(names)}" if names else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default=None, help="of the stand-in (1B; on a CPU 5M)")
    parser.add_argument("--cycles", type=int, default=10, help="sleeps and wakes of each model")
    parser.add_argument(
        "--width", type=int, default=None, help="of the diffusion UNet (640: 0.4 B parameters; on a CPU 64)"
    )
    parser.add_argument("--folder", type=Path, help="where checkpoints are written (default: the temporary folder)")
    parser.add_argument("--skip-vllm", action="store_true", help="leave vLLM out even if it is installed")
    arguments = parser.parse_args()
    why = meters.missing() or absent("pydantic", "typing_extensions")
    if why:
        print(f"SKIPPED sleep_wake: {why}")
        return 0
    shape = arguments.shape or ("1B" if on_cuda() else "5M")
    folder = Path(tempfile.mkdtemp(prefix="cotenant-gs-", dir=arguments.folder))
    failed = 0
    width = arguments.width or pick(640, 64)
    no_vllm = "asked to" if arguments.skip_vllm else absent("vllm")
    no_images = absent("diffusers", "transformers", "PIL")
    parts: list[tuple[str, str, Callable[[], None]]] = [
        ("the stand-in LLM", "", lambda: stand_in(shape, arguments.cycles, folder / "llm")),
        ("the image engine", no_images, lambda: images(width, arguments.cycles, folder / "images")),
        ("vLLM", no_vllm, lambda: vllm(shape, folder / "llm")),
    ]
    try:
        for name, lacking, measure in parts:
            if lacking:
                print(f"SKIPPED {name}: {lacking}")
                continue
            try:
                measure()
            except (AnswerChanged, ChildFailed, MemoryError) as error:
                failed += 1
                print(f"FAILED {name}: {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
