"""The image engine with a real diffusers pipeline of toy size: what comes out is right, repeatable, and let go of."""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import inspect
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import diffusers
import httpx
import numpy as np
import openai
import psutil
import pytest
import torch
from PIL import Image

from cotenant.calls import Call, Directory, InMemoryBackend, Reply, Served
from cotenant.config import ImageSpec
from cotenant.config.model import Gateway
from cotenant.engines.image import assembly, tiny
from cotenant.engines.image.engine import ImageEngine
from cotenant.engines.image.families import FAMILIES
from cotenant.engines.image.models import locate, materialise
from cotenant.engines.image.pipeline import OutOfMemory
from cotenant.engines.image.request import EDITS_URL, GENERATIONS_URL
from cotenant.errors import EnvironmentFault
from cotenant.gateway.app import create_app
from cotenant.gateway.keys import load_keys
from cotenant.gateway.server import HttpServer
from cotenant.gpu.terms import Priority, Terms, Tier
from cotenant.telemetry.metrics import GatewayMetrics

pytestmark = pytest.mark.integration

TERMS = Terms(
    workload="painter", kind="image", pool="shared", accelerator="cpu",
    usable_gib=12, vram_gib=2, floor_gib=1, num_gpus=0.2, residency="sleep", slots=4,
)  # fmt: skip
SPEC = ImageSpec(model="tiny-inpaint", max_size_px=256)
MIB = 2**20


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def engine(home: Path) -> Iterator[ImageEngine]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as Ray sets it for a replica that books one CPU
    made = ImageEngine(SPEC, TERMS, home_folder=home)
    yield made
    made.close()
    torch.set_num_threads(threads)


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def data_url(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def photo(width: int = 70, height: int = 50) -> Image.Image:
    """Something with detail everywhere."""
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


def hole(width: int = 70, height: int = 50, box: tuple[int, int, int, int] = (20, 10, 40, 30)) -> Image.Image:
    mask = Image.new("RGBA", (width, height), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), box)
    return mask


def call(url: str = GENERATIONS_URL, *, accept: str = "image/png", request_id: str = "r", **fields: Any) -> Call:
    body = {"model": "tiny-inpaint", "prompt": "a red mug", **fields}
    return Call(url, json.dumps(body).encode(), accept=accept, request_id=request_id)


def pixels(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)))


async def ok(engine: ImageEngine, **fields: Any) -> Reply:
    reply = await engine.call(call(**fields))
    assert reply.status == 200, reply.body
    return reply


@contextmanager
def busy(engine: ImageEngine) -> Iterator[None]:
    """The pipeline's thread has something else to do, so what is asked meanwhile waits."""
    free = threading.Event()
    engine._denoiser.submit(free.wait, Priority.INTERACTIVE)
    try:
        yield
    finally:
        free.set()


