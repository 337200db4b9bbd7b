"""What a diffusers pipeline can do, and what a request that doesn't say gets. Pure.

A pipeline's abilities are read off the parameters of its `__call__`, so pipelines that nobody thought of here work
too; the table only knows what can't be read: which settings a distilled model needs, how sizes must divide, whether
several edits fit into one batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cotenant.engines.image.batching import Task


@dataclass(frozen=True)
class Family:
    """Pipelines of one kind. `steps` and `guidance` of None are the pipeline's own defaults."""

    name: str
    #: Beginnings of the class names that belong to it.
    classes: tuple[str, ...]
    steps: int | None
    guidance: float | None
    #: Sides have to be multiples of this many pixels: VAE factor x patch size.
    multiple: int
    #: The shortest side it takes.
    least_px: int = 16
    #: Images that an edit may be given.
    images: int = 1
    #: Whether edits of different images may be denoised in one batch.
    edits_together: bool = False
    #: What a negative prompt that is not given means, where the pipeline needs one for its guidance.
    negative: str | None = None
    source: str = ""


GENERIC = Family("generic", (), None, None, 16, source="the defaults of the pipeline's own __call__")
TINY = Family("tiny", (), 4, 3.0, 8, edits_together=True, source="ours: its pictures are noise at any setting")
SCHNELL = Family("flux-schnell", (), 4, 0.0, 16, source="model card of FLUX.1-schnell")

#: The first whose `classes` fit. `source` is a pipeline whose `__call__` has them in
#: diffusers 0.42.1, or a model card.
FAMILIES: tuple[Family, ...] = (
    Family("flux2-klein", ("Flux2Klein",), 4, 1.0, 16, 64, images=4, source="model card of FLUX.2-klein-4B"),
    Family("flux2", ("Flux2",), 50, 4.0, 16, 64, images=4, source="Flux2Pipeline"),
    Family("flux", ("Flux",), 28, 3.5, 16, source="FluxPipeline"),
    Family("sdxl", ("StableDiffusionXL",), 50, 5.0, 8, edits_together=True, source="StableDiffusionXLPipeline"),
    Family("sd3", ("StableDiffusion3",), 28, 7.0, 16, source="StableDiffusion3Pipeline"),
    Family("sd", ("StableDiffusion",), 50, 7.5, 8, edits_together=True, source="StableDiffusionPipeline"),
    Family("lcm", ("LatentConsistency",), 4, 8.5, 8, source="LatentConsistencyModelPipeline"),
    Family(
        "qwen-edit-plus", ("QwenImageEditPlus",), 50, 4.0, 16, images=3, negative=" ",
        source="QwenImageEditPlusPipeline and the model card of Qwen-Image-Edit-2509",
    ),
    Family("qwen", ("QwenImage",), 50, 4.0, 16, negative=" ", source="QwenImagePipeline"),
    Family("sana", ("Sana",), 20, 4.5, 32, 32, source="SanaPipeline"),
)  # fmt: skip


def family_of(class_name: str, *, bundled: bool = False, guided: bool = True) -> Family:
    """The family of a pipeline class. `guided` is false for a FLUX.1 transformer without guidance embedding."""
    if bundled:
        return TINY
    found = next((f for f in FAMILIES if class_name.startswith(f.classes)), GENERIC)
    return SCHNELL if found.name == "flux" and not guided else found


@dataclass(frozen=True)
class Traits:
    """What one pipeline class takes and what it does unasked."""

    takes: frozenset[str]
    steps: int
    guidance: float
    strength: float | None
    #: The parameter that guidance goes by; empty if there is none.
    guidance_name: str
    negative: bool

    @classmethod
    def of(cls, defaults: Mapping[str, Any]) -> Traits:
        """From the parameters of `__call__` with their defaults."""
        by_cfg = "true_cfg_scale" in defaults and defaults.get("guidance_scale") is None
        name = "true_cfg_scale" if by_cfg else "guidance_scale" if "guidance_scale" in defaults else ""
        # FLUX.1 takes a negative prompt, which does nothing while true_cfg_scale is at its default of 1.
        mute = "true_cfg_scale" in defaults and not by_cfg
        strength = defaults.get("strength")
        return cls(
            takes=frozenset(defaults),
            steps=int(defaults.get("num_inference_steps") or 50),
            guidance=float(defaults.get(name) or 0.0),
            strength=float(strength) if isinstance(strength, int | float) else None,
            guidance_name=name,
            negative="negative_prompt" in defaults and not mute,
        )


def tasks_of(defaults: Mapping[str, Any]) -> frozenset[Task]:
    """The tasks that a class does by itself: an image that has a default may be left out, a mask may not."""
    if "mask_image" in defaults:
        return frozenset({"inpaint"})
    if "image" not in defaults:
        return frozenset({"text"})
    return frozenset({"image"})


#: Classes for tasks that diffusers' AutoPipeline tables leave out, by family.
SIBLINGS: Mapping[str, Mapping[Task, str]] = {
    "flux2-klein": {"inpaint": "Flux2KleinInpaintPipeline"},
}


def sibling(
    class_name: str, family: Family, task: Task, tables: Mapping[Task, Mapping[str, str]], own: frozenset[Task]
) -> str | None:
    """The class that does `task` with the components of `class_name`, or None.

    `tables` are AutoPipeline's: for each task, class names by kind of model. `own` is what the class does by itself.
    """
    if explicit := SIBLINGS.get(family.name, {}).get(task):
        return explicit
    kinds = [kind for table in tables.values() for kind, name in table.items() if name == class_name]
    for kind in kinds:
        if found := tables[task].get(kind):
            return found
    return class_name if task in own else None
