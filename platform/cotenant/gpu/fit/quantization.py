"""How many bits a weight takes once loaded, by the quantisation that a model or its user chose. Pure.

Sources. AWQ (arXiv 2306.00978) and GPTQ (arXiv 2210.17323) keep a 16-bit scale and a zero of as many bits as a
weight for each group. NF4 with doubly quantised scales takes 4.127 bits (QLoRA, arXiv 2305.14314, section 3). MX
formats keep an 8-bit scale for 32 values (OCP Microscaling Formats 1.0, table 1), NVFP4 one for 16. FP8 and INT8 in
blocks or rows keep scales that don't show in two digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cotenant.gpu.fit.decoder import Decoder
from cotenant.gpu.fit.tensors import BITS, FLOATS, Tensors

_BITS_OF_METHOD = {
    "fp8": 8.0, "fbgemm_fp8": 8.0, "ptpc_fp8": 8.0, "int8": 8.0, "experts_int8": 8.0, "tpu_int8": 8.0,
    "mxfp4": 4.25, "mxfp8": 8.25, "modelopt_fp4": 4.5, "nvfp4": 4.5, "modelopt": 8.0, "hqq": 4.5, "torchao": 8.0,
    "bitsandbytes": 4.127, "deepspeedfp": 8.0, "quark": 8.0, "petit_nvfp4": 4.5,
}  # fmt: skip

#: Methods that quantise only the experts of a mixture.
_EXPERTS_ONLY = frozenset({"mxfp4", "experts_int8"})

BYTES_OF_DTYPE = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2, "float64": 8}


@dataclass(frozen=True)
class Loaded:
    """Weights in an engine's memory: bytes, and how they come about."""

    bytes: int
    formula: str
    source: str


def bits_of(config: Mapping[str, Any]) -> tuple[str, float] | None:
    """Method and bits of one weight by a `quantization_config`; None where it says nothing that is known."""
    method = str(config.get("quant_method", "")).lower()
    if method in ("awq", "gptq", "gptq_marlin", "awq_marlin", "auto-round", "autoround", "inc"):
        return method, _grouped(_number(config.get("bits"), config.get("w_bit"), 4), config.get("group_size"))
    if method == "bitsandbytes":
        return method, 8.0 if config.get("load_in_8bit") or config.get("_load_in_8bit") else 4.127
    if method == "compressed-tensors":
        for group in (config.get("config_groups") or {}).values():
            weights = group.get("weights") if isinstance(group, Mapping) else None
            if isinstance(weights, Mapping):
                bits = _number(weights.get("num_bits"), 8)
                return method, _grouped(bits, weights.get("group_size")) if bits < 8 else float(bits)
        return method, 8.0
    if method == "modelopt" and "FP4" in str(config.get("quant_algo", "")).upper():
        return method, 4.5
    return (method, _BITS_OF_METHOD[method]) if method in _BITS_OF_METHOD else None


def _grouped(bits: int, group: Any) -> float:
    return bits + (16 + bits) / group if isinstance(group, int) and group > 0 else float(bits)


def _number(*values: Any) -> int:
    return next(int(value) for value in values if isinstance(value, int | float))


def loaded(decoder: Decoder, tensors: Tensors | None, *, dtype: str, on_load: str | None) -> Loaded:
    """The weights of a language model as an engine holds them.

    `dtype` is the type it computes in; `on_load` a quantisation that the engine was asked for. Where headers are known
    (`tensors`) their types count, floats at `dtype`; otherwise the parameters are counted from the config.
    """
    float_bytes = BYTES_OF_DTYPE[dtype]
    said = bits_of(decoder.config.get("quantization_config") or {})
    wanted = said or (bits_of({"quant_method": on_load}) if on_load and on_load not in ("gguf", "none") else None)
    if tensors is not None:
        return _from_tensors(tensors, dtype, wanted if said is None else None)
    count = decoder.count
    about = "counted from its config" if decoder.known else "counted from its config as if it were a Llama"
    if wanted is None:
        formula = f"{_many(count.total)} parameters x {float_bytes} bytes ({dtype})"
        return Loaded(count.total * float_bytes, formula, about)
    method, bits = wanted
    small = count.experts if method in _EXPERTS_ONLY and count.experts else count.matrices
    rest = count.total - small
    formula = f"{_many(small)} parameters x {bits:.4g} bits ({method}) + {_many(rest)} x {float_bytes} bytes ({dtype})"
    return Loaded(round(small * bits / 8) + rest * float_bytes, formula, about)


def _from_tensors(tensors: Tensors, dtype: str, shrink: tuple[str, float] | None) -> Loaded:
    float_bytes = BYTES_OF_DTYPE[dtype]
    if shrink is None:
        groups = (tensors.matrices, tensors.tables, tensors.vectors)
        total = sum(tensors.bytes_of(group, float_bytes) for group in groups)
        kinds: dict[str, int] = {}
        for group in groups:
            for kind, count in group.items():
                kinds[kind] = kinds.get(kind, 0) + count
        if set(kinds) == {"U8"}:
            return Loaded(total, "as stored, block by block", tensors.source)
        shown = " + ".join(
            f"{_many(count)} {kind} x {float_bytes if kind in FLOATS else BITS[kind] / 8:g} bytes"
            for kind, count in sorted(kinds.items(), key=lambda item: -item[1] * BITS[item[0]])
            if count * BITS[kind] >= 0.01 * sum(n * BITS[k] for k, n in kinds.items())
        )
        return Loaded(total, f"{shown} ({dtype})" if kinds.keys() & FLOATS else shown, tensors.source)
    method, bits = shrink
    small = sum(tensors.matrices.values())
    rest = tensors.bytes_of(tensors.tables, float_bytes) + tensors.bytes_of(tensors.vectors, float_bytes)
    formula = f"{_many(small)} weights x {bits:.4g} bits ({method}) + embeddings and norms ({dtype})"
    return Loaded(round(small * bits / 8) + rest, formula, tensors.source)


def _many(count: int) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return str(count)
