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
DIRECTORY = Directory((WRITER, POET, MUGS, POSTERS))


@pytest.mark.parametrize(
    ("url", "body", "expected"),
    [
        pytest.param("/v1/chat/completions", {"model": "smollm2-135m"}, WRITER, id="by public model name"),
        pytest.param("/v1/completions", {"model": "poet"}, POET, id="by workload name"),
        pytest.param("/v1/mockups", {"template": "cup"}, MUGS, id="by template"),
        pytest.param("/v1/mockups", {"template": "poster"}, POSTERS, id="by template of another workload"),
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
        pytest.param("/v1/completions", {"model": "smollm2"}, "did you mean 'smollm2-135m'", id="a model misspelled"),
        pytest.param("/v1/mockups", {"template": "zzz"}, "here are mug, cup, poster", id="a template nobody has"),
    ],
)
def test_a_request_for_nobody_is_told_what_there_is(url: str, body: dict[str, object], says: str) -> None:
    with pytest.raises(UnknownWorkload, match=says):
        DIRECTORY.route(url, body)


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
