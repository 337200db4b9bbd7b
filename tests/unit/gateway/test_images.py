"""The gateway's image routes: JSON and forms as the OpenAI client sends them, and who gets them."""

from __future__ import annotations

import pytest

from cotenant.calls import Directory, Served
from tests.unit.gateway.house import WRITER, House, echo

pytestmark = pytest.mark.unit

PAINTER = Served("painter", "image", models=("tiny-inpaint", "painter"), deadline_s=5)
PNG = ("a.png", b"\x89PNG", "image/png")


@pytest.fixture
def house() -> House:
    return House({"writer": echo, "painter": echo}, directory=Directory((WRITER, PAINTER)))


async def test_a_generation_is_passed_on_as_it_came(house: House) -> None:
    body = {"model": "painter", "prompt": "a mug", "n": 2, "seed": 3}
    async with house.client(accept="image/png") as client:
        seen = (await client.post("/v1/images/generations", json=body)).json()
    assert (seen["url"], seen["body"], seen["accept"]) == ("/v1/images/generations", body, "image/png")


async def test_an_edit_may_be_json(house: House) -> None:
    body = {"model": "tiny-inpaint", "prompt": "a mug", "image": [{"image_url": "https://example.com/a.png"}]}
    async with house.client() as client:
        seen = (await client.post("/v1/images/edits", json=body)).json()
    assert (seen["body"], seen["files"]) == (body, {})


async def test_a_form_with_image_and_mask_keeps_words_words_and_numbers_numbers(house: House) -> None:
    form = {"model": "painter", "prompt": "42", "size": "64x64", "n": "2", "seed": "7", "user": "1", "strength": "0.5"}
    async with house.client() as client:
        reply = await client.post("/v1/images/edits", data=form, files={"image": PNG, "mask": PNG})
    assert reply.json()["body"] == {
        "model": "painter",
        "prompt": "42",
        "size": "64x64",
        "n": 2,
        "seed": 7,
        "user": "1",
        "strength": 0.5,
        "image": {"file": "image"},
        "mask": {"file": "mask"},
    }
    assert reply.json()["files"] == {"image": 4, "mask": 4}


async def test_several_images_of_a_form_become_a_list(house: House) -> None:
    files = [("image[]", PNG), ("image[]", ("b.png", b"\x89PNG2", "image/png")), ("mask", PNG)]
    async with house.client() as client:
        seen = (await client.post("/v1/images/edits", data={"model": "painter", "prompt": "x"}, files=files)).json()
    assert seen["body"]["image"] == [{"file": "image[0]"}, {"file": "image[1]"}]
    assert seen["files"] == {"image[0]": 4, "image[1]": 5, "mask": 4}


@pytest.mark.parametrize("names", [("image", "image"), ("image", "image[]"), ("image[]", "image")])
async def test_a_field_sent_twice_is_refused(house: House, names: tuple[str, str]) -> None:
    async with house.client() as client:
        files = [(name, PNG) for name in names]
        reply = await client.post("/v1/images/edits", data={"model": "painter", "prompt": "x"}, files=files)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "image"


async def test_a_generation_takes_no_form(house: House) -> None:
    async with house.client() as client:
        reply = await client.post("/v1/images/generations", data={"model": "painter"}, files={"image": PNG})
    assert reply.status_code == 415


async def test_a_model_that_draws_nothing_is_not_found(house: House) -> None:
    async with house.client() as client:
        reply = await client.post("/v1/images/generations", json={"model": "writer", "prompt": "x"})
        nobody = (
            await House({"writer": echo}, directory=Directory((WRITER,)))
            .client()
            .post("/v1/images/edits", json={"model": "painter"})
        )
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")
    assert (nobody.status_code, nobody.json()["error"]["code"]) == (404, "not_served")


async def test_models_of_every_kind_are_listed_and_retrieved(house: House) -> None:
    async with house.client() as client:
        listed = (await client.get("/v1/models")).json()["data"]
        one = (await client.get("/v1/models/tiny-inpaint")).json()
    assert [card["id"] for card in listed] == ["tiny", "org/tiny", "writer", "tiny-inpaint", "painter"]
    assert one in listed


async def test_the_api_description_has_the_image_routes(house: House) -> None:
    async with house.client() as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
    kinds = {url: set(paths[url]["post"]["requestBody"]["content"]) for url in paths if "/images/" in url}
    assert kinds == {
        "/v1/images/generations": {"application/json"},
        "/v1/images/edits": {"application/json", "multipart/form-data"},
    }
    assert paths["/v1/images/edits"]["post"]["tags"] == ["images"]
