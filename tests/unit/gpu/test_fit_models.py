"""Estimates from a config alone against real models: parameters as published, KV cache as counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cotenant.gpu.fit.decoder import Decoder
from cotenant.gpu.fit.folder import FactsMissing

pytestmark = pytest.mark.unit

MODELS = sorted((Path(__file__).parents[2] / "data/model_configs").glob("*.json"))


def load(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text())
    return data


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_real_models_parameters_are_counted_to_half_a_percent(path: Path) -> None:
    model = load(path)
    decoder = Decoder.of(model["config"])
    assert decoder.known
    assert decoder.count.total == pytest.approx(model["parameters"], rel=0.005)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_real_models_kv_cache_of_a_token_is_as_counted_by_hand(path: Path) -> None:
    model = load(path)
    assert Decoder.of(model["config"]).kv.values_per_token * 2 == model["kv_bytes_per_token"], model["kv_by_hand"]


def test_there_are_enough_models_of_enough_kinds_each_with_its_source() -> None:
    models = [load(path) for path in MODELS]
    assert len(models) >= 20
    assert all("huggingface.co" in model["source"] for model in models)
    assert len({model["config"]["model_type"] for model in models}) >= 15


def test_a_family_that_is_not_listed_is_counted_as_a_llama_and_says_so() -> None:
    config = load(next(path for path in MODELS if path.stem == "llama-3.2-1b"))["config"]
    stranger = Decoder.of({**config, "model_type": "stranger"})
    assert not stranger.known
    assert stranger.count == Decoder.of(config).count


@pytest.mark.parametrize("key", ["text_config", "llm_config", "language_config"])
def test_the_text_part_of_a_larger_model_is_what_counts(key: str) -> None:
    config = load(next(path for path in MODELS if path.stem == "gemma-3-1b-it"))["config"]
    tied = {"tie_word_embeddings": config.pop("tie_word_embeddings"), "dtype": config.pop("dtype")}
    whole = Decoder.of({"model_type": "gemma3", key: config, "vision_config": {}, **tied})
    assert whole.multimodal
    assert whole.count.total == 999_885_952
    assert whole.dtype == "bfloat16"
    assert Decoder.of({"thinker_config": {key: config, **tied}}).hidden == 1152


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"hidden_size": 64, "num_hidden_layers": 2},
        {"hidden_size": "64", "num_hidden_layers": 2, "vocab_size": 10},
        {"hidden_size": 1 << 40, "num_hidden_layers": 2, "vocab_size": 10},
        {"hidden_size": 64, "num_hidden_layers": -2, "vocab_size": 10},
        {"text_config": [1]},
    ],
    ids=["empty", "no vocabulary", "a string", "beyond measure", "negative", "no object"],
)
def test_what_is_no_language_models_config_says_so(config: dict[str, Any]) -> None:
    with pytest.raises(FactsMissing, match=r"x\.json"):
        Decoder.of(config, name="x.json")


def test_falcons_newer_layout_has_its_own_heads_and_norms() -> None:
    config = load(next(path for path in MODELS if path.stem == "falcon-7b"))["config"]
    newer = {**config, "new_decoder_architecture": True, "num_kv_heads": 8, "num_attention_heads": 71}
    assert Decoder.of(newer).kv_heads == 8
    assert Decoder.of(newer).count.vectors > Decoder.of(config).count.vectors
    assert Decoder.of({**config, "multi_query": False}).kv_heads == 71
    assert Decoder.of({**config, "parallel_attn": False}).count.vectors > Decoder.of(config).count.vectors


def test_a_mixture_with_dense_layers_and_a_shared_expert_counts_both() -> None:
    config = {
        "model_type": "qwen2_moe", "hidden_size": 8, "num_hidden_layers": 4, "vocab_size": 10, "num_attention_heads": 2,
        "num_key_value_heads": 2, "intermediate_size": 16, "moe_intermediate_size": 4, "num_experts": 3,
        "num_experts_per_tok": 2, "shared_expert_intermediate_size": 6, "decoder_sparse_step": 2,
        "mlp_only_layers": [3], "tie_word_embeddings": True,
    }  # fmt: skip
    decoder = Decoder.of(config)
    attention, dense = 4 * 8 * 8, 3 * 8 * 16
    experts, router, shared, gate = 3 * 3 * 8 * 4, 8 * 3, 3 * 8 * 6, 8
    # Layers 0 and 2 are dense by the step, 3 by name.
    assert decoder.count.matrices == 4 * attention + 3 * dense + (experts + router + shared + gate)
    assert decoder.count.experts == experts
    assert decoder.widest == 2 * (3 * 4 + 8)
