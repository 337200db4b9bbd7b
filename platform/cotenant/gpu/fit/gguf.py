"""The head of a GGUF file: what model it is and what tensors it holds. Bounded, and without the gguf package.

The layout is ggml's specification of GGUF, versions 2 and 3 (github.com/ggml-org/ggml, docs/gguf.md): magic, version,
counts, then keys with typed values, then each tensor's name, sides, type and offset. Everything is little-endian.
Counts and lengths are checked before anything is made of them; arrays (a vocabulary, mostly) are stepped over.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

from cotenant.gpu.fit.folder import FactsMissing, Folder

#: A vocabulary of 256,000 words is about 10 MiB; nothing sane comes near this.
LONGEST_HEAD = 256 << 20
_MOST_KEYS, _MOST_TENSORS, _MOST_SIDES, _LONGEST_NAME = 10_000, 200_000, 8, 65_536
_PIECE = 4 << 20

#: Struct formats of the scalar value types, by GGUF's number.
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9

#: Values and bytes of one block by ggml's tensor type (ggml.h; the K types have blocks of 256).
BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: its sides as GGUF has them (innermost first), its values and bytes."""

    name: str
    sides: tuple[int, ...]
    type_number: int
    values: int
    bytes: int


@dataclass(frozen=True)
class Gguf:
    """The head of a file. Of an array only its length is kept."""

    keys: dict[str, Any]
    array_lengths: dict[str, int]
    tensors: tuple[GgufTensor, ...]

    @property
    def stored_bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def values(self) -> int:
        return sum(tensor.values for tensor in self.tensors)


class _Reader:
    """Reads forward through a file in pieces, never past `LONGEST_HEAD`."""

    def __init__(self, folder: Folder, path: str) -> None:
        self._folder, self._path = folder, path
        self._piece, self._at, self._start = b"", 0, 0

    def wrong(self, why: str) -> FactsMissing:
        return FactsMissing(f"{self._path} of {self._folder.name} is no whole GGUF file: {why}; fetch it again")

    def take(self, count: int) -> bytes:
        if self._at + count > len(self._piece):
            self._start += self._at
            if self._start + count > LONGEST_HEAD:
                raise self.wrong(f"its head has more than {LONGEST_HEAD >> 20} MiB")
            self._piece, self._at = self._folder.read(self._path, self._start, max(count, _PIECE)), 0
            if count > len(self._piece):
                raise self.wrong("it ends too early")
        self._at += count
        return self._piece[self._at - count : self._at]

    def skip(self, count: int) -> None:
        step = min(count, len(self._piece) - self._at)
        self._at += step
        if count > step:
            self._start += self._at + count - step
            self._piece, self._at = b"", 0
            if self._start > LONGEST_HEAD:
                raise self.wrong(f"its head has more than {LONGEST_HEAD >> 20} MiB")

    def scalar(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def length(self, most: int) -> int:
        count = int(self.scalar("<Q"))
        if count > most:
            raise self.wrong(f"it counts {count} where {most} is the most there can be")
        return count

    def string(self, most: int = _LONGEST_NAME) -> str:
        return self.take(self.length(most)).decode("utf-8", "replace")


def read(folder: Folder, path: str) -> Gguf:
    """The head of a GGUF file. Raises FactsMissing if it is none, is damaged or is of another version."""
    reader = _Reader(folder, path)
    if reader.take(4) != b"GGUF":
        raise reader.wrong("it does not begin with GGUF")
    version = int(reader.scalar("<I"))
    if version not in (2, 3):
        raise reader.wrong(f"its version is {version}, and 2 and 3 are known")
    tensor_count, key_count = reader.length(_MOST_TENSORS), reader.length(_MOST_KEYS)
    keys: dict[str, Any] = {}
    lengths: dict[str, int] = {}
    for _ in range(key_count):
        name, kind = reader.string(), int(reader.scalar("<I"))
        if kind == _ARRAY:
            lengths[name] = _step_over_array(reader)
        else:
            keys[name] = _value(reader, kind)
    return Gguf(keys, lengths, tuple(_tensor(reader) for _ in range(tensor_count)))


def _value(reader: _Reader, kind: int) -> Any:
    if kind == _STRING:
        return reader.string(LONGEST_HEAD)
    if kind not in _SCALARS:
        raise reader.wrong(f"it has a value of the unknown type {kind}")
    return reader.scalar(_SCALARS[kind])


def _step_over_array(reader: _Reader) -> int:
    kind, count = int(reader.scalar("<I")), reader.length(LONGEST_HEAD)
    if kind in _SCALARS:
        reader.skip(count * struct.calcsize(_SCALARS[kind]))
    elif kind == _STRING:
        for _ in range(count):
            reader.skip(reader.length(LONGEST_HEAD))
    else:
        raise reader.wrong(f"it has an array of the unknown type {kind}")
    return count


def _tensor(reader: _Reader) -> GgufTensor:
    name, side_count = reader.string(), int(reader.scalar("<I"))
    if side_count > _MOST_SIDES:
        raise reader.wrong(f"tensor {name!r} has {side_count} sides")
    sides = tuple(int(reader.scalar("<Q")) for _ in range(side_count))
    kind = int(reader.scalar("<I"))
    reader.skip(8)
    if kind not in BLOCKS:
        raise reader.wrong(f"tensor {name!r} has the unknown type {kind}")
    per_block, block_bytes = BLOCKS[kind]
    values = math.prod(sides)
    return GgufTensor(name, sides, kind, values, -(-values // per_block) * block_bytes)


def as_config(head: Gguf) -> dict[str, Any]:
    """The keys of a GGUF as the `config.json` of the same model would have them, as far as estimates read it."""
    kind = str(head.keys.get("general.architecture", ""))

    def key(name: str) -> Any:
        return head.keys.get(f"{kind}.{name}")

    heads = key("attention.head_count")
    config = {
        "model_type": {"gemma3": "gemma3_text"}.get(kind, kind),
        "num_hidden_layers": key("block_count"),
        "hidden_size": key("embedding_length"),
        "intermediate_size": key("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": key("attention.head_count_kv") or heads,
        "head_dim": key("attention.key_length"),
        "v_head_dim": key("attention.value_length"),
        "kv_lora_rank": key("attention.kv_lora_rank"),
        "qk_rope_head_dim": key("rope.dimension_count") if key("attention.kv_lora_rank") else None,
        "sliding_window": key("attention.sliding_window"),
        "num_local_experts": key("expert_count"),
        "num_experts_per_tok": key("expert_used_count"),
        "moe_intermediate_size": key("expert_feed_forward_length"),
        "max_position_embeddings": key("context_length"),
        "vocab_size": key("vocab_size") or head.array_lengths.get("tokenizer.ggml.tokens"),
        "dtype": "bfloat16",
        "tie_word_embeddings": not any(tensor.name == "output.weight" for tensor in head.tensors),
    }
    return {name: value for name, value in config.items() if value is not None}
