"""A request and what the pipeline can do, to the shape it is denoised in; what can't be done is refused here. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cotenant.config import ImageSpec
from cotenant.engines.image.batching import Shape, Task
from cotenant.engines.image.families import Family, Traits
from cotenant.engines.image.request import EditRequest, GenerationRequest
from cotenant.engines.pictures.refusal import BadRequest


@dataclass(frozen=True)
class Abilities:
    """What a loaded pipeline can do. `traits` has the tasks that it does."""

    class_name: str
    family: Family
    traits: Mapping[Task, Traits]
    default_px: int


def task_of(request: GenerationRequest, abilities: Abilities) -> Task:
    """What is asked of the pipeline. Raises BadRequest for what it can't do."""
    if not isinstance(request, EditRequest):
        task: Task = "text"
    else:
        task = "image" if request.mask is None else "inpaint"
    if task in abilities.traits:
        return task
    name = abilities.class_name
    if task == "text":
        raise _cannot(f"{name} only edits: POST an image to /v1/images/edits", "model")
    if task == "inpaint":
        raise _cannot(f"{name} takes no mask; leave it out, or name a model that inpaints", "mask")
    if "inpaint" in abilities.traits:
        raise _cannot(f"{name} only edits inside a mask; send one", "mask")
    raise _cannot(f"{name} makes pictures from words alone; POST to /v1/images/generations", "model")


def shape_of(
    request: GenerationRequest, task: Task, size: tuple[int, int], spec: ImageSpec, abilities: Abilities
) -> Shape:
    """The shape of the request's pictures, without `alone`. Raises BadRequest."""
    family, traits = abilities.family, abilities.traits[task]
    steps = request.steps or spec.steps or family.steps or traits.steps
    if request.guidance is not None and not traits.guidance_name:
        raise _cannot(f"{abilities.class_name} takes no guidance; leave it out", "guidance")
    if request.negative_prompt is not None and not traits.negative:
        raise _cannot(f"{abilities.class_name} takes no negative_prompt; leave it out", "negative_prompt")
    choices = (request.guidance, spec.guidance, family.guidance, traits.guidance)
    return Shape(
        task=task,
        width=size[0],
        height=size[1],
        steps=steps,
        guidance=next(choice for choice in choices if choice is not None),
        strength=_strength(request, steps, traits, abilities.class_name),
        negative=negative_of(request, traits, family) is not None,
    )


def negative_of(request: GenerationRequest, traits: Traits, family: Family) -> str | None:
    """The negative prompt to use: the request's, or what the pipeline needs in its place."""
    if request.negative_prompt is not None:
        return request.negative_prompt
    return family.negative if traits.negative else None


def mixes(request: GenerationRequest, abilities: Abilities, images: int) -> bool:
    """Whether the request's pictures may be denoised with others: they have no seed of the caller's to keep to."""
    if request.seed is not None or images > 1:
        return False
    return abilities.family.edits_together or not isinstance(request, EditRequest)


def require_images(given: int, task: Task, abilities: Abilities) -> None:
    """Raises BadRequest if the pipeline can't take so many images in one edit."""
    most = abilities.family.images
    if task == "inpaint":
        most = 2 if "image_reference" in abilities.traits[task].takes else 1
    if given > most:
        raise _cannot(
            f"{abilities.class_name} takes {most} image{'s' * (most > 1)} in such an edit, got {given}", "image"
        )


def _strength(request: GenerationRequest, steps: int, traits: Traits, class_name: str) -> float | None:
    wanted = request.strength if isinstance(request, EditRequest) else None
    if traits.strength is None:
        if wanted is not None:
            raise _cannot(f"{class_name} takes no strength; leave it out", "strength")
        return None
    strength = traits.strength if wanted is None else wanted
    if int(steps * strength) < 1:
        raise BadRequest(
            f"strength: {strength:g} of {steps} steps is less than one step; raise strength or steps",
            param="strength",
            code="invalid_value",
        )
    return strength


def _cannot(message: str, param: str) -> BadRequest:
    return BadRequest(message, param=param, code="unsupported")
