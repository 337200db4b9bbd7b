"""What is simulated: pools of nodes, workloads on them, and what scales them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from cotenant.scaling.terms import Bounds, Demand, Starts, Supply, Target
from cotenant.sim.stages import DEFAULTS, Image, Stages


class Request(NamedTuple):
    """One call: when it comes, for which workload (by its place among them), how long it has a slot."""

    at_s: float
    workload: int
    service_s: float
    within_s: float = 0.0
    """It may wait so long until it is begun, if that is longer than the workload's target."""
    units: float = 1.0
    """Its cost as it can be told beforehand, in any unit that its time grows with."""


@dataclass(frozen=True)
class SimPool:
    """Identical nodes with one GPU each."""

    name: str = "shared"
    usd_per_h: float = 1.0
    min_nodes: int = 0
    max_nodes: int = 20
    spare_nodes: int = 0
    """Nodes that are kept ready with nothing on them."""
    idle_s: float = 60.0
    """A node with nothing on it goes after this long."""
    image: Image = Image.STREAM
    """How a new node gets the image."""
    losses_per_h: float = 0.0
    """How often a node is taken away, as spot nodes are, for each hour that it runs."""
    dry_s: float = 0.0
    """So long no node is to be had of this pool after one was taken away."""
    fallback: int | None = None
    """The pool that a node is taken from, and paid as, while none is to be had of this one."""


@dataclass(frozen=True)
class SimWorkload:
    """One workload: its replicas' bounds, the share of a GPU that each books, and the pool that they are on."""

    name: str
    bounds: Bounds
    share: float = 1.0
    pool: int = 0
    stages: Stages = DEFAULTS
    assumed_s: tuple[float, float, float] | None = None
    """What the scaler takes for the time of a wake, of a start on a node that is there and of one with a node, until it
    has seen some, as the running platform's does; None: it knows the stages' means."""


@dataclass(frozen=True)
class View:
    """What a scaler sees of one workload."""

    bounds: Bounds
    demand: Demand
    supply: Supply
    starts: Starts


class Scaler(Protocol):
    """What decides how many replicas each workload has."""

    name: str
    every_s: float
    """It is asked so often."""

    def target(self, workload: int, view: View, now: float) -> Target: ...


@dataclass(frozen=True)
class Scene:
    """A platform and what is asked of it. `requests` come in the order of their times."""

    pools: tuple[SimPool, ...]
    workloads: tuple[SimWorkload, ...]
    requests: Iterable[Request]
    until_s: float
    """No request comes later; the simulation goes on until the last one is done, or `patience_s` longer."""
    patience_s: float = 3600.0
    seed: int = 1
    sample_s: float = 60.0


#: Of the quantiles in samples.
PARTS = (0.5, 0.95)


@dataclass
class Sample:
    """How it stood at one time. Lists are by workload, those of nodes by pool."""

    at_s: float
    arrived: list[int] = field(default_factory=list)
    """Since the beginning."""
    waiting: list[int] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    asleep: list[int] = field(default_factory=list)
    starting: list[int] = field(default_factory=list)
    waits_s: list[tuple[float, ...] | None] = field(default_factory=list)
    """Quantiles (`PARTS`) of the waits of calls that were begun since the last sample; None if none was."""
    nodes: list[int] = field(default_factory=list)
    """Ready and coming."""
    node_s: list[float] = field(default_factory=list)
    """Paid for since the beginning."""
