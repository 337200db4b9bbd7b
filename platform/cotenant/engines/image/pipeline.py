"""A diffusers pipeline, awake or asleep, kept inside its budget.

Everything here happens on the engine's own thread. torch uses as many threads as OMP_NUM_THREADS says, which Ray sets
to the CPUs that the replica books; nothing is compiled.

Asleep, on a GPU, the weights lie in host memory and the GPU holds no more than its context. On a CPU host memory
*is* the budget, so asleep the weights are dropped and freed, while tokenizers, schedulers and configurations stay;
waking reads the files again, which the page cache makes quick. Cold, nothing is held.

A picture may be made between two steps of others. A run keeps its state in the pipeline object and its scheduler, so
a run inside a run has an object and a scheduler of its own, over the same weights; nothing of the outer run changes.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from cotenant.config import ImageSpec
from cotenant.engines.image import assembly, models, placement
from cotenant.engines.image.batching import Shape, Task
from cotenant.engines.image.families import Traits
from cotenant.engines.image.shapes import Abilities
from cotenant.engines.pictures.encode import Bytes
from cotenant.errors import EnvironmentFault
from cotenant.gpu.terms import Terms, Tier
from cotenant.telemetry.logs import event
from cotenant.telemetry.starts import OnStage, unheard

LOG = logging.getLogger("cotenant.image")
T = TypeVar("T")


class OutOfMemory(Exception):
    """The picture needed more memory than the budget leaves. The pipeline is fit for the next one."""


class Cancelled(Exception):
    """Nobody waits for the picture any more."""


class Unsuitable(Exception):
    """The pipeline's own checks refused what it was given; its words."""


@dataclass(frozen=True)
class Subject:
    """One picture to make. `image` and `mask` have the shape's size; `references` are further images."""

    prompt: str
    seed: int
    negative: str | None = None
    image: Image.Image | None = None
    mask: Image.Image | None = None
    references: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class Made:
    """A picture, (h, w, 3); `flagged` if the model's own safety checker blackened it."""

    pixels: Bytes
    flagged: bool = False


