"""How much memory a diffusion pipeline takes: components, denoising, decoding, pictures, process. Pure.

**Policy.** The *least* is one picture of the largest size, with everything offloaded that may be; the *typical* need,
which `vram_gib: auto` takes, keeps all weights where they work and denoises `max_batch` pictures at once while as many
of a batch job lie paused. Pictures are decoded one at a time, and in tiles where a budget is short, so decoding never
asks for more than one picture.

**Sources.** Component sizes are read from headers. What denoising and decoding take is a number of feature maps of
the network's widest place, measured on a CPU with random weights of Stable Diffusion's shapes (docs/measurements.md,
"Memory of a diffusion model"); a transformer's from the tensors of one block (diffusers' FluxSingleTransformerBlock).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cotenant.config.model import ImageSpec
from cotenant.gpu.fit import tensors
from cotenant.gpu.fit.device import Device, cuda_context, device
from cotenant.gpu.fit.folder import FactsMissing, Folder, LocalFolder, read_json
from cotenant.gpu.fit.parts import MIB, Fit, Part
from cotenant.gpu.fit.quantization import BYTES_OF_DTYPE
from cotenant.gpu.fit.tensors import Tensors

#: Ray's worker, torch, transformers and diffusers: 405 MiB measured.
_PROCESS_MIB = 430
_MEASURED = "measured on a CPU, docs/measurements.md"
#: Feature maps of the VAE's second width at full size while it decodes: 4.0 to 4.6 measured.
_DECODER_MAPS = 4.5
#: Maps of a UNet's first width at latent size, for one picture: 37 to 50 measured.
_UNET_MAPS = 50
#: Values of a token in one block of a diffusion transformer, as multiples of its width.
_BLOCK_WIDTHS = 20
_TEXT_TOKENS = 512
#: A finished picture's pixel until it is encoded: float32, bytes, Pillow's, file.
_PICTURE_BYTES_PER_PX = 30
#: What a paused job holds for a pixel of its pictures: image, masked image and mask as float32, and its latents.
_PAUSED_BYTES_PER_PX = 30
#: Freed memory that allocators keep, as part of what the work takes: torch's on a GPU, the C library's on a CPU.
_KEPT_ON_GPU, _KEPT_ON_CPU = 0.25, 0.5
#: Side of a VAE's tile: diffusers' own.
_TILE_PX = 512

#: Bits of a weight by `quantization` (bitsandbytes: int8 with a scale a row; NF4, see `quantization`).
_BITS = {"8bit": 8.1, "4bit": 4.127}
#: Components that quantisation is for, as `engines.image` has it.
_QUANTIZED = ("transformer", "unet", "text_encoder")


@dataclass(frozen=True)
class Component:
    """One part of a pipeline that has weights."""

    name: str
    tensors: Tensors
    config: Mapping[str, Any]

    def bytes(self, dtype: str, quantization: str) -> int:
        """Its weights as loaded."""
        size = BYTES_OF_DTYPE[dtype]
        held = self.tensors
        rest = held.bytes_of(held.tables, size) + held.bytes_of(held.vectors, size)
        if quantization in _BITS and self.name.startswith(_QUANTIZED):
            return rest + round(sum(held.matrices.values()) * _BITS[quantization] / 8)
        return rest + held.bytes_of(held.matrices, size)


@dataclass(frozen=True)
class ImageFacts:
    """What is known of a pipeline."""

    class_name: str
    components: tuple[Component, ...]
    source: str

    @classmethod
    def of_folder(cls, folder: Path) -> ImageFacts:
        """From a diffusers folder of this machine. Raises FactsMissing."""
        return cls.read(LocalFolder(folder))

    @classmethod
    def read(cls, folder: Folder) -> ImageFacts:
        """From a diffusers folder: `model_index.json`, and each component's config and headers. Raises FactsMissing."""
        files = folder.files()
        if "model_index.json" not in files:
            raise FactsMissing(f"{folder.name} has no model_index.json, so it is no diffusers pipeline; name another")
        index = read_json(folder, "model_index.json")
        named = [name for name, value in index.items() if isinstance(value, list) and value[:1] not in ([], [None])]
        components = []
        for name in named:
            paths = _weights_of(name, files)
            if not paths:
                continue
            config = read_json(folder, f"{name}/config.json") if f"{name}/config.json" in files else {}
            components.append(Component(name, tensors.of_safetensors(folder, paths), config))
        if not components:
            raise FactsMissing(f"{folder.name} has no .safetensors in its components; save it with safe_serialization")
        return cls(str(index.get("_class_name", "")), tuple(components), f"safetensors headers of {folder.name}")

    def config(self, *names: str) -> Mapping[str, Any]:
        """The config of the first component of these names; empty if there is none."""
        return next((each.config for name in names for each in self.components if each.name == name), {})


def _weights_of(name: str, files: Mapping[str, int]) -> list[str]:
    """A component's weight files: those without a variant in their names, or else those of one variant."""
    found = [path for path in files if path.startswith(f"{name}/") and path.endswith(".safetensors")]
    plain = [path for path in found if path.rsplit("/", 1)[1].count(".") == 1]
    variants = sorted({path.rsplit("/", 1)[1].split(".")[1].partition("-")[0] for path in found if path not in plain})
    return plain or [path for path in found if variants and f".{variants[0]}" in path]


