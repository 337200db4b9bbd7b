"""Facts of the models that come with the package, known before anything is made of them.

Read from what the bundled names turn into (`engines.llm.models`, `engines.image.tiny`); a test compares them with
the converted folders where those are there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cotenant.gpu.fit.decoder import Decoder
from cotenant.gpu.fit.image import Component, ImageFacts
from cotenant.gpu.fit.llm import LlmFacts
from cotenant.gpu.fit.tensors import Tensors

_SOURCE = "the bundled model"


def _smollm2_135m() -> LlmFacts:
    config = {
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
    return LlmFacts(Decoder.of(config), None, _SOURCE)


def _tiny_inpaint() -> ImageFacts:
    def part(name: str, matrices: int, tables: int, vectors: int, largest: int, *channels: int) -> Component:
        held = Tensors({"F32": matrices}, {"F32": tables}, {"F32": vectors}, _SOURCE, largest)
        return Component(name, held, {"block_out_channels": list(channels)} if channels else {})

    parts = (
        part("text_encoder", 16_384, 18_912, 768, 16_448),
        part("unet", 955_648, 20_480, 9_316, 73_728, 32, 64),
        part("vae", 313_136, 0, 3_559, 9_216, 16, 32, 32, 32),
    )
    return ImageFacts("StableDiffusionPipeline", parts, _SOURCE)


LLMS: Mapping[str, Callable[[], LlmFacts]] = {"smollm2-135m": _smollm2_135m}
IMAGES: Mapping[str, Callable[[], ImageFacts]] = {"tiny-inpaint": _tiny_inpaint}
