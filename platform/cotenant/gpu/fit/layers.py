"""The KV cache of a model: which layers keep how much of a token, and for how long. Pure arithmetic.

**Kinds of layers.** Full attention keeps every token. A sliding window (or a chunk) keeps the last so many. Linear
attention, Mamba and convolutions keep one state of a fixed size for a whole request.

**Pages.** vLLM gives memory out in blocks of tokens and, where a model mixes kinds, in groups of equally many layers
that share one pool (vllm 0.29, v1/core/kv_cache_utils.py `_get_kv_cache_groups_uniform_page_size`,
v1/kv_cache_interface.py `max_memory_usage_bytes`); `Kv.request_bytes` counts as it does, padding included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["full", "window", "chunk", "state"]

#: Kinds by the names that transformers' `layer_types` and others use.
_KINDS: dict[str, Kind] = {
    "full_attention": "full", "attention": "full", "hybrid": "full", "global": "full", "*": "full",
    "sliding_attention": "window", "chunked_attention": "chunk", "local": "window",
    "linear_attention": "state", "mamba": "state", "mamba2": "state", "conv": "state", "recurrent": "state",
    "M": "state",
}  # fmt: skip


@dataclass(frozen=True)
class Layers:
    """Some layers that keep the same: `values` of each token in each of them, at most `window` tokens back."""

    count: int
    kind: Kind
    values: int
    window: int = 0

    def tokens(self, context: int, in_flight: int, block: int) -> int:
        """Tokens, in whole blocks, that one request of `context` tokens can hold in one of these layers."""
        if self.kind == "full":
            return _up(context, block)
        if self.kind == "chunk":
            return _up(min(self.window + in_flight, context), block)
        # One block more, since a window need not begin where a block does.
        return _up(min(self.window - 1 + in_flight, context), block) + block


@dataclass(frozen=True)
class Kv:
    """A model's KV cache. `state_values` are kept once a request, whatever its length."""

    layers: tuple[Layers, ...]
    state_values: int = 0

    @property
    def values_per_token(self) -> int:
        """Values of one token in all layers, windows not yet full."""
        return sum(layers.count * layers.values for layers in self.layers)

    def request_bytes(self, context: int, *, bytes_per_value: float, in_flight: int, block: int) -> int:
        """Bytes that one request of `context` tokens takes at the most, as vLLM counts them.

        `in_flight` is how many tokens one step of the engine may compute, `block` the tokens of a block.
        """
        group = self._group_size()
        values = sum(
            -(-layers.count // group) * group * layers.values * layers.tokens(context, in_flight, block)
            for layers in self.layers
        )
        return round(values * bytes_per_value + self.state_values * 2)

    def _group_size(self) -> int:
        """Layers of one group: as many as the rarest kind has, or the commonest if that is under half as many more."""
        counts = [layers.count for layers in self.layers]
        if len(counts) < 2:
            return 1
        return max(counts) if max(counts) < min(counts) * 1.5 else min(counts)

    def longest_context(self, room: int, most: int, *, bytes_per_value: float, in_flight: int, block: int) -> int:
        """The longest context, in whole blocks and up to `most`, of which one request fits `room` bytes; 0 if none."""
        low, high = 0, max(1, most // block)
        while low < high:
            middle = (low + high + 1) // 2
            need = self.request_bytes(middle * block, bytes_per_value=bytes_per_value, in_flight=in_flight, block=block)
            low, high = (middle, high) if need <= room else (low, middle - 1)
        return min(most, low * block)


def kv_of(config: Mapping[str, Any], *, heads: int, kv_heads: int, head: int) -> Kv:
    """The KV cache of a config whose names are transformers'."""
    count = config["num_hidden_layers"]
    kinds = _kinds(config, count)
    if "kv_lora_rank" in config:
        values = config["kv_lora_rank"] + config.get("qk_rope_head_dim", 0)
    else:
        values = kv_heads * (head + (config.get("v_head_dim") or head))
    window = config.get("sliding_window") or config.get("attention_chunk_size") or 0
    found = []
    for kind in ("full", "window", "chunk"):
        same = kinds.count(kind)
        if same and values:
            found.append(Layers(same, kind, values, 0 if kind == "full" else int(window)))
    states = kinds.count("state")
    return Kv(tuple(found), states * _state_values(config) if states else 0)


def _kinds(config: Mapping[str, Any], count: int) -> list[Kind]:
    """The kind of each layer."""
    window = bool(config.get("sliding_window"))
    named = config.get("layer_types") or config.get("layers_block_type") or config.get("hybrid_override_pattern")
    if named:
        # Nemotron's pattern has letters for MLP and expert layers too, which keep nothing.
        kinds = [_KINDS.get(str(name), "full") for name in named if name not in ("-", "E", "mlp", "moe")]
        has_window = window or bool(config.get("attention_chunk_size"))
        return [kind if has_window or kind in ("full", "state") else "full" for kind in kinds]
    if period := config.get("attn_layer_period"):
        offset = config.get("attn_layer_offset", 0)
        return ["full" if layer % period == offset else "state" for layer in range(count)]
    if every := config.get("full_attention_interval"):
        return ["full" if (layer + 1) % every == 0 else "state" for layer in range(count)]
    if not window:
        return ["full"] * count
    model = config.get("model_type")
    pattern = config.get("sliding_window_pattern") or {"gemma2": 2, "gemma3_text": 6, "cohere2": 4, "gpt_oss": 2}.get(
        str(model), 0
    )
    if pattern:
        return ["full" if (layer + 1) % pattern == 0 else "window" for layer in range(count)]
    if str(model).startswith("qwen"):
        first = config.get("max_window_layers", count)
        sliding = bool(config.get("use_sliding_window"))
        return ["window" if sliding and layer >= first else "full" for layer in range(count)]
    return ["window"] * count


def _state_values(config: Mapping[str, Any]) -> int:
    """Values that one linear, Mamba or convolution layer keeps of a request: its state and its convolution's tail."""

    def of(*keys: str) -> int:
        return next((int(config[key]) for key in keys if isinstance(config.get(key), int)), 0)

    kernel = of("linear_conv_kernel_dim", "mamba_d_conv", "conv_kernel", "conv_L_cache")
    if value_heads := of("linear_num_value_heads"):
        key, value = of("linear_key_head_dim"), of("linear_value_head_dim")
        channels = 2 * of("linear_num_key_heads") * key + value_heads * value
        # The recurrent state is kept in float32: two bfloat16 values each.
        return 2 * value_heads * key * value + max(0, kernel - 1) * channels
    state = of("mamba_d_state", "ssm_state_size", "state_size")
    inner = of("mamba_n_heads", "mamba_num_heads") * of("mamba_d_head", "mamba_head_dim")
    inner = inner or of("mamba_expand", "expand") * of("hidden_size")
    if not inner:
        return max(0, kernel - 1) * of("hidden_size")
    channels = inner + 2 * max(1, of("mamba_n_groups", "n_groups")) * state
    return inner * state + max(0, kernel - 1) * channels


def _up(tokens: int, block: int) -> int:
    return -(-tokens // block) * block