def fit(name: str, spec: ImageSpec, accelerator: str, facts: ImageFacts, *, least: bool) -> Fit:
    """The estimate for one replica: the least that serves, or the typical need."""
    on = device(accelerator)
    dtype = spec.dtype if spec.dtype != "auto" else "float32" if on.on_cpu else "bfloat16"
    size = BYTES_OF_DTYPE[dtype]
    batch = 1 if least else spec.max_batch
    held = _weights(spec, on, dtype, facts, least=least)
    denoising, how = _denoising(facts, spec, batch, size)
    side = spec.max_size_px if not least or on.on_cpu else min(_TILE_PX, spec.max_size_px)
    width = _second(facts.config("vae", "vqvae").get("block_out_channels"))
    decoding = round(_DECODER_MAPS * side**2 * width * size)
    work = Part("denoising", denoising, how, _MEASURED)
    if decoding > denoising:
        formula = f"{_DECODER_MAPS} maps x {side}\N{SUPERSCRIPT TWO} x {width} channels x {size} bytes"
        work = Part("decoding", decoding, formula, _MEASURED)
    share = _KEPT_ON_CPU if on.on_cpu else _KEPT_ON_GPU
    kept = Part("kept", round(share * work.bytes), f"{share:.0%} of the work: freed, kept for the next", _MEASURED)
    pixels = f"{batch} x {spec.max_size_px}\N{SUPERSCRIPT TWO} pixels"
    waiting = batch * spec.max_size_px**2 * _PAUSED_BYTES_PER_PX
    paused = () if least else (Part("paused", waiting, f"{pixels} x {_PAUSED_BYTES_PER_PX} bytes", "its tensors"),)
    if not on.on_cpu:
        return Fit(name, accelerator, (cuda_context(), held, work, *paused, kept))
    pictures = batch * spec.max_size_px**2 * _PICTURE_BYTES_PER_PX
    formula = f"{pixels} x {_PICTURE_BYTES_PER_PX} bytes"
    process = Part("process", _PROCESS_MIB * MIB, "Ray's worker, torch, diffusers", _MEASURED, asleep=True)
    return Fit(name, accelerator, (process, held, work, Part("pictures", pictures, formula, _MEASURED), *paused, kept))


def _weights(spec: ImageSpec, on: Device, dtype: str, facts: ImageFacts, *, least: bool) -> Part:
    sizes = {part.name: part.bytes(dtype, spec.quantization) for part in facts.components}
    offload = "none" if on.on_cpu else spec.offload
    if offload == "auto":
        offload = "sequential" if least else "none"
    source = facts.source
    if offload == "model":
        largest = max(sizes, key=lambda name: sizes[name])
        return Part("weights", sizes[largest], f"{largest} ({dtype}), the largest; the others wait on the host", source)
    if offload == "sequential":
        layer = max(part.tensors.largest for part in facts.components) * BYTES_OF_DTYPE[dtype]
        return Part("weights", layer, f"the largest layer ({dtype}); the others wait on the host", source)
    shown = sorted(sizes, key=lambda name: -sizes[name])[:3]
    more = f" + {len(sizes) - 3} more" if len(sizes) > 3 else ""
    quantized = f", {spec.quantization}" if spec.quantization != "none" else ""
    return Part("weights", sum(sizes.values()), f"{' + '.join(shown)}{more} ({dtype}{quantized})", source)


def _denoising(facts: ImageFacts, spec: ImageSpec, batch: int, size: int) -> tuple[int, str]:
    """Bytes of one step, and the formula. Guidance doubles the batch, unless the model was distilled to do without."""
    scale = _scale(facts)
    unet = facts.config("unet")
    distilled = facts.class_name.startswith("Flux") or (spec.guidance is not None and spec.guidance <= 1)
    rows = batch * (1 if distilled else 2)
    if unet:
        side, width = math.ceil(spec.max_size_px / scale), _first(unet.get("block_out_channels"))
        formula = f"{rows} rows x {_UNET_MAPS} maps x {side}\N{SUPERSCRIPT TWO} x {width} channels x {size} bytes"
        return rows * _UNET_MAPS * side**2 * width * size, formula
    config = facts.config("transformer", "transformer_2", "prior")
    width = _whole(config.get("num_attention_heads"), 24) * _whole(config.get("attention_head_dim"), 128)
    patch = 2 if facts.class_name.startswith(("Flux", "QwenImage")) else _whole(config.get("patch_size"), 2)
    tokens = math.ceil(spec.max_size_px / (scale * patch)) ** 2 + _TEXT_TOKENS
    formula = f"{rows} rows x {tokens} tokens x {_BLOCK_WIDTHS} x {width} values x {size} bytes"
    return rows * tokens * _BLOCK_WIDTHS * width * size, formula


def _scale(facts: ImageFacts) -> int:
    """Pixels of one latent's side."""
    channels = facts.config("vae", "vqvae").get("block_out_channels")
    return int(2 ** (len(channels) - 1)) if isinstance(channels, list) and channels else 8


def _first(channels: Any) -> int:
    return _whole(channels[0], 320) if isinstance(channels, list) and channels else 320


def _second(channels: Any) -> int:
    if not isinstance(channels, list) or not channels:
        return 256
    return _whole(channels[min(1, len(channels) - 1)], 256)


def _whole(value: Any, otherwise: int) -> int:
    return value if isinstance(value, int) and value > 0 else otherwise
