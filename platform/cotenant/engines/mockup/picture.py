"""Light to pixels: tone, backdrop and shadow, sRGB, and the encoded file.

The backdrop is put behind the product here, not in the scene, so a background colour is exactly the one asked for
(where no shadow falls) and a transparent render keeps its shadow as soft black. Pure functions of arrays.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cotenant.engines.mockup.request import Format
from cotenant.engines.mockup.template import Floats

Bytes = NDArray[np.uint8]

#: The most light that ink or paper gives back, so that a printed white is no brighter than a real one.
PRINT_WHITE = 0.88
#: Linear light above this bends into the shoulder instead of burning out.
_SHOULDER = 0.72
_STEPS = 4096


def _decoded(encoded: NDArray[Any]) -> Floats:
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4).astype(np.float32)


def _encoded(linear: NDArray[Any]) -> Floats:
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055).astype(np.float32)


_LINEAR = _decoded(np.arange(256, dtype=np.float32) / 255)
#: sRGB bytes by the square root of linear light, which spends the table's steps where the eye looks.
_SRGB = np.round(_encoded((np.arange(_STEPS, dtype=np.float32) / (_STEPS - 1)) ** 2) * 255).astype(np.uint8)


def linear(pixels: Bytes) -> Floats:
    """Linear reflectance of printed sRGB bytes."""
    return np.take(_LINEAR * np.float32(PRINT_WHITE), pixels)


def printed(linear_rgb: tuple[float, float, float]) -> tuple[int, int, int]:
    """The sRGB bytes whose print has that reflectance: the inverse of `linear`."""
    values = _encoded(np.clip(np.array(linear_rgb, dtype=np.float32) / PRINT_WHITE, 0, 1)) * 255
    red, green, blue = (int(value) for value in np.round(values))
    return red, green, blue


def composed(light: Floats, shadow: Floats | None, background_rgb: tuple[int, int, int] | None) -> Bytes:
    """(h, w, 3) sRGB over a background colour, or (h, w, 4) with straight alpha when it is None.

    `light` is (h, w, 4), premultiplied; `shadow` is (h, w), 1 where the backdrop is fully lit.
    """
    cover = np.clip(light[..., 3:], 0.0, 1.0)
    product = _toned(light[..., :3] / np.maximum(cover, 1e-4)) * cover
    kept = np.ones_like(cover) if shadow is None else shadow[..., None]
    if background_rgb is not None:
        behind = np.take(_LINEAR, np.array(background_rgb))
        return _bytes(product + (1 - cover) * kept * behind)
    alpha = cover + (1 - cover) * (1 - kept)
    straight = _bytes(product / np.maximum(alpha, 1e-4))
    return np.concatenate([straight, np.round(alpha * 255).astype(np.uint8)], axis=2)


def _toned(light: Floats) -> Floats:
    over = np.maximum(light - _SHOULDER, 0.0) / (1 - _SHOULDER)
    return np.asarray(np.minimum(light, _SHOULDER) + (1 - _SHOULDER) * over / (1 + over), dtype=np.float32)


def _bytes(linear_light: Floats) -> Bytes:
    index = np.sqrt(np.clip(linear_light, 0.0, 1.0)) * (_STEPS - 1) + 0.5
    return np.take(_SRGB, index.astype(np.uint16))


def encoded(pixels: Bytes, form: Format, quality: int) -> bytes:
    """The image file. Same pixels, same bytes (for one version of Pillow)."""
    options: dict[Format, dict[str, Any]] = {
        "png": {"compress_level": 3},
        "jpeg": {"quality": quality, "subsampling": 0 if quality >= 90 else 2},
        "webp": {"quality": quality, "method": 2},
    }
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form.upper(), **options[form])
    return out.getvalue()
