"""The mockup engine with the real renderer: what comes out is right, repeatable, and nobody else's."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpcore
import numpy as np
import pytest
from PIL import Image

from cotenant.calls import Call, Reply
from cotenant.config import MockupSpec
from cotenant.engines.mockup import variant
from cotenant.engines.mockup.chunks import Tracer
from cotenant.engines.mockup.engine import TEMPLATES_URL, URL, MockupEngine
from cotenant.engines.mockup.scene import Cancelled, Scene
from cotenant.engines.mockup.template import TemplateError
from cotenant.gpu.terms import Priority

pytestmark = pytest.mark.integration

RED, GREEN, BLUE, YELLOW = (220, 30, 30), (30, 160, 50), (30, 60, 210), (240, 200, 30)
SPEC = MockupSpec(templates=("mug", "poster"), max_size_px=512, max_samples=64)


@pytest.fixture(scope="module")
def engine() -> Iterator[MockupEngine]:
    made = MockupEngine(SPEC)
    yield made
    made.close()


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def encoded(image: Image.Image) -> str:
    return base64.b64encode(png(image)).decode()


def quarters(width: int = 200, height: int = 200) -> Image.Image:
    """Red, green over blue, yellow."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    image.paste(YELLOW, (width // 2, height // 2, width, height))
    return image


def plain(rgb: tuple[int, int, int]) -> str:
    return encoded(Image.new("RGB", (64, 64), rgb))


def call(accept: str = "image/*", files: dict[str, bytes] | None = None, **fields: Any) -> Call:
    body = {"template": "poster", "artwork": {"file": "art"}, "size": 96, "samples": 4} | fields
    return Call(URL, json.dumps(body).encode(), accept=accept, files=files or {})


def picture(reply: Reply) -> np.ndarray:
    assert reply.status == 200, reply.body
    return np.asarray(Image.open(io.BytesIO(reply.body)))


def hue(pixel: np.ndarray) -> str:
    """Which of the four colours a lit pixel shows."""
    red, green, blue = (float(c) for c in pixel[:3])
    if blue > 1.5 * max(red, green):
        return "blue"
    if red > 1.8 * green:
        return "red"
    return "yellow" if red > 1.05 * green else "green"


#: Where the slot's quarters lie in a square render, as (x, y) fractions.
QUARTERS = {
    "mug": {"red": (0.27, 0.36), "green": (0.52, 0.36), "blue": (0.27, 0.66), "yellow": (0.52, 0.66)},
    "poster": {"red": (0.38, 0.32), "green": (0.62, 0.32), "blue": (0.38, 0.66), "yellow": (0.62, 0.66)},
}


@pytest.mark.parametrize("template", ["mug", "poster"])
async def test_the_artwork_is_right_side_up_and_not_mirrored(engine: MockupEngine, template: str) -> None:
    pixels = picture(await engine.call(call(template=template, artwork=encoded(quarters()), fit="stretch", samples=16)))
    side = pixels.shape[0]
    seen = {name: hue(pixels[int(y * side), int(x * side)]) for name, (x, y) in QUARTERS[template].items()}
    assert seen == {name: name for name in QUARTERS[template]}


@pytest.mark.parametrize("template", ["mug", "poster"])
async def test_a_white_print_is_white_and_a_black_one_is_dark(engine: MockupEngine, template: str) -> None:
    x, y = QUARTERS[template]["red"]
    lights = []
    for rgb in ((255, 255, 255), (0, 0, 0)):
        pixels = picture(await engine.call(call(template=template, artwork=plain(rgb), samples=16)))
        patch = pixels[int(y * 96) - 3 : int(y * 96) + 3, int(x * 96) - 3 : int(x * 96) + 3]
        lights.append(float(patch.mean()))
    assert lights[0] > 190
    assert lights[1] < 80


