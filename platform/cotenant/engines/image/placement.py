"""How a pipeline is kept inside its VRAM budget: what stays on the GPU, when the VAE works in tiles, torch's cap. Pure.

The figures that are estimates say so; what holds is torch's cap, which turns a wrong estimate into a refused picture
and never into a neighbour's missing memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Offload = Literal["none", "model", "sequential"]

#: Held by a process beside torch's allocator: CUDA context and cuBLAS and cuDNN handles. An estimate.
CONTEXT_GIB = 0.5
#: Live copies of its widest feature map that a VAE decoder holds at once: input, output and convolution workspace.
_DECODER_MAPS = 3


def cap_fraction(vram_gib: float, total_gib: float) -> float:
    """What of the GPU's memory torch's allocator may take: the budget without the context, never all of it."""
    return min(1.0, max(vram_gib - CONTEXT_GIB, vram_gib / 2) / total_gib)


def decode_gib(pixels: int, channels: int, bytes_per_value: int) -> float:
    """What decoding `pixels` at once takes: some feature maps of `channels` at full resolution. An estimate."""
    return _DECODER_MAPS * pixels * channels * bytes_per_value / 2**30


def tiles(pixels: int, *, room_gib: float, channels: int, bytes_per_value: int) -> bool:
    """Whether the VAE has to decode in tiles to stay inside `room_gib`, which costs a little evenness at the seams."""
    return decode_gib(pixels, channels, bytes_per_value) > room_gib


def offload_of(
    wanted: Literal["auto", "none", "model", "sequential"], weights_gib: Mapping[str, float], vram_gib: float
) -> Offload:
    """What is moved to host memory between its turns.

    `auto` keeps all on the GPU if that leaves a fifth of the budget for the work itself, otherwise moves whole
    components (the largest has to fit likewise), otherwise layer by layer, which is slow and always fits.
    """
    if wanted != "auto":
        return wanted
    room_gib = (vram_gib - CONTEXT_GIB) * 0.8
    if sum(weights_gib.values()) <= room_gib:
        return "none"
    return "model" if max(weights_gib.values(), default=0.0) <= room_gib else "sequential"


def room_gib(offload: Offload, weights_gib: Mapping[str, float], vram_gib: float) -> float:
    """What the budget leaves for the work itself once the weights are where `offload` has them."""
    held = {"none": sum(weights_gib.values()), "model": weights_gib.get("vae", 0.0), "sequential": 0.0}
    return max(0.0, vram_gib - CONTEXT_GIB - held[offload])
