"""What a customer may ask for: the body of `POST /v1/mockups`, strictly checked.

Everything wrong with a request becomes one `BadRequest`, whose text names the field, what it takes and what it got,
and which turns into OpenAI's error body. Pure: nothing is fetched or decoded here but base64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cotenant.engines.pictures.encode import Format
from cotenant.engines.pictures.refusal import translated
from cotenant.engines.pictures.source import Upload, Url, source_of

#: Beyond any renderer's reach; the platform file's `max_size_px` and `max_samples` are the real limits.
_SANE = 65536

Fit = Literal["cover", "contain", "stretch"]

#: What fields take whose types pydantic would describe badly.
_TAKES = {"artwork": 'a string, or upload by name: {"file": …}'}


class MockupRequest(BaseModel):
    """The body of `POST /v1/mockups`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    template: str = Field(min_length=1, description="Name of the template; GET /v1/mockups/templates lists them.")
    artwork: str | Upload = Field(
        description='PNG, JPEG or WebP up to 20 MB: base64, a data URL, an http(s) URL, or {"file": name of an upload}.'
    )
    fit: Fit = Field("cover", description="How the artwork fills the slot: cut to fill, show whole, or distort.")
    size: int | str | None = Field(None, description='Side of a square render in pixels, or "WIDTHxHEIGHT".')
    width: int | None = Field(None, ge=16, le=_SANE, description="Pixels; needs height.")
    height: int | None = Field(None, ge=16, le=_SANE, description="Pixels; needs width.")
    samples: int = Field(32, ge=1, le=_SANE, description="Light paths per pixel: less noise for more time.")
    seed: int = Field(0, ge=0, lt=2**32, description="Same request and seed, same bytes.")
    background: str = Field("#e9e5df", description='CSS hex colour ("#rgb" or "#rrggbb"), or "transparent".')
    format: Format = Field("png", description="Image format of the answer.")
    quality: int = Field(90, ge=1, le=100, description="For jpeg and webp; png is lossless.")

    @field_validator("background")
    @classmethod
    def _color(cls, value: str) -> str:
        digits = value[1:].lower()
        if value == "transparent":
            return value
        if value[:1] != "#" or len(digits) not in (3, 6) or not set(digits) <= set("0123456789abcdef"):
            raise ValueError('takes "#rgb", "#rrggbb" or "transparent"')
        return "#" + (digits if len(digits) == 6 else "".join(digit * 2 for digit in digits))

    @field_validator("size")
    @classmethod
    def _size(cls, value: int | str | None) -> int | str | None:
        for side in _sides(value):
            if not 16 <= side <= _SANE:
                raise ValueError(f"takes sides of 16 to {_SANE} pixels")
        return value

    @model_validator(mode="after")
    def _agrees(self) -> MockupRequest:
        if (self.width is None) != (self.height is None):
            raise ValueError("width and height go together; give both, or size for a square")
        if self.size is not None and self.width is not None:
            raise ValueError("size and width/height say the same thing; give one of them")
        if self.background == "transparent" and self.format == "jpeg":
            raise ValueError("jpeg has no transparency; use format png or webp, or give a background colour")
        return self

    @property
    def pixels(self) -> tuple[int, int]:
        """Width and height of the render."""
        if self.width is not None and self.height is not None:
            return self.width, self.height
        return _sides(self.size) or (1024, 1024)

    @property
    def background_rgb(self) -> tuple[int, int, int] | None:
        """The background as sRGB bytes; None for transparent."""
        if self.background == "transparent":
            return None
        return int(self.background[1:3], 16), int(self.background[3:5], 16), int(self.background[5:7], 16)


def _sides(size: int | str | None) -> Any:
    if size is None:
        return ()
    if isinstance(size, int):
        return size, size
    width, cross, height = size.lower().partition("x")
    if not cross or not (width.isdecimal() and height.isdecimal()) or len(size) > 16:
        raise ValueError('takes a number of pixels, or "WIDTHxHEIGHT"')
    return int(width), int(height)


def parse(body: bytes) -> MockupRequest:
    """The request in `body`. Raises BadRequest."""
    try:
        return MockupRequest.model_validate_json(body or b"{}")
    except ValidationError as error:
        raise translated(error, MockupRequest, _TAKES) from None


def artwork_source(artwork: str | Upload, files: Mapping[str, bytes]) -> bytes | Url:
    """The artwork's bytes if the request carries them, otherwise where they lie. Raises BadRequest."""
    return source_of(artwork, files, "artwork")
