"""Terms and hellos as tests want them, and a node with replicas on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cotenant.agent.node import Node, Obituary
from cotenant.agent.protocol import Answer, Hello, Identity, Report
from cotenant.agent.reading import read
from cotenant.config.model import Residency
from cotenant.gpu.probe import Gpu
from cotenant.gpu.probe.fake import FakeProbe, FakeProcesses
from cotenant.gpu.terms import Terms, Tier

MIB = 1024
GIB = 2**20

CPU = Gpu("cpu:0", 0, "CPU", 12 * GIB, virtual=True)
L4 = Gpu("GPU-14-aaaa", 0, "NVIDIA L4", 23 * GIB)
EIGHT = tuple(Gpu(f"GPU-{n}-hhhh", n, "NVIDIA H100", 80 * GIB) for n in range(8))
SLICES = tuple(Gpu(f"MIG-{n}", 0, "NVIDIA A100", 5 * GIB, mig="1g.5gb") for n in range(7))


def terms(
    workload: str,
    *,
    gib: float = 4.0,
    floor_gib: float = 0.5,
    usable_gib: float = 10.0,
    residency: Residency = "sleep",
    accelerator: str = "nvidia-l4",
) -> Terms:
    return Terms(
        workload=workload,
        kind="image",
        pool="shared",
        accelerator=accelerator,
        usable_gib=usable_gib,
        vram_gib=gib,
        floor_gib=gib if residency == "always" else floor_gib,
        num_gpus=0.1,
        residency=residency,
    )


def hello(workload: str, number: int = 1, *, pid: int = 0, **rest: Any) -> Hello:
    """Fields of Hello are taken as such, the others go to `terms`."""
    own = {name: rest.pop(name) for name in tuple(rest) if name in Hello.model_fields}
    identity = Identity(application=workload, deployment="Replica", replica=f"{workload}#{number}", pid=pid)
    return Hello(identity=identity, terms=terms(workload, **rest), wake_s=0.0, **own)


def report(tier: Tier = Tier.RESIDENT, **rest: Any) -> Report:
    return Report(tier=tier, **rest)


class House:
    """A node on fake edges, with a clock that stands still until told."""

    def __init__(self, *gpus: Gpu, reserve_kib: int = 0, **options: Any) -> None:
        self.now = 100.0
        self.probe = FakeProbe(gpus, reserve_kib=reserve_kib)
        self.processes = FakeProcesses()
        self.node = Node("node-1", gpus, wall=lambda: 1_000.0 + self.now, **options)

    def come(self, workload: str, pid: int, number: int = 1, **rest: Any) -> str:
        """A replica starts and says hello."""
        if not self.processes.known(pid):
            self.processes.spawn(pid)
        said = hello(workload, number, **rest)
        self.node.hello(said, pid, self.now)
        return said.identity.replica

    def look(self, after_s: float = 1.0) -> list[tuple[str, Obituary]]:
        self.now += after_s
        seen = {replica.id: replica.processes for replica in self.node.replicas.values()}
        return self.node.observe(read(self.probe, self.processes, self.node.roots, seen), self.now)

    def told(self, replica_id: str) -> list[str]:
        """Types of what is sent to a replica; to the others nothing is kept."""
        return [answer.type for answer in self.answers(replica_id)]

    def answers(self, replica_id: str) -> Sequence[Answer]:
        return [answer for to, answer in self.node.take_outbox() if to == replica_id]

    def events(self, kind: str) -> list[str]:
        return [event.text for event in self.node.snapshot().events if event.kind == kind]
