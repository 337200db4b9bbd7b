"""Where a picture that a request speaks of is. Nothing is fetched or decoded here but base64."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from cotenant.engines.pictures.refusal import BadRequest

MAX_PICTURE_BYTES = 20 * 2**20


class Upload(BaseModel):
    """A file sent beside the body, by its name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str = Field(min_length=1)


@dataclass(frozen=True)
class Url:
    """A picture that lies elsewhere."""

    url: str


def source_of(value: str | Upload, files: Mapping[str, bytes], what: str) -> bytes | Url:
    """The bytes of the picture if the request carries them, otherwise where they lie.

    `value` is base64, a data URL, an http(s) URL or an upload's name; `what` is the request's field.

    Raises:
        BadRequest: it is none of these, or larger than `MAX_PICTURE_BYTES`.
    """
    if isinstance(value, Upload):
        if value.file not in files:
            have = ", ".join(files) or "none"
            raise BadRequest(f"the upload {value.file!r} is not in the request (uploads: {have})", param=what)
        return _capped(files[value.file], what)
    if value[:8].lower().startswith(("http://", "https://")):
        return Url(value)
    text = value
    if value[:5].lower() == "data:":
        head, comma, text = value.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise invalid("a data URL needs base64: data:image/png;base64,…", what)
    if len(text) > MAX_PICTURE_BYTES * 4 // 3 + 4096:
        raise too_large(what)
    try:
        return _capped(base64.b64decode("".join(text.split()), validate=True), what)
    except (binascii.Error, ValueError):
        raise invalid(f"{what} is neither base64, a data URL, nor an http(s) URL", what) from None


def noun(what: str) -> str:
    """The field's name without an index: what codes for programs are made of."""
    return what.partition("[")[0]


def invalid(message: str, what: str) -> BadRequest:
    """The refusal of a picture that can't be read."""
    return BadRequest(message, param=what, code=f"invalid_{noun(what)}")


def too_large(what: str) -> BadRequest:
    """The refusal of a picture over the cap, wherever it came from."""
    return BadRequest(
        f"{what} may have {MAX_PICTURE_BYTES // 2**20} MB; send a smaller file",
        param=what,
        code=f"{noun(what)}_too_large",
        status=413,
    )


def _capped(data: bytes, what: str) -> bytes:
    if len(data) > MAX_PICTURE_BYTES:
        raise too_large(what)
    if not data:
        raise invalid(f"{what} is empty", what)
    return data
