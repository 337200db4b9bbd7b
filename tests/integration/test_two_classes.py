"""Interactive work between two chunks of batch work, with the real engines: in order, to the byte, and nobody else's.

Nothing here measures time. At a chosen chunk the engine's own thread asks for the interactive work and waits until it
stands in the line, so every run has the same interleaving.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import io
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from cotenant.calls import Call, Reply
from cotenant.config import ImageSpec, MockupSpec
from cotenant.engines.image import tiny
from cotenant.engines.image.engine import ImageEngine
from cotenant.engines.image.request import EDITS_URL, GENERATIONS_URL
from cotenant.engines.mockup.chunks import Tracer
from cotenant.engines.mockup.engine import URL, MockupEngine
from cotenant.engines.precedence import Standing
from cotenant.gpu.terms import Terms, Tier

pytestmark = pytest.mark.integration

LONG_S = 30.0
Ask = Callable[[Call], "asyncio.Task[Reply]"]


def until(condition: Callable[[], bool]) -> None:
    """Wait in a thread that may wait."""
    ends_s = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < ends_s, "it never came true"
        time.sleep(0.001)


@dataclass
class Script:
    """What happens on the engine's thread: `log` has a word for every chunk; `at` says what is done in which."""

    engine: MockupEngine | ImageEngine
    loop: asyncio.AbstractEventLoop
    log: list[str] = field(default_factory=list)
    at: dict[str, Callable[[], None]] = field(default_factory=dict)
    asked: list[Any] = field(default_factory=list)

    def chunk(self, word: str) -> None:
        self.log.append(word)
        act = self.at.pop(word, None)
        if act is not None:
            act()

    def ask(self, call: Call) -> None:
        """Ask for interactive work, and have it in the line before the chunk goes on."""
        before = self.engine.standing.interactive_waiting
        self.asked.append(asyncio.run_coroutine_threadsafe(self.engine.call(call), self.loop))
        until(lambda: self.engine.standing.interactive_waiting > before)

    async def replies(self) -> list[Reply]:
        return [await asyncio.wrap_future(each) for each in self.asked]

    def on_loop(self, act: Callable[[], object]) -> None:
        """Do it on the event loop, and have it done."""
        happened = threading.Event()

        def both() -> None:
            act()
            happened.set()

        self.loop.call_soon_threadsafe(both)
        assert happened.wait(LONG_S)


async def ok(engine: MockupEngine | ImageEngine, call: Call) -> bytes:
    reply = await engine.call(call)
    assert reply.status == 200, reply.body
    return reply.body


def of_class(standing: Standing) -> tuple[int, int, int]:
    return standing.interactive_running, standing.batch_running, standing.batch_paused


# --- mockups -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def renderer() -> Iterator[MockupEngine]:
    made = MockupEngine(MockupSpec(templates=("mug", "poster"), max_size_px=512, max_samples=64))
    for scene in made._scenes.values():
        scene._tracer._paths = 2**13  # eight chunks and more in the small renders of these tests
    yield made
    made.close()


@pytest.fixture
def renders(renderer: MockupEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    """A script whose words are width of the render and number of its chunk: `96.3`."""
    script = Script(renderer, asyncio.new_event_loop())
    for way in ("_run", "_rows"):
        trace = getattr(Tracer, way)

        def traced(self: Tracer, sensor: Any, chunk: Any, *, trace: Any = trace) -> Any:
            light = trace(self, sensor, chunk)
            script.chunk(f"{chunk.size[0]}.{chunk.first // (2**13 // chunk.samples)}")
            return light

        monkeypatch.setattr(Tracer, way, traced)
    script.loop.close()
    yield script


def artwork(rgb: tuple[int, int, int]) -> str:
    out = io.BytesIO()
    pixels = np.random.default_rng(sum(rgb)).integers(0, 64, (50, 70, 3)) + np.array(rgb)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


RED, BLUE = artwork((200, 20, 20)), artwork((20, 20, 200))


def mockup(art: str, *, batch: bool = False, **fields: Any) -> Call:
    body = {"template": "mug", "artwork": art, "size": 96, "samples": 8, "fit": "stretch"} | fields
    return Call(URL, json.dumps(body).encode(), accept="image/*", batch=batch)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"size": 80}, id="same template, other artwork"),
        pytest.param({"size": "200x33", "samples": 3}, id="other size and samples"),
        pytest.param({"size": 513 - 1, "samples": 1}, id="as large as it gets"),
        pytest.param({"size": 64, "template": "poster"}, id="other template"),
    ],
)
async def test_an_interactive_render_goes_between_two_chunks_of_a_batch_render_and_both_are_as_if_alone(
    renderer: MockupEngine, renders: Script, other: dict[str, Any]
) -> None:
    renders.loop = asyncio.get_running_loop()
    jobs, wanted = mockup(RED, batch=True), mockup(BLUE, **other)
    alone, wanted_alone = await ok(renderer, jobs), await ok(renderer, wanted)
    assert await ok(renderer, mockup(BLUE, batch=True)) != alone
    renders.log.clear()
    for chunk in ("96.0", "96.1", "96.4", "96.7"):
        renders.at[chunk] = functools.partial(renders.ask, wanted)
    assert await ok(renderer, jobs) == alone
    assert [reply.body for reply in await renders.replies()] == [wanted_alone] * 4
    batch = [index for index, word in enumerate(renders.log) if word.startswith("96.")]
    # Each render goes right after the chunk during which it was asked for, whole.
    whole = len(renders.log) - len(batch)
    following = [after - before - 1 for before, after in itertools.pairwise(batch)]
    each = whole // 4
    assert following[:5] == [each, each, 0, 0, each]
    assert [word for word in renders.log if word.startswith("96.")] == [f"96.{n}" for n in range(len(batch))]


