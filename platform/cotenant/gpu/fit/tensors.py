"""What tensors a model's weight files hold: type and shape of each, read from headers. No tensor is ever loaded.

A safetensors file begins with the length of its header (8 bytes, little-endian) and the header: JSON with each
tensor's type, shape and place (https://huggingface.co/docs/safetensors, "Format"). Lengths are checked before they
are believed, and pickles (`.bin`, `.pt`) are never opened: of those only the size is known.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cotenant.gpu.fit.folder import FactsMissing, Folder

#: The format's own limit of a header.
LONGEST_HEADER = 100_000_000
#: Shards whose headers are read one by one; of models with more, the first few stand for the rest.
MOST_HEADERS = 24

#: Bits of one value by safetensors' names of types.
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "U16": 16,
    "U32": 32, "U64": 64, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
#: Types that an engine turns into the type it computes in.
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class Tensors:
    """Weights as stored, by how an engine treats them: bytes and values by type, for matrices and for the rest.

    `matrices` are what a quantisation on load changes: tensors of two and more dimensions except embeddings and the
    output head, which are in `tables`; `vectors` are norms, biases and scales. Each maps a type to a count of values.
    """

    matrices: Mapping[str, int]
    tables: Mapping[str, int]
    vectors: Mapping[str, int]
    source: str
    #: Values of the largest tensor.
    largest: int = 0

    @property
    def stored_bytes(self) -> int:
        """Bytes as they lie in the files."""
        return sum(self.bytes_of(group) for group in (self.matrices, self.tables, self.vectors))

    @property
    def values(self) -> int:
        """Values of all types: the parameters, unless types are packed."""
        return sum(sum(group.values()) for group in (self.matrices, self.tables, self.vectors))

    @staticmethod
    def bytes_of(values: Mapping[str, int], float_bytes: float | None = None) -> int:
        """Bytes of `values` by type; those of float types at `float_bytes` each where that is given."""
        total = 0.0
        for kind, count in values.items():
            each = float_bytes if float_bytes is not None and kind in FLOATS else BITS[kind] / 8
            total += count * each
        return math.ceil(total)


class _Sum:
    def __init__(self) -> None:
        self.groups: dict[str, dict[str, float]] = {"matrices": {}, "tables": {}, "vectors": {}}
        self.largest = 0

    def add(self, name: str, kind: str, shape: Iterable[int]) -> None:
        shape = tuple(shape)
        group = "vectors" if len(shape) < 2 else "tables" if _is_table(name) else "matrices"
        into = self.groups[group]
        into[kind] = into.get(kind, 0) + math.prod(shape)
        self.largest = max(self.largest, math.prod(shape))

    def scaled(self, factor: float) -> dict[str, dict[str, int]]:
        return {
            group: {kind: round(count * factor) for kind, count in kinds.items()}
            for group, kinds in self.groups.items()
        }


def _is_table(name: str) -> bool:
    """Whether a tensor is an embedding or the output head, which quantisation on load leaves as they are."""
    return "embed" in name or "lm_head" in name or name.startswith(("wte", "wpe", "token_embd", "output.weight"))


def of_safetensors(folder: Folder, paths: Iterable[str], *, tied: bool = False) -> Tensors:
    """The tensors of some safetensors files. `tied` leaves an output head out that is the embedding once more.

    Raises:
        FactsMissing: a file is damaged or no safetensors file.
    """
    sizes = folder.files()
    paths = sorted(paths)
    read = paths[:MOST_HEADERS]
    total, seen, read_bytes = _Sum(), set[str](), 0
    for path in read:
        for name, kind, shape in _header(folder, path, sizes[path]):
            duplicate = name in seen or (tied and name.endswith("lm_head.weight"))
            seen.add(name)
            if not duplicate:
                total.add(name, kind, shape)
        read_bytes += sizes[path]
    source = f"safetensors headers of {folder.name}"
    factor = 1.0
    if len(read) < len(paths):
        factor = sum(sizes[path] for path in paths) / read_bytes
        source += f" (types by the first {len(read)} of {len(paths)} files)"
    return Tensors(**total.scaled(factor), source=source, largest=total.largest)


def _header(folder: Folder, path: str, size: int) -> list[tuple[str, str, list[int]]]:
    def damaged(why: str) -> FactsMissing:
        return FactsMissing(f"{path} of {folder.name} is no whole safetensors file: {why}; fetch it again")

    start = folder.read(path, 0, 8)
    if len(start) < 8:
        raise damaged("it has no header")
    (length,) = struct.unpack("<Q", start)
    if length > min(LONGEST_HEADER, size - 8):
        raise damaged(f"its header would have {length} bytes")
    try:
        header = json.loads(folder.read(path, 8, length))
        return [
            (str(name), _known(tensor["dtype"]), [int(side) for side in tensor["shape"]])
            for name, tensor in header.items()
            if name != "__metadata__"
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise damaged(f"its header says {type(error).__name__}: {error}") from None


def _known(kind: str) -> str:
    if kind not in BITS:
        raise ValueError(f"unknown type {kind!r}")
    return kind


def of_size(stored_bytes: int, kind: str, source: str) -> Tensors:
    """Weights of which only the size is known, all of one type: a pickle, or files that can't be read in part."""
    return Tensors({kind: stored_bytes * 8 // BITS[kind]}, {}, {}, source)
