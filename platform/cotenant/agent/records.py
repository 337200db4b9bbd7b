"""What an agent remembers of a replica, and of a workload on a GPU. Memory in KiB."""

from __future__ import annotations

from dataclasses import dataclass, field

from cotenant.agent.guard import Holding, Watch
from cotenant.agent.protocol import Hello, Identity
from cotenant.agent.snapshot import ReplicaView, Tally
from cotenant.gpu.ledger import Tenant
from cotenant.gpu.shares import budget_kib
from cotenant.gpu.terms import Terms, Tier


@dataclass
class Replica:
    """A replica that said hello."""

    identity: Identity
    terms: Terms
    pid: int
    """Of its connection's other end; 0 if that is in a PID namespace that this one can't see."""
    wake_s: float
    gpu: str | None = None
    connected: bool = True
    tier: Tier = Tier.COLD
    pids: tuple[int, ...] = ()
    """Further processes, as it reported."""
    reported_kib: int | None = None
    running: int = 0
    waiting: int = 0
    processes: dict[int, int] = field(default_factory=dict)
    """Its processes when last looked at, and when each started: with that, their identity."""
    held_kib: int | None = None
    peak_kib: int = 0
    gpu_seconds: float = 0.0
    watch: Watch = field(default_factory=Watch)
    stopping: bool = False

    @classmethod
    def of(cls, hello: Hello, pid: int) -> Replica:
        return cls(
            identity=hello.identity,
            terms=hello.terms,
            pid=pid,
            wake_s=hello.wake_s,
            tier=hello.tier,
            pids=hello.pids,
        )

    @property
    def id(self) -> str:
        return self.identity.replica

    @property
    def workload(self) -> str:
        return self.terms.workload

    @property
    def budget_kib(self) -> int:
        return budget_kib(self.terms.vram_gib)

    @property
    def floor_kib(self) -> int:
        return min(self.budget_kib, budget_kib(self.terms.floor_gib))

    @property
    def tenant(self) -> Tenant:
        return Tenant(
            id=self.id,
            full_kib=self.budget_kib,
            floor_kib=self.floor_kib,
            wake_s=self.wake_s,
            pinned=self.terms.residency == "always",
        )

    def holding(self, lease_kib: int, *, exact: bool) -> Holding:
        return Holding(
            held_kib=self.held_kib,
            budget_kib=self.budget_kib,
            floor_kib=self.floor_kib,
            full=lease_kib >= self.budget_kib,
            exact=exact,
        )

    def view(self, lease_kib: int) -> ReplicaView:
        return ReplicaView(
            workload=self.workload,
            kind=self.terms.kind,
            application=self.identity.application,
            deployment=self.identity.deployment,
            replica=self.id,
            pid=self.pid,
            tier=self.tier,
            residency=self.terms.residency,
            connected=self.connected,
            held_mib=None if self.held_kib is None else mib(self.held_kib),
            peak_mib=mib(self.peak_kib),
            lease_mib=mib(lease_kib),
            budget_mib=mib(self.budget_kib),
            floor_mib=mib(self.floor_kib),
            running=self.running,
            waiting=self.waiting,
            gpu_seconds=round(self.gpu_seconds, 3),
        )


@dataclass
class Count:
    """What is counted of a workload on a GPU, over all its replicas, those that ended included."""

    gpu_seconds: float = 0.0
    peak_kib: int = 0
    warnings: int = 0
    stops: int = 0
    wakes: int = 0
    sleeps: int = 0

    def view(self, workload: str, gpu: str) -> Tally:
        return Tally(
            workload=workload,
            gpu=gpu,
            gpu_seconds=round(self.gpu_seconds, 3),
            peak_mib=mib(self.peak_kib),
            warnings=self.warnings,
            stops=self.stops,
            wakes=self.wakes,
            sleeps=self.sleeps,
        )


def mib(kib: int) -> float:
    return round(kib / 1024, 1)


def gib_text(kib: int) -> str:
    """`1.50 GiB`, or MiB where that says more."""
    return f"{kib / 2**20:.2f} GiB" if kib >= 2**20 else f"{kib / 1024:.0f} MiB"
