"""The mockup engine: calls in, pictures out, one render at a time and everything else beside it.

Rendering has one thread to itself, since the renderer's state belongs to the thread that made it. Reading, decoding
and fitting the next customer's artwork and encoding the last one's picture happen on others meanwhile, so with two
callers the renderer hardly waits. Interactive renders are done between two chunks of a batch render (`precedence`),
and one of the helpers is kept free of batch jobs. A caller who goes away frees the renderer at the next chunk.

Asleep, the renderer holds no scene; what is small and slow to make (parsed templates, baked shadows) stays, so that
waking costs a fraction of a start. Cold, that is gone too. Compiled kernels and imports stay with the process.
"""

from __future__ import annotations

import asyncio
import base64
import ctypes
import functools
import gc
import hashlib
import importlib
import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cotenant.calls import JSON_TYPE, Call, Reply, error_reply
from cotenant.config import MockupSpec
from cotenant.engines.allocator import give_back_freed
from cotenant.engines.lease import FREE, Lease
from cotenant.engines.mockup import artwork, kept, picture, template, variant
from cotenant.engines.mockup.request import MockupRequest, artwork_source, parse
from cotenant.engines.mockup.scene import Cancelled, Scene, slot_px
from cotenant.engines.mockup.template import Floats, Template
from cotenant.engines.pictures.accept import wants_json
from cotenant.engines.pictures.encode import encoded
from cotenant.engines.pictures.fetch import Fetcher
from cotenant.engines.pictures.refusal import BadRequest
from cotenant.engines.pictures.source import Url
from cotenant.engines.precedence import Standing, Threads, priority_of
from cotenant.errors import CallError
from cotenant.gpu.terms import Priority, Tier
from cotenant.telemetry.logs import event
from cotenant.telemetry.starts import OnStage, unheard

URL = "/v1/mockups"
TEMPLATES_URL = "/v1/mockups/templates"
SHADOWS_KEPT = 8
#: Side of the first render of each scene: compilers are done with it, whatever the sizes that follow.
WARM_PX = 64
LOG = logging.getLogger("cotenant.mockup")
T = TypeVar("T")