@pytest.fixture
def runs(engine: ImageEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each run of the denoiser had, as they happen."""
    seen: list[int] = []
    make = engine._pipeline.make

    def noted(shape: Any, subjects: Any, step: Any) -> Any:
        seen.append(len(subjects))
        return make(shape, subjects, step)

    monkeypatch.setattr(engine._pipeline, "make", noted)
    return seen


async def waiting(engine: ImageEngine, count: int) -> None:
    await until(lambda: len(engine._waiting) >= count)


async def until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    ends_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_s, "it never came true"
        await asyncio.sleep(0.002)


# --- what comes out --------------------------------------------------------------------------------------------


async def test_a_picture_has_the_pipelines_own_size_or_the_one_asked_for(engine: ImageEngine) -> None:
    assert pixels((await ok(engine)).body).shape == (64, 64, 3)
    assert pixels((await ok(engine, size="96x48")).body).shape == (48, 96, 3)


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
async def test_the_picture_itself_comes_in_the_format_asked_for(engine: ImageEngine, form: str) -> None:
    reply = await ok(engine, output_format=form)
    assert reply.content_type == f"image/{form}"
    assert Image.open(io.BytesIO(reply.body)).format == form.upper()


async def test_the_json_answer_is_openais_with_seeds(engine: ImageEngine) -> None:
    answer = (await ok(engine, accept="application/json", n=2, seed=7, size="64x48")).json()
    assert (answer["size"], answer["output_format"], answer["seed"], answer["background"]) == (
        "64x48",
        "png",
        7,
        "opaque",
    )
    assert [each["seed"] for each in answer["data"]] == [7, 8]
    shapes = [pixels(base64.b64decode(each["b64_json"])).shape for each in answer["data"]]
    assert shapes == [(48, 64, 3)] * 2


@pytest.mark.parametrize(("accept", "kind"), [("*/*", "json"), ("image/*", "png"), ("image/*, */*;q=0.1", "png")])
async def test_json_is_for_whoever_does_not_ask_for_an_image(engine: ImageEngine, accept: str, kind: str) -> None:
    assert (await ok(engine, accept=accept)).content_type.endswith(kind)


async def test_several_pictures_are_json_even_for_who_takes_images(engine: ImageEngine) -> None:
    assert len((await ok(engine, accept="image/*", n=2)).json()["data"]) == 2


async def test_settings_change_the_picture(engine: ImageEngine) -> None:
    plain = (await ok(engine, seed=1)).body
    others = [{"prompt": "a cup"}, {"steps": 5}, {"guidance": 1.0}, {"negative_prompt": "blue"}, {"seed": 2}]
    bodies = [(await ok(engine, **{"seed": 1, **fields})).body for fields in others]
    assert len({plain, *bodies}) == 1 + len(others)


async def test_an_edit_changes_nothing_outside_its_mask(engine: ImageEngine) -> None:
    image = photo()
    reply = await ok(engine, url=EDITS_URL, image=data_url(image), mask=data_url(hole()), seed=1)
    changed = (pixels(reply.body) != np.asarray(image)).any(axis=2)
    assert changed[10:30, 20:40].mean() > 0.9
    changed[10:30, 20:40] = False
    assert not changed.any()


async def test_an_image_without_a_mask_is_painted_over_by_strength(engine: ImageEngine) -> None:
    image = photo(64, 64)
    near, far = [
        pixels((await ok(engine, url=EDITS_URL, image=data_url(image), strength=strength, seed=1)).body)
        for strength in (0.25, 1.0)
    ]
    assert near.shape == far.shape == (64, 64, 3)
    assert (near != far).any()


async def test_a_size_that_the_pipeline_cannot_do_is_worked_on_at_one_that_it_can(engine: ImageEngine) -> None:
    image = photo(611, 403)
    reply = await ok(engine, url=EDITS_URL, image=data_url(image), mask=data_url(hole(611, 403)), steps=2)
    made = pixels(reply.body)
    assert made.shape == (403, 611, 3)
    assert (made[40:] == np.asarray(image)[40:]).all()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"size": "4096x4096"}, "size"),
        ({"size": "60x60"}, "size"),
        ({"url": EDITS_URL, "image": "aGk="}, "image"),
        ({"url": EDITS_URL, "image": {"file": "none"}}, "image"),
        ({"url": EDITS_URL, "image": "http://127.0.0.1/a.png"}, "image"),
        ({"url": EDITS_URL, "image": data_url(photo()), "mask": data_url(photo())}, "mask"),
        ({"url": EDITS_URL, "image": data_url(photo()), "mask": data_url(hole(64, 64))}, "mask"),
        ({"url": EDITS_URL, "image": [data_url(photo())] * 2}, "image"),
        ({"url": EDITS_URL, "image": data_url(photo()), "strength": 0.1}, "strength"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_mistake_is_a_400_that_names_the_field(engine: ImageEngine, fields: dict[str, Any], param: str) -> None:
    reply = await engine.call(call(**fields))
    assert (reply.status, reply.json()["error"]["param"]) == (400, param)


async def test_other_routes_are_not_found(engine: ImageEngine) -> None:
    assert (await engine.call(Call("/v1/images/variations"))).status == 404
    assert (await engine.call(Call(GENERATIONS_URL, method="GET"))).status == 404


async def test_what_the_pipeline_itself_refuses_is_the_callers_mistake_and_what_breaks_is_not(
    engine: ImageEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(error: Exception, *_: Any, **__: Any) -> None:
        raise error

    pipe = engine._pipeline._by_task["text"]
    monkeypatch.setattr(pipe, "check_inputs", functools.partial(fails, ValueError("too wide")))
    refused = await engine.call(call())
    monkeypatch.setattr(pipe, "check_inputs", functools.partial(fails, RuntimeError("secret")))
    broken = await engine.call(call())
    assert (refused.status, refused.json()["error"]["code"]) == (400, "unsupported")
    assert "too wide" in refused.json()["error"]["message"]
    assert broken.status == 500
    assert b"secret" not in broken.body


# --- same seed, same bytes -------------------------------------------------------------------------------------


async def test_the_same_seed_gives_the_same_bytes_alone_beside_others_and_among_n(
    engine: ImageEngine, runs: list[int]
) -> None:
    alone = [(await ok(engine, seed=seed)).body for seed in (5, 6)]
    with busy(engine):
        asked = [asyncio.create_task(ok(engine, **fields)) for fields in ({}, {"seed": 5}, {}, {"seed": 6}, {})]
        await waiting(engine, 5)
    beside = [(await task).body for task in asked]
    several = (await ok(engine, accept="application/json", seed=5, n=2)).json()
    assert [beside[1], beside[3]] == alone
    assert [base64.b64decode(each["b64_json"]) for each in several["data"]] == alone
    # The five come in through threads, so in any order: those without a seed together, the others each alone.
    assert (runs[:2], sorted(runs[2:5]), runs[5:]) == ([1, 1], [1, 1, 3], [1, 1])


async def test_the_seed_that_an_answer_tells_makes_the_picture_again(engine: ImageEngine) -> None:
    """Made alone, to the byte; made in a batch, up to the last bits of its arithmetic."""
    first = (await ok(engine, accept="application/json")).json()
    again = await ok(engine, seed=first["seed"])
    assert base64.b64decode(first["data"][0]["b64_json"]) == again.body
    two = (await ok(engine, accept="application/json", n=2)).json()["data"]
    for each in two:
        again = await ok(engine, seed=each["seed"])
        difference = pixels(base64.b64decode(each["b64_json"])).astype(int) - pixels(again.body)
        assert abs(difference).max() <= 1


_OTHER_PROCESS = """
import asyncio, hashlib, json, sys
from pathlib import Path
from cotenant.calls import Call
from cotenant.config import ImageSpec
from cotenant.engines.image.engine import ImageEngine
from cotenant.gpu.terms import Terms
spec, terms = ImageSpec.model_validate_json(sys.argv[1]), Terms.model_validate_json(sys.argv[2])
engine = ImageEngine(spec, terms, home_folder=Path(sys.argv[3]))
reply = asyncio.run(engine.call(Call("/v1/images/generations", sys.argv[4].encode(), accept="image/png")))
print(hashlib.sha256(reply.body).hexdigest())
engine.close()
"""


async def test_another_process_that_builds_its_own_pipeline_gives_the_same_bytes(
    engine: ImageEngine, tmp_path: Path
) -> None:
    wanted = call(seed=11)
    arguments = [SPEC.model_dump_json(), TERMS.model_dump_json(), str(tmp_path), wanted.body.decode()]
    run = functools.partial(subprocess.run, capture_output=True, text=True, check=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    there = await asyncio.to_thread(run, [sys.executable, "-c", _OTHER_PROCESS, *arguments], env=environment)
    here = hashlib.sha256((await engine.call(wanted)).body).hexdigest()
    assert there.stdout.split() == [here]


# --- together, and let go ----------------------------------------------------------------------------------------


async def test_equal_requests_that_wait_are_denoised_together_and_others_are_not(
    engine: ImageEngine, runs: list[int]
) -> None:
    with busy(engine):
        asked = [asyncio.create_task(ok(engine, prompt=f"mug {index}")) for index in range(5)]
        asked += [asyncio.create_task(ok(engine, size="96x96")) for _ in range(2)]
        edit = {"url": EDITS_URL, "image": data_url(photo()), "mask": data_url(hole())}
        asked += [asyncio.create_task(ok(engine, **edit)) for _ in range(2)]
        await waiting(engine, 9)
    assert len({(await task).body for task in asked}) == 9
    assert sorted(runs) == [1, 2, 2, 4]


async def test_a_caller_who_leaves_frees_the_pipeline_at_the_next_step(
    engine: ImageEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    make = engine._pipeline.make
    third, gone = threading.Event(), threading.Event()

    def noted(shape: Any, subjects: Any, step: Callable[[int], None]) -> Any:
        def counted(done: int) -> None:
            steps.append(done)
            if done == 3:
                third.set()
                gone.wait(20)
            step(done)

        return make(shape, subjects, counted)

    monkeypatch.setattr(engine._pipeline, "make", noted)
    task = asyncio.create_task(engine.call(call(steps=400)))
    await asyncio.to_thread(third.wait, 20)
    progress = engine.progress
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    gone.set()
    monkeypatch.setattr(engine._pipeline, "make", make)
    assert (await engine.call(call())).ok
    assert task.cancelled()
    assert progress is not None
    assert (progress.step, progress.steps, progress.pictures, progress.request_ids) == (2, 400, 1, ("r",))
    assert steps == [1, 2, 3]
    assert engine.progress is None


async def test_a_caller_who_leaves_while_waiting_costs_nothing(engine: ImageEngine, runs: list[int]) -> None:
    with busy(engine):
        leaves = asyncio.create_task(engine.call(call(n=2)))
        stays = asyncio.create_task(engine.call(call(size="96x96")))
        await waiting(engine, 3)
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
    assert (await stays).ok
    assert runs == [1]
    assert engine._waiting == []


async def test_who_shares_a_batch_with_a_caller_who_leaves_gets_the_picture(
    engine: ImageEngine, runs: list[int]
) -> None:
    with busy(engine):
        leaves, stays = (asyncio.create_task(engine.call(call(steps=30))) for _ in range(2))
        await waiting(engine, 2)
    await until(lambda: engine.progress is not None)
    leaves.cancel()
    assert (await stays).ok
    assert runs == [2]


# --- memory ------------------------------------------------------------------------------------------------------


class Tight:
    """A denoiser that fails as torch's allocators do when it is given more than `most` rows."""

    def __init__(self, forward: Callable[..., Any], most: int, error: Exception) -> None:
        self.forward, self.most, self.error = forward, most, error
        self.refused = 0

    def __call__(self, sample: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if sample.shape[0] > self.most:
            self.refused += 1
            raise self.error
        return self.forward(sample, *arguments, **options)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"),
    ],
    ids=["gpu", "cpu"],
)
async def test_a_batch_that_is_too_large_is_done_one_by_one_and_a_picture_that_is_gets_507(
    engine: ImageEngine, monkeypatch: pytest.MonkeyPatch, runs: list[int], error: Exception
) -> None:
    unet = engine._pipeline._pipe.unet
    tight = Tight(unet.forward, 2, error)  # with guidance a picture is two rows
    monkeypatch.setattr(unet, "forward", tight)
    with busy(engine):
        asked = [asyncio.create_task(engine.call(call())) for _ in range(3)]
        await waiting(engine, 3)
    assert [(await task).status for task in asked] == [200] * 3
    assert (runs, tight.refused) == ([3, 1, 1, 1], 1)
    tight.most = 0
    refused = await engine.call(call())
    assert (refused.status, refused.json()["error"]["code"]) == (507, "insufficient_memory")
    assert "painter's budget of 2 GiB" in refused.json()["error"]["message"]
    monkeypatch.undo()
    assert (await engine.call(call())).ok


