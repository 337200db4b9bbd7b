"""Pixels to an image file. Same pixels, same bytes (for one version of Pillow and zlib)."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Format = Literal["png", "webp", "jpeg"]
Bytes = NDArray[np.uint8]


def encoded(pixels: Bytes, form: Format, quality: int) -> bytes:
    """The image file of (h, w, 3) or (h, w, 4) sRGB bytes; `quality`, 1 to 100, is for jpeg and webp."""
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
