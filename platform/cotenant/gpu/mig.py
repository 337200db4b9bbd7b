"""MIG profiles by accelerator: into how many slices a GPU can be cut, and what each one holds.

To the plan every slice is a GPU of its own. Only the profiles that cut a GPU into equal slices are listed, without
their variants (+me, +gfx), which have the same memory.

Sources. Names and numbers of slices: NVIDIA's Multi-Instance GPU User Guide, "Supported MIG Profiles" (read). Memory:
the GiB that `nvidia-smi mig -lgip` prints, as posted by owners of such GPUs; it differs a little between drivers, and
the least seen is taken (H200: mig-parted issue 120; B200: mig-parted pull requests 166 and 187; RTX PRO 6000: cubecos
issue 312). Multiplied up from a smaller slice and not seen printed: 3g.90gb, 4g.90gb, 7g.180gb, 2g.48gb, 4g.96gb.
A pool's `vram_gib` overrides what comes of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from cotenant.errors import PlanError


@dataclass(frozen=True)
class Profile:
    """One way to cut a GPU: so many slices, each with so much memory."""

    name: str
    slices: int
    gib: float


def _profiles(*rows: tuple[str, int, float]) -> dict[str, Profile]:
    return {name: Profile(name, slices, gib) for name, slices, gib in rows}


_H100_80GB = _profiles(
    ("1g.10gb", 7, 9.62), ("1g.20gb", 4, 19.5), ("2g.20gb", 3, 19.5), ("3g.40gb", 2, 39.25), ("4g.40gb", 1, 39.25),
    ("7g.80gb", 1, 79.25),
)  # fmt: skip

PROFILES = {
    "nvidia-tesla-a100": _profiles(
        ("1g.5gb", 7, 4.75), ("1g.10gb", 4, 9.62), ("2g.10gb", 3, 9.62), ("3g.20gb", 2, 19.5), ("4g.20gb", 1, 19.5),
        ("7g.40gb", 1, 39.25),
    ),
    "nvidia-a100-80gb": _profiles(
        ("1g.10gb", 7, 9.5), ("1g.20gb", 4, 19.5), ("2g.20gb", 3, 19.5), ("3g.40gb", 2, 39.25), ("4g.40gb", 1, 39.25),
        ("7g.80gb", 1, 78.75),
    ),
    "nvidia-h100-80gb": _H100_80GB,
    "nvidia-h100-mega-80gb": _H100_80GB,
    "nvidia-h200-141gb": _profiles(
        ("1g.18gb", 7, 16.0), ("1g.35gb", 4, 32.25), ("2g.35gb", 3, 32.25), ("3g.71gb", 2, 69.5), ("4g.71gb", 1, 69.5),
        ("7g.141gb", 1, 139.75),
    ),
    "nvidia-b200": _profiles(
        ("1g.23gb", 7, 20.5), ("1g.45gb", 4, 44.25), ("2g.45gb", 3, 44.25), ("3g.90gb", 2, 88.5), ("4g.90gb", 1, 88.5),
        ("7g.180gb", 1, 177.0),
    ),
    "nvidia-rtx-pro-6000": _profiles(("1g.24gb", 4, 23.12), ("2g.48gb", 2, 46.24), ("4g.96gb", 1, 92.48)),
}  # fmt: skip


def profile(pool: str, accelerator: str, mig: str) -> Profile:
    """The profile `mig` of `accelerator`. Raises PlanError, naming the profiles there are, if it has none such."""
    known = PROFILES.get(accelerator)
    if known is None:
        raise PlanError(
            f"pool {pool} asks for MIG slices {mig}, but no MIG profile of {accelerator} is known; drop mig, or take "
            f"one of {', '.join(PROFILES)}"
        )
    if mig not in known:
        raise PlanError(
            f"pool {pool} asks for MIG slices {mig}, which {accelerator} can't be cut into; it has "
            + ", ".join(f"{one.name} (x{one.slices})" for one in known.values())
        )
    return known[mig]