async def test_asleep_and_cold_hold_nothing_and_waking_brings_the_same_bytes_back(engine: ImageEngine) -> None:
    wanted = call(seed=3)
    before = (await engine.call(wanted)).body
    held = engine.memory_bytes()
    for tier in (Tier.ASLEEP, Tier.COLD):
        await engine.sleep(tier)
        assert (engine.tier, engine.memory_bytes()) == (tier, 0)
        refused = await engine.call(wanted)
        assert (refused.status, refused.json()["error"]["code"]) == (503, "not_awake")
        await engine.wake()
        assert (engine.tier, engine.memory_bytes()) == (Tier.RESIDENT, held)
        assert (await engine.call(wanted)).body == before
    await engine.sleep(Tier.ASLEEP)
    await engine.sleep(Tier.COLD)
    await engine.sleep(Tier.ASLEEP)
    assert engine.tier is Tier.COLD
    await engine.wake()
    with pytest.raises(ValueError, match="asleep or cold"):
        await engine.sleep(Tier.RESIDENT)


async def test_what_was_asked_before_a_sleep_is_finished_before_it(engine: ImageEngine) -> None:
    with busy(engine):
        asked = asyncio.create_task(engine.call(call()))
        await waiting(engine, 1)
        asleep = asyncio.create_task(engine.sleep(Tier.ASLEEP))
        await asyncio.sleep(0)
        alike, other = (asyncio.create_task(engine.call(call(**fields))) for fields in ({}, {"size": "96x96"}))
        await waiting(engine, 3)
    replies = await asyncio.gather(asked, alike, other)
    await asleep
    await engine.wake()
    # The second still goes with the first; the third finds nobody awake.
    assert [reply.status for reply in replies] == [200, 200, 503]


