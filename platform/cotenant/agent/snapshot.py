"""What an agent knows at one moment, as plain models: for `cotenant top`, for metrics, for tests. Memory in MiB."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from cotenant.config.model import Kind, Residency
from cotenant.gpu.terms import Tier
from cotenant.telemetry.starts import Start

EventKind = Literal[
    "started", "joined", "left", "granted", "recalled", "slept", "warned", "stopped", "unknown", "fault", "refused"
]


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Event(_View):
    """Something the agent did or noticed; `at` is Unix time."""

    at: float
    kind: EventKind
    text: str
    gpu: str = ""
    workload: str = ""
    replica: str = ""


class ProcessView(_View):
    """A process that holds GPU memory and is no replica's."""

    pid: int
    held_mib: float | None


class ReplicaView(_View):
    """A replica on a GPU."""

    workload: str
    kind: Kind
    application: str
    deployment: str
    replica: str
    pid: int
    tier: Tier
    residency: Residency
    connected: bool
    held_mib: float | None
    """None while nothing tells what it holds."""
    peak_mib: float
    lease_mib: float
    """What it may hold now, by the ledger."""
    budget_mib: float
    floor_mib: float
    running: int
    waiting: int
    gpu_seconds: float
    """Seconds times the part of the GPU's usable memory that it was lent or held, whichever was more."""


class GpuView(_View):
    """A GPU and who shares it."""

    key: str
    index: int
    name: str
    mig: str | None
    pool: str
    """Empty until a replica has joined."""
    total_mib: float
    used_mib: float | None
    usable_mib: float | None
    """What leases may add up to; None until a replica has joined."""
    free_mib: float | None
    sm_util: float | None
    measured_by: str
    """nvml; reported, where NVML does not tell processes apart; processes, on a CPU pool; none."""
    unattributed_mib: float
    """Used, and nobody's that could be named; the driver's own reserve included."""
    fault: str | None
    unknown: tuple[ProcessView, ...]
    waiting: tuple[str, ...]
    """Replicas that wait for memory, the next one first."""
    replicas: tuple[ReplicaView, ...]


class Tally(_View):
    """What has been counted of a workload on a GPU since the agent started; ended replicas count on."""

    workload: str
    gpu: str
    gpu_seconds: float = 0.0
    peak_mib: float = 0.0
    warnings: int = 0
    stops: int = 0
    wakes: int = 0
    sleeps: int = 0


class Snapshot(_View):
    """All that an agent knows; `at` is Unix time."""

    node_id: str
    at: float
    interval_s: float
    gpus: tuple[GpuView, ...]
    unplaced: tuple[ReplicaView, ...] = ()
    """Replicas of which it is not known yet on which GPU they are."""
    tallies: tuple[Tally, ...] = ()
    events: tuple[Event, ...] = ()
    """The latest, oldest first."""
    starts: tuple[Start, ...] = ()
    """The latest of each workload and kind, as they came."""
