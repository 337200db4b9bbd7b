"""Light to pixels: tone, backdrop and shadow, sRGB, and the encoded file.

The backdrop is put behind the product here, not in the scene, so a background colour is exactly the one asked for
(where no shadow falls) and a transparent render keeps its shadow as soft black. Pure functions of arrays.
"""

from __future__ import annotations

import io
import struct
import zlib
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


def encoded(pixels: Bytes, form: Format, quality: int) -> bytes:
    """The image file. Same pixels, same bytes (for one version of Pillow and zlib)."""
    if form == "png":
        return _png(pixels)
    options: dict[Format, dict[str, Any]] = {
        "jpeg": {"quality": quality, "subsampling": 0 if quality >= 90 else 2},
        "webp": {"quality": quality, "method": 2},
    }
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form.upper(), **options[form])
    return out.getvalue()


def _png(pixels: Bytes) -> bytes:
    """A PNG of 8-bit RGB or RGBA: each row as differences to the left pixel, packed by run lengths and Huffman.

    Pillow tries every row with every filter; on rendered, slightly noisy pictures that takes three times as long
    for files 4 % smaller, and it would be a twentieth of a render's whole cost.
    """
    height, width, channels = pixels.shape
    flat = pixels.reshape(height, width * channels)
    rows = np.empty((height, 1 + width * channels), dtype=np.uint8)
    rows[:, 0] = 1
    rows[:, 1 : 1 + channels] = flat[:, :channels]
    np.subtract(flat[:, channels:], flat[:, :-channels], out=rows[:, 1 + channels :])
    packer = zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    data = packer.compress(rows.tobytes()) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 6 if channels == 4 else 2, 0, 0, 0)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    chunks = ((b"IHDR", header), (b"sRGB", b"\0"), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, body) for kind, body in chunks)
