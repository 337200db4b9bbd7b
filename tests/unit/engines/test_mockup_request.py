"""What a mockup request may say, and what is answered to one that may not."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from cotenant.engines.mockup.request import artwork_source, parse
from cotenant.engines.pictures.accept import wants_json
from cotenant.engines.pictures.refusal import BadRequest
from cotenant.engines.pictures.source import MAX_PICTURE_BYTES, Url

pytestmark = pytest.mark.unit


def body(**fields: Any) -> bytes:
    return json.dumps({"template": "mug", "artwork": "aGk=", **fields}).encode()


def test_defaults_are_a_square_png_on_a_plain_background() -> None:
    request = parse(body())
    assert (request.pixels, request.format, request.fit, request.seed) == ((1024, 1024), "png", "cover", 0)
    assert request.background_rgb == (0xE9, 0xE5, 0xDF)


@pytest.mark.parametrize(
    ("fields", "pixels"),
    [
        pytest.param({"size": 512}, (512, 512), id="one number"),
        pytest.param({"size": "640x480"}, (640, 480), id="WxH"),
        pytest.param({"width": 300, "height": 200}, (300, 200), id="width and height"),
    ],
)
def test_a_size_is_said_in_three_ways(fields: dict[str, Any], pixels: tuple[int, int]) -> None:
    assert parse(body(**fields)).pixels == pixels


@pytest.mark.parametrize(
    ("background", "rgb"),
    [("#fff", (255, 255, 255)), ("#FF8000", (255, 128, 0)), ("#012", (0, 17, 34)), ("transparent", None)],
)
def test_a_background_is_a_css_hex_colour_or_transparent(background: str, rgb: tuple[int, int, int] | None) -> None:
    assert parse(body(background=background)).background_rgb == rgb


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        pytest.param({"tempalte": "mug"}, "tempalte", "did you mean 'template'", id="misspelled"),
        pytest.param({"fit": "squash"}, "fit", "'cover', 'contain' or 'stretch'", id="unknown fit"),
        pytest.param({"samples": 0}, "samples", "greater than or equal to 1, got 0", id="no samples"),
        pytest.param({"samples": "16"}, "samples", "integer", id="number as text"),
        pytest.param({"samples": True}, "samples", "integer", id="true is no number"),
        pytest.param({"seed": -1}, "seed", "greater than or equal to 0", id="negative seed"),
        pytest.param({"size": 8}, "size", "16 to 65536 pixels, got 8", id="tiny"),
        pytest.param({"size": 100000}, "size", "16 to 65536 pixels, got 100000", id="endless"),
        pytest.param({"size": "big"}, "size", "WIDTHxHEIGHT", id="size in words"),
        pytest.param({"size": "4096x8"}, "size", "16 to 65536 pixels", id="one tiny side"),
        pytest.param({"width": 64}, None, "go together", id="width alone"),
        pytest.param({"width": 64, "height": 64, "size": 64}, None, "give one of them", id="size twice"),
        pytest.param({"background": "red"}, "background", "#rrggbb", id="named colour"),
        pytest.param({"background": "#12345"}, "background", "#rrggbb", id="five digits"),
        pytest.param({"background": "transparent", "format": "jpeg"}, None, "jpeg has no", id="transparent jpeg"),
        pytest.param({"quality": 101}, "quality", "less than or equal to 100", id="quality"),
        pytest.param({"artwork": 3}, "artwork", "takes a string", id="artwork as number"),
        pytest.param({"artwork": {"path": "/etc/passwd"}}, "artwork", "takes a string", id="artwork as path"),
        pytest.param({"template": None}, "template", "string", id="no template"),
    ],
)
def test_a_wrong_field_is_named_with_what_it_takes(fields: dict[str, Any], param: str | None, said: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(body(**fields))
    assert caught.value.status == 400
    assert caught.value.param == param
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "said"),
    [(b"{", "not JSON"), (b"[]", "object"), (b"", "needs template"), (b'{"template": "mug"}', "needs artwork")],
)
def test_a_body_that_is_no_request_is_a_400(raw: bytes, said: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(raw)
    assert said in str(caught.value)
    error = caught.value.reply().json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "artwork",
    [
        pytest.param(base64.b64encode(b"picture").decode(), id="base64"),
        pytest.param("cGlj\ndHVyZQ==", id="base64 in lines"),
        pytest.param("data:image/png;base64,cGljdHVyZQ==", id="data URL"),
    ],
)
def test_artwork_inside_the_body_is_decoded(artwork: str) -> None:
    assert artwork_source(artwork, {}) == b"picture"


def test_artwork_may_be_an_upload_or_lie_elsewhere() -> None:
    assert artwork_source(parse(body(artwork={"file": "art"})).artwork, {"art": b"picture"}) == b"picture"
    assert artwork_source("HTTPS://example.com/a.png", {}) == Url("HTTPS://example.com/a.png")


@pytest.mark.parametrize(
    ("artwork", "said"),
    [
        ("not base64!", "neither base64"),
        ("", "empty"),
        ("data:image/png,abc", "needs base64"),
        ("ftp://example.com/a.png", "neither base64"),
        ("file:///etc/passwd", "neither base64"),
    ],
)
def test_artwork_of_no_known_kind_is_a_400(artwork: str, said: str) -> None:
    with pytest.raises(BadRequest, match=said) as caught:
        artwork_source(artwork, {})
    assert (caught.value.status, caught.value.param) == (400, "artwork")


def test_a_missing_upload_is_named() -> None:
    with pytest.raises(BadRequest, match="'art' is not in the request \\(uploads: other\\)"):
        artwork_source(parse(body(artwork={"file": "art"})).artwork, {"other": b"x"})


def test_artwork_over_the_cap_is_a_413_whichever_way_it_came() -> None:
    big = bytes(MAX_PICTURE_BYTES + 1)
    upload = parse(body(artwork={"file": "art"})).artwork
    for artwork, files in ((base64.b64encode(big).decode(), {}), (upload, {"art": big})):
        with pytest.raises(BadRequest) as caught:
            artwork_source(artwork, files)
        assert (caught.value.status, caught.value.code) == (413, "artwork_too_large")


@pytest.mark.parametrize(
    ("accept", "json_wanted"),
    [
        ("", False),
        ("*/*", False),
        ("image/*", False),
        ("image/webp, application/json;q=0.5", False),
        ("text/html, image/avif, */*;q=0.8", False),
        ("application/json", True),
        ("application/json, */*", True),
        ("application/json;q=0.9, image/png;q=0.1", True),
        ("image/png, application/json", False),
    ],
)
def test_the_accept_header_decides_between_image_and_json(accept: str, json_wanted: bool) -> None:
    assert wants_json(accept) is json_wanted
