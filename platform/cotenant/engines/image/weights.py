"""How much memory the weights of a diffusers folder take, from the headers of its safetensors files. Pure.

A safetensors file begins with the length of its header (8 bytes, little-endian) and the header itself: JSON with
each tensor's type and shape (https://huggingface.co/docs/safetensors, "Format"). No tensor is read.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

_LONGEST_HEADER = 100 * 2**20

#: Bytes per parameter as loaded. 8 bit: int8 and a scale a row. 4 bit: NF4 in blocks of 64 with doubly quantised
#: scales is 4.127 bits (QLoRA, arXiv 2305.14314, section 3); what stays unquantised brings it to about 0.56 bytes.
BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "8bit": 1.05, "4bit": 0.56}


def parameters(folder: Path) -> dict[str, int]:
    """Parameters by component (subfolder), for those that have weights. Raises ValueError for a damaged file."""
    counts: dict[str, int] = {}
    for file in sorted(folder.glob("*/*.safetensors")):
        counts[file.parent.name] = counts.get(file.parent.name, 0) + _parameters_of(file)
    return counts


def _parameters_of(file: Path) -> int:
    with file.open("rb") as data:
        (length,) = struct.unpack("<Q", data.read(8).ljust(8, b"\0"))
        if length > _LONGEST_HEADER:
            raise ValueError(f"{file} is no safetensors file: its header would have {length} bytes")
        header = json.loads(data.read(length))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def gib_of(counts: dict[str, int], dtype: str, quantization: str, quantized: frozenset[str]) -> dict[str, float]:
    """GiB by component once loaded as `dtype`, with the components in `quantized` at the quantisation's size."""
    return {
        name: count * BYTES[quantization if quantization != "none" and name in quantized else dtype] / 2**30
        for name, count in counts.items()
    }
