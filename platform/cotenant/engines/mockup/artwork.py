"""Artwork: bytes from a stranger to a picture that fits the slot.

Decoding itself, with its checks, is `pictures.decode`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cotenant.engines.mockup.request import Fit
from cotenant.engines.pictures import decode as pictures

Bytes = NDArray[np.uint8]


def decode(data: bytes, *, enough_px: int = 4096) -> Image.Image:
    """The artwork in `data`, upright, as RGB or RGBA. Raises BadRequest."""
    return pictures.decode(data, "artwork", enough_px=enough_px)


def fitted(image: Image.Image, fit: Fit, size: tuple[int, int], base_rgb: tuple[int, int, int]) -> Bytes:
    """(height, width, 3) sRGB bytes: `image` in a slot of `size` (width, height), over the slot's own colour."""
    width, height = size
    wide, tall = image.size
    box = (0.0, 0.0, float(wide), float(tall))
    target = size
    if fit == "cover":
        scale = max(width / wide, height / tall)
        cut_x, cut_y = (wide - width / scale) / 2, (tall - height / scale) / 2
        box = (max(cut_x, 0.0), max(cut_y, 0.0), min(wide - cut_x, float(wide)), min(tall - cut_y, float(tall)))
    elif fit == "contain":
        scale = min(width / wide, height / tall)
        target = (min(width, max(1, round(wide * scale))), min(height, max(1, round(tall * scale))))
    piece = image.resize(target, Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
    slot = Image.new("RGB", size, base_rgb)
    mask = piece if piece.mode == "RGBA" else None
    slot.paste(piece, ((width - target[0]) // 2, (height - target[1]) // 2), mask)
    return np.asarray(slot)
