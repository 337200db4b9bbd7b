"""Artwork: bytes from a stranger to a picture that fits the slot.

Nothing is decoded before its size in bytes and its size in pixels are known to be bearable, and only by three
decoders. Colours are taken as sRGB (embedded profiles are dropped), upright by EXIF, first frame of an animation.
"""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cotenant.engines.mockup.request import MAX_ARTWORK_BYTES, BadRequest, Fit, too_large

MAX_PIXELS = 50_000_000
FORMATS = ("PNG", "JPEG", "WEBP")

Bytes = NDArray[np.uint8]


def decode(data: bytes, *, enough_px: int = 4096) -> Image.Image:
    """The picture in `data`, upright, as RGB or RGBA. Raises BadRequest.

    A JPEG much larger than `enough_px` on its longer side is decoded at a fraction of its size.
    """
    if len(data) > MAX_ARTWORK_BYTES:
        raise too_large()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError:
            raise _invalid("artwork is not a PNG, JPEG or WebP image", "unsupported_artwork") from None
        except Image.DecompressionBombError:
            raise _invalid(f"artwork may have {MAX_PIXELS:,} pixels; send a smaller picture") from None
        except (OSError, SyntaxError, ValueError, struct.error) as error:
            raise _invalid(f"artwork can't be read as an image: {error}") from None
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise _invalid(
                f"artwork has {width} x {height} pixels and may have {MAX_PIXELS:,} in all; send a smaller picture"
            )
        try:
            image.draft("RGB", (enough_px, enough_px))
            image.load()
            return _plain(ImageOps.exif_transpose(image))
        except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
            raise _invalid(f"artwork is damaged or cut short: {error}") from None


def _plain(image: Image.Image) -> Image.Image:
    if image.mode in ("RGB", "RGBA"):
        return image
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip instead of scale
        grey = (np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


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


def _invalid(message: str, code: str = "invalid_artwork") -> BadRequest:
    return BadRequest(message, param="artwork", code=code)
