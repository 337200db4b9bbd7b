"""A call as an HTTP request: headers, the model's name, and a form that the other gateway reads back."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest
from starlette.datastructures import Headers

from cotenant.calls import Call
from cotenant.gateway.bodies import parse_multipart
from cotenant.upstream.request import form_of, request_of

pytestmark = pytest.mark.unit

PNG, JPEG = b"\x89PNG\x00", b"\xff\xd8\xff\x00"


def call(body: Any, **options: Any) -> Call:
    return Call("/v1/mockups", json.dumps(body).encode(), **options)


async def read_back(parts: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What a gateway makes of the form."""
    request = httpx.Request("POST", "http://x", files=list(parts))
    return await parse_multipart(Headers(request.headers), await request.aread())


BODIES = {
    "one picture": {"template": "mug", "artwork": {"file": "artwork"}, "size": 512},
    "numbers and flags": {
        "artwork": {"file": "artwork"},
        "samples": 8,
        "fast": True,
        "seed": None,
        "extra": {"a": [1]},
    },
    "text that looks like JSON": {"artwork": {"file": "artwork"}, "size": "512", "label": "true", "prompt": "7"},
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_form_stands_for_the_same_body(name: str) -> None:
    parts = form_of(BODIES[name], {"artwork": PNG})
    assert parts is not None
    assert await read_back(parts) == (BODIES[name], {"artwork": PNG})


async def test_several_pictures_are_a_list_again_and_named_by_their_field() -> None:
    body = {"prompt": "p", "image": [{"file": "file-1"}, "https://x/a.png", {"file": "file-2"}], "mask": {"file": "m"}}
    parts = form_of(body, {"file-1": PNG, "file-2": JPEG, "m": PNG})
    assert parts is not None
    read, files = await read_back(parts)
    assert read == {
        "prompt": "p",
        "image": [{"file": "image[0]"}, "https://x/a.png", {"file": "image[2]"}],
        "mask": {"file": "mask"},
    }
    assert files == {"image[0]": PNG, "image[2]": JPEG, "mask": PNG}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"layers": [{"artwork": {"file": "a"}}]}, id="deeper inside"),
        pytest.param({"artwork": {"file": "a"}, "prompt": 7}, id="a number where a form has text"),
        pytest.param({"image": [{"file": "a"}, 7]}, id="a number in a list of pictures"),
        pytest.param({"image[]": 1, "artwork": {"file": "a"}}, id="a name that means a list"),
    ],
)
def test_what_no_form_can_say_goes_inside_the_json(body: dict[str, Any]) -> None:
    assert form_of(body, {"a": PNG}) is None
    sent = request_of(call(body, files={"a": PNG}))
    url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert json.loads(sent.content) == json.loads(json.dumps(body).replace('{"file": "a"}', f'"{url}"'))


def test_a_body_without_files_is_sent_as_it_came() -> None:
    raw = b'{ "model": "tiny",  "x": 1.0 }'
    sent = request_of(Call("/v1/chat/completions", raw), model="tiny")
    assert sent.content == raw
    assert sent.headers["content-type"] == "application/json"


def test_a_model_is_renamed_and_nothing_else() -> None:
    sent = request_of(Call("/v1/chat/completions", b'{"model": "ours", "x": [1, 2.5, "\\u00e9"]}'), model="theirs")
    assert json.loads(sent.content) == {"model": "theirs", "x": [1, 2.5, "é"]}


def test_a_body_that_is_no_object_is_the_other_sides_to_refuse() -> None:
    assert request_of(Call("/v1/x", b"[1", files={"a": PNG}), model="m").content == b"[1"


def test_headers_say_what_the_other_side_has_to_know() -> None:
    plain = request_of(call({}, request_id="r-1", accept="image/png"))
    assert plain.headers["x-request-id"] == "r-1"
    assert plain.headers["accept"] == "image/png"
    assert not {name for name in plain.headers if name.startswith("x-cotenant")}
    job = request_of(call({}, batch=True, priority=4, deadline_s=90.5), spilled_from="acme")
    assert {name: value for name, value in job.headers.items() if name.startswith("x-cotenant")} == {
        "x-cotenant-spilled-from": "acme",
        "x-cotenant-batch": "4",
        "x-cotenant-deadline-s": "90.5",
    }


def test_a_files_name_does_not_break_the_forms_head() -> None:
    parts = form_of({"artwork": {"file": 'a"\r\nb'}}, {'a"\r\nb': PNG})
    assert parts == (("artwork", ("a___b", PNG, "image/png")),)
