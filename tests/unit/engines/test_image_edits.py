"""Masks and compositing: what may change changes, what may not is byte for byte what came in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cotenant.engines.image.edits import (
    Edit,
    Limits,
    exact_size,
    opaque,
    prepared,
    reference,
    weight_of,
    working_size,
)
from cotenant.engines.pictures.refusal import BadRequest

pytestmark = pytest.mark.unit


LIMITS = Limits(max_px=256, multiple=8)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def hole(width: int, height: int, box: tuple[int, int, int, int], alpha: int = 0) -> Image.Image:
    """A mask as OpenAI has it: opaque but for a hole."""
    mask = Image.new("RGBA", (width, height), (0, 0, 0, 255))
    mask.paste((0, 0, 0, alpha), box)
    return mask


def fit(image: Image.Image, mask: Image.Image | None, size: tuple[int, int] | None = None) -> Edit:
    return prepared(image, mask, size, LIMITS)


def black(edit: Edit) -> np.ndarray:
    """What comes back if the pipeline paints everything black."""
    return edit.finished(np.zeros((edit.image.height, edit.image.width, 3), dtype=np.uint8))


def test_transparent_is_edited_and_the_rest_is_byte_for_byte_the_image() -> None:
    image = noise(64, 48)
    made = black(fit(image, hole(64, 48, (8, 10, 20, 30))))
    kept = np.ones((48, 64), dtype=bool)
    kept[10:30, 8:20] = False
    assert (made[kept] == np.asarray(image)[kept]).all()
    assert (made[~kept] == 0).all()


@pytest.mark.parametrize("mode", ["L", "1", "RGB"])
def test_white_is_edited_in_a_mask_without_transparency(mode: str) -> None:
    mask = Image.new("L", (16, 8))
    mask.paste(255, (0, 0, 4, 8))
    weight = np.asarray(weight_of(mask.convert(mode)))
    assert (weight[:, :4] == 255).all()
    assert (weight[:, 4:] == 0).all()


def test_a_coloured_mask_without_transparency_could_mean_anything() -> None:
    with pytest.raises(BadRequest, match=r"transparent is edited.*white is edited") as caught:
        weight_of(Image.new("RGB", (4, 4), (255, 0, 0)))
    assert (caught.value.param, caught.value.code) == ("mask", "invalid_mask")


@pytest.mark.parametrize("mask", [Image.new("RGBA", (16, 16), (9, 9, 9, 255)), Image.new("L", (16, 16))])
def test_a_mask_that_touches_nothing_is_refused(mask: Image.Image) -> None:
    with pytest.raises(BadRequest, match=r"touches nothing; make it transparent .*, or white, if it has no alpha"):
        fit(noise(16, 16), mask)


def test_a_mask_of_another_size_is_refused_with_both_sizes() -> None:
    with pytest.raises(BadRequest, match=r"16 x 8 pixels and image 16 x 16"):
        fit(noise(16, 16), Image.new("L", (16, 8), 255))


def test_half_transparent_is_half_edited() -> None:
    image = Image.new("RGB", (16, 16), (200, 100, 50))
    made = black(fit(image, hole(16, 16, (0, 0, 8, 16), alpha=128)))
    assert tuple(made[0, 0]) == (100, 50, 25)
    assert tuple(made[0, 12]) == (200, 100, 50)


def test_the_pipelines_mask_covers_every_block_that_is_touched_however_little() -> None:
    edit = fit(noise(32, 32), hole(32, 32, (17, 9, 18, 10), alpha=250))
    assert edit.mask is not None
    mask = np.asarray(edit.mask)
    assert (mask[8:16, 16:24] == 255).all()
    assert mask.sum() == 64 * 255


def test_a_masked_edit_keeps_the_images_own_size_and_works_at_one_that_the_pipeline_can_do() -> None:
    image = noise(611, 403)
    edit = fit(image, hole(611, 403, (100, 100, 300, 200)))
    assert edit.image.size == (256, 168)
    assert edit.mask is not None
    assert edit.mask.size == (256, 168)
    made = black(edit)
    assert made.shape == (403, 611, 3)
    assert (made[:100] == np.asarray(image)[:100]).all()
    assert (made[120:180, 120:280] == 0).all()


def test_an_edit_without_a_mask_is_answered_at_the_working_size() -> None:
    edit = fit(noise(70, 50), None)
    assert (edit.image.size, edit.mask) == ((72, 48), None)
    assert black(edit).shape == (48, 72, 3)


def test_a_size_cuts_the_middle_out_of_image_and_mask_alike() -> None:
    image = Image.new("RGB", (96, 32), (255, 255, 255))
    image.paste((255, 0, 0), (32, 0, 64, 32))
    edit = fit(image, hole(96, 32, (32, 0, 48, 32)), size=(32, 32))
    assert edit.image.size == (32, 32)
    assert edit.image.getpixel((16, 16)) == (255, 0, 0)
    made = black(edit)
    assert (made[:, 2:14] == 0).all()
    assert (made[:, 18:30] == (255, 0, 0)).all()


def test_transparency_of_the_image_itself_is_white() -> None:
    assert opaque(Image.new("RGBA", (2, 2), (255, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert opaque(Image.new("RGB", (2, 2), (255, 0, 0))).getpixel((0, 0)) == (255, 0, 0)


@settings(max_examples=40)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    box=st.tuples(st.integers(0, 299), st.integers(0, 299), st.integers(1, 80), st.integers(1, 80)),
)
def test_no_pixel_outside_the_mask_ever_changes(width: int, height: int, box: tuple[int, int, int, int]) -> None:
    left, top = box[0] % width, box[1] % height
    right, bottom = min(width, left + box[2]), min(height, top + box[3])
    image = noise(width, height)
    edit = fit(image, hole(width, height, (left, top, right, bottom)))
    assert edit.image.width % 8 == edit.image.height % 8 == 0
    made = edit.finished(255 - np.asarray(edit.image))
    assert made.shape == (height, width, 3)
    changed = (made != np.asarray(image)).any(axis=2)
    changed[top:bottom, left:right] = False
    assert not changed.any()


@given(
    size=st.tuples(st.integers(1, 9000), st.integers(1, 9000)),
    max_px=st.integers(32, 4096),
    multiple=st.sampled_from((8, 16, 32)),
    least_px=st.sampled_from((1, 16, 64)),
)
def test_a_working_size_can_always_be_done(size: tuple[int, int], max_px: int, multiple: int, least_px: int) -> None:
    limits = Limits(max_px, multiple, least_px)
    made = working_size(size, limits)
    for side in made:
        assert side % multiple == 0
        assert min(least_px, limits.most) <= side <= max_px
    assert exact_size(made, 0, limits) == made
    assert reference(Image.new("L", (9, 5)), limits).size == working_size((9, 5), limits)


@pytest.mark.parametrize(
    ("size", "made"),
    [(None, (512, 512)), ((64, 128), (64, 128)), ((1024, 16), (1024, 16))],
)
def test_a_picture_has_the_size_asked_for_or_the_default(size: tuple[int, int] | None, made: tuple[int, int]) -> None:
    assert exact_size(size, 512, Limits(1024, 8)) == made


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((1032, 64), "may have 1024 pixels a side, got 1032x64"),
        ((60, 60), "multiples of 8 from 16, got 60x60; try 64x64"),
        ((64, 8), "multiples of 8 from 16, got 64x8; try 64x16"),
    ],
)
def test_a_size_that_cannot_be_made_says_which_can(size: tuple[int, int], said: str) -> None:
    with pytest.raises(BadRequest, match=said) as caught:
        exact_size(size, 512, Limits(1024, 8))
    assert caught.value.param == "size"


def test_a_default_over_the_limit_gives_the_limit() -> None:
    assert exact_size(None, 1024, Limits(500, 16)) == (496, 496)
