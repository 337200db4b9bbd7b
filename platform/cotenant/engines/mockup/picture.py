"""Light to pixels: tone, backdrop and shadow, sRGB.

The backdrop is put behind the product here, not in the scene, so a background colour is exactly the one asked for
(where no shadow falls) and a transparent render keeps its shadow as soft black. Pure functions of arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    cover = np.clip(light[..., 3], 0.0, 1.0)
    rgb = np.ascontiguousarray(light[..., :3])
    # Tone bends the product's own light, not its mixture with nothing at the edges.
    edge = (cover > 0) & (cover < 1)
    rgb[edge] /= cover[edge, None]
    _tone(rgb)
    rgb[edge] *= cover[edge, None]
    if background_rgb is not None:
        room = 1 - cover if shadow is None else (1 - cover) * shadow
        for channel, byte in enumerate(background_rgb):
            rgb[..., channel] += room * _LINEAR[byte]
        return _bytes(rgb)
    alpha = cover if shadow is None else cover + (1 - cover) * (1 - shadow)
    mixed = (alpha > 0) & (cover < 1)
    rgb[mixed] /= alpha[mixed, None]
    return np.dstack([_bytes(rgb), np.round(alpha * 255).astype(np.uint8)])


def _tone(light: Floats) -> None:
    """Bends what is above the shoulder towards 1, in place; its slope is 1 where it begins."""
    over = light - _SHOULDER
    np.maximum(over, 0.0, out=over)
    light -= over
    over /= 1 + over / (1 - _SHOULDER)
    light += over


def _bytes(linear_light: Floats) -> Bytes:
    index = np.sqrt(np.clip(linear_light, 0.0, 1.0))
    index *= _STEPS - 1
    index += 0.5
    return np.take(_SRGB, index.astype(np.intp), mode="clip")
