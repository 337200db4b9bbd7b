"""What an image request may say, and what is answered to one that may not."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from cotenant.engines.image.request import (
    MAX_SEED,
    EditRequest,
    GenerationRequest,
    ImageUrl,
    parse,
    picture_source,
)
from cotenant.engines.pictures.refusal import BadRequest
from cotenant.engines.pictures.source import Upload, Url

pytestmark = pytest.mark.unit


def generation(**fields: Any) -> GenerationRequest:
    return parse(json.dumps({"model": "tiny", "prompt": "a mug", **fields}).encode(), GenerationRequest)


def edit(**fields: Any) -> EditRequest:
    return parse(json.dumps({"model": "tiny", "prompt": "a mug", "image": "aGk=", **fields}).encode(), EditRequest)


def refusal(kind: type[GenerationRequest], **fields: Any) -> BadRequest:
    body = {"prompt": "a mug", **({"image": "aGk="} if kind is EditRequest else {}), **fields}
    with pytest.raises(BadRequest) as caught:
        request = parse(json.dumps(body).encode(), kind)
        assert request.sides != ()
        if isinstance(request, EditRequest):
            assert request.sources
    return caught.value


def test_defaults_are_one_png_of_the_pipelines_own_size() -> None:
    request = generation()
    assert (request.count, request.format, request.sides, request.file_quality) == (1, "png", None, 95)


def test_a_null_is_as_good_as_a_field_left_out() -> None:
    nothing = dict.fromkeys(("n", "size", "seed", "output_format", "stream", "background", "user", "guidance"))
    assert generation(**nothing) == generation()


@pytest.mark.parametrize(
    ("size", "sides"), [("auto", None), ("64x48", (64, 48)), ("1024X1024", (1024, 1024)), ("1x65536", (1, 65536))]
)
def test_a_size_is_width_by_height_or_auto(size: str, sides: tuple[int, int] | None) -> None:
    assert generation(size=size).sides == sides


@pytest.mark.parametrize("compression", [0, 1, 50, 100])
def test_compression_is_the_quality_of_a_lossy_file(compression: int) -> None:
    request = generation(output_format="webp", output_compression=compression)
    assert request.file_quality == max(1, compression)


def test_what_openai_has_and_a_pipeline_does_not_is_taken_where_it_does_no_harm() -> None:
    fields = {
        "quality": "hd",
        "style": "vivid",
        "moderation": "low",
        "user": "u-1",
        "safety_identifier": "s-1",
        "background": "auto",
        "stream": False,
        "partial_images": 0,
        "response_format": "b64_json",
    }
    assert generation(**fields).prompt == "a mug"
    assert edit(**fields, input_fidelity="high").prompt == "a mug"


@pytest.mark.parametrize("kind", [GenerationRequest, EditRequest])
@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        pytest.param({"promt": "x"}, "promt", "did you mean 'prompt'", id="misspelled"),
        pytest.param({"prompt": ""}, "prompt", "at least 1 character", id="empty prompt"),
        pytest.param({"prompt": "x" * 32_001}, "prompt", "at most 32000", id="endless prompt"),
        pytest.param({"prompt": ["a", "b"]}, "prompt", "string", id="prompt as list"),
        pytest.param({"n": 0}, "n", "greater than or equal to 1, got 0", id="none"),
        pytest.param({"n": 11}, "n", "less than or equal to 10", id="too many"),
        pytest.param({"n": "2"}, "n", "integer", id="number as text"),
        pytest.param({"n": True}, "n", "integer", id="true is no number"),
        pytest.param({"size": "big"}, "size", "WIDTHxHEIGHT", id="size in words"),
        pytest.param({"size": "64"}, "size", "WIDTHxHEIGHT", id="one side"),
        pytest.param({"size": "64x"}, "size", "1 to 65536 pixels", id="half a size"),
        pytest.param({"size": "x64"}, "size", "1 to 65536 pixels", id="other half"),
        pytest.param({"size": "0x64"}, "size", "1 to 65536 pixels", id="no width"),
        pytest.param({"size": "64x99999"}, "size", "1 to 65536 pixels", id="endless"),
        pytest.param({"size": "-64x64"}, "size", "WIDTHxHEIGHT", id="negative"),
        pytest.param({"size": "²x³"}, "size", "WIDTHxHEIGHT", id="digits that are none"),
        pytest.param({"size": 64}, "size", "string", id="size as number"),
        pytest.param({"output_format": "gif"}, "output_format", "'png', 'webp' or 'jpeg', got 'gif'", id="gif"),
        pytest.param({"output_compression": 101}, "output_compression", "less than or equal to 100", id="over 100"),
        pytest.param({"output_compression": 50}, "output_compression", "png is lossless", id="compressed png"),
        pytest.param({"response_format": "url"}, "response_format", "b64_json", id="url"),
        pytest.param({"background": "transparent"}, "background", "opaque or auto", id="transparent"),
        pytest.param({"stream": True}, "stream", "pictures are answered whole", id="stream"),
        pytest.param({"partial_images": 2}, "partial_images", "answered whole", id="partial"),
        pytest.param({"quality": "best"}, "quality", "'auto', 'low'", id="unknown quality"),
        pytest.param({"style": 7}, "style", "'vivid' or 'natural'", id="unknown style"),
        pytest.param({"seed": -1}, "seed", "greater than or equal to 0", id="negative seed"),
        pytest.param({"seed": MAX_SEED + 1}, "seed", "less than or equal to", id="seed that doubles would round"),
        pytest.param({"steps": 0}, "steps", "greater than or equal to 1", id="no steps"),
        pytest.param({"steps": 501}, "steps", "less than or equal to 500", id="endless steps"),
        pytest.param({"guidance": -1}, "guidance", "greater than or equal to 0", id="guidance"),
        pytest.param({"negative_prompt": 1}, "negative_prompt", "string", id="negative prompt"),
        pytest.param({"image_url": "x"}, "image_url", "unknown parameter", id="unknown"),
    ],
)
def test_a_wrong_field_is_named_with_what_it_takes(
    kind: type[GenerationRequest], fields: dict[str, Any], param: str, said: str
) -> None:
    error = refusal(kind, **fields)
    assert (error.status, error.param) == (400, param)
    assert error.code == ("unknown_parameter" if "parameter" in str(error) else "invalid_value")
    assert said in str(error)


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        pytest.param({"image": None}, "image", "needs image", id="no image"),
        pytest.param({"image": []}, "image", "needs image", id="empty list"),
        pytest.param({"image": 3}, "image", "takes PNG, JPEG or WebP", id="a number"),
        pytest.param({"image": ["aGk=", 3]}, "image", "takes PNG, JPEG or WebP", id="a number among them"),
        pytest.param({"image": {"file_id": "file-1"}}, "image", "takes PNG", id="a file of OpenAI's"),
        pytest.param({"image": ["aGk="] * 17}, "image", "at most 16 images, got 17", id="too many"),
        pytest.param({"images": ["aGk="]}, "images", "give one of them", id="twice"),
        pytest.param({"mask": []}, "mask", "takes PNG", id="mask as list"),
        pytest.param({"strength": 0}, "strength", "greater than 0", id="no strength"),
        pytest.param({"strength": 1.1}, "strength", "less than or equal to 1", id="too strong"),
        pytest.param({"markup": "aGk="}, "markup", "did you mean 'mask'", id="markup"),
    ],
)
def test_a_wrong_field_of_an_edit_is_named_too(fields: dict[str, Any], param: str, said: str) -> None:
    error = refusal(EditRequest, **fields)
    assert (error.status, error.param) == (400, param)
    assert said in str(error)


@pytest.mark.parametrize("fields", [{"strength": 0.5}, {"image": "aGk="}, {"mask": "aGk="}])
def test_a_generation_has_no_fields_of_an_edit(fields: dict[str, Any]) -> None:
    assert refusal(GenerationRequest, **fields).code == "unknown_parameter"


@pytest.mark.parametrize(("raw", "said"), [(b"{", "not JSON"), (b"[]", "object"), (b"", "needs prompt")])
def test_a_body_that_is_no_request_is_a_400(raw: bytes, said: str) -> None:
    with pytest.raises(BadRequest, match=said) as caught:
        parse(raw, GenerationRequest)
    assert caught.value.reply().json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        pytest.param({"image": "aGk="}, ["image"], id="one"),
        pytest.param({"image": ["aGk="]}, ["image"], id="a list of one"),
        pytest.param({"image": ["aGk=", "aGk="]}, ["image[0]", "image[1]"], id="several"),
        pytest.param({"image": None, "images": [{"image_url": "x"}]}, ["images"], id="OpenAI's JSON"),
    ],
)
def test_the_images_of_an_edit_go_by_names_that_refusals_can_use(fields: dict[str, Any], names: list[str]) -> None:
    assert list(edit(**fields).sources) == names


def test_a_picture_is_in_the_body_beside_it_or_elsewhere() -> None:
    inline = base64.b64encode(b"picture").decode()
    assert picture_source(inline, {}, "image") == b"picture"
    assert picture_source(ImageUrl(image_url=f"data:image/png;base64,{inline}"), {}, "image") == b"picture"
    assert picture_source(ImageUrl(image_url="https://example.com/a.png"), {}, "mask") == Url(
        "https://example.com/a.png"
    )
    assert picture_source(Upload(file="mask"), {"mask": b"picture"}, "mask") == b"picture"
    with pytest.raises(BadRequest, match="'mask' is not in the request") as caught:
        picture_source(Upload(file="mask"), {}, "mask")
    assert caught.value.param == "mask"
