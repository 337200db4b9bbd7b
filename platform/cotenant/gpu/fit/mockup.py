"""How much memory a mockup renderer takes: scenes, light and pictures by size, artwork, process. Pure.

The renderer works on one picture at a time while three helpers decode the next artworks and encode the last pictures,
so what grows with `concurrency` are the pictures in hand: that many interactive ones, and as many of batch jobs that
fill the slots or lie paused. **Samples add nothing**: a render is done in short chunks of light paths. The *least* is
one render of the largest size with artwork of 16 million pixels; the *typical* need is twice `concurrency` of them,
with the largest artwork that is taken, 50 million, in every helper's hands.

Bytes a pixel are measured on a CPU (docs/measurements.md, "Memory of a mockup renderer"). On a GPU the light is there
and the rest in host memory; what the light takes there is assumed to be what it takes here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cotenant.config.model import MockupSpec
from cotenant.gpu.fit.device import cuda_context, device
from cotenant.gpu.fit.folder import FactsMissing, InMemoryFolder, LocalFolder, read_json
from cotenant.gpu.fit.parts import MIB, Fit, Part

_SOURCE = "measured on a CPU, docs/measurements.md"
#: Mitsuba, its compiler and numpy, loaded and warm: 131 to 141 MiB measured; Ray's worker and Serve add 112.
_PROCESS_MIB = 260
#: A pixel of the render in work, from light to file, the first time that its size comes; a pixel of each further one.
_FIRST_BYTES_PER_PX, _FURTHER_BYTES_PER_PX = 250, 45
#: A render's own light on a GPU: a chunk's paths and their sums; at least as much as a film and its copies took.
_LIGHT_BYTES_PER_PX = 64
#: A decoded artwork's pixel and its largest file (`engines.mockup.artwork`, `engines.pictures.source`).
_ARTWORK_BYTES_PER_PX, _ARTWORK_FILE_MIB = 4, 20
_LARGEST_ARTWORK_PX, _ORDINARY_ARTWORK_PX = 50_000_000, 16_000_000
#: Backdrop shadows of finished sizes that the engine keeps, a float32 each.
_SHADOWS_KEPT, _SHADOW_BYTES_PER_PX = 8, 4
_HELPERS = 3
#: Freed memory that the allocator keeps for the next request, as part of what requests take.
_KEPT_BY_ALLOCATOR = 0.1
#: OptiX, compiled kernels and the acceleration structures' scratch.
_OPTIX_MIB = 256
_TEXTURE_BYTES_PER_BYTE = 6
#: A slot's texture: three float32 in the renderer and once more on the way there, at most 2,048 pixels a side.
_SLOT_BYTES_PER_PX, _LONGEST_SLOT_PX = 24, 2048

_GLB_MAGIC = 0x46546C67
#: Of a template whose file is not here.
_UNKNOWN_SCENE_BYTES = 32 * MIB


@dataclass(frozen=True)
class MockupFacts:
    """What its templates take: the bytes of their meshes, and of their textures as pixels where files say so."""

    mesh_bytes: int
    texture_bytes: int
    source: str

    @classmethod
    def of_files(cls, files: Iterable[Path]) -> MockupFacts:
        """From GLB files, headers only. One that is not here counts as an ordinary one; a damaged one is refused."""
        mesh = texture = 0
        missing = []
        for file in files:
            if not file.is_file():
                missing.append(file.stem)
                mesh += _UNKNOWN_SCENE_BYTES
                continue
            meshes, images = _glb(file)
            mesh, texture = mesh + meshes, texture + images
        source = "GLB headers" + (f"; {', '.join(missing)} not here: 32 MiB assumed" if missing else "")
        return cls(mesh, texture, source)


def _glb(file: Path) -> tuple[int, int]:
    """Bytes of meshes and of compressed images in a GLB (glTF 2.0 specification, chapter 4). Raises FactsMissing."""
    folder = LocalFolder(file.parent)
    head = folder.read(file.name, 0, 20)
    if len(head) < 20 or struct.unpack_from("<I", head)[0] != _GLB_MAGIC:
        raise FactsMissing(f"{file} is no GLB file; export it again")
    (length,) = struct.unpack_from("<I", head, 12)
    document = read_json(InMemoryFolder(str(file), {"scene": folder.read(file.name, 20, length)}), "scene")
    views = document.get("bufferViews")
    sizes = [view.get("byteLength", 0) if isinstance(view, dict) else 0 for view in views or ()]
    used = {image.get("bufferView") for image in document.get("images") or () if isinstance(image, dict)}
    images = sum(size for index, size in enumerate(sizes) if index in used)
    return sum(sizes) - images, images


def fit(name: str, spec: MockupSpec, slots: int, accelerator: str, facts: MockupFacts, *, least: bool) -> Fit:
    """The estimate for one replica: the least that serves, or the typical need."""
    pixels = spec.max_size_px**2
    in_hand = 1 if least else 2 * slots
    on = device(accelerator)
    slot_px = min(spec.max_size_px, _LONGEST_SLOT_PX) ** 2 * len(spec.templates)
    # Mesh data lies in the renderer and in the parsed template; textures there as pixels, compressed some sixfold.
    scene = 2 * facts.mesh_bytes + _TEXTURE_BYTES_PER_BYTE * facts.texture_bytes
    formula = "meshes twice, textures as pixels"
    if not on.on_cpu:
        light = _LIGHT_BYTES_PER_PX * pixels
        return Fit(
            name,
            accelerator,
            (
                cuda_context(),
                Part("OptiX", _OPTIX_MIB * MIB, "kernels and scratch", "assumed", asleep=True),
                Part("scenes", scene, formula, facts.source),
                Part("slots", _SLOT_BYTES_PER_PX * slot_px, _slots(spec), "the renderer's textures"),
                Part("render", light, f"{_px(spec)} x {_LIGHT_BYTES_PER_PX} bytes", "film and its copies"),
                Part("kept", round(_KEPT_BY_ALLOCATOR * light), _kept(), "assumed: as on a CPU"),
            ),
        )
    per_pixel = _FIRST_BYTES_PER_PX + _FURTHER_BYTES_PER_PX * (in_hand - 1)
    artwork_px = _ORDINARY_ARTWORK_PX if least else _LARGEST_ARTWORK_PX
    artwork = _ARTWORK_BYTES_PER_PX * artwork_px + _ARTWORK_FILE_MIB * MIB
    # What requests have in hand that no helper works on is counted with their pixels.
    decoding = min(in_hand, _HELPERS)
    work = per_pixel * pixels + decoding * artwork
    parts = [
        Part("process", _PROCESS_MIB * MIB, "Ray's worker, Mitsuba, its compiler", _SOURCE, asleep=True),
        Part("scenes", scene, formula, facts.source),
        Part("renders", per_pixel * pixels, f"{_px(spec)} x {per_pixel} bytes, {in_hand} in hand", _SOURCE),
        Part("artwork", decoding * artwork, f"{decoding} x ({artwork_px // 1_000_000} M pixels x 4 bytes + file)",
             "the engine's limits"),
    ]  # fmt: skip
    if not least:
        shadows = _SHADOWS_KEPT * _SHADOW_BYTES_PER_PX * pixels
        parts.append(Part("shadows", shadows, f"{_SHADOWS_KEPT} sizes x {_px(spec)} x 4 bytes", "the engine's cache"))
        parts.append(Part("kept", round(_KEPT_BY_ALLOCATOR * work), _kept(), _SOURCE))
    return Fit(name, accelerator, tuple(parts))


def _px(spec: MockupSpec) -> str:
    return f"{spec.max_size_px}\N{SUPERSCRIPT TWO} pixels"


def _slots(spec: MockupSpec) -> str:
    return f"{len(spec.templates)} x up to {min(spec.max_size_px, _LONGEST_SLOT_PX)} pixels a side x 24 bytes"


def _kept() -> str:
    return f"{_KEPT_BY_ALLOCATOR:.0%} of the work: freed, kept for the next request"
