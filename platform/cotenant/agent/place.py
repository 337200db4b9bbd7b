"""One GPU of the node as its agent sees it: its ledger, what was last measured, and what strangers hold there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from cotenant.agent.attribution import Attribution
from cotenant.agent.records import Replica, gib_text, mib
from cotenant.agent.snapshot import GpuView, ProcessView
from cotenant.errors import CotenantError
from cotenant.gpu.ledger import Action, Ledger
from cotenant.gpu.probe import Gpu, GpuSample
from cotenant.gpu.shares import usable_kib

_NOTHING = Attribution(held={}, by="none", used_kib=None)


class Refused(CotenantError):
    """A replica asked for what it can't be given on this node."""


def find_gpu(said: str | None, gpus: Sequence[Gpu]) -> Gpu | None:
    """The GPU that a replica says it is on: by UUID or the start of it, or by index. The only one if it says nothing.

    None if it says nothing and there are several.

    Raises:
        Refused: there is no such GPU here, or there are several.
    """
    if said is None:
        return gpus[0] if len(gpus) == 1 else None
    found = [gpu for gpu in gpus if gpu.key == said or (said.isdecimal() and gpu.index == int(said))]
    if not found and not said.isdecimal():
        found = [gpu for gpu in gpus if gpu.key.startswith(said)]
    if len(found) == 1:
        return found[0]
    if found:
        raise Refused(f"GPU {said!r} can be any of {_keys(found)} here; give the whole UUID")
    raise Refused(f"there is no GPU {said!r} here; this node has {_keys(gpus) or 'none'}")


def _keys(gpus: Iterable[Gpu]) -> str:
    return ", ".join(gpu.key for gpu in gpus)


class Place:
    """A GPU. It has a ledger while replicas are on it."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.ledger: Ledger | None = None
        self.pool = ""
        self.attribution = _NOTHING
        self.sm_util: float | None = None
        self.fault: str | None = None
        self.strangers: dict[int, int] = {}
        """Unknown processes, and in how many samples in a row each was seen."""
        self._usable_kib = 0
        self._measured_kib = 0
        self._foreign_kib = 0

    @property
    def usable_kib(self) -> int:
        """What leases may add up to: the least that any replica's terms say, while there are replicas."""
        return self._usable_kib

    def join(self, replica: Replica, now: float, *, holds_full: bool, opens_at: float) -> tuple[list[Action], str]:
        """Take a replica in; what is to be told, and a note if its terms disagree with what is here.

        Raises:
            NoRoom: with it, some replica here could never wake.
        """
        said = usable_kib(replica.terms.usable_gib)
        if not self.gpu.virtual:
            said = min(said, self.gpu.total_kib)
        note = ""
        fresh = self.ledger is None
        if self.ledger is None:
            self.ledger = Ledger(said, opens_at=opens_at)
            self._usable_kib = said
        elif said != self._usable_kib:
            less = min(said, self._usable_kib)
            note = (
                f"{replica.workload} says that {gib_text(said)} of {self.gpu.key} are usable, the others say "
                f"{gib_text(self._usable_kib)}; {gib_text(less)} it is"
            )
        try:
            actions = self.ledger.join(replica.tenant, now, awake=holds_full)
        except CotenantError:
            if fresh:
                self.ledger = None
            raise
        self.pool = replica.terms.pool
        self._usable_kib = min(said, self._usable_kib)
        if note:
            actions += self._count_foreign(now)
        return actions, note

    def leave(self, replica_id: str, now: float) -> list[Action]:
        if self.ledger is None:
            return []
        actions = self.ledger.leave(replica_id, now)
        if not self.ledger.holdings:
            self.ledger, self._usable_kib = None, 0
        return actions

    def lease_kib(self, replica_id: str) -> int:
        return self.ledger.holdings.get(replica_id, 0) if self.ledger is not None else 0

    def measured(self, sample: GpuSample, attribution: Attribution, now: float) -> list[Action]:
        """Take note of a sample: memory that no lease covers counts against what is free."""
        self.fault, self.sm_util = sample.fault, sample.sm_util
        if sample.fault is not None:
            # What strangers held counts on until there are figures again.
            return []
        self.attribution = attribution
        self.strangers = {stranger.pid: self.strangers.get(stranger.pid, 0) + 1 for stranger in attribution.unknown}
        # A sample may fall between an allocation and its report, or a start and its hello: two in a row must show it.
        before, self._measured_kib = self._measured_kib, _total(attribution) + self._excess(attribution)
        self._foreign_kib = min(before, self._measured_kib)
        return self._count_foreign(now)

    @property
    def due_at(self) -> float:
        return self.ledger.due_at if self.ledger is not None else math.inf

    def _excess(self, attribution: Attribution) -> int:
        """Used by nobody that can be named, beyond all leases and beyond what the plan leaves unused on purpose."""
        if attribution.used_kib is None or self.ledger is None or self.gpu.virtual:
            return 0
        reserve = max(0, self.gpu.total_kib - self._usable_kib)
        covered = sum(max(lease, attribution.held.get(replica) or 0) for replica, lease in self.ledger.holdings.items())
        return max(0, attribution.used_kib - _total(attribution) - covered - reserve)

    def _count_foreign(self, now: float) -> list[Action]:
        if self.ledger is None:
            return []
        disputed = self.ledger.usable_kib - self._usable_kib
        return self.ledger.foreign(self._foreign_kib + disputed, now)

    def view(self, replicas: Mapping[str, Replica]) -> GpuView:
        attribution, ledger = self.attribution, self.ledger
        leases = ledger.holdings if ledger is not None else {}
        return GpuView(
            key=self.gpu.key,
            index=self.gpu.index,
            name=self.gpu.name,
            mig=self.gpu.mig,
            pool=self.pool if ledger is not None else "",
            total_mib=mib(self.gpu.total_kib),
            used_mib=None if attribution.used_kib is None else mib(attribution.used_kib),
            usable_mib=None if ledger is None else mib(self._usable_kib),
            free_mib=None if ledger is None else mib(ledger.free_kib),
            sm_util=self.sm_util,
            measured_by=attribution.by,
            unattributed_mib=mib(attribution.unattributed_kib),
            fault=self.fault,
            unknown=tuple(
                ProcessView(pid=stranger.pid, held_mib=None if stranger.held_kib is None else mib(stranger.held_kib))
                for stranger in attribution.unknown
            ),
            waiting=ledger.waiting if ledger is not None else (),
            replicas=tuple(
                replica.view(leases.get(replica.id, 0)) for replica in replicas.values() if replica.gpu == self.gpu.key
            ),
        )


def _total(attribution: Attribution) -> int:
    """What unknown processes hold."""
    return sum(stranger.held_kib or 0 for stranger in attribution.unknown)
