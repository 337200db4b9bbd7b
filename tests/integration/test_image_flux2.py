"""FLUX.2-klein's own classes at toy size with random weights: the pipeline that a 24 GB card is meant to run.

What is checked is that our calls fit its classes: words, up to four reference images, a mask through the class that
AutoPipeline does not know. The pictures are noise.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from cotenant.calls import Call, Reply
from cotenant.config import ImageSpec
from cotenant.engines.image.engine import ImageEngine
from cotenant.engines.image.request import EDITS_URL, GENERATIONS_URL
from cotenant.engines.image.tiny import alphabet
from cotenant.gpu.terms import Terms

pytestmark = pytest.mark.integration

TERMS = Terms(
    workload="painter", kind="image", pool="shared", accelerator="cpu",
    usable_gib=12, vram_gib=2, floor_gib=1, num_gpus=0.2, residency="sleep",
)  # fmt: skip
_MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def build(folder: Path) -> None:
    vocabulary = {token: index for index, token in enumerate([*alphabet(), *_MARKS])}
    bytes_only = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, eos_token=_MARKS[2], pad_token=_MARKS[0])
    tokenizer.chat_template = _TEMPLATE
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # The pipeline reads layers 9, 18 and 27 of its text encoder, side by side: 3 x 16 channels.
        text_encoder = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=len(vocabulary), hidden_size=16, intermediate_size=16, num_hidden_layers=28,
                num_attention_heads=2, num_key_value_heads=2, head_dim=8, max_position_embeddings=512,
            )
        )  # fmt: skip
        transformer = Flux2Transformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=48, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
        )  # fmt: skip
        vae = AutoencoderKLFlux2(
            block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, latent_channels=4, norm_num_groups=2,
        )  # fmt: skip
    Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=text_encoder, tokenizer=tokenizer,
        transformer=transformer, is_distilled=True,
    ).save_pretrained(folder)  # fmt: skip


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageEngine]:
    folder = tmp_path_factory.mktemp("klein")
    build(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = ImageEngine(ImageSpec(model=str(folder), size_px=64), TERMS)
    yield made
    made.close()
    torch.set_num_threads(threads)


def picture(seed: int = 0) -> str:
    noise = np.random.default_rng(seed).integers(0, 256, (80, 112, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def hole() -> str:
    mask = Image.new("L", (112, 80))
    mask.paste(255, (16, 16, 64, 48))
    out = io.BytesIO()
    mask.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


async def ask(engine: ImageEngine, url: str = GENERATIONS_URL, **fields: Any) -> Reply:
    body = json.dumps({"prompt": "a red mug", **fields}).encode()
    return await engine.call(Call(url, body, accept="image/png"))


def pixels(reply: Reply) -> np.ndarray:
    assert reply.status == 200, reply.body
    return np.asarray(Image.open(io.BytesIO(reply.body)))


def test_its_settings_are_those_of_a_distilled_model(engine: ImageEngine) -> None:
    abilities = engine._pipeline.abilities
    assert abilities is not None
    assert (abilities.family.name, abilities.family.steps, abilities.family.guidance) == ("flux2-klein", 4, 1.0)
    assert type(engine._pipeline._by_task["inpaint"]).__name__ == "Flux2KleinInpaintPipeline"


async def test_words_make_a_picture_and_equal_ones_go_together(engine: ImageEngine) -> None:
    replies = await asyncio.gather(*(ask(engine) for _ in range(3)), ask(engine, seed=1))
    assert [pixels(reply).shape for reply in replies] == [(64, 64, 3)] * 4
    assert (await ask(engine, seed=1)).body == replies[3].body


async def test_up_to_four_images_are_references(engine: ImageEngine) -> None:
    one, two = [pixels(await ask(engine, EDITS_URL, image=[picture(i) for i in range(n)], seed=1)) for n in (1, 2)]
    assert one.shape == two.shape == (80, 112, 3)
    assert (one != two).any()
    assert (await ask(engine, EDITS_URL, image=[picture()] * 5)).status == 400


async def test_a_mask_is_painted_in_with_or_without_a_reference(engine: ImageEngine) -> None:
    original = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture()))))
    for images in ([picture()], [picture(), picture(1)]):
        changed = (pixels(await ask(engine, EDITS_URL, image=images, mask=hole(), seed=1)) != original).any(axis=2)
        assert changed[16:48, 16:64].mean() > 0.9
        changed[16:48, 16:64] = False
        assert not changed.any()


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"negative_prompt": "blue"}, "negative_prompt"), ({"size": "32x64"}, "size"), ({"size": "72x64"}, "size")],
)
async def test_what_it_cannot_do_is_refused(engine: ImageEngine, fields: dict[str, Any], param: str) -> None:
    reply = await ask(engine, **fields)
    assert (reply.status, reply.json()["error"]["param"]) == (400, param)


async def test_its_own_checks_are_the_callers_mistakes(engine: ImageEngine) -> None:
    long = Image.new("RGB", (1024, 64))
    out = io.BytesIO()
    long.save(out, "PNG")
    reply = await ask(engine, EDITS_URL, image=base64.b64encode(out.getvalue()).decode())
    assert (reply.status, reply.json()["error"]["code"]) == (400, "unsupported")
