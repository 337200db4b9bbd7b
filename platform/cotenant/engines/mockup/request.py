"""What a customer may ask for: the body of `POST /v1/mockups`, strictly checked.

Everything wrong with a request becomes one `BadRequest`, whose text names the field, what it takes and what it got,
and which turns into OpenAI's error body. Pure: nothing is fetched or decoded here but base64.
"""

from __future__ import annotations

import base64
import binascii
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cotenant.calls import Reply, error_reply

MAX_ARTWORK_BYTES = 20 * 2**20
#: Beyond any renderer's reach; the platform file's `max_size_px` and `max_samples` are the real limits.
_SANE = 65536

Fit = Literal["cover", "contain", "stretch"]
Format = Literal["png", "webp", "jpeg"]


class BadRequest(Exception):
    """The caller's mistake: an HTTP status, a text to show, the field at fault and a code for programs."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status

    def reply(self) -> Reply:
        return error_reply(self.status, str(self), param=self.param, code=self.code)


class Upload(BaseModel):
    """A file sent beside the body, by its name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str = Field(min_length=1)


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
                raise ValueError("takes sides of 16 pixels and more")
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
        raise _translated(error) from None


def _translated(error: ValidationError) -> BadRequest:
    first = error.errors(include_url=False, include_context=False)[0]
    kind, message = first["type"], first["msg"].removeprefix("Value error, ")
    param = str(first["loc"][0]) if first["loc"] else None
    if kind == "json_invalid":
        return BadRequest(f"the body is not JSON: {message.removeprefix('Invalid JSON: ')}", code="invalid_json")
    if param is None:
        return BadRequest(f"the body needs to be an object: {message}" if kind == "model_type" else message)
    if kind == "missing" and len(first["loc"]) == 1:
        return BadRequest(f"the body needs {param}", param=param, code="missing_required_parameter")
    if kind == "extra_forbidden" and len(first["loc"]) == 1:
        near = difflib.get_close_matches(param[:64], MockupRequest.model_fields, n=1)
        known = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(MockupRequest.model_fields)}"
        return BadRequest(f"unknown parameter {param[:64]!r}; {known}", param=param[:64], code="unknown_parameter")
    if param == "artwork":
        return BadRequest(f'artwork takes a string, or {Upload.__name__.lower()} by name: {{"file": …}}', param=param)
    got = first["input"]
    seen = (
        f", got {str(got)[:40]!r}" if isinstance(got, str) else f", got {got}" if isinstance(got, int | float) else ""
    )
    return BadRequest(f"{param}: {message[:1].lower()}{message[1:]}{seen}", param=param, code="invalid_value")


@dataclass(frozen=True)
class Url:
    """Artwork that lies elsewhere."""

    url: str


def artwork_source(artwork: str | Upload, files: Mapping[str, bytes]) -> bytes | Url:
    """The artwork's bytes if the request carries them, otherwise where they lie. Raises BadRequest."""
    if isinstance(artwork, Upload):
        if artwork.file not in files:
            have = ", ".join(files) or "none"
            raise BadRequest(f"the upload {artwork.file!r} is not in the request (uploads: {have})", param="artwork")
        return _capped(files[artwork.file])
    if artwork[:8].lower().startswith(("http://", "https://")):
        return Url(artwork)
    text = artwork
    if artwork[:5].lower() == "data:":
        head, comma, text = artwork.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise BadRequest(
                "a data URL needs base64: data:image/png;base64,…", param="artwork", code="invalid_artwork"
            )
    if len(text) > MAX_ARTWORK_BYTES * 4 // 3 + 4096:
        raise too_large()
    try:
        return _capped(base64.b64decode("".join(text.split()), validate=True))
    except (binascii.Error, ValueError):
        raise BadRequest(
            "artwork is neither base64, a data URL, nor an http(s) URL", param="artwork", code="invalid_artwork"
        ) from None


def too_large() -> BadRequest:
    """The refusal of artwork over the cap, wherever it came from."""
    return BadRequest(
        f"artwork may have {MAX_ARTWORK_BYTES // 2**20} MB; send a smaller file",
        param="artwork",
        code="artwork_too_large",
        status=413,
    )


def _capped(data: bytes) -> bytes:
    if len(data) > MAX_ARTWORK_BYTES:
        raise too_large()
    if not data:
        raise BadRequest("artwork is empty", param="artwork", code="invalid_artwork")
    return data


def wants_json(accept: str) -> bool:
    """Whether an Accept header prefers JSON to an image: the higher q wins, then what it names, then the image."""
    best = {"json": (0.0, 0), "image": (0.0, 0)}
    for entry in accept.lower().split(","):
        kind, *parameters = (piece.strip() for piece in entry.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        if kind in ("application/json", "application/*"):
            best["json"] = max(best["json"], (quality, 2))
        elif kind.startswith("image/"):
            best["image"] = max(best["image"], (quality, 2))
        elif kind == "*/*":
            best = {name: max(rank, (quality, 1)) for name, rank in best.items()}
    return best["json"] > best["image"]