async def test_a_paused_batch_render_goes_on_with_its_own_artwork_whatever_was_shown_in_between(
    renderer: MockupEngine, renders: Script
) -> None:
    """Two artworks on one template, in every chunk, against a renderer that never saw the second one."""
    renders.loop = asyncio.get_running_loop()
    alone = await ok(renderer, mockup(RED, batch=True))
    for chunk in range(9):
        renders.at[f"96.{chunk}"] = functools.partial(renders.ask, mockup(BLUE, size=64, samples=1))
    assert await ok(renderer, mockup(RED, batch=True)) == alone
    assert len({reply.body for reply in await renders.replies()}) == 1


async def test_a_batch_render_cancelled_while_it_is_paused_frees_the_renderer(
    renderer: MockupEngine, renders: Script
) -> None:
    loop = renders.loop = asyncio.get_running_loop()
    job = loop.create_task(renderer.call(mockup(RED, batch=True)))
    standing: list[Standing] = []

    def leave() -> None:
        standing.append(renderer.standing)
        renders.on_loop(job.cancel)

    renders.at["96.2"] = functools.partial(renders.ask, mockup(BLUE, size=64))
    renders.at["64.0"] = leave
    with pytest.raises(asyncio.CancelledError):
        await job
    (reply,) = await renders.replies()
    assert reply.ok
    assert of_class(standing[0]) == (1, 1, 1)
    assert (await renderer.call(mockup(BLUE, size=80, batch=True))).ok
    assert [word for word in renders.log if word.startswith("96.")] == ["96.0", "96.1", "96.2"]
    await asyncio.to_thread(until, lambda: of_class(renderer.standing) == (0, 0, 0))


async def test_an_interactive_render_that_is_cancelled_gives_way_to_the_batch_render_at_once(
    renderer: MockupEngine, renders: Script
) -> None:
    renders.loop = asyncio.get_running_loop()
    alone = await ok(renderer, mockup(RED, batch=True))
    renders.log.clear()
    renders.at["96.2"] = functools.partial(renders.ask, mockup(BLUE, size=200))
    renders.at["200.1"] = lambda: renders.asked[0].cancel() and renders.on_loop(lambda: None)
    assert await ok(renderer, mockup(RED, batch=True)) == alone
    assert renders.log[3:6] == ["200.0", "200.1", "96.3"]
    assert renders.asked[0].cancelled()


async def test_interactive_renders_that_wait_go_before_batch_renders_that_waited_longer(
    renderer: MockupEngine, renders: Script
) -> None:
    loop = renders.loop = asyncio.get_running_loop()
    first = loop.create_task(renderer.call(mockup(RED, batch=True)))
    second: list[asyncio.Task[Reply]] = []

    def ask_both() -> None:
        renders.on_loop(lambda: second.append(loop.create_task(renderer.call(mockup(RED, batch=True, size=80)))))
        until(lambda: renderer.standing.batch_waiting == 1)
        renders.ask(mockup(BLUE, size=64))

    renders.at["96.1"] = ask_both
    assert (await first).ok
    assert (await second[0]).ok
    sizes = [int(word.partition(".")[0]) for word in renders.log]
    assert [size for index, size in enumerate(sizes) if index == 0 or size != sizes[index - 1]] == [96, 64, 96, 80]
    await renders.replies()


