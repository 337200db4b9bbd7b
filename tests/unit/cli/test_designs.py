"""Designs x templates x colours: what is asked for becomes jobs, and what is wrong with it is said before."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cotenant.cli.designs import (
    EMBEDDED_BYTES,
    Design,
    Look,
    Range,
    check_range,
    content_of,
    find_designs,
    lines,
    read_designs,
)
from cotenant.config import Platform, load_platform
from cotenant.errors import JobsFileError

pytestmark = pytest.mark.unit

PLATFORM = """
workloads:
  mockups: {mockup: {templates: [mug, poster], max_size_px: 1024, max_samples: 64}, gpu: {vram_gib: 1}}
  writer: {llm: {model: tiny}, gpu: {vram_gib: 2}}
environments: {local: {pools: {shared: {accelerator: cpu, vram_gib: 12}}}}
"""


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    (tmp_path / "platform.yaml").write_text(PLATFORM)
    return load_platform(tmp_path / "platform.yaml", "local")


def png(path: Path, *, side: int = 8, noise: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.effect_noise((side, side), 100).convert("RGB") if noise else Image.new("RGB", (side, side), "red")
    image.save(path, "PNG")
    return path


def parsed(designs: Sequence[Design], wanted: Range) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines(designs, wanted, lambda design: {"file_id": design.sha256})]


def test_every_design_goes_on_every_template_in_every_colour(tmp_path: Path, platform: Platform) -> None:
    designs = read_designs([png(tmp_path / "art/cat.png"), png(tmp_path / "art/dog.png", side=9)])
    wanted = check_range(Range(("mug", "poster"), ("#F00", "#00ff00"), Look(size="512", samples=16)), platform)
    jobs = parsed(designs, wanted)
    assert [job["custom_id"] for job in jobs] == [
        f"{template}/{design}/{colour}"
        for design in ("cat.png", "dog.png")
        for template in ("mug", "poster")
        for colour in ("ff0000", "00ff00")
    ]
    assert {job["url"] for job in jobs} == {"/v1/mockups"}
    assert jobs[0]["body"]["background"] == "#ff0000"
    assert (jobs[0]["body"]["size"], jobs[0]["body"]["samples"]) == (512, 16)
    assert "format" not in jobs[0]["body"]


def test_without_colours_the_renderer_keeps_its_own(tmp_path: Path, platform: Platform) -> None:
    jobs = parsed(read_designs([png(tmp_path / "cat.png")]), check_range(Range(("mug",)), platform))
    assert [job["custom_id"] for job in jobs] == ["mug/cat.png"]
    assert "background" not in jobs[0]["body"]


def test_designs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path, platform: Platform) -> None:
    paths = [png(tmp_path / "art/summer/cat.png"), png(tmp_path / "art/winter/cat.png")]
    jobs = parsed(read_designs(paths), Range(("mug",)))
    assert [job["custom_id"] for job in jobs] == ["mug/summer/cat.png", "mug/winter/cat.png"]


def test_a_small_picture_is_embedded_and_a_large_one_is_named(tmp_path: Path) -> None:
    small, large = png(tmp_path / "a.png"), png(tmp_path / "b.png", side=256, noise=True)
    assert large.stat().st_size > EMBEDDED_BYTES
    designs = read_designs([small, large])
    one, other = parsed(designs, Range(("mug",)))
    assert isinstance(one["body"]["artwork"], str)
    assert other["body"]["artwork"] == {"file_id": designs[1].sha256}
    assert content_of(designs[1]) == large.read_bytes()


def test_the_same_designs_give_the_same_jobs_byte_for_byte(tmp_path: Path) -> None:
    paths = [png(tmp_path / f"{n}.png", side=8 + n) for n in range(3)]
    once, again = (list(lines(read_designs(paths), Range(("mug",), ("#ff0000",)), str)) for _ in range(2))
    assert once == again


def test_each_picture_is_read_once_however_many_jobs_it_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = png(tmp_path / "cat.png")
    reads: list[Path] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: reads.append(self) or read_bytes(self))  # type: ignore[func-returns-value]
    assert len(parsed(read_designs([path]), Range(("mug", "poster"), ("#ff0000", "#00ff00")))) == 4
    assert reads == [path]


def test_a_picture_that_changes_before_it_is_stored_is_refused(tmp_path: Path) -> None:
    path = png(tmp_path / "cat.png")
    (design,) = read_designs([path])
    png(path, side=9)
    with pytest.raises(JobsFileError, match=r"cat\.png: changed while it was submitted"):
        content_of(design)


def test_patterns_folders_and_names_all_mean_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("art/b.png", "art/a.png", "art/deep/c.PNG", "one [1].png"):
        png(tmp_path / name)
    (tmp_path / "art/notes.txt").write_text("no picture")
    monkeypatch.chdir(tmp_path)
    assert find_designs(["art/*.png"]) == [Path("art/a.png"), Path("art/b.png")]
    assert find_designs(["art"]) == [Path("art/a.png"), Path("art/b.png")]
    assert find_designs(["art/**/*.[pP]*"]) == [Path("art/a.png"), Path("art/b.png"), Path("art/deep/c.PNG")]
    assert find_designs(["art/a.png", "art/*.png"]) == [Path("art/a.png"), Path("art/b.png")]
    assert find_designs(["one [1].png"]) == [Path("one [1].png")]


def test_a_pattern_that_means_nothing_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(JobsFileError) as caught:
        find_designs([str(tmp_path / "*.png"), str(tmp_path / "empty")])
    first, second = str(caught.value).splitlines()
    assert "*.png' matches no file; name pictures, a folder or a pattern" in first
    assert "empty' holds no PNG, JPEG or WebP files" in second
    assert caught.value.exit_code == 2


def test_every_bad_picture_is_named_and_the_good_ones_are_not(tmp_path: Path) -> None:
    good = png(tmp_path / "good.png")
    text = tmp_path / "text.png"
    text.write_text("hello")
    cut = tmp_path / "cut.png"
    out = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(out, "PNG")
    cut.write_bytes(out.getvalue()[:1500])
    with pytest.raises(JobsFileError) as caught:
        read_designs([good, text, cut, tmp_path / "gone.png"])
    problems = str(caught.value).splitlines()
    assert problems[0] == f"{text}: it is not a PNG, JPEG or WebP image"
    assert problems[1].startswith(f"{cut}: it is damaged or cut short")
    assert problems[2].startswith(f"{tmp_path / 'gone.png'}: can't be read: No such file")
    assert len(problems) == 3


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Range(("mugg",)), "--template: the template 'mugg' does not exist; did you mean 'mug'?"),
        (Range(("mug",), ("reddish",)), '--color: takes "#rgb", "#rrggbb" or "transparent", got \'reddish\''),
        (Range(("mug",), (), Look(size="4096")), "--size: mockups renders up to 1024 pixels a side"),
        (Range(("mug",), (), Look(size="wide")), '--size: takes a number of pixels, or "WIDTHxHEIGHT"'),
        (Range(("mug",), (), Look(samples=100)), "--samples: mockups takes up to 64 samples"),
        (Range(("mug",), ("transparent",), Look(format="jpeg")), "--color: transparent: jpeg has no transparency"),
        (Range(("mug",), (), Look(format="gif")), "--format: input should be 'png', 'webp' or 'jpeg', got 'gif'"),
    ],
    ids=["template", "colour", "too large", "no size", "samples", "transparent jpeg", "format"],
)
def test_what_no_renderer_would_take_is_refused_by_its_option(wanted: Range, said: str, platform: Platform) -> None:
    with pytest.raises(JobsFileError) as caught:
        check_range(wanted, platform)
    assert said in str(caught.value)


def test_a_colour_given_twice_in_two_ways_is_one_colour(platform: Platform) -> None:
    assert check_range(Range(("mug", "mug"), ("#f00", "#FF0000")), platform) == Range(("mug",), ("#ff0000",))
