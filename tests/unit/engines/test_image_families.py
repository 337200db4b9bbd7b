"""Abilities read off a pipeline's parameters, the table of what can't be read, and requests against both."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cotenant.config import ImageSpec
from cotenant.engines.image import shapes
from cotenant.engines.image.batching import Shape, Task
from cotenant.engines.image.families import (
    FAMILIES,
    GENERIC,
    SCHNELL,
    TINY,
    Family,
    Traits,
    family_of,
    sibling,
    tasks_of,
)
from cotenant.engines.image.request import EditRequest, GenerationRequest, parse
from cotenant.engines.pictures.refusal import BadRequest

pytestmark = pytest.mark.unit

TEXT = {"prompt": None, "num_inference_steps": 50, "guidance_scale": 7.5, "negative_prompt": None}
IMAGE = {**TEXT, "image": None, "strength": 0.8}
INPAINT = {**IMAGE, "mask_image": None, "strength": 1.0}


@pytest.mark.parametrize(
    ("class_name", "name", "steps", "guidance"),
    [
        ("Flux2KleinPipeline", "flux2-klein", 4, 1.0),
        ("Flux2KleinInpaintPipeline", "flux2-klein", 4, 1.0),
        ("Flux2Pipeline", "flux2", 50, 4.0),
        ("FluxPipeline", "flux", 28, 3.5),
        ("StableDiffusionXLPipeline", "sdxl", 50, 5.0),
        ("StableDiffusionXLInpaintPipeline", "sdxl", 50, 5.0),
        ("StableDiffusion3Pipeline", "sd3", 28, 7.0),
        ("StableDiffusionPipeline", "sd", 50, 7.5),
        ("QwenImageEditPlusPipeline", "qwen-edit-plus", 50, 4.0),
        ("QwenImagePipeline", "qwen", 50, 4.0),
        ("SomethingNewPipeline", "generic", None, None),
    ],
)
def test_a_class_belongs_to_the_family_with_the_longest_say(
    class_name: str, name: str, steps: int | None, guidance: float | None
) -> None:
    family = family_of(class_name)
    assert (family.name, family.steps, family.guidance) == (name, steps, guidance)


def test_the_bundled_pipeline_and_flux_schnell_are_told_by_more_than_their_class() -> None:
    assert family_of("StableDiffusionPipeline", bundled=True) is TINY
    assert family_of("FluxPipeline", guided=False) is SCHNELL
    assert family_of("StableDiffusionPipeline", guided=False).name == "sd"


def test_every_family_says_where_its_figures_are_from_and_none_hides_another() -> None:
    for index, family in enumerate(FAMILIES):
        assert family.source
        for name in family.classes:
            assert family_of(name) is family, f"{FAMILIES[:index]} hide {name}"


def test_traits_are_read_off_the_parameters() -> None:
    assert Traits.of(TEXT) == Traits(frozenset(TEXT), 50, 7.5, None, "guidance_scale", True)
    assert Traits.of(INPAINT).strength == 1.0
    bare = Traits.of({"prompt": None})
    assert (bare.steps, bare.guidance, bare.guidance_name, bare.negative) == (50, 0.0, "", False)


def test_guidance_goes_by_the_name_that_has_a_default() -> None:
    qwen = Traits.of({"guidance_scale": None, "true_cfg_scale": 4.0, "negative_prompt": None})
    assert (qwen.guidance_name, qwen.guidance, qwen.negative) == ("true_cfg_scale", 4.0, True)
    flux = Traits.of({"guidance_scale": 3.5, "true_cfg_scale": 1.0, "negative_prompt": None})
    assert (flux.guidance_name, flux.guidance, flux.negative) == ("guidance_scale", 3.5, False)


TABLES: dict[Task, dict[str, str]] = {
    "text": {"sd": "SdPipeline", "klein": "KleinPipeline"},
    "image": {"sd": "SdImg2ImgPipeline", "klein": "KleinPipeline", "editor": "EditPipeline"},
    "inpaint": {"sd": "SdInpaintPipeline"},
}


@pytest.mark.parametrize(
    ("class_name", "own", "classes"),
    [
        pytest.param("SdPipeline", TEXT, ["SdPipeline", "SdImg2ImgPipeline", "SdInpaintPipeline"], id="from text"),
        pytest.param("SdInpaintPipeline", INPAINT, ["SdPipeline", "SdImg2ImgPipeline", "SdInpaintPipeline"], id="back"),
        pytest.param("EditPipeline", IMAGE, [None, "EditPipeline", None], id="edits only"),
        pytest.param("FillPipeline", INPAINT, [None, None, "FillPipeline"], id="in no table"),
        pytest.param("NewPipeline", TEXT, ["NewPipeline", None, None], id="new"),
    ],
)
def test_the_other_tasks_classes_come_from_the_tables_or_the_class_itself(
    class_name: str, own: dict[str, Any], classes: list[str | None]
) -> None:
    tasks: tuple[Task, ...] = ("text", "image", "inpaint")
    assert [sibling(class_name, GENERIC, task, TABLES, tasks_of(own)) for task in tasks] == classes


def test_an_explicit_class_beats_the_tables() -> None:
    klein = family_of("Flux2KleinPipeline")
    assert sibling("Flux2KleinPipeline", klein, "inpaint", TABLES, frozenset()) == "Flux2KleinInpaintPipeline"


# --- requests against them ------------------------------------------------------------------------------------

ALL: dict[Task, Traits] = {"text": Traits.of(TEXT), "image": Traits.of(IMAGE), "inpaint": Traits.of(INPAINT)}
SPEC = ImageSpec(model="x")


def able(*tasks: Task, family: Family = GENERIC, **traits: dict[str, Any]) -> shapes.Abilities:
    chosen = {task: ALL[task] for task in tasks or ALL} | {task: Traits.of(given) for task, given in traits.items()}
    return shapes.Abilities("SomePipeline", family, chosen, 512)  # type: ignore[arg-type]


def asked(edit: bool = False, **fields: Any) -> GenerationRequest:
    body = {"prompt": "a mug", **({"image": "aGk="} if edit else {}), **fields}
    return parse(json.dumps(body).encode(), EditRequest if edit else GenerationRequest)


def shape(request: GenerationRequest, abilities: shapes.Abilities, spec: ImageSpec = SPEC) -> Shape:
    return shapes.shape_of(request, shapes.task_of(request, abilities), (64, 64), spec, abilities)


@pytest.mark.parametrize(
    ("request_", "tasks", "param", "said"),
    [
        (asked(), ("inpaint",), "model", "only edits: POST an image to /v1/images/edits"),
        (asked(edit=True), ("text",), "model", "POST to /v1/images/generations"),
        (asked(edit=True), ("inpaint",), "mask", "only edits inside a mask"),
        (asked(edit=True, mask="aGk="), ("text", "image"), "mask", "takes no mask"),
    ],
    ids=["words", "image", "image without mask", "mask"],
)
def test_what_a_pipeline_cannot_do_is_refused_with_what_it_can(
    request_: GenerationRequest, tasks: tuple[Task, ...], param: str, said: str
) -> None:
    with pytest.raises(BadRequest, match=said) as caught:
        shapes.task_of(request_, able(*tasks))
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, "unsupported")


def test_a_request_goes_before_the_platform_file_before_the_family_before_the_pipeline() -> None:
    family = Family("f", (), 4, 1.0, 8)
    spec = ImageSpec(model="x", steps=9, guidance=2.0)
    request = asked(steps=12, guidance=0.0)
    found = [shape(request, able(family=family), spec), shape(asked(), able(family=family), spec)]
    found += [shape(asked(), able(family=family)), shape(asked(), able())]
    assert [(one.steps, one.guidance) for one in found] == [(12, 0.0), (9, 2.0), (4, 1.0), (50, 7.5)]


def test_strength_is_the_requests_or_the_pipelines_and_none_for_words_alone() -> None:
    assert shape(asked(), able()).strength is None
    assert shape(asked(edit=True), able()).strength == 0.8
    assert shape(asked(edit=True, mask="aGk=", strength=0.25), able()).strength == 0.25


def test_a_negative_prompt_is_the_requests_or_what_the_family_needs() -> None:
    assert not shape(asked(), able()).negative
    assert shape(asked(negative_prompt=""), able()).negative
    needy = Family("f", (), None, None, 8, negative=" ")
    assert shapes.negative_of(asked(), ALL["text"], needy) == " "
    assert shapes.negative_of(asked(negative_prompt="blue"), ALL["text"], needy) == "blue"


@pytest.mark.parametrize(
    ("fields", "missing", "said"),
    [
        ({"guidance": 2.0}, "guidance_scale", "takes no guidance"),
        ({"negative_prompt": "blue"}, "negative_prompt", "takes no negative_prompt"),
        ({"strength": 0.5}, "strength", "takes no strength"),
    ],
)
def test_a_setting_that_the_pipeline_lacks_is_refused(fields: dict[str, Any], missing: str, said: str) -> None:
    abilities = able(image={name: value for name, value in IMAGE.items() if name != missing})
    with pytest.raises(BadRequest, match=said) as caught:
        shape(asked(edit=True, **fields), abilities)
    assert caught.value.param == next(iter(fields))


def test_less_than_one_step_of_strength_is_refused() -> None:
    with pytest.raises(BadRequest, match=r"0\.2 of 4 steps is less than one step"):
        shape(asked(edit=True, strength=0.2, steps=4), able())


def test_pictures_mix_unless_the_seed_is_the_callers_or_the_images_cannot() -> None:
    together = able(family=Family("f", (), None, None, 8, edits_together=True))
    assert shapes.mixes(asked(), able(), 0)
    assert not shapes.mixes(asked(seed=0), able(), 0)
    assert shapes.mixes(asked(edit=True), together, 1)
    assert not shapes.mixes(asked(edit=True), able(), 1)
    assert not shapes.mixes(asked(edit=True), together, 2)


def test_an_edit_takes_as_many_images_as_its_family() -> None:
    many = Family("f", (), None, None, 8, images=4)
    shapes.require_images(4, "image", able(family=many))
    with pytest.raises(BadRequest, match="takes 1 image in such an edit, got 2"):
        shapes.require_images(2, "image", able())
    with pytest.raises(BadRequest, match="takes 4 images in such an edit, got 5"):
        shapes.require_images(5, "image", able(family=many))
    with pytest.raises(BadRequest, match="takes 1 image"):
        shapes.require_images(2, "inpaint", able(family=many))
    shapes.require_images(2, "inpaint", able(inpaint={**INPAINT, "image_reference": None}))