_SCALAR = """
import numpy as np
from cotenant.engines.mockup import template, variant
from cotenant.engines.mockup.scene import Scene

scene = Scene(variant.load(variant.Variant("scalar_rgb", "")), template.load("mug"), shadow_samples=1)
scene._tracer._paths = 2**12
width, height = scene.slot_px(0, 0)
mine, other = (np.full((height, width, 3), light, dtype=np.float32) for light in (0.2, 0.8))
chunks = []

def between():
    chunks.append(len(chunks))
    if len(chunks) in (2, 4):
        found.append(scene.render(other, 40, 64, samples=4, seed=9))

found = []
alone = scene.render(mine, 48, 48, samples=16, seed=5), scene.render(other, 40, 64, samples=4, seed=9)
again = scene.render(mine, 48, 48, samples=16, seed=5, between=between)
assert len(chunks) > 5 and len(found) == 2
assert (again == alone[0]).all() and all((each == alone[1]).all() for each in found)
assert again[..., :3].mean() < 0.9 * scene.render(other, 48, 48, samples=16, seed=5)[..., :3].mean()
print("as if alone")
"""


def test_the_scalar_back_end_keeps_two_renders_apart_too() -> None:
    """In a process of its own: Mitsuba has one variant at a time."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "platform")}
    done = subprocess.run(
        [sys.executable, "-c", _SCALAR], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.strip() == "as if alone", done.stderr


# --- pictures ----------------------------------------------------------------------------------------------------

TERMS = Terms(
    workload="painter", kind="image", pool="shared", accelerator="cpu",
    usable_gib=12, vram_gib=2, floor_gib=1, num_gpus=0.2, residency="sleep", slots=4,
)  # fmt: skip


@pytest.fixture(scope="module", params=["DDIMScheduler", "UniPCMultistepScheduler"])
def painter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageEngine]:
    """Also with a scheduler that keeps the outputs of earlier steps."""
    home = tmp_path_factory.mktemp("home")
    folder = home / "pipeline"
    tiny.build(folder)
    if request.param != "DDIMScheduler":
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
        pipe.scheduler = getattr(diffusers, request.param).from_config(pipe.scheduler.config)
        pipe.save_pretrained(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = ImageEngine(ImageSpec(model=str(folder), max_size_px=256), TERMS, home_folder=home)
    yield made
    made.close()
    torch.set_num_threads(threads)


@pytest.fixture
def denoises(painter: ImageEngine, monkeypatch: pytest.MonkeyPatch) -> Script:
    """A script whose words are the width of the pictures, how many they are, and how many steps are done: `64x1.3`."""
    script = Script(painter, asyncio.new_event_loop())
    script.loop.close()
    make = painter._pipeline.make

    def noted(shape: Any, subjects: Any, step: Callable[[int], None]) -> Any:
        def stepped(done: int) -> None:
            script.chunk(f"{shape.width}x{len(subjects)}.{done}")
            step(done)

        return make(shape, subjects, stepped)

    monkeypatch.setattr(painter._pipeline, "make", noted)
    return script


def picture(url: str = GENERATIONS_URL, *, batch: bool = False, **fields: Any) -> Call:
    body = {"prompt": "a red mug", "steps": 6, "size": "64x64"} | fields
    return Call(url, json.dumps(body).encode(), accept="image/png", batch=batch)


def photo() -> str:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"size": "96x96", "steps": 6, "prompt": "a cup"}, id="same task and steps"),
        pytest.param({"size": "96x64", "steps": 3, "guidance": 1.0, "negative_prompt": "blue"}, id="other settings"),
        pytest.param({"url": EDITS_URL, "image": photo(), "strength": 0.5, "size": "96x96"}, id="other task"),
    ],
)
async def test_an_interactive_picture_goes_between_two_steps_of_a_batch_picture_and_both_are_as_if_alone(
    painter: ImageEngine, denoises: Script, other: dict[str, Any]
) -> None:
    denoises.loop = asyncio.get_running_loop()
    job, wanted = picture(seed=1, batch=True), picture(seed=2, **other)
    alone, wanted_alone = await ok(painter, job), await ok(painter, wanted)
    denoises.log.clear()
    for step in (1, 3, 5, 6):
        denoises.at[f"64x1.{step}"] = functools.partial(denoises.ask, wanted)
    assert await ok(painter, job) == alone
    assert [reply.body for reply in await denoises.replies()] == [wanted_alone] * 4
    batch = [index for index, word in enumerate(denoises.log) if word.startswith("64x1.")]
    each = (len(denoises.log) - len(batch)) // 4
    assert [b - a - 1 for a, b in itertools.pairwise(batch)] == [each, 0, each, 0, each]
    assert [denoises.log[index] for index in batch] == [f"64x1.{done}" for done in range(1, 7)]
    assert painter.progress is None


async def test_a_batch_picture_is_decoded_in_tiles_as_it_was_to_be_whatever_was_made_in_between(
    painter: ImageEngine, denoises: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoises.loop = asyncio.get_running_loop()
    job = picture(seed=1, batch=True, size="256x256", steps=2)
    whole = await ok(painter, job)
    monkeypatch.setattr(painter._pipeline, "_room_gib", 0.01)
    in_tiles = await ok(painter, job)
    assert in_tiles != whole, "the budget has to make a difference here"
    denoises.at["256x1.2"] = functools.partial(denoises.ask, picture(seed=2))
    assert await ok(painter, job) == in_tiles
    await denoises.replies()


async def test_pictures_of_two_classes_are_never_denoised_together_and_interactive_ones_go_first(
    painter: ImageEngine, denoises: Script
) -> None:
    loop = denoises.loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[Reply]] = []

    def ask_for_more() -> None:
        def create() -> None:
            tasks.extend(loop.create_task(painter.call(picture(steps=2, batch=True))) for _ in range(3))
            tasks.extend(loop.create_task(painter.call(picture(steps=2))) for _ in range(2))

        denoises.on_loop(create)
        until(lambda: painter.standing.batch_waiting == 3 and painter.standing.interactive_waiting == 2)

    denoises.at["96x1.1"] = ask_for_more
    assert (await painter.call(picture(steps=2, size="96x96", batch=True))).ok
    assert all(reply.ok for reply in await asyncio.gather(*tasks))
    assert denoises.log == ["96x1.1", "64x2.1", "64x2.2", "96x1.2", "64x3.1", "64x3.2"]


async def test_a_batch_picture_cancelled_while_it_is_paused_frees_the_pipeline(
    painter: ImageEngine, denoises: Script
) -> None:
    loop = denoises.loop = asyncio.get_running_loop()
    job = loop.create_task(painter.call(picture(steps=200, batch=True)))
    standing: list[Standing] = []

    def leave() -> None:
        standing.append(painter.standing)
        denoises.on_loop(job.cancel)

    denoises.at["64x1.3"] = functools.partial(denoises.ask, picture(size="96x96"))
    denoises.at["96x1.2"] = leave
    with pytest.raises(asyncio.CancelledError):
        await job
    (reply,) = await denoises.replies()
    assert reply.ok
    assert of_class(standing[0]) == (1, 1, 1)
    assert (await painter.call(picture(size="80x80", batch=True))).ok
    assert [word for word in denoises.log if word.startswith("64x1")] == ["64x1.1", "64x1.2", "64x1.3"]
    await asyncio.to_thread(until, lambda: of_class(painter.standing) == (0, 0, 0))


async def test_interactive_pictures_may_follow_each_other_within_one_batch_picture_and_it_sleeps_and_wakes_after(
    painter: ImageEngine, denoises: Script
) -> None:
    denoises.loop = asyncio.get_running_loop()
    job, wanted = picture(seed=1, batch=True, steps=3), picture(seed=2, size="96x96", steps=1)
    alone, wanted_alone = await ok(painter, job), await ok(painter, wanted)
    denoises.log.clear()
    denoises.at["64x1.1"] = functools.partial(denoises.ask, wanted)
    denoises.at["96x1.1"] = functools.partial(denoises.ask, wanted)
    assert await ok(painter, job) == alone
    assert [reply.body for reply in await denoises.replies()] == [wanted_alone] * 2
    assert denoises.log == ["64x1.1", "96x1.1", "96x1.1", "64x1.2", "64x1.3"]
    await painter.sleep(Tier.ASLEEP)
    await painter.wake()
    denoises.at["64x1.2"] = functools.partial(denoises.ask, wanted)
    assert await ok(painter, job) == alone
