"""The image engine: calls in, pictures out, equal ones together and everything else beside them.

The pipeline has one thread to itself. Reading, decoding and fitting the next caller's images and encoding the last
one's pictures happen on others meanwhile. Every picture is a ticket; when the pipeline's thread is free it takes the
oldest ticket and those of equal shape (`batching` says which those are, and why a picture whose seed the caller
chose is denoised alone). Sleep and wake wait in the same line as the tickets, so what was asked before a sleep is
finished before it. A caller who goes away frees the pipeline at the next step, unless others wait for that batch.

Interactive pictures go before those of batch jobs and are never denoised together with them: they are done between
two steps of a batch job's pictures (`precedence`), and one of the helpers is kept free of batch jobs.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import itertools
import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from cotenant.calls import JSON_TYPE, Call, Reply, error_reply
from cotenant.config import ImageSpec
from cotenant.config.home import home
from cotenant.engines.allocator import give_back_freed
from cotenant.engines.image import assembly, edits, shapes
from cotenant.engines.image.batching import Shape, Task, together
from cotenant.engines.image.pipeline import Cancelled, Made, OutOfMemory, Pipeline, Subject, Unsuitable
from cotenant.engines.image.request import (
    EDITS_URL,
    GENERATIONS_URL,
    EditRequest,
    GenerationRequest,
    Picture,
    parse,
    picture_source,
)
from cotenant.engines.lease import FREE, Lease
from cotenant.engines.pictures.accept import wants_json
from cotenant.engines.pictures.decode import decode
from cotenant.engines.pictures.encode import encoded
from cotenant.engines.pictures.fetch import Fetcher
from cotenant.engines.pictures.refusal import BadRequest
from cotenant.engines.pictures.source import Url
from cotenant.engines.precedence import Standing, Threads, priority_of
from cotenant.errors import CallError
from cotenant.gpu.terms import Priority, Terms, Tier
from cotenant.telemetry.logs import event
from cotenant.telemetry.starts import OnStage, unheard

LOG = logging.getLogger("cotenant.image")
T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """How far the batch is that is being denoised."""

    step: int
    steps: int
    pictures: int
    request_ids: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Ticket:
    """A picture somebody waits for."""

    shape: Shape
    subject: Subject
    priority: Priority
    request_id: str
    gone: threading.Event
    made: Future[Made] = field(default_factory=Future)


class ImageEngine:
    """Answers OpenAI's image routes with one diffusers pipeline.

    Made with `load` it comes up resident (seconds to minutes), otherwise cold, with its imports under way on the
    pipeline's thread. Raises EnvironmentFault for a pipeline
    that can't be had, and OutOfMemory for one that does not fit its budget.
    """

    def __init__(
        self,
        spec: ImageSpec,
        terms: Terms,
        *,
        load: bool = True,
        fetcher: Fetcher | None = None,
        home_folder: Path | None = None,
    ) -> None:
        give_back_freed()
        self.spec = spec
        self.terms = terms
        self.progress: Progress | None = None
        self.on_stage: OnStage = unheard
        self._fetcher = fetcher or Fetcher.from_environment()
        self._pipeline = Pipeline(spec, terms, home_folder or home())
        self._denoiser = Threads("image-denoise")
        self._helpers = Threads("image-file", 3, for_batch=2)
        self._waiting: list[_Ticket] = []
        self._line = threading.Lock()
        self._numbers = itertools.count(1)
        self._closing = False
        if load:
            self._denoiser.fence(self._wake).result()
        else:
            self._denoiser.fence(assembly.imports)

    @property
    def tier(self) -> Tier:
        return self._pipeline.tier

    @property
    def standing(self) -> Standing:
        """What waits for the pipeline and what it works on, by class; every picture that waits is a piece of work."""
        return self._denoiser.standing

    def memory_bytes(self) -> int:
        """What the engine holds of its budget by its own account: torch's reserve on a GPU, the weights on a CPU."""
        return self._pipeline.memory_bytes()

    async def sleep(self, tier: Tier) -> None:
        """Finish what was asked before, then give memory back: ASLEEP or COLD."""
        await asyncio.wrap_future(self._denoiser.fence(functools.partial(self._pipeline.park, tier)))
        event(LOG, "image_engine_parked", workload=self.terms.workload, tier=tier.value)

    async def wake(self) -> None:
        """Be resident; returns when calls can be answered. Raises as the constructor does, and is then cold."""
        await asyncio.wrap_future(self._denoiser.fence(self._wake))

    def close(self) -> None:
        """Lets go of the threads; what is being denoised ends at the next step, what waits is dropped."""
        with self._line:
            waiting, self._waiting = self._waiting, []
        for ticket in waiting:
            ticket.gone.set()
            ticket.made.cancel()
        self._closing = True
        self._denoiser.close()
        self._helpers.close(wait=False)

    async def call(self, call: Call, lease: Lease = FREE) -> Reply:
        """Answers POST /v1/images/generations and /v1/images/edits; every mistake of the caller's is a 4xx reply.

        `lease` is entered around what needs the pipeline: reading, fetching, decoding and encoding do without it.
        """
        kinds: dict[str, type[GenerationRequest]] = {GENERATIONS_URL: GenerationRequest, EDITS_URL: EditRequest}
        kind = kinds.get(call.url)
        if kind is None or call.method != "POST":
            known = " and ".join(f"POST {url}" for url in kinds)
            return error_reply(404, f"no route {call.method} {call.url}; here are {known}")
        try:
            return await self._pictures(call, kind, lease)
        except BadRequest as error:
            return error.reply()
        except Unsuitable as error:
            return error_reply(400, f"the pipeline does not take this: {error}", code="unsupported")
        except OutOfMemory:
            return error_reply(
                507,
                f"the picture needs more than {self.terms.workload}'s budget of {self.terms.vram_gib:g} GiB leaves for "
                "it; ask for a smaller size, or raise the workload's vram_gib",
                code="insufficient_memory",
            )
        except CallError:
            raise
        except Exception as error:
            event(LOG, "picture_failed", level=logging.ERROR, error=error, request_id=call.request_id)
            return error_reply(500, "the picture could not be made; the log has the reason", code="generation_failed")

    async def _pictures(self, call: Call, kind: type[GenerationRequest], lease: Lease) -> Reply:
        priority = priority_of(call)
        request = await self._beside(priority, parse, call.body, kind)
        decoded = await self._all_decoded(request, call.files, priority)
        # OpenAI's answer is JSON; the picture itself is for who asks for one, and one at a time.
        as_json = request.count > 1 or "image/" not in call.accept.lower() or wants_json(call.accept)
        async with lease():
            abilities = self._pipeline.abilities
            if self.tier is not Tier.RESIDENT or abilities is None:
                raise _not_awake()
            task = shapes.task_of(request, abilities)
            edit = await self._edit(request, task, decoded, abilities, priority)
            shape, subjects = self._subjects(request, task, edit, abilities)
            made = await self._made(shape, subjects, call, mixing=shapes.mixes(request, abilities, edit.images))
        finish = functools.partial(_finished, request, edit.first)
        files = await asyncio.gather(*(self._beside(priority, finish, one) for one in made))
        seeds = [subject.seed for subject in subjects]
        headers = {"x-image-seed": str(seeds[0])}
        if not as_json:
            return Reply(200, files[0][0], f"image/{request.format}", headers)
        width, height = files[0][1]
        answer = {
            "created": int(time.time()),
            "background": "opaque",
            "output_format": request.format,
            "size": f"{width}x{height}",
            "seed": seeds[0],
            "steps": shape.steps,
            "guidance": shape.guidance,
            "data": [
                {
                    "b64_json": base64.b64encode(file).decode("ascii"),
                    "seed": seed,
                    **({"flagged": True} if flag else {}),
                }
                for (file, _), seed, flag in zip(files, seeds, (one.flagged for one in made), strict=True)
            ],
        }
        return Reply(200, await self._beside(priority, _json, answer), JSON_TYPE, headers)

    def _subjects(
        self, request: GenerationRequest, task: Task, edit: _Images, abilities: shapes.Abilities
    ) -> tuple[Shape, list[Subject]]:
        """What the request asks of the pipeline. Raises BadRequest."""
        size = edit.size or edits.exact_size(
            request.sides, self.spec.size_px or abilities.default_px, self._limits(abilities)
        )
        shape = shapes.shape_of(request, task, size, self.spec, abilities)
        first_seed = request.seed if request.seed is not None else secrets.randbelow(2**31)
        subject = Subject(
            prompt=request.prompt,
            seed=first_seed,
            negative=shapes.negative_of(request, abilities.traits[task], abilities.family),
            image=edit.first.image if edit.first is not None else None,
            mask=edit.first.mask if edit.first is not None else None,
            references=edit.references,
        )
        return shape, [replace(subject, seed=first_seed + index) for index in range(request.count)]

    async def _all_decoded(
        self, request: GenerationRequest, files: Mapping[str, bytes], priority: Priority
    ) -> list[Image.Image]:
        """The images of an edit in order, its mask last, fetched and decoded. Raises BadRequest."""
        if not isinstance(request, EditRequest):
            return []
        given = dict(request.sources) | ({"mask": request.mask} if request.mask is not None else {})
        return [await self._decoded(one, files, name, priority) for name, one in given.items()]

    async def _edit(
        self,
        request: GenerationRequest,
        task: Task,
        decoded: list[Image.Image],
        abilities: shapes.Abilities,
        priority: Priority,
    ) -> _Images:
        """The images and the mask of an edit, fitted. Raises BadRequest."""
        if not isinstance(request, EditRequest):
            return _Images()
        limits = self._limits(abilities)
        size = None if request.sides is None else edits.exact_size(request.sides, 0, limits)
        shapes.require_images(len(request.sources), task, abilities)
        mask = decoded.pop() if request.mask is not None else None
        first = await self._beside(priority, edits.prepared, decoded[0], mask, size, limits)
        further = [await self._beside(priority, edits.reference, image, limits) for image in decoded[1:]]
        return _Images(first, tuple(further))

    def _limits(self, abilities: shapes.Abilities) -> edits.Limits:
        return edits.Limits(self.spec.max_size_px, abilities.family.multiple, abilities.family.least_px)

    async def _decoded(
        self, picture: Picture, files: Mapping[str, bytes], name: str, priority: Priority
    ) -> Image.Image:
        source = await self._beside(priority, picture_source, picture, files, name)
        data = await self._fetcher.fetch(source.url, name) if isinstance(source, Url) else source
        return await self._beside(priority, decode, data, name)

    async def _made(self, shape: Shape, subjects: list[Subject], call: Call, *, mixing: bool) -> list[Made]:
        """The pictures, once the pipeline has had time for them."""
        gone, priority = threading.Event(), priority_of(call)
        shapes_of_each = [shape if mixing else replace(shape, alone=next(self._numbers)) for _ in subjects]
        tickets = [
            _Ticket(each, subject, priority, call.request_id, gone)
            for each, subject in zip(shapes_of_each, subjects, strict=True)
        ]
        with self._line:
            self._waiting.extend(tickets)
        try:
            for _ in tickets:
                self._denoiser.submit(functools.partial(self._next, priority), priority)
            return await asyncio.gather(*(asyncio.wrap_future(ticket.made) for ticket in tickets))
        finally:
            gone.set()
            with self._line:
                self._waiting = [ticket for ticket in self._waiting if ticket.gone is not gone]

    def _next(self, priority: Priority) -> None:
        """Denoise the next pictures of one class, if anybody still waits. Every ticket has one of these in the line."""
        with self._line:
            alike = [ticket for ticket in self._waiting if ticket.priority is priority]
            batch = [alike[index] for index in together([ticket.shape for ticket in alike], self.spec.max_batch)]
            self._waiting = [ticket for ticket in self._waiting if ticket not in batch]
        batch = [ticket for ticket in batch if ticket.made.set_running_or_notify_cancel()]
        if batch:
            self._denoise(batch)

    def _denoise(self, batch: list[_Ticket]) -> None:
        shape = batch[0].shape
        ids = tuple(dict.fromkeys(ticket.request_id for ticket in batch))
        outer = self.progress

        def unwanted() -> bool:
            return self._closing or all(ticket.gone.is_set() for ticket in batch)

        def step(done: int) -> None:
            self.progress = Progress(done, shape.steps, len(batch), ids)
            event(LOG, "denoise_step", level=logging.DEBUG, step=done, steps=shape.steps, pictures=len(batch))
            self._denoiser.give_way(unwanted)
            if unwanted():
                raise Cancelled

        try:
            if self._pipeline.tier is not Tier.RESIDENT:
                raise _not_awake()
            began = time.perf_counter()
            step(0)
            made: list[Made] | Exception = self._pipeline.make(shape, [ticket.subject for ticket in batch], step)
        except Exception as error:
            made = error
        finally:
            self.progress = outer
        if not isinstance(made, Exception):
            seconds = round(time.perf_counter() - began, 3)
            event(LOG, "pictures_made", pictures=len(batch), task=shape.task, steps=shape.steps, seconds=seconds)
            for ticket, one in zip(batch, made, strict=True):
                ticket.made.set_result(one)
            return
        if isinstance(made, OutOfMemory):
            event(
                LOG,
                "picture_out_of_memory",
                level=logging.WARNING,
                pictures=len(batch),
                size=f"{shape.width}x{shape.height}",
            )
            if len(batch) > 1:
                for ticket in batch:
                    self._denoise([ticket])
                return
        for ticket in batch:
            ticket.made.set_exception(made)

    def _wake(self) -> None:
        began = time.perf_counter()
        before = self._pipeline.tier
        self._pipeline.load(self.on_stage)
        seconds = round(time.perf_counter() - began, 3)
        event(LOG, "image_engine_ready", workload=self.terms.workload, was=before.value, seconds=seconds)

    async def _beside(self, priority: Priority, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.wrap_future(self._helpers.submit(functools.partial(function, *arguments), priority))


@dataclass(frozen=True)
class _Images:
    """What an edit starts from; nothing for pictures from words alone."""

    first: edits.Edit | None = None
    references: tuple[Image.Image, ...] = ()

    @property
    def images(self) -> int:
        return (self.first is not None) + len(self.references)

    @property
    def size(self) -> tuple[int, int] | None:
        return self.first.image.size if self.first is not None else None


def _finished(request: GenerationRequest, edit: edits.Edit | None, made: Made) -> tuple[bytes, tuple[int, int]]:
    """The picture's file, and its width and height."""
    pixels = edit.finished(made.pixels) if edit is not None else made.pixels
    return encoded(pixels, request.format, request.file_quality), (pixels.shape[1], pixels.shape[0])


def _json(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer).encode()


def _not_awake() -> BadRequest:
    return BadRequest("the pipeline is not awake", code="not_awake", status=503)
