"""From a folder to pipelines: what is read and how, and the classes for every task over one set of components.

Weights are only ever read from safetensors, and no code that comes with a model is run.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cotenant.config import ImageSpec
from cotenant.engines.image import models, weights
from cotenant.engines.image.batching import Task
from cotenant.engines.image.families import Traits, family_of, sibling, tasks_of
from cotenant.engines.image.shapes import Abilities
from cotenant.errors import EnvironmentFault

#: Side of a picture where neither spec nor pipeline says.
DEFAULT_PX = 1024
TASKS: tuple[Task, ...] = ("text", "image", "inpaint")
#: Components that quantisation is for; the VAE is small and suffers from it.
QUANTIZED = ("transformer", "transformer_2", "unet", "text_encoder", "text_encoder_2", "text_encoder_3")


def imports() -> None:
    """What reading a pipeline imports: seconds, the first time in a process."""
    import diffusers  # noqa: PLC0415 - heavy; imported once the pipeline is wanted
    import transformers  # noqa: PLC0415

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    _ = diffusers.DiffusionPipeline


def read(folder: Path, spec: ImageSpec, dtype: str, light: Mapping[str, Any]) -> Any:
    """The pipeline in `folder`, in host memory unless it is quantised; parts in `light` are taken over.

    Raises:
        EnvironmentFault: it can't be loaded.
    """
    import diffusers  # noqa: PLC0415 - heavy

    imports()
    quantization = {} if spec.quantization == "none" else {"quantization_config": _quantization(folder, spec, dtype)}
    try:
        pipe = diffusers.DiffusionPipeline.from_pretrained(
            folder, dtype=_torch_dtype(dtype), use_safetensors=True, local_files_only=True, **quantization, **light
        )
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise EnvironmentFault(f"model {spec.model} at {folder} can't be loaded: {str(error)[:500]}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def dtype_of(spec: ImageSpec, device: str) -> str:
    """The weights' type: the spec's, or what suits the device."""
    if spec.dtype != "auto":
        return spec.dtype
    if device == "cpu":
        return "float32"
    import torch  # noqa: PLC0415 - heavy

    # Before Ampere bfloat16 is only emulated.
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def weights_gib(folder: Path, spec: ImageSpec, dtype: str) -> dict[str, float]:
    """What the pipeline's components will take once loaded."""
    return weights.gib_of(weights.parameters(folder), dtype, spec.quantization, frozenset(QUANTIZED))


def tasks(pipe: Any, *, bundled: bool) -> tuple[dict[Task, Any], Abilities]:
    """The pipelines by task, all over the components of `pipe`, and what they can do."""
    import diffusers  # noqa: PLC0415
    from diffusers.pipelines import auto_pipeline  # noqa: PLC0415

    name = type(pipe).__name__
    transformer = getattr(pipe, "transformer", None)
    guided = getattr(getattr(transformer, "config", None), "guidance_embeds", True)
    family = family_of(name, bundled=bundled, guided=bool(guided))
    mappings = {
        "text": auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
        "image": auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
        "inpaint": auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING,
    }
    tables = {task: {kind: cls.__name__ for kind, cls in mappings[task].items()} for task in TASKS}
    own = tasks_of(_defaults(type(pipe)))
    by_task: dict[Task, Any] = {}
    for task in TASKS:
        class_name = sibling(name, family, task, tables, own)
        cls = getattr(diffusers, class_name, None) if class_name is not None else None
        made = pipe if class_name == name else _shared(cls, pipe) if cls is not None else None
        if made is not None:
            by_task[task] = made
    traits = {task: Traits.of(_defaults(type(made))) for task, made in by_task.items()}
    return by_task, Abilities(name, family, traits, _default_px(pipe))


def twin(pipe: Any) -> Any:
    """Another pipeline over the same weights that can run while a run of `pipe` is halfway.

    What a run changes is its pipeline object and the schedulers; the rest is shared.
    """
    import diffusers  # noqa: PLC0415

    other = copy.copy(pipe)
    for name, part in pipe.components.items():
        if isinstance(part, diffusers.SchedulerMixin):
            setattr(other, name, copy.deepcopy(part))
    return other


def is_module(part: object) -> bool:
    """Whether a component has weights."""
    import torch  # noqa: PLC0415 - heavy

    return isinstance(part, torch.nn.Module)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator had nothing left: torch's on a GPU, torch's on a CPU (a RuntimeError), Python's."""
    import torch  # noqa: PLC0415 - heavy, and loaded already where something was allocated

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _quantization(folder: Path, spec: ImageSpec, dtype: str) -> Any:
    """Quantise denoiser and text encoders while they load (bitsandbytes). Raises EnvironmentFault."""
    import diffusers  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    kinds = {"diffusers": diffusers.BitsAndBytesConfig, "transformers": transformers.BitsAndBytesConfig}
    if spec.quantization == "4bit":
        options = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": _torch_dtype(dtype),
        }
    else:
        options = {"load_in_8bit": True}
    index = models.index_of(folder)
    libraries = {name: index[name][0] for name in QUANTIZED if isinstance(index.get(name), list)}
    mapping = {name: kinds[library](**options) for name, library in libraries.items() if library in kinds}
    return diffusers.PipelineQuantizationConfig(quant_mapping=mapping)


def _torch_dtype(name: str) -> Any:
    import torch  # noqa: PLC0415 - heavy

    return getattr(torch, name)


def _defaults(cls: type) -> Mapping[str, Any]:
    """The parameters of a pipeline class's `__call__`, by name, with their defaults."""
    return {name: parameter.default for name, parameter in inspect.signature(cls.__call__).parameters.items()}


def _shared(cls: Any, pipe: Any) -> Any:
    """A `cls` over the components of `pipe`, or None if it needs others.

    Not `from_pipe`: that casts the shared weights to float32 unless told otherwise, and can't with quantised ones.
    """
    unet, vae = getattr(pipe, "unet", None), getattr(pipe, "vae", None)
    if unet is not None and vae is not None and unet.config.in_channels != vae.config.latent_channels:
        return None  # made for inpainting alone: its UNet wants the mask among its channels
    known = {**pipe.config, **pipe.components}
    given = {}
    for name, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]:
        if name in known:
            given[name] = known[name]
        elif name in cls._optional_components:
            given[name] = None
        elif parameter.default is inspect.Parameter.empty:
            return None
    made = cls(**given)
    made.set_progress_bar_config(disable=True)
    return made


def _default_px(pipe: Any) -> int:
    """The side that the pipeline was trained for, where it says."""
    unet = getattr(pipe, "unet", None)
    sample = unet.config.sample_size if unet is not None else getattr(pipe, "default_sample_size", None)
    if not isinstance(sample, int):
        sample = max(sample) if isinstance(sample, list | tuple) and sample else None
    return int(sample * getattr(pipe, "vae_scale_factor", 8)) if sample else DEFAULT_PX
