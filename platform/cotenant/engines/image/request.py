"""What a caller may ask for: the bodies of `POST /v1/images/generations` and `/v1/images/edits`, strictly checked.

The fields are OpenAI's, and ours beside them (seed, steps, guidance, strength, negative_prompt). What OpenAI's
models have and a diffusion pipeline has nothing for is taken and ignored where that does no harm (quality, style,
moderation, user) and refused where the answer would not be what was asked for (stream, transparency, URLs).
Pure: nothing is fetched or decoded here but base64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cotenant.engines.pictures.encode import Format
from cotenant.engines.pictures.refusal import BadRequest, translated
from cotenant.engines.pictures.source import Upload, Url, source_of

GENERATIONS_URL = "/v1/images/generations"
EDITS_URL = "/v1/images/edits"

#: The largest seed: whatever reads JSON numbers as doubles keeps it, also when n is added.
MAX_SEED = 2**53 - 1000
MAX_PICTURES = 10
MAX_IMAGES = 16
_SANE = 65536

Quality = Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"]


class ImageUrl(BaseModel):
    """A picture by reference: an http(s) URL or a data URL."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    image_url: str = Field(min_length=1)


Picture = str | Upload | ImageUrl
Pictures = Annotated[Picture | list[Picture], Field(union_mode="left_to_right")]

_PICTURE = (
    "PNG, JPEG or WebP up to 20 MB: base64, a data URL, an http(s) URL, "
    '{"image_url": …}, or {"file": name of an upload}'
)
#: What fields take whose types pydantic would describe badly.
_TAKES = {
    "image": f"{_PICTURE}; or a list of these",
    "images": f"{_PICTURE}; or a list of these",
    "mask": _PICTURE,
    "response_format": "b64_json: pictures are answered in the body, no URL is made",
    "background": "opaque or auto: diffusion pipelines draw no transparency",
    "stream": "false: pictures are answered whole",
    "partial_images": "0: pictures are answered whole",
}


class GenerationRequest(BaseModel):
    """The body of `POST /v1/images/generations`. A null is as good as a field left out."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prompt: str = Field(min_length=1, max_length=32_000)
    model: str | None = None
    n: int | None = Field(None, ge=1, le=MAX_PICTURES, description="Pictures to make, with seeds seed, seed + 1, ….")
    size: str | None = Field(None, description='"WIDTHxHEIGHT", or "auto" for the pipeline\'s own.')
    output_format: Format | None = None
    output_compression: int | None = Field(None, ge=0, le=100, description="Quality of jpeg and webp.")
    response_format: Literal["b64_json"] | None = None
    background: Literal["opaque", "auto"] | None = None
    stream: Literal[False] | None = None
    partial_images: Literal[0] | None = None
    quality: Quality | None = Field(None, description="Taken and ignored; steps decide.")
    style: Literal["vivid", "natural"] | None = Field(None, description="Taken and ignored; the prompt decides.")
    moderation: Literal["low", "auto"] | None = Field(None, description="Taken and ignored.")
    user: str | None = Field(None, description="Taken and ignored.")
    safety_identifier: str | None = Field(None, description="Taken and ignored.")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Same request and seed, same bytes.")
    steps: int | None = Field(None, ge=1, le=500, description="Denoising steps.")
    guidance: float | None = Field(None, ge=0, le=50, description="How closely the prompt is followed.")
    negative_prompt: str | None = Field(None, max_length=32_000, description="What not to draw.")

    @model_validator(mode="after")
    def _agrees(self) -> GenerationRequest:
        if self.output_compression not in (None, 100) and self.format == "png":
            raise ValueError("output_compression is for jpeg and webp; png is lossless: set output_format or leave it")
        return self

    @property
    def count(self) -> int:
        return self.n or 1

    @property
    def format(self) -> Format:
        return self.output_format or "png"

    @property
    def file_quality(self) -> int:
        """OpenAI's compression of 100 is its best quality."""
        return 95 if self.output_compression is None else max(1, self.output_compression)

    @property
    def sides(self) -> tuple[int, int] | None:
        """Width and height asked for; None for the pipeline's own. Raises BadRequest."""
        if self.size is None or self.size == "auto":
            return None
        width, cross, height = self.size.lower().partition("x")
        if not cross or len(self.size) > 16 or not (width + height).isascii() or not (width + height).isdecimal():
            raise _wrong_size(f'takes "WIDTHxHEIGHT" in pixels or "auto", got {self.size[:40]!r}')
        if not width or not height or not 1 <= int(width) <= _SANE or not 1 <= int(height) <= _SANE:
            raise _wrong_size(f"takes sides of 1 to {_SANE} pixels, got {self.size!r}")
        return int(width), int(height)


class EditRequest(GenerationRequest):
    """The body of `POST /v1/images/edits`. The image may come as `image` or, as OpenAI's JSON has it, `images`."""

    image: Pictures | None = Field(None, description=_PICTURE)
    images: Pictures | None = Field(None, description=_PICTURE)
    mask: Picture | None = Field(None, description=f"{_PICTURE}; transparent where the image is to be edited")
    strength: float | None = Field(None, gt=0, le=1, description="How far the picture may go from the image.")
    input_fidelity: Literal["high", "low"] | None = Field(None, description="Taken and ignored; strength decides.")

    @property
    def sources(self) -> dict[str, Picture]:
        """The images to edit, by what a refusal calls them; the first is the one that is edited. Raises BadRequest."""
        if self.image is not None and self.images is not None:
            raise BadRequest("image and images say the same thing; give one of them", param="images")
        given, name = (self.images, "images") if self.image is None else (self.image, "image")
        if given is None or given == []:
            raise BadRequest("the body needs image", param="image", code="missing_required_parameter")
        if not isinstance(given, list):
            return {name: given}
        if len(given) > MAX_IMAGES:
            raise BadRequest(f"{name}: at most {MAX_IMAGES} images, got {len(given)}", param=name, code="invalid_value")
        return {name if len(given) == 1 else f"{name}[{index}]": each for index, each in enumerate(given)}


Request = TypeVar("Request", bound=GenerationRequest)


def parse(body: bytes, kind: type[Request]) -> Request:
    """The request in `body`. Raises BadRequest."""
    try:
        return kind.model_validate_json(body or b"{}")
    except ValidationError as error:
        refusal = translated(error, kind, _TAKES)
        if refusal.param is None and "output_compression" in str(refusal):
            refusal.param, refusal.code = "output_compression", "invalid_value"
        raise refusal from None


def picture_source(picture: Picture, files: Mapping[str, bytes], what: str) -> bytes | Url:
    """The bytes of an image or mask if the request carries them, otherwise where they lie. Raises BadRequest."""
    value: Any = picture.image_url if isinstance(picture, ImageUrl) else picture
    return source_of(value, files, what)


def _wrong_size(message: str) -> BadRequest:
    return BadRequest(f"size: {message}", param="size", code="invalid_value")
