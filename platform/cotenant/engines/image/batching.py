"""Which of the waiting pictures are denoised together. Pure.

Pictures go together if their shapes are equal: same task, size, steps, guidance, strength, and a negative prompt in
all of them or in none. The oldest always goes first, so nobody is passed over for ever.

A batch changes the arithmetic: the same matrix product of one row and of four differs in the last bits (measured on
a CPU with torch 2.13: 2e-6 of full scale, one unit in some bytes; cuBLAS promises no more). So a picture whose seed
the caller chose has a shape of its own and is always denoised alone: its bytes are the same whoever waits beside it,
and the i-th picture of n is the same as one made with `seed + i`. The seed that an answer tells of a picture made in
a batch repeats it up to those last bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

#: From words alone; from an image; into the masked part of an image.
Task = Literal["text", "image", "inpaint"]


@dataclass(frozen=True)
class Shape:
    """What pictures have in common that are denoised together. `alone`, if not 0, is one picture's own number."""

    task: Task
    width: int
    height: int
    steps: int
    guidance: float
    strength: float | None = None
    negative: bool = False
    alone: int = 0


def together(waiting: Sequence[Shape], most: int) -> list[int]:
    """Indices of the next batch: the oldest, and as many of its shape as there are, up to `most`, oldest first."""
    if not waiting:
        return []
    first = waiting[0]
    return [index for index, shape in enumerate(waiting) if shape == first][: 1 if first.alone else most]