async def test_the_same_request_gives_the_same_bytes_whatever_came_between(engine: MockupEngine) -> None:
    wanted = call(artwork=encoded(quarters()), seed=7)
    first = (await engine.call(wanted)).body
    for between in (call(artwork=plain(BLUE), template="mug"), call(artwork=plain(RED), size=64, samples=9)):
        assert (await engine.call(between)).ok
        assert (await engine.call(wanted)).body == first
    assert (await engine.call(call(artwork=encoded(quarters()), seed=8))).body != first


_CHILD = """
import asyncio, hashlib, json, sys
from cotenant.calls import Call
from cotenant.config import MockupSpec
from cotenant.engines.mockup.engine import MockupEngine
engine = MockupEngine(MockupSpec.model_validate_json(sys.argv[1]))
reply = asyncio.run(engine.call(Call("/v1/mockups", sys.stdin.buffer.read(), accept="image/*")))
print(reply.status, hashlib.sha256(reply.body).hexdigest())
"""


def in_child(spec: MockupSpec, body: bytes) -> tuple[str, str]:
    """Status and SHA-256 of a render by an engine in a process of its own."""
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, spec.model_dump_json()],
        input=body,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "platform")},
        capture_output=True,
        timeout=300,
        check=True,
    )
    status, digest = child.stdout.decode().split()
    return status, digest


async def test_another_process_gives_the_same_bytes(engine: MockupEngine) -> None:
    wanted = call(artwork=encoded(quarters()), template="mug", seed=3, background="transparent")
    mine = hashlib.sha256((await engine.call(wanted)).body).hexdigest()
    assert in_child(SPEC, wanted.body) == ("200", mine)


SIZES = [(64, 64), (64, 48), (33, 90), (300, 300), (96, 513 - 1), (512, 20), (17, 17), (128, 64)]


@pytest.mark.parametrize("template", ["mug", "poster"])
def test_one_chunks_light_is_what_mitsubas_own_renderer_makes_of_the_scene(engine: MockupEngine, template: str) -> None:
    """Whatever was rendered before, and without a recording for each size."""
    if engine.variant.name.startswith("scalar"):
        pytest.skip("the scalar back end's chunks are made by that renderer")
    scene = engine._scenes[template]
    tracer = Tracer(scene._mi, scene._scene, paths=2**30)
    chance = np.random.default_rng(4)
    differences = []

    def compare() -> None:
        for size in SIZES:
            width, height = scene.slot_px(*size)
            scene._show(chance.random((height, width, 3), dtype=np.float32))
            sensor = scene._sensor(*size)
            for samples in (4, 9):
                mine = tracer.render(sensor, size, samples=samples, seed=6, between=lambda: None)
                theirs = np.array(scene._mi.render(scene._scene, sensor=sensor, spp=samples, seed=6))
                differences.append(float(np.abs(mine - theirs).max() / theirs.max()))
        scene._shown = None

    engine._renderer.submit(compare, Priority.INTERACTIVE).result(120)
    assert max(differences) < 1e-6
    recordings = [getattr(program, "n_recordings", 0) for program in tracer._programs.values()]
    assert max(recordings) <= 4


async def test_a_customers_artwork_never_shows_in_anothers_render(engine: MockupEngine) -> None:
    colors = [RED, GREEN, BLUE, YELLOW, (255, 255, 255), (0, 0, 0)]
    calls = [
        call(artwork=plain(rgb), template=template, size=size, fit="stretch")
        for rgb in colors
        for template in ("mug", "poster")
        for size in (64, 96)
    ]
    alone = [(await engine.call(one)).body for one in calls]
    assert len(set(alone)) == len(calls)
    order = np.random.default_rng(5).permutation(len(calls) * 2) % len(calls)
    together = await asyncio.gather(*(engine.call(calls[i]) for i in order))
    assert all(reply.body == alone[i] for i, reply in zip(order, together, strict=True))


async def test_a_transparent_background_is_transparent_and_keeps_the_shadow(engine: MockupEngine) -> None:
    pixels = picture(await engine.call(call(template="mug", artwork=plain(RED), background="transparent", samples=16)))
    assert pixels.shape == (96, 96, 4)
    alpha = pixels[..., 3]
    assert alpha[2, 2] == 0
    assert alpha[48, 40] == 255
    shadow = (alpha > 20) & (alpha < 200) & (pixels[..., :3].max(axis=2) < 10)
    below = np.nonzero(shadow)[0]
    assert len(below) > 50
    assert below.mean() > 48


