"""Which weights a decoder layer has, by `model_type`: the few ways in which families differ from Llama.

What is here decides the count of parameters where no headers of weight files are at hand; the KV cache does not
depend on it. Each row was checked against the count of a real model of its kind (tests/data/model_configs). A family
that is not listed is counted as Llama with what its config says of biases, and the count is called approximate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Family:
    """How a family's weights differ from Llama's. Biases: always, never, or as the config's keys say (None)."""

    #: The MLP has a gate beside the up projection.
    gated: bool = True
    qkv_bias: bool | None = None
    output_bias: bool | None = None
    mlp_bias: bool | None = None
    #: Norms as wide as the hidden state, in one layer, and whether they have a bias (LayerNorm). With `norms` of 0
    #: the layers' norms have no weights at all.
    norms: int = 2
    norm_bias: bool = False
    final_norm: bool = True
    #: Norms of queries and keys: one as wide as a head, or one over all heads.
    qk_norm: Literal["none", "head", "all"] = "none"
    #: Whether embedding and output head are one where the config doesn't say.
    tied: bool = False
    head_bias: bool = False
    #: Learned position embeddings, and how many more rows than positions they have.
    positions: bool = False
    #: Weights of an expert layer beside the experts: a bias on the router, a bias for balancing.
    router_bias: bool = False
    balance_bias: bool = False
    #: A learned sink for each head.
    sinks: bool = False


_LLAMA = Family()
#: Names under which the parts of a config go in older families.
ALIASES = {
    "hidden_size": ("n_embd", "d_model"),
    "num_hidden_layers": ("n_layer", "n_layers"),
    "num_attention_heads": ("n_head", "n_heads"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size"),
    "max_position_embeddings": ("n_positions", "max_sequence_length"),
    "num_experts": ("num_local_experts", "n_routed_experts", "moe_num_experts"),
    "num_experts_per_tok": ("experts_per_token", "moe_k", "moe_topk"),
    "dtype": ("torch_dtype",),
}

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": Family(qkv_bias=False, output_bias=False, mlp_bias=False),
    "ministral": Family(qkv_bias=False, output_bias=False, mlp_bias=False),
    "mixtral": Family(qkv_bias=False, output_bias=False, mlp_bias=False),
    "smollm3": _LLAMA,
    "granite": _LLAMA,
    "phi3": Family(qkv_bias=False, output_bias=False, mlp_bias=False),
    "phi": Family(gated=False, qkv_bias=True, output_bias=True, mlp_bias=True, norms=1, norm_bias=True, head_bias=True),
    "qwen2": Family(qkv_bias=True, output_bias=False, mlp_bias=False),
    "qwen2_moe": Family(qkv_bias=True, output_bias=False, mlp_bias=False),
    "qwen3": Family(qk_norm="head", mlp_bias=False),
    "qwen3_moe": Family(qk_norm="head", mlp_bias=False),
    "gemma": Family(mlp_bias=False, tied=True),
    "gemma2": Family(norms=4, mlp_bias=False, tied=True),
    "gemma3_text": Family(norms=4, mlp_bias=False, tied=True, qk_norm="head"),
    "deepseek_v2": Family(mlp_bias=False),
    "deepseek_v3": Family(mlp_bias=False, balance_bias=True),
    "gpt_oss": Family(qkv_bias=True, output_bias=True, mlp_bias=True, router_bias=True, sinks=True),
    "olmo": Family(norms=0, final_norm=False, mlp_bias=False),
    "olmo2": Family(qk_norm="all", mlp_bias=False),
    "olmo3": Family(qk_norm="all", mlp_bias=False),
    "olmoe": Family(qk_norm="all", mlp_bias=False),
    "falcon": Family(gated=False, norms=1, norm_bias=True, tied=True),
    "starcoder2": Family(gated=False, norm_bias=True, tied=True),
    "gpt_neox": Family(gated=False, qkv_bias=True, output_bias=True, mlp_bias=True, norm_bias=True),
    "gpt2": Family(
        gated=False, qkv_bias=True, output_bias=True, mlp_bias=True, norm_bias=True, tied=True, positions=True
    ),
    "cohere": Family(norms=1, tied=True),
}
