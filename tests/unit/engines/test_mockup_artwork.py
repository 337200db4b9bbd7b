"""Strangers' pictures: what is decoded, what is refused before it can hurt, and how it is fitted."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cotenant.engines.mockup import picture
from cotenant.engines.mockup.artwork import decode, fitted
from cotenant.engines.pictures.decode import MAX_PIXELS
from cotenant.engines.pictures.encode import encoded
from cotenant.engines.pictures.refusal import BadRequest
from cotenant.engines.pictures.source import MAX_PICTURE_BYTES

pytestmark = pytest.mark.unit

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


def quarters(width: int = 80, height: int = 40) -> Image.Image:
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    image.paste(YELLOW, (width // 2, height // 2, width, height))
    return image


def file(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_the_three_formats_are_read(form: str) -> None:
    image = decode(file(quarters(), form))
    assert image.size == (80, 40)
    assert image.mode == "RGB"


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_are_refused_though_pillow_knows_them(form: str) -> None:
    with pytest.raises(BadRequest, match="not a PNG, JPEG or WebP") as caught:
        decode(file(quarters(), form))
    assert caught.value.code == "unsupported_artwork"


@pytest.mark.parametrize("data", [b"hello", b"\x89PNG\r\n\x1a\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_what_is_no_picture_is_a_400(data: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        decode(data)
    assert (caught.value.status, caught.value.param) == (400, "artwork")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_file_cut_short_is_a_400(form: str) -> None:
    rng = np.random.default_rng(0)
    data = file(Image.fromarray(rng.integers(0, 255, (200, 200, 3), dtype=np.uint8)), form)
    with pytest.raises(BadRequest, match=r"damaged|can't be read|not a PNG"):
        decode(data[: len(data) // 2])


def test_a_bomb_is_refused_by_its_header_without_decoding() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    with pytest.raises(BadRequest, match="pixels"):
        decode(bomb)


def test_a_picture_just_over_the_pixel_cap_is_refused() -> None:
    with pytest.raises(BadRequest, match=f"{MAX_PIXELS:,}"):
        decode(file(Image.new("1", (10_000, MAX_PIXELS // 10_000 + 1)), "PNG"))


def test_bytes_over_the_cap_are_a_413() -> None:
    with pytest.raises(BadRequest) as caught:
        decode(bytes(MAX_PICTURE_BYTES + 1))
    assert caught.value.status == 413


def test_a_photo_that_lies_on_its_side_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = decode(file(quarters().transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95))
    assert image.size == (80, 40)
    red, green, blue = image.getpixel((10, 10))  # type: ignore[misc]
    assert red > 200 and green < 60 and blue < 60


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_png_mode_becomes_rgb_or_rgba(mode: str) -> None:
    if mode == "I;16":
        source = Image.fromarray(np.full((8, 8), 0x8000, dtype=np.uint16))
    else:
        source = Image.new("RGBA", (8, 8), (128, 128, 128, 128)).convert(mode)
    image = decode(file(source, "PNG"))
    assert image.mode == ("RGBA" if mode in ("LA", "P", "RGBA") else "RGB")
    if mode == "I;16":
        assert image.getpixel((0, 0)) == (128, 128, 128)


def test_cmyk_jpeg_becomes_rgb() -> None:
    assert decode(file(quarters().convert("CMYK"), "JPEG")).mode == "RGB"


def test_a_huge_jpeg_is_decoded_at_a_fraction_that_is_still_enough() -> None:
    image = decode(file(Image.new("RGB", (4000, 2000)), "JPEG"), enough_px=500)
    assert 500 <= image.width < 4000


def corner_colors(pixels: np.ndarray) -> list[tuple[int, ...]]:
    height, width = pixels.shape[:2]
    at = [(2, 2), (2, width - 3), (height - 3, 2), (height - 3, width - 3)]
    return [tuple(int(c) for c in pixels[y, x]) for y, x in at]


def test_cover_fills_the_slot_and_cuts_evenly() -> None:
    pixels = fitted(quarters(80, 40), "cover", (40, 40), (9, 9, 9))
    assert pixels.shape == (40, 40, 3)
    assert corner_colors(pixels) == [RED, GREEN, BLUE, YELLOW]


def test_contain_shows_all_of_it_over_the_slots_own_colour() -> None:
    pixels = fitted(quarters(80, 40), "contain", (40, 40), (9, 9, 9))
    assert corner_colors(pixels) == [(9, 9, 9)] * 4
    assert corner_colors(pixels[10:30]) == [RED, GREEN, BLUE, YELLOW]


def test_stretch_fills_the_slot_with_all_of_it() -> None:
    pixels = fitted(quarters(80, 40), "stretch", (30, 60), (9, 9, 9))
    assert corner_colors(pixels) == [RED, GREEN, BLUE, YELLOW]
    assert tuple(pixels[28, 13]) == RED
    assert tuple(pixels[32, 17]) == YELLOW


@pytest.mark.parametrize("fit", ["cover", "contain", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (1, 3000)])
def test_extreme_shapes_still_fill_the_slot(fit: Any, size: tuple[int, int]) -> None:
    assert fitted(Image.new("RGB", size), fit, (64, 48), (9, 9, 9)).shape == (48, 64, 3)


def test_transparent_artwork_lets_the_slots_colour_through() -> None:
    image = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    image.paste((255, 0, 0, 128), (0, 20, 40, 40))
    pixels = fitted(image, "cover", (40, 40), (100, 100, 100))
    assert tuple(pixels[5, 5]) == (100, 100, 100)
    assert np.abs(pixels[35, 5].astype(int) - [178, 50, 50]).max() <= 1


def test_printing_a_colour_and_reading_it_back_is_the_identity() -> None:
    for value in (0, 1, 40, 128, 254, 255):
        row = picture.linear(np.full((1, 1, 3), value, dtype=np.uint8))[0, 0]
        assert picture.printed((float(row[0]), float(row[1]), float(row[2]))) == (value,) * 3


def test_the_background_is_exactly_the_colour_asked_for_where_nothing_stands() -> None:
    light = np.zeros((4, 4, 4), dtype=np.float32)
    lit = np.ones((4, 4), dtype=np.float32)
    for rgb in ((255, 255, 255), (0, 0, 0), (233, 229, 223), (17, 200, 3)):
        assert (picture.composed(light, lit, rgb) == np.array(rgb)).all()


def test_without_a_background_shadow_is_soft_black_and_the_product_keeps_its_colour() -> None:
    light = np.zeros((1, 3, 4), dtype=np.float32)
    light[0, 0] = (0.5, 0.5, 0.5, 1.0)
    light[0, 1] = (0.25, 0.25, 0.25, 0.5)
    shadow = np.array([[1.0, 1.0, 0.4]], dtype=np.float32)
    pixels = picture.composed(light, shadow, None)
    assert tuple(pixels[0, 0]) == (188, 188, 188, 255)
    assert tuple(pixels[0, 1]) == (188, 188, 188, 128)
    assert tuple(pixels[0, 2]) == (0, 0, 0, 153)


@pytest.mark.parametrize("channels", [3, 4])
def test_the_png_writer_is_lossless(channels: int) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (33, 57, channels), dtype=np.uint8)
    image = Image.open(io.BytesIO(encoded(pixels, "png", 90)))
    assert (np.asarray(image) == pixels).all()


def test_jpeg_and_webp_get_smaller_with_less_quality() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for form in ("jpeg", "webp"):
        assert len(encoded(pixels, form, 20)) < len(encoded(pixels, form, 95))  # type: ignore[arg-type]