@pytest.mark.parametrize("template", ["mug", "poster"])
async def test_the_background_colour_is_exact_away_from_the_shadow(engine: MockupEngine, template: str) -> None:
    pixels = picture(await engine.call(call(template=template, artwork=plain(RED), background="#1f7acc")))
    for x, y in ((1, 1), (94, 1)):
        assert tuple(pixels[y, x]) == (0x1F, 0x7A, 0xCC)


@pytest.mark.parametrize(("form", "magic"), [("png", b"\x89PNG"), ("jpeg", b"\xff\xd8"), ("webp", b"RIFF")])
async def test_each_format_comes_as_asked(engine: MockupEngine, form: str, magic: bytes) -> None:
    reply = await engine.call(call(artwork=plain(RED), format=form))
    assert reply.content_type == f"image/{form}"
    assert reply.body.startswith(magic)
    assert picture(reply).shape == (96, 96, 3)


@pytest.mark.parametrize(
    ("fields", "shape"),
    [({"size": 64}, (64, 64)), ({"size": "80x48"}, (48, 80)), ({"width": 33, "height": 77}, (77, 33))],
)
async def test_the_render_has_the_size_asked_for(
    engine: MockupEngine, fields: dict[str, Any], shape: tuple[int, int]
) -> None:
    body = {"template": "poster", "artwork": plain(RED), "samples": 1} | fields
    reply = await engine.call(Call(URL, json.dumps(body).encode(), accept="*/*"))
    assert picture(reply).shape[:2] == shape


async def test_fit_decides_what_of_wide_artwork_is_seen(engine: MockupEngine) -> None:
    wide = encoded(quarters(400, 100))

    async def at(fit: str, x: float, y: float) -> str:
        pixels = picture(await engine.call(call(artwork=wide, fit=fit, samples=16)))
        pixel = pixels[int(y * 96), int(x * 96)].astype(float)
        return "white" if pixel.min() > 150 else hue(pixel)

    assert await at("cover", 0.38, 0.25) == "red"
    assert await at("stretch", 0.38, 0.25) == "red"
    assert await at("contain", 0.38, 0.25) == "white"
    assert await at("contain", 0.38, 0.48) == "red"


async def test_artwork_comes_in_every_way(engine: MockupEngine) -> None:
    data = png(quarters())
    text = base64.b64encode(data).decode()
    ways = [
        call(files={"art": data}),
        call(artwork=text),
        call(artwork=f"data:image/png;base64,{text}"),
    ]
    bodies = {(await engine.call(way)).body for way in ways}
    assert len(bodies) == 1

    async def resolver(host: str, port: int) -> list[str]:
        return ["93.184.216.34"]

    head = f"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: {len(data)}\r\n\r\n".encode()
    kept = engine._fetcher
    engine._fetcher = type(kept)(resolver=resolver, backend=httpcore.AsyncMockBackend([head, data]))
    try:
        assert {(await engine.call(call(artwork="https://example.com/a.png"))).body} == bodies
    finally:
        engine._fetcher = kept


