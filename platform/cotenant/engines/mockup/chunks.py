"""A render in chunks: runs of pixels with all their samples, small enough that other work can go between two of them.

A chunk is cut by pixels, not by samples: a pixel's samples are drawn together, so that they spread as evenly as in a
render of one piece, and a chunk can be as short as is wanted at any size. Chunks depend on size and samples alone, and
each has a seed of its own, so the bytes don't depend on what happens between two of them.

Tracing the same program again for every chunk would cost 10 ms each on a CPU, a fifth of a short chunk. So there the
program is recorded once for a number of samples (`drjit.freeze`) and replayed, whatever the size of picture and
artwork. The number of samples is baked into what the sampler does, hence a recording for each; the sampler rounds, so
that there are some 3 sqrt(most samples) of them, not more.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from cotenant.engines.mockup.template import Floats

#: Light paths in a chunk, by the beginning of the variant's name: 30 to 60 ms on two cores (benchmarks/classes.py); a
#: GPU's chunk is larger, since each costs it the tracing, and its figure is an estimate.
PATHS = {"cuda": 2**21, "llvm": 2**18, "scalar": 2**15}
#: Of one program: literals, and which arrays happen to be of one size, make a recording another one.
RECORDINGS_KEPT = 16
#: Added to the seed from chunk to chunk: far apart, so that no two renders share a chunk's noise by accident.
_STRIDE = 0x9E3779B1


def paths_of(variant: str) -> int:
    """Light paths in a chunk of a Mitsuba variant."""
    return PATHS[variant.partition("_")[0]]


def cut(pixels: int, samples: int, paths: int, *, grain: int = 1) -> Iterator[tuple[int, int]]:
    """First pixel and number of pixels of each chunk: about `paths` light paths each, in multiples of `grain`."""
    each = max(1, paths // (samples * grain)) * grain
    for first in range(0, pixels, each):
        yield first, min(each, pixels - first)


@dataclass(frozen=True)
class Chunk:
    """A run of pixels of one render: of its width and height, its samples a pixel, this chunk's own seed."""

    size: tuple[int, int]
    samples: int
    seed: int
    first: int
    count: int


class Tracer:
    """Renders one scene. Belongs to the thread that made it."""

    def __init__(self, mi: ModuleType, scene: Any, paths: int | None = None) -> None:
        self._mi = mi
        self._dr = importlib.import_module("drjit")
        self._scene = scene
        self._variant: str = mi.variant()
        self._paths = paths or paths_of(self._variant)
        self._programs: dict[int, Callable[..., tuple[Any, Any]]] = {}

    def render(
        self, sensor: Any, size: tuple[int, int], *, samples: int, seed: int, between: Callable[[], None]
    ) -> Floats:
        """(height, width, 4): linear light premultiplied by coverage, and coverage.

        `between` is called before every chunk; what it raises ends the render. It may render with this very tracer,
        and it has to leave the scene as it was.
        """
        width, height = size
        scalar = self._variant.startswith("scalar")
        trace, grain = (self._rows, width) if scalar else (self._run, 1)
        sampler = sensor.sampler().clone()
        sampler.set_sample_count(samples)
        samples = sampler.sample_count()  # rounded up to what it can spread evenly
        light = np.empty((width * height, 4), dtype=np.float32)
        for number, (first, count) in enumerate(cut(width * height, samples, self._paths, grain=grain)):
            between()
            chunk = Chunk(size, samples, (seed + number * _STRIDE) & 0xFFFFFFFF, first, count)
            light[first : first + count] = trace(sensor, chunk)
        return light.reshape(height, width, 4)

    def drop(self) -> None:
        """Let go of what was recorded, and of the scene."""
        for program in self._programs.values():
            if hasattr(program, "clear"):
                program.clear()
        self._programs = {}
        del self._scene

    def _rows(self, sensor: Any, chunk: Chunk) -> Floats:
        """By Mitsuba's own renderer, through a window of whole rows. Nothing is compiled for the scalar variant."""
        width = chunk.size[0]
        window = self._mi.traverse(sensor)
        window["film.crop_offset"] = [0, chunk.first // width]
        window["film.crop_size"] = [width, chunk.count // width]
        window.update()
        image = self._mi.render(self._scene, sensor=sensor, spp=chunk.samples, seed=chunk.seed)
        return np.array(image, dtype=np.float32).reshape(chunk.count, 4)

    def _run(self, sensor: Any, chunk: Chunk) -> Floats:
        """What Mitsuba's renderer does with a box filter, for a run of pixels."""
        mi, dr, paths = self._mi, self._dr, chunk.count * chunk.samples
        sampler = sensor.sampler().clone()
        sampler.set_sample_count(chunk.samples)
        sampler.set_samples_per_wavefront(chunk.samples)
        sampler.seed(chunk.seed, paths)
        numbers = [dr.opaque(mi.UInt32, number) for number in (chunk.first, chunk.samples, chunk.size[0])]
        scale = [dr.opaque(mi.Float, 1 / side) for side in chunk.size]
        program = self._program(chunk.samples)
        rgb, coverage = program(self._scene, sensor, sampler, dr.arange(mi.UInt32, paths), [numbers, scale])
        # At once: a sum over a channel alone would trace all paths for it.
        dr.eval(rgb, coverage)
        sums = [np.array(dr.block_sum(channel, chunk.samples)) for channel in (rgb.x, rgb.y, rgb.z, coverage)]
        return np.asarray(np.stack(sums, axis=1) / np.float32(chunk.samples), dtype=np.float32)

    def _program(self, samples: int) -> Callable[..., tuple[Any, Any]]:
        if samples not in self._programs:
            program: Callable[..., tuple[Any, Any]] = self._traced
            if self._variant.startswith("llvm"):
                program = self._dr.freeze(program, limit=RECORDINGS_KEPT, warn_after=1000)
            self._programs[samples] = program
        return self._programs[samples]

    def _traced(self, scene: Any, sensor: Any, sampler: Any, path: Any, opaque: Any) -> tuple[Any, Any]:
        """Light and coverage of each path. What differs from chunk to chunk has to come in as an argument."""
        mi, dr = self._mi, self._dr
        (first, samples, width), scale = opaque
        pixel = path // samples + first
        row = pixel // width
        at = mi.Point2f(mi.Float(pixel - row * width), mi.Float(row)) + sampler.next_2d()
        ray, weight = sensor.sample_ray_differential(
            time=0.0, sample1=0.5, sample2=at * mi.Point2f(*scale), sample3=mi.Point2f(0.5)
        )
        light, hit, _ = scene.integrator().sample(scene, sampler, ray)
        return light * weight, dr.select(hit, mi.Float(1), mi.Float(0))
