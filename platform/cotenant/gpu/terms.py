"""What one replica is told of the plan: its budget, what it keeps asleep, and how warm it is to be kept.

Made by the plan, carried by the Serve config, read by the replica and said by it to its node's GPU agent, so all
four mean the same.
"""

from __future__ import annotations

import enum

from pydantic import BaseModel, ConfigDict, Field

from cotenant.config.model import Kind, Residency


class Tier(str, enum.Enum):
    """How warm a replica is."""

    RESIDENT = "resident"
    """Loaded, on the GPU, ready to work."""
    ASLEEP = "asleep"
    """Off the GPU but for a remainder; quick to wake."""
    COLD = "cold"
    """Nothing is loaded."""


class Priority(enum.IntEnum):
    """Who waits for GPU memory; the greater goes first."""

    BATCH = 0
    INTERACTIVE = 1


class Terms(BaseModel):
    """The terms on which a replica may use its GPU. Memory in GiB."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    workload: str
    kind: Kind
    pool: str
    accelerator: str
    usable_gib: float = Field(gt=0, description="What budgets on one GPU of the pool may add up to.")
    vram_gib: float = Field(gt=0, description="The budget: what the replica may hold while resident.")
    floor_gib: float = Field(gt=0, description="What it may hold at any time; the budget itself if always resident.")
    num_gpus: float = Field(gt=0, description="The share of a GPU that Ray books for it.")
    residency: Residency = "always"
    idle_s: float = 300.0
    slots: int = 1

    @property
    def on_cpu(self) -> bool:
        return self.accelerator == "cpu"

    @property
    def gpu_share(self) -> float:
        """The budget as a part of one GPU's usable memory: what the replica holds of it while resident."""
        return self.vram_gib / self.usable_gib
