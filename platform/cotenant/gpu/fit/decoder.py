"""A language model's `config.json` as what memory depends on: parameters, the KV cache of a layer, widths.

Read from the config alone, so it works before anything is downloaded. Formulas are those of the models' own code
(transformers 5.23): attention has `hidden x heads x head` weights for queries and output and `hidden x kv_heads x
head` each for keys and values; latent attention (DeepSeek, arXiv 2405.04434, section 2.1) keeps `kv_lora_rank +
rope` values of a token in a layer and nothing per head; a gated MLP has three matrices, each expert has its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cotenant.gpu.fit.families import ALIASES, FAMILIES, Family
from cotenant.gpu.fit.folder import FactsMissing
from cotenant.gpu.fit.layers import Kv, kv_of

#: Sides beyond this are no model's, and would only make numbers without end.
_MOST = 1 << 24


@dataclass(frozen=True)
class Count:
    """Parameters by what a quantisation does to them: `matrices` shrink, `tables` and `vectors` stay.

    `experts` are those of the matrices that belong to experts, which some quantisations take alone.
    """

    matrices: int
    tables: int
    vectors: int
    experts: int = 0

    @property
    def total(self) -> int:
        return self.matrices + self.tables + self.vectors


@dataclass(frozen=True)
class Decoder:
    """What a decoder-only model is, as far as memory goes. `config` is that of its text part."""

    config: Mapping[str, Any]
    #: The text part's own config is one part of a larger model: images or sound come beside it.
    multimodal: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any], *, name: str = "config.json") -> Decoder:
        """From a `config.json`. Raises FactsMissing if it is no decoder's."""
        inner = config.get("thinker_config") or config
        names = ("text_config", "llm_config", "language_config")
        text = next((inner[key] for key in names if isinstance(inner, Mapping) and inner.get(key)), config)
        if not isinstance(text, Mapping):
            raise FactsMissing(f"{name}: text_config is no object")
        plain = dict(text)
        for ours, theirs in ALIASES.items():
            if plain.get(ours) is None:
                plain[ours] = next((plain[key] for key in theirs if plain.get(key) is not None), None)
        for inherited in ("quantization_config", "tie_word_embeddings", "dtype", "torch_dtype"):
            if plain.get(inherited) is None:
                plain[inherited] = config.get(inherited)
        plain["dtype"] = plain["dtype"] or plain.get("torch_dtype")
        decoder = cls({key: value for key, value in plain.items() if value is not None}, text is not config)
        for key in ("hidden_size", "num_hidden_layers", "vocab_size"):
            if not 0 < decoder._int(key) <= _MOST:
                raise FactsMissing(f"{name} has no usable {key}, so it is no language model's; name another model")
        return decoder

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type", ""))

    @property
    def known(self) -> bool:
        """Whether the family is one whose parameters are counted exactly."""
        return self.model_type in FAMILIES

    @property
    def hidden(self) -> int:
        return self._int("hidden_size")

    @property
    def layers(self) -> int:
        return self._int("num_hidden_layers")

    @property
    def vocabulary(self) -> int:
        return self._int("vocab_size")

    @property
    def heads(self) -> int:
        return self._int("num_attention_heads")

    @property
    def kv_heads(self) -> int:
        if self.model_type == "falcon" and not self.config.get("new_decoder_architecture"):
            return 1 if self.config.get("multi_query", True) else self.heads
        return self._int("num_key_value_heads") or self._int("num_kv_heads") or self.heads

    @property
    def head(self) -> int:
        """Values of one head."""
        return self._int("head_dim") or (self.hidden // self.heads if self.heads else 0)

    @property
    def intermediate(self) -> int:
        return self._int("intermediate_size") or 4 * self.hidden

    @property
    def dtype(self) -> str:
        """The type its weights are published in."""
        return str(self.config.get("dtype", "bfloat16")).removeprefix("torch.")

    @property
    def longest_context(self) -> int | None:
        return self._int("max_position_embeddings") or None

    @property
    def tied(self) -> bool:
        """Whether the output head is the embedding."""
        said = self.config.get("tie_word_embeddings")
        return self._family.tied if said is None else bool(said)

    @cached_property
    def kv(self) -> Kv:
        """What its KV cache holds of a token, by layers."""
        return kv_of(self.config, heads=self.heads, kv_heads=self.kv_heads, head=self.head)

    @property
    def experts(self) -> int:
        return self._int("num_experts")

    @property
    def widest(self) -> int:
        """Values of one token that are alive at once in the widest place of a layer: MLP or its chosen experts."""
        if not self.experts:
            return (3 if self._family.gated else 2) * self.intermediate
        chosen = max(1, self._int("num_experts_per_tok"))
        # Fused expert kernels keep gate and up, their product, and each expert's answer (vLLM's fused_experts).
        return chosen * (3 * self._expert_width + self.hidden)

    @cached_property
    def count(self) -> Count:
        """Its parameters: exact for a known family, near for another."""
        h, family = self.hidden, self._family
        tables = h * self.vocabulary * (1 if self.tied else 2)
        if family.positions:
            tables += h * (self.longest_context or 0)
        vectors = (h * (2 if family.norm_bias else 1) if family.final_norm else 0) + (
            self.vocabulary if family.head_bias else 0
        )
        with_experts = sum(self._has_experts(layer) for layer in range(self.layers))
        kinds = (
            (self.layers, self._attention()),
            (with_experts, self._experts()),
            (self.layers - with_experts, self._mlp()),
        )
        matrices = sum(layers * part[0] for layers, part in kinds)
        vectors += sum(layers * part[1] for layers, part in kinds)
        vectors += self.layers * self._norms() * h * (2 if family.norm_bias else 1)
        return Count(matrices, tables, vectors, with_experts * self.experts * self._mlp(self._expert_width)[0])

    @property
    def _family(self) -> Family:
        return FAMILIES.get(self.model_type, FAMILIES["llama"])

    @property
    def _expert_width(self) -> int:
        return self._int("moe_intermediate_size") or self.intermediate

    def _norms(self) -> int:
        if self.model_type == "falcon":
            two = self.config.get("num_ln_in_parallel_attn") == 2 or (
                self.config.get("new_decoder_architecture") and self.config.get("num_ln_in_parallel_attn") is None
            )
            return 2 if two or not self.config.get("parallel_attn", True) else 1
        return self._family.norms

    def _bias(self, wanted: bool | None, *keys: str) -> bool:
        return any(bool(self.config.get(key)) for key in keys) if wanted is None else wanted

    def _attention(self) -> tuple[int, int]:
        """Matrices and vectors of one attention."""
        family, h = self._family, self.hidden
        if "kv_lora_rank" in self.config:
            return self._latent_attention()
        q, kv = self.heads * self.head, self.kv_heads * self.head
        matrices = h * (q + 2 * kv) + q * h
        vectors = q + 2 * kv if self._bias(family.qkv_bias, "attention_bias", "use_bias", "bias") else 0
        vectors += h if self._bias(family.output_bias, "attention_bias", "use_bias", "bias") else 0
        vectors += {"none": 0, "head": 2 * self.head, "all": q + kv}[family.qk_norm]
        return matrices, vectors + (self.heads if family.sinks else 0)

    def _latent_attention(self) -> tuple[int, int]:
        h, rank, rope = self.hidden, self._int("kv_lora_rank"), self._int("qk_rope_head_dim")
        nope, value, q_rank = self._int("qk_nope_head_dim"), self._int("v_head_dim"), self._int("q_lora_rank")
        q = self.heads * (nope + rope)
        matrices = h * q_rank + q_rank * q if q_rank else h * q
        matrices += h * (rank + rope) + rank * self.heads * (nope + value) + self.heads * value * h
        return matrices, rank + q_rank

    def _mlp(self, width: int | None = None) -> tuple[int, int]:
        family, h = self._family, self.hidden
        width = self.intermediate if width is None else width
        up = 2 if family.gated else 1
        bias = self._bias(family.mlp_bias, "mlp_bias", "use_bias", "bias")
        return (up + 1) * h * width, (up * width + h) if bias else 0

    def _experts(self) -> tuple[int, int]:
        matrices, vectors = (value * self.experts for value in self._mlp(self._expert_width))
        matrices += self.hidden * self.experts
        family = self._family
        vectors += self.experts * (int(family.router_bias) + int(family.balance_bias))
        shared = self._int("n_shared_experts") * self._expert_width or self._int("shared_expert_intermediate_size")
        if shared:
            matrices += self._mlp(shared)[0]
            # Qwen's shared expert has a gate of its own.
            matrices += self.hidden if "shared_expert_intermediate_size" in self.config else 0
        return matrices, vectors

    def _has_experts(self, layer: int) -> bool:
        if not self.experts:
            return False
        if "first_k_dense_replace" in self.config:
            return layer >= self._int("first_k_dense_replace") and layer % (self._int("moe_layer_freq") or 1) == 0
        if layer in (self.config.get("mlp_only_layers") or ()):
            return False
        return (layer + 1) % (self._int("decoder_sparse_step") or 1) == 0

    def _int(self, key: str) -> int:
        value = self.config.get(key)
        if isinstance(value, list) and value and all(isinstance(each, int) for each in value):
            value = max(value)
        return value if isinstance(value, int) and not isinstance(value, bool) else 0