class MockupEngine:
    """Renders mockups of the templates of one workload.

    Making one probes the back end. Unless `load` is false it also loads every template and renders each once, so the
    first customer doesn't wait for compilers: seconds. With `load` false it only begins to import the renderer.
    Raises TemplateError and EnvironmentFault.
    """

    def __init__(self, spec: MockupSpec, *, fetcher: Fetcher | None = None, load: bool = True) -> None:
        give_back_freed()
        self.spec = spec
        self.tier = Tier.COLD
        self.on_stage: OnStage = unheard
        self.variant = variant.choose(spec.variant)
        self._fetcher = fetcher or Fetcher.from_environment()
        self._renderer = Threads("mockup-render")
        self._helpers = Threads("mockup-image", 3, for_batch=2)
        self._shadows: dict[tuple[str, int, int], Floats | None] = {}
        self._shadows_change = threading.Lock()
        self._scenes: dict[str, Scene] = {}
        loaded = [template.load(name) for name in spec.templates]
        self._templates: dict[str, Template] = {each.name: each for each in loaded}
        #: Baked shadows by template, kept while asleep.
        self._shadow_maps: dict[str, Floats | None] = {}
        if load:
            self._renderer.fence(self._load).result()
        else:
            self._renderer.fence(functools.partial(variant.load, self.variant))

    async def wake(self) -> None:
        """Load every scene, with the shadows that were kept; returns when calls can be answered."""
        await asyncio.wrap_future(self._renderer.fence(self._load))

    async def sleep(self, tier: Tier) -> None:
        """Give the renderer's memory back. Only while no call is in work."""
        await asyncio.wrap_future(self._renderer.fence(functools.partial(self._drop, tier)))

    @property
    def standing(self) -> Standing:
        """What waits for the renderer and what it works on, by class."""
        return self._renderer.standing

    @property
    def _scalar(self) -> bool:
        return self.variant.name.startswith("scalar")

    def memory_bytes(self) -> None:
        """Mitsuba does not tell what it holds of a GPU: the agent measures the process."""

    def _load(self) -> None:
        if self._scenes:
            return
        started = time.perf_counter()
        self.on_stage("imports")
        mi = variant.load(self.variant)
        self.on_stage("weights")
        scenes = {}
        samples = 16 if self._scalar else 128
        for name, shape in self._templates.items():
            shadow_key = self._shadow_key(name, samples) if shape.backdrop is not None else ""
            shadow = self._shadow_maps.get(name)
            if shadow is None and shadow_key:
                shadow = kept.shadow(shadow_key)
            scenes[name] = made = Scene(mi, shape, shadow_samples=samples, shadow_map=shadow)
            self._shadow_maps[name] = made.shadow_map
            if shadow is None and made.shadow_map is not None:
                kept.keep_shadow(shadow_key, made.shadow_map)
        self.on_stage("warm_up")
        ordinary = min(self.spec.max_samples, MockupRequest.model_fields["samples"].default)
        for scene in scenes.values():  # with all of them loaded, since what is compiled depends on that
            width, height = scene.slot_px(WARM_PX, WARM_PX)
            blank = np.zeros((height, width, 3), dtype=np.float32)
            scene.render(blank, WARM_PX, WARM_PX, samples=ordinary, seed=0)
        self._scenes, self.tier = scenes, Tier.RESIDENT
        event(
            LOG,
            "mockup_engine_ready",
            templates=", ".join(self._scenes),
            variant=self.variant.name,
            variant_reason=self.variant.reason,
            seconds=round(time.perf_counter() - started, 2),
        )

    def _shadow_key(self, name: str, samples: int) -> str:
        """Of a template's shadow, by all that it is baked from; the code that bakes it is part of that."""
        file = next(file for file in map(template.find, self.spec.templates) if file.stem == name)
        code = [Path(__file__).with_name(f"{module}.py") for module in ("scene", "studio", "template")]
        digests = [hashlib.sha256(each.read_bytes()).hexdigest() for each in (file, *code)]
        return kept.key(self.variant.name, self.variant.llvm, samples, *digests)

    def _drop(self, tier: Tier) -> None:
        scenes, self._scenes, self.tier = self._scenes, {}, tier
        with self._shadows_change:
            self._shadows = {}
        for scene in scenes.values():
            scene.drop()
        if tier is Tier.COLD:
            self._shadow_maps = {}
        scenes.clear()
        gc.collect()
        if not self._scalar:
            importlib.import_module("drjit").flush_malloc_cache()
        ctypes.CDLL(None).malloc_trim(0)

    async def call(self, call: Call, lease: Lease = FREE) -> Reply:
        """Answers POST /v1/mockups and GET /v1/mockups/templates; every mistake of the caller's is a 4xx reply.

        `lease` is entered around what needs the renderer: reading, fetching, decoding and encoding do without it.
        """
        try:
            if call.url == TEMPLATES_URL and call.method == "GET":
                return Reply(200, json.dumps(self.templates()).encode())
            if call.url == URL and call.method == "POST":
                return await self._mockup(call, lease)
        except BadRequest as error:
            return error.reply()
        except CallError:
            raise
        except Exception as error:
            event(LOG, "mockup_failed", level=logging.ERROR, error=error, request_id=call.request_id)
            return error_reply(500, "the mockup could not be rendered; the log has the reason", code="render_failed")
        return error_reply(404, f"no route {call.method} {call.url}; here are POST {URL} and GET {TEMPLATES_URL}")

    def templates(self) -> dict[str, Any]:
        """The body of GET /v1/mockups/templates."""
        data = []
        for name, shape in self._templates.items():
            width, height = slot_px(shape, self.spec.max_size_px, self.spec.max_size_px, scalar=self._scalar)
            slot = {"name": template.SLOT, "aspect": round(shape.aspect, 4), "width": width, "height": height}
            data.append({"id": name, "object": "mockup_template", "slots": [slot]})
        return {
            "object": "list",
            "data": data,
            "max_size_px": self.spec.max_size_px,
            "max_samples": self.spec.max_samples,
            "formats": ["png", "webp", "jpeg"],
            "variant": self.variant.name,
            "variant_reason": self.variant.reason,
        }

    def close(self) -> None:
        """Lets go of the threads; renders that wait are dropped."""
        self._renderer.close()
        self._helpers.close(wait=False)

    async def _mockup(self, call: Call, lease: Lease) -> Reply:
        priority = priority_of(call)
        request = await self._beside(priority, parse, call.body)
        shape = self._template(request)
        width, height = request.pixels
        source = await self._beside(priority, artwork_source, request.artwork, call.files)
        data = await self._fetcher.fetch(source.url) if isinstance(source, Url) else source
        size = slot_px(shape, width, height, scalar=self._scalar)
        texture = await self._beside(priority, _texture, data, request, shape, size)
        async with lease():
            if self.tier is not Tier.RESIDENT:
                raise BadRequest("the renderer is not awake", code="not_awake", status=503)
            scene = self._scenes[shape.name]
            light = await self._rendered(scene, texture, request, priority)
            shadow = await self._beside(priority, self._shadow, scene, width, height)
        body = await self._beside(priority, _encoded, light, shadow, request)
        kind = f"image/{request.format}"
        headers = {"x-mockup-seed": str(request.seed), "x-mockup-variant": self.variant.name}
        if not wants_json(call.accept):
            return Reply(200, body, kind, headers)
        answer = {
            "created": int(time.time()),
            "template": shape.name,
            "width": width,
            "height": height,
            "format": request.format,
            "seed": request.seed,
            "variant": self.variant.name,
            "data": [{"b64_json": base64.b64encode(body).decode("ascii")}],
        }
        return Reply(200, json.dumps(answer).encode(), JSON_TYPE, headers)

    def _template(self, request: MockupRequest) -> Template:
        """The template that a request is for, once it is known to be within the workload's limits.

        Raises BadRequest.
        """
        shape = self._templates.get(request.template)
        if shape is None:
            raise BadRequest(
                f"the template {request.template!r} does not exist; here are {', '.join(self._templates)}",
                param="template",
                code="template_not_found",
                status=404,
            )
        longest = max(request.pixels)
        if longest > self.spec.max_size_px:
            param = "size" if request.width is None else "width" if request.width == longest else "height"
            raise BadRequest(
                f"{param}: a render may have {self.spec.max_size_px} pixels a side, got {longest}",
                param=param,
                code="invalid_value",
            )
        if request.samples > self.spec.max_samples:
            raise BadRequest(
                f"samples: at most {self.spec.max_samples}, got {request.samples}",
                param="samples",
                code="invalid_value",
            )
        return shape

    async def _rendered(self, scene: Scene, texture: Floats, request: MockupRequest, priority: Priority) -> Floats:
        gone = threading.Event()
        width, height = request.pixels

        def between() -> None:
            self._renderer.give_way(gone.is_set)
            if gone.is_set():
                raise Cancelled

        job = functools.partial(
            scene.render, texture, width, height, samples=request.samples, seed=request.seed, between=between
        )
        try:
            return await asyncio.wrap_future(self._renderer.submit(job, priority))
        except asyncio.CancelledError:
            gone.set()
            raise

    def _shadow(self, scene: Scene, width: int, height: int) -> Floats | None:
        """The backdrop's shadow for this view; a handful of sizes is kept, since most customers ask for the same."""
        key = (scene.template.name, width, height)
        kept = self._shadows  # the other helper may put another dict in its place
        if key in kept:
            return kept[key]
        shadow = scene.shadow(width, height)
        with self._shadows_change:
            if len(self._shadows) >= SHADOWS_KEPT:
                self._shadows = {}
            self._shadows = {**self._shadows, key: shadow}
        return shadow

    async def _beside(self, priority: Priority, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.wrap_future(self._helpers.submit(functools.partial(function, *arguments), priority))


def _texture(data: bytes, request: MockupRequest, shape: Template, size: tuple[int, int]) -> Floats:
    image = artwork.decode(data, enough_px=2 * max(size))
    base_rgb = picture.printed(shape.slot.base_color)
    return picture.linear(artwork.fitted(image, request.fit, size, base_rgb))


def _encoded(light: Floats, shadow: Floats | None, request: MockupRequest) -> bytes:
    pixels = picture.composed(light, shadow, request.background_rgb)
    return encoded(pixels, request.format, request.quality)
