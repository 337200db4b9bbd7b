"""The bundled pipeline `tiny-inpaint`: Stable Diffusion's parts at toy size, random weights. Its pictures are noise.

It exists so that everything around a diffusion model can run and be tested on a laptop without a download: 1.3 M
parameters, 5 MB, a picture of 64 pixels in 4 steps in 0.1 CPU-seconds. Its UNet has 4 channels, so one set of
weights does text-to-image, image-to-image and inpainting. Building it twice gives the same bytes (with one version
of torch).
"""

from __future__ import annotations

from pathlib import Path

SEED = 0
CONTEXT_TOKENS = 77
_START, _END = "<|startoftext|>", "<|endoftext|>"


def build(folder: Path, *, width: int = 32) -> None:
    """Write the pipeline into `folder`. `width` is the UNet's first layer in channels, a multiple of 8.

    The random state of the caller is left alone.
    """
    import torch  # noqa: PLC0415 - heavy, and only the first start needs it
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel  # noqa: PLC0415
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer  # noqa: PLC0415

    vocabulary = tokens()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(vocabulary),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=CONTEXT_TOKENS,
                bos_token_id=vocabulary[_START],
                eos_token_id=vocabulary[_END],
                pad_token_id=vocabulary[_END],
            )
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(width, 2 * width),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=8,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(
            block_out_channels=(16, 32, 32, 32),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            norm_num_groups=8,
            sample_size=64,
        )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=CONTEXT_TOKENS),
        unet=unet,
        # Stable Diffusion's own schedule.
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)


def tokens() -> dict[str, int]:
    """CLIP's vocabulary without merges: every byte inside and at the end of a word, and the two marks."""
    letters = alphabet()
    return {token: index for index, token in enumerate([*letters, *(f"{c}</w>" for c in letters), _START, _END])}


def alphabet() -> list[str]:
    """The printable character that byte-level BPE writes for each byte (GPT-2's table, which CLIP shares)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]
