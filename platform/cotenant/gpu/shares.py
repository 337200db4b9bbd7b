"""Budgets as Ray books them: fractions of one GPU in steps of 0.0001, and bytes beside them.

Everything is counted in whole ticks (1/10,000 of a GPU) and whole KiB, so sums are exact. Of a share, always:

- it is the budget's fraction of the usable memory, rounded up to a tick;
- but where n equal budgets fill a GPU in bytes, n of them fit in shares as well: a third is 0.3333, not 0.3334,
  so that three replicas still share a GPU. What Ray then books too little is under a tick (2.3 MiB of an L4's
  22 GiB) a replica, and comes out of the reserve; the plan itself also packs by bytes.
"""

from __future__ import annotations

GPU_TICKS = 10_000
_KIB_PER_GIB = 2**20


def budget_kib(gib: float) -> int:
    """A budget in whole KiB, rounded down, so that thirds of a GPU add up to no more than it has."""
    return max(1, int(gib * _KIB_PER_GIB))


def usable_kib(gib: float) -> int:
    """A GPU's usable memory in whole KiB."""
    return int(gib * _KIB_PER_GIB + 1e-3)


def share_ticks(budget: int, usable: int) -> int:
    """The share that books `budget` of `usable` KiB, in ticks. At most GPU_TICKS if the budget fits."""
    up = -(-budget * GPU_TICKS // usable)
    fit = usable // budget
    if fit * up <= GPU_TICKS or fit > GPU_TICKS:
        return up
    down = GPU_TICKS // fit
    return down if GPU_TICKS // down == fit else up
