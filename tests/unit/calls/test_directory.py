"""Which workload a request is for, decided alike for both doors."""

from __future__ import annotations

import json

import pytest

from cotenant.calls import Directory, Served, template_name
from cotenant.errors import UnknownWorkload

pytestmark = pytest.mark.unit

WRITER = Served("writer", "llm", models=("smollm2-135m", "writer"))
POET = Served("poet", "llm", models=("big/model", "poet"))
MUGS = Served("mugs", "mockup", templates=("mug", "cup"))
POSTERS = Served("posters", "mockup", templates=("poster",))
PAINTER = Served("painter", "image", models=("tiny-inpaint", "painter"))
SKETCHER = Served("sketcher", "image", models=("big/sketches", "sketcher"))
DIRECTORY = Directory((WRITER, POET, MUGS, POSTERS, PAINTER))
IMAGES = "/v1/images/generations"


@pytest.mark.parametrize(
    ("url", "body", "expected"),
    [
        pytest.param("/v1/chat/completions", {"model": "smollm2-135m"}, WRITER, id="by public model name"),
        pytest.param("/v1/completions", {"model": "poet"}, POET, id="by workload name"),
        pytest.param("/v1/mockups", {"template": "cup"}, MUGS, id="by template"),
        pytest.param("/v1/mockups", {"template": "poster"}, POSTERS, id="by template of another workload"),
        pytest.param(IMAGES, {"model": "painter"}, PAINTER, id="an image model by workload name"),
        pytest.param(IMAGES, {}, PAINTER, id="no model, and one image workload"),
        pytest.param("/v1/images/edits", {"model": None}, PAINTER, id="null as model, and one image workload"),
    ],
)
def test_a_request_goes_to_the_workload_that_serves_what_it_names(
    url: str, body: dict[str, str], expected: Served
) -> None:
    assert DIRECTORY.route(url, body) == expected


@pytest.mark.parametrize(
    ("url", "body", "says"),
    [
        pytest.param("/v1/chat/completion", {}, "did you mean '/v1/chat/completions'", id="a route misspelled"),
        pytest.param("/v1/completions", {}, "needs model", id="no model"),
        pytest.param("/v1/completions", {"model": 7}, "needs model", id="a model that is no text"),
        pytest.param(IMAGES, {"model": 7}, "needs model, a string; here is tiny-inpaint", id="an image model, no text"),
        pytest.param(
            IMAGES,
            {"model": "smollm2-135m"},
            "the model 'smollm2-135m' makes no pictures; here is tiny-inpaint",
            id="a language model for pictures",
        ),
        pytest.param(
            "/v1/chat/completions",
            {"model": "painter"},
            "the model 'painter' writes no text; here are smollm2-135m, big/model",
            id="an image model for text",
        ),
        pytest.param("/v1/completions", {"model": "smollm2"}, "did you mean 'smollm2-135m'", id="a model misspelled"),
        pytest.param("/v1/mockups", {"template": "zzz"}, "here are mug, cup, poster", id="a template nobody has"),
    ],
)
def test_a_request_for_nobody_is_told_what_there_is(url: str, body: dict[str, object], says: str) -> None:
    with pytest.raises(UnknownWorkload, match=says):
        DIRECTORY.route(url, body)


def test_with_several_image_workloads_the_body_needs_a_model() -> None:
    with pytest.raises(UnknownWorkload, match="needs model, a string; here are tiny-inpaint, big/sketches"):
        Directory((PAINTER, SKETCHER)).route(IMAGES, {})


def test_a_language_model_is_never_guessed() -> None:
    with pytest.raises(UnknownWorkload, match="needs model, a string; here is smollm2-135m"):
        Directory((WRITER,)).route("/v1/completions", {})


def test_a_body_without_template_is_told_all_templates() -> None:
    with pytest.raises(UnknownWorkload, match="needs template, a string; here are mug, cup, poster"):
        DIRECTORY.route("/v1/mockups", {})


def test_a_name_that_two_kinds_serve_goes_to_the_one_of_the_route() -> None:
    twin = Served("twin", "image", models=("smollm2-135m", "twin"))
    assert Directory((WRITER, twin)).route("/v1/completions", {"model": "smollm2-135m"}) == WRITER
    assert Directory((WRITER, twin)).route(IMAGES, {"model": "smollm2-135m"}) == twin


def test_a_platform_without_a_kind_says_so() -> None:
    with pytest.raises(UnknownWorkload, match="no mockup workload"):
        Directory((WRITER,)).route("/v1/mockups", {"template": "mug"})


def test_a_directory_survives_the_way_through_a_serve_config() -> None:
    assert Directory.from_plain(json.loads(json.dumps(DIRECTORY.to_plain()))) == DIRECTORY


@pytest.mark.parametrize(("given", "name"), [("mug", "mug"), ("art/tall-mug.glb", "tall-mug"), ("./x.glb", "x")])
def test_a_template_is_called_by_its_files_stem(given: str, name: str) -> None:
    assert template_name(given) == name


def test_a_name_as_long_as_a_body_is_neither_repeated_nor_compared() -> None:
    with pytest.raises(UnknownWorkload) as caught:
        DIRECTORY.route("/v1/completions", {"model": "x" * 5_000_000})
    assert len(str(caught.value)) < 400