def rss() -> int:
    return int(psutil.Process().memory_info().rss)


async def test_memory_falls_when_a_pipeline_sleeps_and_is_flat_over_twenty_cycles(
    tmp_path: Path, engine: ImageEngine
) -> None:
    tiny.build(tmp_path, width=128)
    large = ImageEngine(ImageSpec(model=str(tmp_path)), TERMS, home_folder=tmp_path)
    wanted = call(seed=1, steps=2, size="64x64")
    try:
        before = (await large.call(wanted)).body
        weights = large.memory_bytes()
        awake, asleep = [], []
        for _ in range(20):
            awake.append(rss())
            await large.sleep(Tier.ASLEEP)
            asleep.append(rss())
            await large.wake()
            assert (await large.call(wanted)).body == before
    finally:
        large.close()
    assert weights > 50 * MIB
    falls = [high - low for high, low in zip(awake, asleep, strict=True)]
    assert min(falls[2:]) > 0.8 * weights
    assert max(asleep[5:]) - min(asleep[5:]) < 0.25 * weights
    assert abs(asleep[-1] - asleep[5]) < 0.1 * weights


# --- pipelines ---------------------------------------------------------------------------------------------------


async def test_a_wake_that_runs_out_of_memory_leaves_the_engine_cold_and_able_to_wake_later(
    engine: ImageEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise MemoryError

    await engine.sleep(Tier.ASLEEP)
    monkeypatch.setattr(assembly, "tasks", lambda *_, **__: fails())
    with pytest.raises(OutOfMemory):
        await engine.wake()
    assert (engine.tier, engine.memory_bytes()) == (Tier.COLD, 0)
    monkeypatch.undo()
    await engine.wake()
    assert (await engine.call(call())).ok


def test_every_task_works_on_one_set_of_weights(engine: ImageEngine) -> None:
    pipes = engine._pipeline._by_task
    assert list(pipes) == ["text", "image", "inpaint"]
    assert len({id(pipe.unet) for pipe in pipes.values()}) == 1
    assert len({type(pipe) for pipe in pipes.values()}) == 3


def test_a_cold_engine_has_loaded_nothing(home: Path) -> None:
    cold = ImageEngine(SPEC, TERMS, load=False, home_folder=home)
    try:
        assert (cold.tier, cold.memory_bytes(), cold._pipeline.abilities) == (Tier.COLD, 0, None)
    finally:
        cold.close()


def test_building_the_tiny_pipeline_twice_gives_the_same_files_and_leaves_the_random_state_alone(
    home: Path, tmp_path: Path, engine: ImageEngine
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    tiny.build(tmp_path)
    assert torch.equal(torch.rand(1), expected)
    first = materialise(locate("tiny-inpaint"), home)
    digests = [
        {file.relative_to(folder): hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*.*")}
        for folder in (first, tmp_path)
    ]
    assert digests[0] == digests[1]
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.*")) < 8 * MIB


def test_quantisation_on_a_cpu_and_a_damaged_folder_are_refused_with_what_to_do(tmp_path: Path) -> None:
    tiny.build(tmp_path)
    with pytest.raises(EnvironmentFault, match="set quantization: none"):
        ImageEngine(ImageSpec(model=str(tmp_path), quantization="4bit"), TERMS)
    (tmp_path / "unet" / "config.json").unlink()
    with pytest.raises(EnvironmentFault, match="can't be loaded"):
        ImageEngine(ImageSpec(model=str(tmp_path)), TERMS)


def test_a_hub_pipeline_is_what_the_hubs_client_downloads_and_its_failure_says_what_is_needed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def download(hub_id: str, **options: Any) -> str:
        asked.append((hub_id, options))
        if hub_id == "org/none":
            raise OSError("401 Client Error\nmore")
        return str(home)

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    assert materialise(locate("org/some"), home) == home
    with pytest.raises(EnvironmentFault, match=r"org/none needs to be on the hub.*HF_TOKEN.*401 Client Error$"):
        materialise(locate("org/none"), home)
    assert asked == [("org/some", {"use_safetensors": True}), ("org/none", {"use_safetensors": True})]


@pytest.mark.parametrize("family", [f for f in FAMILIES if hasattr(diffusers, f.source)], ids=lambda f: f.name)
def test_the_tables_figures_are_the_pipelines_own_where_it_says_so(family: Any) -> None:
    parameters = inspect.signature(getattr(diffusers, family.source).__call__).parameters
    guidance = parameters["guidance_scale"].default
    if guidance is None:
        guidance = parameters["true_cfg_scale"].default
    assert (parameters["num_inference_steps"].default, guidance) == (family.steps, family.guidance)


# --- through the gateway -----------------------------------------------------------------------------------------


@asynccontextmanager
async def door(engine: ImageEngine) -> AsyncIterator[openai.AsyncOpenAI]:
    directory = Directory((Served("painter", "image", models=("tiny-inpaint", "painter"), deadline_s=60),))
    config = Gateway()
    app = create_app(
        lambda: directory,
        InMemoryBackend({"painter": engine.call}, slots=4),
        config,
        load_keys(config, {"COTENANT_API_KEYS": "acme:sk-acme"}),
        GatewayMetrics(),
    )
    server = HttpServer(app, host="127.0.0.1", port=0, grace_s=5)
    await server.start()
    try:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="sk-acme", max_retries=0, timeout=60
        ) as client:
            yield client
    finally:
        await server.stop()


async def test_the_openai_client_generates_and_edits(engine: ImageEngine) -> None:
    image = photo()
    async with door(engine) as client:
        made = await client.images.generate(
            model="tiny-inpaint", prompt="a red mug", n=2, size="64x48", quality="high", extra_body={"seed": 4}
        )
        edited = await client.images.edit(
            model="painter",
            prompt="a blue mug",
            image=("photo.png", png(image), "image/png"),
            mask=("mask.png", png(hole()), "image/png"),
            output_format="webp",
            extra_body={"seed": 4, "steps": 2},
        )
        listed = await client.images.edit(
            model="painter", prompt="42", image=[("photo.png", png(image), "image/png")], size="64x64"
        )
        models = [model.id async for model in client.models.list()]
    assert (made.size, made.output_format, len(made.data or ())) == ("64x48", "png", 2)
    assert edited.data is not None and edited.data[0].b64_json is not None
    file = Image.open(io.BytesIO(base64.b64decode(edited.data[0].b64_json)))
    assert (file.format, file.size) == ("WEBP", (70, 50))
    assert listed.size == "64x64"
    assert models == ["tiny-inpaint", "painter"]


async def test_the_openai_clients_errors_are_those_that_its_users_know(engine: ImageEngine) -> None:
    async with door(engine) as client:
        with pytest.raises(openai.BadRequestError, match="multiples of 8") as size:
            await client.images.generate(model="painter", prompt="x", size="60x60")
        with pytest.raises(openai.BadRequestError, match="opaque or auto"):
            await client.images.generate(model="painter", prompt="x", background="transparent")
        with pytest.raises(openai.NotFoundError):
            await client.images.generate(model="dall-e-3", prompt="x")
        with pytest.raises(openai.BadRequestError, match="image is not a PNG") as broken:
            await client.images.edit(model="painter", prompt="x", image=b"hello")
    assert (size.value.param, broken.value.param) == ("size", "image")


async def test_a_job_line_can_ask_for_an_edit_and_gets_the_picture_itself(engine: ImageEngine) -> None:
    body = {
        "model": "painter",
        "prompt": "a red mug",
        "images": [{"image_url": data_url(photo())}],
        "mask": {"image_url": data_url(hole())},
        "seed": 2,
    }
    async with door(engine) as client:
        base, headers = str(client.base_url), {"authorization": "Bearer sk-acme", "accept": "image/*"}
        async with httpx.AsyncClient(base_url=base, headers=headers, timeout=60) as plain:
            reply = await plain.post("images/edits", json=body)
    assert (reply.status_code, reply.headers["content-type"], reply.headers["x-image-seed"]) == (200, "image/png", "2")
    assert pixels(reply.content).shape == (50, 70, 3)