async def test_json_is_answered_when_asked_for(engine: MockupEngine) -> None:
    wanted: dict[str, Any] = {"artwork": plain(RED), "seed": 5}
    image = await engine.call(call(**wanted))
    reply = await engine.call(call(accept="application/json", **wanted))
    answer = reply.json()
    assert reply.content_type == "application/json"
    assert base64.b64decode(answer["data"][0]["b64_json"]) == image.body
    facts = {key: answer[key] for key in ("template", "width", "height", "format", "seed", "variant")}
    assert facts == {
        "template": "poster",
        "width": 96,
        "height": 96,
        "format": "png",
        "seed": 5,
        "variant": engine.variant.name,
    }


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        pytest.param({"template": "mugg", "artwork": "aGk="}, 404, "template", id="unknown template"),
        pytest.param({"artwork": "aGk="}, 400, "artwork", id="not a picture"),
        pytest.param({"artwork": "%%%"}, 400, "artwork", id="not base64"),
        pytest.param({}, 400, "artwork", id="upload missing"),
        pytest.param({"artwork": "aGk=", "size": 513}, 400, "size", id="too large"),
        pytest.param({"artwork": "aGk=", "samples": 65}, 400, "samples", id="too many samples"),
        pytest.param({"artwork": "aGk=", "fit": "squash"}, 400, "fit", id="unknown fit"),
        pytest.param({"artwork": "aGk=", "colour": "#fff"}, 400, "colour", id="unknown parameter"),
        pytest.param({"artwork": "http://127.0.0.1/a.png"}, 400, "artwork", id="loopback URL"),
        pytest.param({"artwork": "http://[::1]/a.png"}, 400, "artwork", id="IPv6 loopback URL"),
        pytest.param({"artwork": "http://169.254.169.254/latest"}, 400, "artwork", id="metadata URL"),
    ],
)
async def test_bad_input_is_answered_with_the_right_status(
    engine: MockupEngine, fields: dict[str, Any], status: int, param: str
) -> None:
    reply = await engine.call(call(**fields))
    assert reply.status == status, reply.body
    assert reply.json()["error"]["param"] == param


async def test_an_upload_over_the_cap_is_a_413(engine: MockupEngine) -> None:
    assert (await engine.call(call(files={"art": bytes(20 * 2**20 + 1)}))).status == 413


async def test_the_templates_are_listed_with_the_variant_and_why(engine: MockupEngine) -> None:
    listed = (await engine.call(Call(TEMPLATES_URL, method="GET"))).json()
    assert [entry["id"] for entry in listed["data"]] == ["mug", "poster"]
    assert listed["data"][1]["slots"][0]["aspect"] == pytest.approx(40 / 56, rel=0.01)
    assert (listed["max_size_px"], listed["max_samples"]) == (512, 64)
    assert listed["variant"] in ("cuda_ad_rgb", "llvm_ad_rgb", "scalar_rgb")
    assert listed["variant_reason"]


async def test_a_route_that_is_not_ours_is_a_404(engine: MockupEngine) -> None:
    assert (await engine.call(Call("/v1/other"))).status == 404
    assert (await engine.call(Call(URL, method="GET"))).status == 404


async def test_a_caller_who_goes_away_frees_the_renderer(engine: MockupEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = threading.Event(), []
    render = Scene.render

    def watched(self: Scene, *arguments: Any, **options: Any) -> Any:
        begun.set()
        try:
            light = render(self, *arguments, **options)
        except Cancelled:
            ended.append("cancelled")
            raise
        ended.append("rendered")
        return light

    monkeypatch.setattr(Scene, "render", watched)
    leaving = asyncio.create_task(engine.call(call(artwork=plain(BLUE), size=512, samples=64)))
    await asyncio.to_thread(begun.wait, 60)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert (await engine.call(call(artwork=plain(RED)))).ok
    assert ended == ["cancelled", "rendered"]


def test_a_template_that_is_not_there_fails_the_start_with_its_name() -> None:
    with pytest.raises(TemplateError, match="'teapot' is not there"):
        MockupEngine(MockupSpec(templates=("teapot",), variant="scalar"))


def test_an_llvm_that_aborts_is_found_out_in_a_child_process() -> None:
    for version in (15, 16):
        library = Path(f"/usr/lib/x86_64-linux-gnu/libLLVM-{version}.so")
        if library.is_file():
            assert variant._probe("llvm_ad_rgb", str(library)) is not None
            return
    pytest.skip("no LLVM 15 or 16 here")


def test_without_any_llvm_the_scalar_back_end_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variant.LIBRARY, "/nonexistent/libLLVM.so")
    body = {"template": "poster", "artwork": encoded(quarters()), "fit": "stretch", "size": 48, "samples": 4}
    spec = MockupSpec(templates=("poster",))
    status, _ = in_child(spec, json.dumps(body).encode())
    assert status == "200"
