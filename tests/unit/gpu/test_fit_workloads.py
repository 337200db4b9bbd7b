"""Estimates of workloads: which parts, what moves them, what stays asleep; weights by quantisation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.config import GpuBudget, LlmSpec, MockupSpec, Workload
from cotenant.config.model import ImageSpec
from cotenant.gpu.accelerators import ACCELERATORS
from cotenant.gpu.fit import Fit, Part, fit_workload
from cotenant.gpu.fit.bundled import IMAGES, LLMS
from cotenant.gpu.fit.decoder import Decoder
from cotenant.gpu.fit.image import Component, ImageFacts
from cotenant.gpu.fit.llm import TYPICAL_FILL, LlmFacts, LlmLoad, LlmNeed, need
from cotenant.gpu.fit.mockup import MockupFacts
from cotenant.gpu.fit.parts import GIB, MIB
from cotenant.gpu.fit.quantization import bits_of, loaded
from cotenant.gpu.fit.tensors import Tensors

pytestmark = pytest.mark.unit

CONFIGS = Path(__file__).parents[2] / "data/model_configs"
L4 = "nvidia-l4"
AUTO = GpuBudget(vram_gib="auto")
SCENES = MockupFacts(200_000, 0, "test")


def facts(name: str, tensors: Tensors | None = None, **changed: Any) -> LlmFacts:
    config = json.loads((CONFIGS / f"{name}.json").read_text())["config"]
    return LlmFacts(Decoder.of({**config, **changed}), tensors, "test")


def llm(name: str, *, on: str = L4, slots: int = 32, context: int = 4096, **engine: Any) -> LlmNeed:
    spec = LlmSpec(model=name, context_tokens=context, engine=engine)
    return need(facts(name), LlmLoad.of(spec, slots), on)


def sizes(fit: Fit) -> dict[str, float]:
    return {part.name: part.gib for part in fit.parts}


# -- a fit


def test_a_fit_is_the_sum_of_its_parts_and_rounds_up_to_a_tenth() -> None:
    fit = Fit("w", L4, (Part("a", GIB, "", "", asleep=True), Part("b", GIB // 100, "", ""), Part("c", 1, "", "")))
    assert fit.total_bytes == GIB + GIB // 100 + 1
    assert fit.budget_gib == 1.1
    assert fit.asleep_gib == 1
    assert fit.floor_gib == 1.1
    assert fit.in_words() == "a 1.00 + other 0.01"
    assert Fit("w", L4, ()).budget_gib == 0.1


# -- weights by quantisation


@pytest.mark.parametrize(
    ("config", "bits"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 4 + 20 / 128),
        ({"quant_method": "gptq", "bits": 4, "group_size": -1}, 4),
        ({"quant_method": "awq", "w_bit": 4, "group_size": 64}, 4 + 20 / 64),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 8),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4.127),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8),
        ({"quant_method": "mxfp4"}, 4.25),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 4.5),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, 8),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 128}}},
            },
            4 + 20 / 128,
        ),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8}}}}, 8),
        ({"quant_method": "compressed-tensors"}, 8),
    ],
    ids=lambda value: str(value)[:60],
)
def test_the_bits_of_a_weight_by_quantisation(config: dict[str, Any], bits: float) -> None:
    found = bits_of(config)
    assert found is not None
    assert found[1] == pytest.approx(bits)


def test_a_quantisation_that_is_not_known_counts_as_none() -> None:
    assert bits_of({"quant_method": "nobody-knows"}) is None
    assert bits_of({}) is None


def test_weights_counted_from_a_config_shrink_except_embeddings_and_norms() -> None:
    decoder = facts("llama-3.1-8b").decoder
    plain = loaded(decoder, None, dtype="bfloat16", on_load=None)
    assert plain.bytes == 2 * 8_030_261_248
    four = loaded(decoder, None, dtype="bfloat16", on_load="bitsandbytes")
    tables = 2 * 128_256 * 4096
    assert four.bytes == pytest.approx(2 * tables + (8_030_261_248 - tables) * 4.127 / 8, rel=1e-3)
    assert "bitsandbytes" in four.formula


def test_a_published_quantisation_is_the_models_own_whatever_is_asked_for() -> None:
    decoder = facts("llama-3.1-8b", quantization_config={"quant_method": "awq", "bits": 4, "group_size": 128}).decoder
    assert loaded(decoder, None, dtype="float16", on_load="fp8").bytes / GIB == pytest.approx(5.3, abs=0.1)


def test_four_bit_experts_leave_the_rest_of_a_mixture_as_it_is() -> None:
    # gpt-oss-20b: its published checkpoint has 12.8 GiB (model card).
    weights = loaded(facts("gpt-oss-20b").decoder, None, dtype="bfloat16", on_load=None)
    assert weights.bytes / GIB == pytest.approx(12.8, rel=0.02)


def test_headers_count_in_their_own_types_and_floats_in_the_engines() -> None:
    decoder = facts("llama-3.2-1b").decoder
    stored = Tensors({"F32": 1000, "I32": 100}, {"F32": 10}, {"BF16": 4}, "headers")
    assert loaded(decoder, stored, dtype="bfloat16", on_load=None).bytes == 2 * 1014 + 400
    assert loaded(decoder, stored, dtype="float32", on_load=None).bytes == 4 * 1014 + 400
    shrunk = loaded(decoder, stored, dtype="bfloat16", on_load="fp8")
    assert shrunk.bytes == 1100 + 2 * 14
    kept = loaded(decoder, Tensors({"U8": 500}, {}, {}, "gguf"), dtype="bfloat16", on_load=None)
    assert (kept.bytes, kept.formula) == (500, "as stored, block by block")


# -- language models


def test_the_parts_of_a_language_model_on_a_gpu() -> None:
    fit = llm("qwen3-4b-instruct-2507", context=8192).fit("writer", least=True)
    gib = sizes(fit)
    assert gib["weights"] == pytest.approx(7.49, abs=0.01)
    assert gib["KV cache"] == pytest.approx(8192 * 147_456 / GIB, abs=0.001)
    assert set(gib) == {"CUDA context", "weights", "activations", "CUDA graphs", "workspaces", "KV cache"}
    assert {part.name for part in fit.parts if not part.asleep} == {"weights", "KV cache"}
    assert 9.5 < fit.total_gib < 12, "the budget of 12 GiB that runs it is enough"


def test_the_least_is_one_full_request_and_the_typical_a_quarter_of_the_context_in_every_slot() -> None:
    model = llm("qwen3-8b", slots=32, context=8192)
    one = 147_456 * 8192
    assert model.least_kv_bytes() == one
    assert model.typical_kv_bytes() == 32 * one * TYPICAL_FILL
    assert model.most_kv_bytes() == 32 * one
    few = llm("qwen3-8b", slots=2, context=8192)
    assert few.typical_kv_bytes() == few.least_kv_bytes(), "never less than one full request"
    tiny = llm("smollm2-135m-instruct", slots=1, context=128)
    assert tiny.least_kv_bytes() == 64 * MIB


def test_what_the_engine_is_told_moves_the_parts() -> None:
    plain = sizes(llm("llama-3.1-8b").fit("w", least=True))
    eight = sizes(llm("llama-3.1-8b", kv_cache_dtype="fp8_e5m2").fit("w", least=True))
    assert eight["KV cache"] == pytest.approx(plain["KV cache"] / 2)
    assert "CUDA graphs" not in sizes(llm("llama-3.1-8b", enforce_eager=True).fit("w", least=True))
    wide = sizes(llm("llama-3.1-8b", max_num_batched_tokens=16_384).fit("w", least=True))
    assert wide["activations"] > 4 * plain["activations"]
    fixed = llm("llama-3.1-8b", kv_cache_memory_bytes=3 * GIB).fit("w", least=False)
    assert sizes(fixed)["KV cache"] == 3
    quantised = sizes(llm("llama-3.1-8b", quantization="fp8").fit("w", least=True))
    assert quantised["weights"] < 0.6 * plain["weights"]
    blocks = llm("llama-3.1-8b", block_size=256, max_num_batched_tokens="many")
    assert blocks.request_bytes(100) == 256 * 131_072


def test_float32_is_computed_in_sixteen_bits_unless_it_is_asked_for() -> None:
    starcoder = facts("starcoder2-3b")
    auto = need(starcoder, LlmLoad(2048, 8), L4).fit("w", least=True)
    asked = need(starcoder, LlmLoad(2048, 8, dtype="float32"), L4).fit("w", least=True)
    assert sizes(auto)["weights"] == pytest.approx(2 * 3_030_371_328 / GIB)
    assert sizes(asked)["weights"] == pytest.approx(4 * 3_030_371_328 / GIB)
    odd = need(facts("llama-3.2-1b", dtype="float8"), LlmLoad(2048, 8), L4)
    assert odd.kv_bytes_per_token == 32_768


@pytest.mark.parametrize(
    ("accelerator", "tokens"),
    [("cpu", 2048), (L4, 2048), ("nvidia-a100-80gb", 2048), ("nvidia-h100-80gb", 8192), ("nvidia-b200", 16_384)],
)
def test_a_step_is_as_large_as_vllm_makes_it_on_that_gpu(accelerator: str, tokens: int) -> None:
    model = llm("llama-3.1-8b", on=accelerator)
    assert model.load.step_tokens(model.on) == tokens
    short = llm("llama-3.1-8b", on=accelerator, slots=2, context=256)
    assert short.load.step_tokens(short.on) == 512


def test_published_peaks_of_vllm_are_met_within_a_fifth() -> None:
    # vLLM pull 10511: Llama-3-8B, 256 requests, 1.26 GiB; issue 15815: Qwen2.5-32B, 256 requests, 1.26 GiB (on two
    # GPUs, which share the weights but not the sampler).
    for name, tokens in (("llama-3.1-8b", 8192), ("qwen2.5-32b-instruct", 10_000)):
        model = llm(name, slots=256, max_num_batched_tokens=tokens)
        peak = sizes(model.fit("w", least=True))["activations"]
        if name.startswith("qwen"):
            peak = (256 * 152_064 * 36 + 10_000 * 5120 * 2) / GIB
        assert peak == pytest.approx(1.26, rel=0.2)
    # vLLM pull 11349: Llama-3.2-1B, 35 graphs, 0.21 GiB.
    assert pytest.approx(0.21, abs=0.01) == 35 * 17 * 0.35 / 1024


def test_on_a_cpu_processes_stay_while_asleep_and_nothing_of_the_model_does() -> None:
    fit = need(LLMS["smollm2-135m"](), LlmLoad(2048, 32), "cpu").fit("w", least=False)
    assert {part.name for part in fit.parts if part.asleep} == {"replica process", "engine process"}
    assert fit.asleep_gib < fit.total_gib


def test_a_gpu_says_how_far_it_goes() -> None:
    model = llm("llama-3.1-8b", context=8192)
    assert model.requests_in(22.0) == model.room_for_kv(22.0) // (131_072 * 8192) > 0
    assert model.requests_in(10.0) == model.longest_context_in(10.0) == 0
    assert model.longest_context_in(22.0) < 131_072 == model.longest_context_in(78.9)
    assert model.with_load(LlmLoad(8192, 32, kv_dtype="fp8")).requests_in(22.0) >= 2 * model.requests_in(22.0)


def test_what_an_estimate_leaves_out_is_said() -> None:
    config = json.loads((CONFIGS / "gemma-3-1b-it.json").read_text())["config"]
    vision = LlmFacts(Decoder.of({"text_config": config}), None, "test")
    (note,) = need(vision, LlmLoad(2048, 4), L4).fit("w", least=True).notes
    assert note.startswith("the weights for images and what images take")
    stranger = facts("llama-3.2-1b", model_type="stranger")
    (note,) = need(stranger, LlmLoad(2048, 4), L4).fit("w", least=True).notes
    assert "'stranger' is not known" in note


@given(
    st.sampled_from(["qwen3-8b", "gemma-2-2b", "deepseek-v2-lite", "gpt-oss-20b", "mistral-7b-v0.1"]),
    st.sampled_from([L4, "cpu", "nvidia-h100-80gb"]),
    st.integers(1, 256),
    st.integers(128, 65_536),
)
def test_more_context_or_more_requests_never_take_less(name: str, on: str, slots: int, context: int) -> None:
    model = llm(name, on=on, slots=slots, context=context)
    least, typical = model.fit("w", least=True), model.fit("w", least=False)
    assert least.total_bytes <= typical.total_bytes
    assert typical.asleep_gib < typical.total_gib
    assert model.typical_kv_bytes() <= max(model.most_kv_bytes(), model.least_kv_bytes())
    for bigger in (
        llm(name, on=on, slots=slots + 1, context=context),
        llm(name, on=on, slots=slots, context=context + 512),
    ):
        assert bigger.fit("w", least=True).total_bytes >= least.total_bytes
        assert bigger.fit("w", least=False).total_bytes >= typical.total_bytes


# -- mockups


def mockups(*, least: bool = False, slots: int = 2, on: str = "cpu", **spec: Any) -> Fit:
    workload = Workload(mockup=MockupSpec(**spec), gpu=AUTO, concurrency=slots)
    return fit_workload("mugs", workload, on, SCENES, least=least)


def test_a_mockups_memory_goes_with_its_size_and_not_with_its_samples() -> None:
    assert mockups(max_samples=4096) == mockups(max_samples=16)
    assert mockups(max_size_px=1024).total_gib < 0.6 * mockups(max_size_px=2048).total_gib
    assert mockups(max_size_px=2048, slots=4).total_gib > mockups(max_size_px=2048).total_gib


def test_one_render_at_a_time_needs_what_the_default_budget_has() -> None:
    assert mockups(least=True).total_gib < 1.5
    assert {part.name for part in mockups().parts if part.asleep} == {"process"}


def test_on_a_gpu_a_renderer_holds_its_light_there_and_its_pictures_elsewhere() -> None:
    fit = mockups(on=L4)
    assert {"CUDA context", "OptiX", "scenes", "render", "slots", "kept"} == set(sizes(fit))
    assert mockups(on=L4, least=True) == fit


# -- diffusion models


def component(name: str, kind: str, matrices: int, tables: int, largest: int, **config: Any) -> Component:
    return Component(name, Tensors({kind: matrices}, {kind: tables}, {}, "h", largest), config)


VAE = [128, 256, 512, 512]
SD = ImageFacts(
    "StableDiffusionPipeline",
    (
        component("unet", "F16", 800_000_000, 0, 30_000_000, block_out_channels=[320, 640, 1280, 1280]),
        component("text_encoder", "F16", 85_000_000, 38_000_000, 38_000_000),
        component("vae", "F16", 83_000_000, 0, 5_000_000, block_out_channels=VAE),
    ),
    "test",
)
KLEIN = ImageFacts(
    "Flux2KleinPipeline",
    (
        component("transformer", "BF16", 3_900_000_000, 0, 60_000_000, num_attention_heads=24, attention_head_dim=128),
        component("text_encoder", "BF16", 3_600_000_000, 400_000_000, 400_000_000),
        component("vae", "BF16", 83_000_000, 0, 5_000_000, block_out_channels=VAE),
    ),
    "test",
)


def image(known: ImageFacts, *, least: bool = False, on: str = L4, **spec: Any) -> Fit:
    workload = Workload(image=ImageSpec(model="m", **spec), gpu=AUTO)
    return fit_workload("painter", workload, on, known, least=least)


def test_a_pipelines_weights_go_by_type_and_quantisation() -> None:
    assert sizes(image(SD))["weights"] == pytest.approx(2 * 1.006e9 / GIB, rel=1e-3)
    assert sizes(image(SD, dtype="float32"))["weights"] == pytest.approx(4 * 1.006e9 / GIB, rel=1e-3)
    assert sizes(image(SD, on="cpu"))["weights"] == pytest.approx(4 * 1.006e9 / GIB, rel=1e-3)
    four = sizes(image(KLEIN, quantization="4bit"))["weights"]
    assert four == pytest.approx((7.5e9 * 4.127 / 8 + 2 * 483e6) / GIB, rel=1e-3)
    assert sizes(image(KLEIN, quantization="8bit"))["weights"] > 1.7 * four - 1


def test_what_is_offloaded_counts_while_it_works() -> None:
    everything = sizes(image(KLEIN))["weights"]
    largest = sizes(image(KLEIN, offload="model"))["weights"]
    layer = sizes(image(KLEIN, offload="sequential"))["weights"]
    assert largest == pytest.approx(8e9 / GIB)
    assert layer == pytest.approx(800e6 / GIB)
    assert sizes(image(KLEIN, least=True))["weights"] == layer, "auto may offload, so the least is that"
    assert sizes(image(KLEIN, offload="none", least=True))["weights"] == everything
    assert sizes(image(KLEIN, offload="sequential", on="cpu"))["weights"] == 2 * everything


def test_denoising_grows_with_pictures_and_guidance_doubles_it() -> None:
    def work(known: ImageFacts, **spec: Any) -> float:
        gib = sizes(image(known, **spec))
        return gib.get("denoising", 0) or gib["decoding"]

    assert work(SD, max_batch=8) == pytest.approx(2 * work(SD, max_batch=4))
    assert work(SD, max_batch=8, guidance=1.0) == pytest.approx(work(SD, max_batch=4))
    assert "denoising" in sizes(image(KLEIN, max_batch=16))
    assert "decoding" in sizes(image(KLEIN, max_batch=1)), "of one picture, decoding is the peak"
    assert "16384 tokens" not in next(
        part.formula for part in image(KLEIN, max_batch=16).parts if part.name == "denoising"
    )


def test_asleep_a_pipeline_is_a_process_or_a_context() -> None:
    assert image(SD).asleep_gib == 0.5
    assert {part.name for part in image(SD, on="cpu").parts if part.asleep} == {"process"}


def test_a_pipeline_of_unusual_parts_is_counted_with_ordinary_ones() -> None:
    odd = ImageFacts("SomethingPipeline", (Component("prior", Tensors({"F16": 10}, {}, {}, "h", 10), {}),), "test")
    assert image(odd).total_gib > 0.5
    bare = ImageFacts(
        "X", (Component("vae", Tensors({"F16": 10}, {}, {}, "h", 10), {"block_out_channels": ["x"]}),), "t"
    )
    assert image(bare).total_gib > 0.5


def test_the_bundled_pipeline_fits_the_examples_budget() -> None:
    assert image(IMAGES["tiny-inpaint"](), on="cpu").total_gib < 2


def test_facts_of_another_kind_are_a_mistake_of_the_callers() -> None:
    with pytest.raises(TypeError, match="is of the kind mockup, and its facts are LlmFacts"):
        fit_workload("w", Workload(mockup=MockupSpec(), gpu=AUTO), L4, LLMS["smollm2-135m"]())


@pytest.mark.parametrize("accelerator", ["cpu", *ACCELERATORS, "nvidia-of-tomorrow"])
def test_every_kind_has_an_estimate_on_every_accelerator(accelerator: str) -> None:
    for fit in (
        mockups(on=accelerator),
        image(SD, on=accelerator),
        llm("llama-3.2-1b", on=accelerator).fit("w", least=False),
    ):
        assert 0.5 < fit.total_gib < 40
        assert all(part.bytes >= 0 and part.formula and part.source for part in fit.parts)
