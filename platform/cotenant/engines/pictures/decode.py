"""Bytes from a stranger to a picture.

Nothing is decoded before its size in bytes and its size in pixels are known to be bearable, and only by three
decoders. Colours are taken as sRGB (embedded profiles are dropped), upright by EXIF, first frame of an animation.
"""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cotenant.engines.pictures.refusal import BadRequest
from cotenant.engines.pictures.source import MAX_PICTURE_BYTES, invalid, noun, too_large

MAX_PIXELS = 50_000_000
FORMATS = ("PNG", "JPEG", "WEBP")


def decode(data: bytes, what: str, *, enough_px: int | None = None) -> Image.Image:
    """The picture in `data`, upright, as RGB or RGBA; `what` is the request's field. Raises BadRequest.

    A JPEG much larger than `enough_px` on its longer side, where that is given, is decoded at a fraction of its size.
    """
    if len(data) > MAX_PICTURE_BYTES:
        raise too_large(what)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError:
            raise BadRequest(
                f"{what} is not a PNG, JPEG or WebP image", param=what, code=f"unsupported_{noun(what)}"
            ) from None
        except Image.DecompressionBombError:
            raise invalid(f"{what} may have {MAX_PIXELS:,} pixels; send a smaller picture", what) from None
        except (OSError, SyntaxError, ValueError, struct.error) as error:
            raise invalid(f"{what} can't be read as an image: {error}", what) from None
        width, height = image.size
        if width * height > MAX_PIXELS:
            text = f"{what} has {width} x {height} pixels and may have {MAX_PIXELS:,} in all; send a smaller picture"
            raise invalid(text, what)
        try:
            if enough_px is not None:
                image.draft("RGB", (enough_px, enough_px))
            image.load()
            return _plain(ImageOps.exif_transpose(image))
        except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
            raise invalid(f"{what} is damaged or cut short: {error}", what) from None


def _plain(image: Image.Image) -> Image.Image:
    if image.mode in ("RGB", "RGBA"):
        return image
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip instead of scale
        grey = (np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")