class Pipeline:
    """One pipeline of one replica. Made cold; `load` wakes it from wherever it is."""

    def __init__(self, spec: ImageSpec, terms: Terms, home: Path) -> None:
        self.tier = Tier.COLD
        self.abilities: Abilities | None = None
        self._spec = spec
        self._terms = terms
        self._home = home
        self._model = models.locate(spec.model)
        self._folder: Path | None = None
        self._pipe: Any = None
        #: Over the same components: for a run, and for a run inside that.
        self._by_task: dict[Task, Any] = {}
        self._inner_by_task: dict[Task, Any] = {}
        self._runs = 0
        self._light: dict[str, Any] = {}
        self._offload: placement.Offload = "none"
        self._room_gib = terms.vram_gib

    @property
    def device(self) -> str:
        return "cpu" if self._terms.on_cpu else "cuda"

    def load(self, on_stage: OnStage = unheard) -> None:
        """Be resident. Raises EnvironmentFault for a pipeline that can't be had, OutOfMemory for one too large."""
        if self.tier is Tier.RESIDENT:
            return
        on_stage("imports")
        assembly.imports()
        on_stage("weights")
        try:
            self._guarded(self._read if self._pipe is None else self._return)
        except BaseException:
            self._drop(Tier.COLD)
            raise
        self.tier = Tier.RESIDENT

    def park(self, tier: Tier) -> None:
        """Give memory back: asleep or cold. Does nothing to a pipeline that is as far down already."""
        if tier is Tier.RESIDENT:
            raise ValueError("a pipeline is parked asleep or cold; load makes it resident")
        if tier is self.tier or self.tier is Tier.COLD:
            return
        if tier is Tier.ASLEEP and self.device == "cuda":
            if self._offload == "none":
                self._pipe.to("cpu")
            self.tier = tier
            self._free()
        else:
            self._drop(tier)

    def memory_bytes(self) -> int:
        """What torch's allocator holds of the GPU; on a CPU the parameters and buffers."""
        if self.device == "cuda":
            import torch  # noqa: PLC0415 - heavy

            # Zero where CUDA was never touched.
            return int(torch.cuda.memory_reserved())
        return sum(
            tensor.numel() * tensor.element_size()
            for module in _modules(self._pipe)
            for tensor in (*module.parameters(), *module.buffers())
        )

    def make(self, shape: Shape, subjects: Sequence[Subject], step: Callable[[int], None]) -> list[Made]:
        """The subjects' pictures, denoised together. `step` is told how many steps are done, and may raise Cancelled.

        `step` may also make other pictures, which may not make any in their turn.

        Raises:
            Cancelled: as `step` does.
            Unsuitable: the pipeline refused its input before the first step.
            OutOfMemory: there was not enough; nothing of it is held any more.
        """
        if self._runs > 1:
            raise RuntimeError("there is a run inside a run already")
        pipe = (self._inner_by_task if self._runs else self._by_task)[shape.task]
        abilities = self.abilities
        assert abilities is not None
        self._set_tiling(shape)
        begun = False

        def stepped(done: int) -> None:
            nonlocal begun
            begun = True
            step(done)
            self._set_tiling(shape)  # as a run inside this one may have it otherwise

        arguments = self._arguments(shape, subjects, abilities.traits[shape.task], stepped)
        if self._runs and self._offload == "model":
            self._pipe.maybe_free_model_hooks()  # the outer run's part is on the GPU
        self._runs += 1
        try:
            answer = self._guarded(lambda: pipe(**arguments))
        except ValueError as error:
            if begun:
                raise
            raise Unsuitable(str(error).partition("\n")[0][:300]) from error
        finally:
            self._runs -= 1
            if self._offload == "model":
                self._pipe.maybe_free_model_hooks()
        flags = getattr(answer, "nsfw_content_detected", None) or [False] * len(subjects)
        return [
            Made(np.asarray(image.convert("RGB")), bool(flag)) for image, flag in zip(answer.images, flags, strict=True)
        ]

    def _arguments(
        self, shape: Shape, subjects: Sequence[Subject], traits: Traits, step: Callable[[int], None]
    ) -> dict[str, Any]:
        import torch  # noqa: PLC0415 - heavy

        def after_step(_: Any, index: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            step(index + 1)
            return tensors

        given: dict[str, Any] = {
            "prompt": [subject.prompt for subject in subjects],
            "num_inference_steps": shape.steps,
            # Noise comes from the CPU's generator, so that a seed means the same on every device.
            "generator": [torch.Generator("cpu").manual_seed(subject.seed) for subject in subjects],
            "width": shape.width,
            "height": shape.height,
            "output_type": "pil",
            "callback_on_step_end": after_step,
        }
        if traits.guidance_name:
            given[traits.guidance_name] = shape.guidance
        if shape.strength is not None:
            given["strength"] = shape.strength
        if shape.negative:
            given["negative_prompt"] = [subject.negative or "" for subject in subjects]
        if shape.task != "text":
            references = list(subjects[0].references)
            given["image"] = [subject.image for subject in subjects]
            if shape.task == "image" and references:
                given["image"] = [subjects[0].image, *references]
            elif references:
                given["image_reference"] = references[0]
        if shape.task == "inpaint":
            given["mask_image"] = [subject.mask for subject in subjects]
        return {name: value for name, value in given.items() if name in traits.takes}

    def _read(self) -> None:
        """Build the pipeline from its files. What stayed while asleep is taken over."""
        if self._spec.quantization != "none" and self.device == "cpu":
            raise EnvironmentFault(
                f"quantization {self._spec.quantization} needs a GPU; this pool is a CPU: set quantization: none"
            )
        self._folder = folder = self._folder or models.materialise(self._model, self._home)
        dtype = assembly.dtype_of(self._spec, self.device)
        weights_gib = assembly.weights_gib(folder, self._spec, dtype)
        if self.device == "cuda":
            self._cap()
            self._offload = placement.offload_of(self._spec.offload, weights_gib, self._terms.vram_gib)
        self._room_gib = placement.room_gib(self._offload, weights_gib, self._terms.vram_gib)
        self._pipe = pipe = assembly.read(folder, self._spec, dtype, self._light)
        self._light = {name: part for name, part in pipe.components.items() if not assembly.is_module(part)}
        self._place(pipe)
        self._by_task, self.abilities = assembly.tasks(pipe, bundled=self._model.kind == "bundled")
        self._inner_by_task = {task: assembly.twin(each) for task, each in self._by_task.items()}
        event(
            LOG,
            "pipeline_loaded",
            pipeline=type(pipe).__name__,
            tasks=", ".join(self._by_task),
            dtype=dtype,
            offload=self._offload,
            weights_gib=round(sum(weights_gib.values()), 3),
        )

    def _place(self, pipe: Any) -> None:
        """Put a pipeline just read where it works from. An offloaded one is moved by its hooks from now on."""
        if self.device == "cpu":
            return
        if self._offload == "model":
            pipe.enable_model_cpu_offload()
        elif self._offload == "sequential":
            pipe.enable_sequential_cpu_offload()
        else:
            pipe.to("cuda")

    def _return(self) -> None:
        """Back from host memory."""
        if self._offload == "none":
            self._pipe.to("cuda")

    def _drop(self, tier: Tier) -> None:
        if tier is Tier.COLD:
            self._light = {}
        self._pipe = None
        self._by_task = self._inner_by_task = {}
        self.tier = tier
        self._free()

    def _guarded(self, work: Callable[[], T]) -> T:
        """What `work` returns. An allocator's failure becomes OutOfMemory once all that was allocated is let go."""
        try:
            return work()
        except Exception as error:
            if not assembly.is_out_of_memory(error):
                raise
            failure = OutOfMemory(str(error).partition("\n")[0][:200] or type(error).__name__)
        # Only here are the frames gone that held the tensors.
        self._free()
        raise failure

    def _set_tiling(self, shape: Shape) -> None:
        """Decode picture by picture, and in tiles where the budget demands it."""
        vae: Any = getattr(self._pipe, "vae", None)
        if hasattr(vae, "enable_slicing"):
            vae.enable_slicing()
        if not hasattr(vae, "enable_tiling"):
            return
        channels = tuple(getattr(vae.config, "block_out_channels", None) or (128, 256))
        size = next(vae.parameters()).element_size()
        widest = channels[min(1, len(channels) - 1)]
        if placement.tiles(shape.width * shape.height, room_gib=self._room_gib, channels=widest, bytes_per_value=size):
            vae.enable_tiling()
        else:
            vae.disable_tiling()

    def _cap(self) -> None:
        """Hold torch to the budget, and to kernels that give the same bytes each time, before anything is allocated."""
        import torch  # noqa: PLC0415 - heavy

        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        total_gib = torch.cuda.get_device_properties(0).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(placement.cap_fraction(self._terms.vram_gib, total_gib))

    def _free(self) -> None:
        """Have the allocators return what nobody uses, to the GPU and to the operating system."""
        gc.collect()
        if self.device == "cuda":
            import torch  # noqa: PLC0415 - heavy

            torch.cuda.empty_cache()
        ctypes.CDLL(None).malloc_trim(0)


def _modules(pipe: Any) -> list[Any]:
    return [part for part in pipe.components.values() if assembly.is_module(part)] if pipe is not None else []
