"""An image and a mask to what a pipeline paints on, and what it painted back into the image. Pure arithmetic.

A mask follows OpenAI's convention: *transparent* is where the image is edited, in degrees. A mask without an alpha
channel is taken if it is purely grey, by the convention of everybody else: *white* is edited; a coloured one could
mean anything and is refused. What the mask does not touch comes out of the answer byte for byte as it came in (for
a lossless format): the painting is put into the caller's own pixels, not the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cotenant.engines.pictures.encode import Bytes
from cotenant.engines.pictures.refusal import BadRequest
from cotenant.engines.pictures.source import invalid

#: Rows that are mixed at once: the arithmetic takes several times the memory of what it works on.
_ROWS = 256


@dataclass(frozen=True)
class Edit:
    """What the pipeline gets (`image`, `mask`, both of the size it works at), and what its picture goes back into."""

    image: Image.Image
    mask: Image.Image | None = None
    original: Bytes | None = None
    weight: NDArray[np.uint8] | None = None

    def finished(self, painted: Bytes) -> Bytes:
        """(h, w, 3): the painting in the original's size, with the original wherever the mask's weight is 0."""
        if self.original is None or self.weight is None:
            return painted
        height, width = self.weight.shape
        if painted.shape[:2] != (height, width):
            painted = np.asarray(Image.fromarray(painted).resize((width, height), Image.Resampling.LANCZOS))
        mixed = np.empty_like(self.original)
        for top in range(0, height, _ROWS):
            rows = slice(top, top + _ROWS)
            # 255 * 255 + 127 fits in 16 bits.
            share = self.weight[rows, :, None].astype(np.uint16)
            mixed[rows] = (painted[rows] * share + self.original[rows] * (255 - share) + 127) // 255
        return mixed


@dataclass(frozen=True)
class Limits:
    """Which sizes can be made: sides that are multiples of `multiple`, from `least_px` to `max_px`."""

    max_px: int
    multiple: int
    least_px: int = 16

    @property
    def most(self) -> int:
        """The longest side."""
        return self.max_px // self.multiple * self.multiple

    @property
    def least(self) -> int:
        """The shortest side."""
        return min(self.most, -(-self.least_px // self.multiple) * self.multiple)


def prepared(image: Image.Image, mask: Image.Image | None, size: tuple[int, int] | None, limits: Limits) -> Edit:
    """What is painted on for `image` and `mask`.

    With a `size` both are cut to its shape and scaled to it. Without one the image keeps its own size: it is worked
    on at the nearest size that the pipeline can do, and a masked edit is answered in the image's own size.

    Raises:
        BadRequest: the mask has another size than the image, or touches nothing.
    """
    if mask is not None and mask.size != image.size:
        have, need = "{} x {}".format(*mask.size), "{} x {}".format(*image.size)
        raise invalid(f"mask has {have} pixels and image {need}; make them the same size", "mask")
    plain = opaque(image)
    weight = weight_of(mask) if mask is not None else None
    if size is not None:
        plain = _cut(plain, size)
        weight = _cut(weight, size) if weight is not None else None
    work = size or working_size(plain.size, limits)
    scaled = _scaled(plain, work)
    if weight is None:
        return Edit(scaled)
    if weight.getextrema() == (0, 0):
        raise invalid(
            "mask touches nothing; make it transparent where the image is to be edited, or white, if it has no alpha",
            "mask",
        )
    small = weight if weight.size == work else weight.resize(work, Image.Resampling.BILINEAR)
    return Edit(scaled, _blocks(small, limits.multiple), np.asarray(plain), np.asarray(weight))


def _blocks(weight: Image.Image, side: int) -> Image.Image:
    """The pipeline's mask, which is yes or no: white for every block of `side` pixels in which anything may change.

    Latents have a value per block, and pipelines sample the mask at one pixel of it: a finer mask would be missed.
    """
    touched = np.asarray(weight) > 0
    height, width = touched.shape
    blocks = touched.reshape(height // side, side, width // side, side).any(axis=(1, 3))
    return Image.fromarray(np.where(blocks.repeat(side, 0).repeat(side, 1), 255, 0).astype(np.uint8))


def weight_of(mask: Image.Image) -> Image.Image:
    """How much of each pixel is edited, 0 to 255, as a grey image. Raises BadRequest for a mask of two meanings."""
    if mask.mode == "RGBA":
        return mask.getchannel("A").point([255 - alpha for alpha in range(256)])
    red, green, blue = (np.asarray(channel) for channel in mask.convert("RGB").split())
    if not ((red == green).all() and (green == blue).all()):
        raise invalid(
            "mask has neither an alpha channel (transparent is edited) nor only greys (white is edited); send one",
            "mask",
        )
    return Image.fromarray(red)


def opaque(image: Image.Image) -> Image.Image:
    """`image` as RGB, over white where it is transparent."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    sheet = Image.new("RGB", image.size, (255, 255, 255))
    sheet.paste(image, mask=image.getchannel("A"))
    return sheet


def reference(image: Image.Image, limits: Limits) -> Image.Image:
    """A further image of an edit, as the pipeline can take it."""
    return _scaled(opaque(image), working_size(image.size, limits))


def working_size(size: tuple[int, int], limits: Limits) -> tuple[int, int]:
    """The size nearest to `size` that can be made; the shape is kept as far as that goes."""
    scale = min(1.0, limits.max_px / max(size))
    width, height = (round(side * scale / limits.multiple) * limits.multiple for side in size)
    return min(limits.most, max(limits.least, width)), min(limits.most, max(limits.least, height))


def exact_size(size: tuple[int, int] | None, default_px: int, limits: Limits) -> tuple[int, int]:
    """The size of a picture: as asked for, or a square of the default. Raises BadRequest for one that can't be made."""
    if size is None:
        return working_size((default_px, default_px), limits)
    if max(size) > limits.max_px:
        raise _wrong_size(f"a picture may have {limits.max_px} pixels a side, got {size[0]}x{size[1]}")
    nearest = working_size(size, limits)
    if nearest != size:
        rule = f"multiples of {limits.multiple} from {limits.least}"
        raise _wrong_size(f"sides need to be {rule}, got {size[0]}x{size[1]}; try {nearest[0]}x{nearest[1]}")
    return size


def _scaled(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def _cut(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of `image` in the shape of `size`, scaled to it; as it is if it has that size."""
    if image.size == size:
        return image
    scale = max(size[0] / image.width, size[1] / image.height)
    left, top = (image.width - size[0] / scale) / 2, (image.height - size[1] / scale) / 2
    box = (max(left, 0.0), max(top, 0.0), min(image.width - left, image.width), min(image.height - top, image.height))
    return image.resize(size, Image.Resampling.BICUBIC, box=box)


def _wrong_size(message: str) -> BadRequest:
    return BadRequest(f"size: {message}", param="size", code="invalid_value")
