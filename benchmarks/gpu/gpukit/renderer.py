"""Mitsuba's scenes, through the platform's own renderer, as work that repeats."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
from typing import Any

from gpukit.machine import on_cuda

_NEEDS = ("mitsuba", "drjit", "numpy", "PIL", "trimesh", "pydantic")


def missing() -> str:
    """Why there is no renderer here; empty if there is one as far as can be told without trying."""
    absent = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


class Renderer:
    """One template's scene. On a GPU Mitsuba's CUDA variant, else what works.

    Raises:
        EnvironmentFault: the variant does not work here.
    """

    def __init__(self, template: str = "mug", *, paths_per_chunk: int | None = None) -> None:
        import numpy as np

        from cotenant.engines.mockup import chunks, scene, variant
        from cotenant.engines.mockup.template import load

        self.variant = variant.choose("cuda" if on_cuda() else "auto")
        self.paths_per_chunk = paths_per_chunk or chunks.paths_of(self.variant.name)
        self._mi = variant.load(self.variant)
        self._scene = scene.Scene(self._mi, load(template), shadow_samples=8, paths_per_chunk=self.paths_per_chunk)
        self._random = np.random.default_rng(0)
        self._artworks: dict[tuple[int, int], Any] = {}

    def render(self, side: int, samples: int, seed: int = 0) -> Any:
        """The picture, (side, side, 4)."""
        size = self._scene.slot_px(side, side)
        if size not in self._artworks:
            self._artworks[size] = self._random.random((size[1], size[0], 3), dtype="float32")
        return self._scene.render(self._artworks[size], side, side, samples=samples, seed=seed)

    def digest(self, side: int, samples: int) -> str:
        """Of the picture's bytes."""
        return hashlib.sha256(self.render(side, samples).tobytes()).hexdigest()[:16]

    def give_back(self) -> None:
        """Give what the renderer caches back to the driver and to the kernel."""
        import drjit

        drjit.flush_malloc_cache()
        ctypes.CDLL(None).malloc_trim(0)
