"""The KV cache of layers that keep everything, a window, a chunk or one state; and its inverse."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.gpu.fit.decoder import Decoder
from cotenant.gpu.fit.layers import Kv, Layers

pytestmark = pytest.mark.unit

BASE = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 6, "vocab_size": 10, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
TOKEN = 2 * 2 * 16


def kv(**config: Any) -> Kv:
    return Decoder.of({**BASE, **config}).kv


def kinds(**config: Any) -> list[tuple[str, int, int]]:
    return [(layers.kind, layers.count, layers.window) for layers in kv(**config).layers]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param({}, [("full", 6, 0)], id="full attention"),
        pytest.param({"model_type": "mistral", "sliding_window": 8}, [("window", 6, 8)], id="every layer in a window"),
        pytest.param({"model_type": "mistral", "sliding_window": None}, [("full", 6, 0)], id="a window that is off"),
        pytest.param({"model_type": "gemma2", "sliding_window": 8}, [("full", 3, 0), ("window", 3, 8)], id="by turns"),
        pytest.param(
            {"model_type": "gemma3_text", "sliding_window": 8}, [("full", 1, 0), ("window", 5, 8)], id="one in six"
        ),
        pytest.param(
            {"model_type": "cohere2", "sliding_window": 8, "sliding_window_pattern": 3},
            [("full", 2, 0), ("window", 4, 8)],
            id="a pattern of its own",
        ),
        pytest.param(
            {"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 4},
            [("full", 4, 0), ("window", 2, 8)],
            id="windows above a layer",
        ),
        pytest.param(
            {"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": False, "max_window_layers": 4},
            [("full", 6, 0)],
            id="windows declared and not used",
        ),
        pytest.param(
            {"layer_types": ["sliding_attention", "full_attention"] * 3, "sliding_window": 8},
            [("full", 3, 0), ("window", 3, 8)],
            id="layer types",
        ),
        pytest.param(
            {"layer_types": ["chunked_attention"] * 3 + ["full_attention"] * 3, "attention_chunk_size": 32},
            [("full", 3, 0), ("chunk", 3, 32)],
            id="chunks",
        ),
        pytest.param({"layer_types": ["sliding_attention"] * 6}, [("full", 6, 0)], id="types without a window"),
        pytest.param({"hybrid_override_pattern": "M-M*-E", "mamba_num_heads": 2}, [("full", 1, 0)], id="a pattern"),
        pytest.param({"attn_layer_period": 3, "attn_layer_offset": 1}, [("full", 2, 0)], id="a period"),
        pytest.param({"full_attention_interval": 3}, [("full", 2, 0)], id="an interval"),
    ],
)
def test_layers_are_told_apart(config: dict[str, Any], expected: list[tuple[str, int, int]]) -> None:
    assert kinds(**config) == expected


def test_latent_attention_keeps_its_rank_and_its_rope_and_nothing_a_head() -> None:
    assert kv(kv_lora_rank=512, qk_rope_head_dim=64).values_per_token == 6 * 576


def test_values_may_be_of_another_size_than_keys() -> None:
    assert kv(head_dim=32, v_head_dim=16).values_per_token == 6 * 2 * (32 + 16)


@pytest.mark.parametrize(
    ("config", "state"),
    [
        pytest.param(
            {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
             "linear_value_head_dim": 16, "linear_conv_kernel_dim": 4},
            2 * 4 * 8 * 16 + 3 * (2 * 2 * 8 + 4 * 16),
            id="linear attention",
        ),
        pytest.param(
            {"mamba_n_heads": 8, "mamba_d_head": 4, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_d_conv": 4},
            32 * 16 + 3 * (32 + 2 * 16),
            id="mamba 2",
        ),
        pytest.param(
            {"mamba_expand": 2, "mamba_d_state": 16, "mamba_d_conv": 4}, 128 * 16 + 3 * (128 + 32), id="mamba"
        ),
        pytest.param({"conv_L_cache": 3}, 2 * 64, id="a short convolution"),
    ],
)  # fmt: skip
def test_a_layer_without_keys_keeps_one_state_a_request(config: dict[str, Any], state: int) -> None:
    cache = kv(layer_types=["linear_attention"] * 4 + ["full_attention"] * 2, **config)
    assert cache.state_values == 4 * state
    one, two = (
        cache.request_bytes(context, bytes_per_value=2, in_flight=16, block=16) - 4 * state * 2 for context in (64, 128)
    )
    assert two == 2 * one == 2 * 64 * 2 * TOKEN * 2


def test_full_attention_is_counted_in_whole_blocks() -> None:
    assert kv().request_bytes(100, bytes_per_value=2, in_flight=2048, block=16) == 112 * 6 * TOKEN * 2
    assert kv().request_bytes(100, bytes_per_value=1, in_flight=2048, block=128) == 128 * 6 * TOKEN


def test_a_window_keeps_itself_one_step_and_a_block() -> None:
    cache = kv(model_type="mistral", sliding_window=256)
    # 255 before the step's 512, in blocks of 16, and a block since windows begin anywhere.
    assert cache.request_bytes(8192, bytes_per_value=2, in_flight=512, block=16) == (768 + 16) * 6 * TOKEN * 2
    assert cache.request_bytes(128, bytes_per_value=2, in_flight=512, block=16) == (128 + 16) * 6 * TOKEN * 2


def test_mixed_layers_are_padded_to_groups_of_equal_size() -> None:
    # Gemma 3 1B: 4 full and 22 in windows: groups of 4, so that 24 are paid for.
    cache = Kv((Layers(4, "full", 512), Layers(22, "window", 512, 512)))
    window = 512 + 2048 + 16
    expected = (4 * 32_768 + 24 * window) * 512 * 2
    assert cache.request_bytes(32_768, bytes_per_value=2, in_flight=2048, block=16) == expected
    # 12 and 13: the larger is the group, so that 13 + 13 are paid for and not 12 + 24.
    near = Kv((Layers(12, "full", 1), Layers(13, "window", 1, 16)))
    assert near.request_bytes(64, bytes_per_value=1, in_flight=16, block=16) == 13 * 64 + 13 * 48


def test_a_chunk_keeps_itself_and_one_step() -> None:
    cache = Kv((Layers(2, "chunk", 10, 64),))
    assert cache.request_bytes(4096, bytes_per_value=1, in_flight=32, block=16) == 2 * 10 * 96


@given(
    st.tuples(st.integers(0, 8), st.integers(0, 30), st.integers(16, 512)),
    st.integers(1, 1 << 18),
    st.sampled_from([16, 128]),
    st.integers(0, 1 << 32),
)
def test_the_longest_context_fits_and_the_next_block_does_not(
    shape: tuple[int, int, int], most: int, block: int, room: int
) -> None:
    full, windowed, window = shape
    layers = [Layers(full, "full", 64)] if full else []
    layers += [Layers(windowed, "window", 64, window)] if windowed else []
    cache = Kv(tuple(layers))

    def need(context: int) -> int:
        return cache.request_bytes(context, bytes_per_value=2, in_flight=256, block=block)

    longest = cache.longest_context(room, most, bytes_per_value=2, in_flight=256, block=block)
    assert longest <= most
    if longest:
        assert need(longest) <= room
    if longest + block <= most:
        assert need((longest // block + 1) * block) > room
