"""What an agent knows and decides, without sockets, processes or a clock of its own.

The server tells it what replicas said and what was read of the machine, and sends what it puts in the outbox.
Always true: a replica's lease ends when it says bye or its process has ended, never because a connection broke;
so what it still holds is never given to another.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cotenant.agent import guard
from cotenant.agent.attribution import Claim, attribute
from cotenant.agent.place import Place, Refused, find_gpu
from cotenant.agent.protocol import (
    Answer,
    Ask,
    Busy,
    Granted,
    Hello,
    Idle,
    Recalled,
    Report,
    Slept,
    Welcome,
    Withdraw,
)
from cotenant.agent.reading import Reading, Root
from cotenant.agent.records import Count, Replica, gib_text
from cotenant.agent.snapshot import Event, EventKind, Snapshot
from cotenant.errors import CotenantError
from cotenant.gpu.ledger import OVERCOMMITTED, Action, Grant, State
from cotenant.gpu.probe import Gpu
from cotenant.gpu.terms import Tier
from cotenant.telemetry.starts import Kept, Span, Start

EVENTS_KEPT = 200


@dataclass(frozen=True)
class Obituary:
    """Why a replica is about to be stopped, for whoever must answer its requests."""

    application: str
    deployment: str
    replica: str
    actor_id: str
    node_id: str
    pid: int
    workload: str
    gpu: str
    held_mib: float
    may_mib: float
    budget_mib: float
    past_budget: bool
    at: float
    text: str


class Node:
    """The state of one node's agent.

    Args:
        node_id: the node's.
        gpus: what there is.
        interval_s: how often `observe` is called; replicas are told.
        limits: when to warn and stop.
        opens_at: no grants before this time, of the clock that every method is told of.
        wall: Unix time, for events.
    """

    def __init__(
        self,
        node_id: str,
        gpus: Sequence[Gpu],
        *,
        interval_s: float = 1.0,
        limits: guard.Limits | None = None,
        opens_at: float = -math.inf,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.node_id = node_id
        self.interval_s = interval_s
        self.replicas: dict[str, Replica] = {}
        self.places = {gpu.key: Place(gpu) for gpu in gpus}
        self._gpus = tuple(gpus)
        self._limits = limits or guard.Limits()
        self._opens_at = opens_at
        self._wall = wall
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._counts: dict[tuple[str, str], Count] = {}
        self._starts = Kept()
        self._outbox: list[tuple[str, Answer]] = []
        self._read_at: float | None = None
        self._fault = ""

    def take_outbox(self) -> list[tuple[str, Answer]]:
        """What is to be sent, to which replica, in order; each only once."""
        outbox, self._outbox = self._outbox, []
        return outbox

    @property
    def due_at(self) -> float:
        """When `tick` may next have something to do; infinite if never."""
        return min((place.due_at for place in self.places.values()), default=math.inf)

    @property
    def roots(self) -> dict[str, Root]:
        """Where each replica's processes begin, for `reading.read`."""
        return {
            replica.id: Root(replica.pid, replica.pids, self._may_kib(replica)) for replica in self.replicas.values()
        }

    def hello(self, hello: Hello, pid: int, now: float) -> None:
        """A replica came, or came back.

        Raises:
            CotenantError: there is no such GPU, no room on it, or another process already is this replica.
        """
        here = self.replicas.get(hello.identity.replica)
        if here is not None and here.pid == pid and pid:
            self._came_back(here, hello, now)
            return
        if here is not None and here.connected:
            raise Refused(f"replica {here.id} is already here with pid {here.pid}; have pid {pid}")
        if here is not None:
            self.leave(here.id, now)
        replica = Replica.of(hello, pid)
        gpu = find_gpu(hello.gpu, self._gpus)
        if gpu is not None:
            self._join(replica, gpu, now, holds_full=hello.holds_full)
        self.replicas[replica.id] = replica
        self._welcome(replica)
        where = f"on {gpu.key}" if gpu is not None else "on a GPU that is not known yet"
        self._note("joined", f"{replica.workload} {where}, pid {pid}, {replica.tier.value}", replica)

    def report(self, replica_id: str, report: Report, now: float) -> None:
        """Raises CotenantError: it says that it is on a GPU that it can't be on."""
        replica = self.replicas[replica_id]
        replica.tier, replica.pids = report.tier, report.pids
        replica.running, replica.waiting = report.running, report.waiting
        replica.reported_kib = None if report.allocated_bytes is None else -(-report.allocated_bytes // 1024)
        if replica.gpu is None and report.gpu is not None:
            gpu = find_gpu(report.gpu, self._gpus)
            assert gpu is not None
            self._place(replica, gpu, now)

    def said(self, replica_id: str, message: Ask | Withdraw | Busy | Idle | Slept, now: float) -> None:
        """What a replica says of its need for memory.

        Raises:
            Refused: it is not known on which GPU it is.
        """
        replica = self.replicas[replica_id]
        place = self.places.get(replica.gpu or "")
        if place is None or place.ledger is None:
            if isinstance(message, Ask):
                raise Refused(
                    f"{replica.workload} asks for memory, and on which of this node's {len(self._gpus)} GPUs it is can "
                    "only be seen once it holds some; let it say its GPU in hello"
                )
            return
        ledger = place.ledger
        match message:
            case Ask(priority=priority):
                actions = ledger.ask(replica_id, priority, now)
            case Withdraw():
                actions = ledger.withdraw(replica_id, now)
            case Busy(priority=priority):
                actions = ledger.busy(replica_id, now, priority)
            case Idle():
                actions = ledger.idle(replica_id, now)
            case Slept():
                actions = self._slept(replica, place, now)
        self._act(place, actions)

    def started(self, start: Start) -> tuple[Span, ...]:
        """A replica told of a start. Returns the spans that were not known yet."""
        return self._starts.add(start)

    def disconnected(self, replica_id: str) -> None:
        """Its connection broke. It keeps its lease until it says hello again, or `leave` is told of its end."""
        self.replicas[replica_id].connected = False

    def leave(self, replica_id: str, now: float) -> None:
        """It ended, or said bye: all it held is free. Nothing happens if it is not here."""
        replica = self.replicas.pop(replica_id, None)
        if replica is None:
            return
        self._note("left", f"{replica.workload}, pid {replica.pid}, held {gib_text(replica.held_kib or 0)}", replica)
        place = self.places.get(replica.gpu or "")
        if place is not None:
            self._act(place, place.leave(replica_id, now))

    def tick(self, now: float) -> None:
        """Time has passed."""
        for place in self.places.values():
            if place.ledger is not None:
                self._act(place, place.ledger.tick(now))

    def observe(self, reading: Reading, now: float) -> list[tuple[str, Obituary]]:
        """Take in what was read of the machine. Returns the replicas to stop, each only once, and why."""
        passed_s = 0.0 if self._read_at is None else max(0.0, now - self._read_at)
        self._read_at = now
        self._note_fault(reading.fault)
        for replica_id, started in reading.processes.items():
            # Of one that has ended, the last that was seen of it tells what it may have left running.
            if replica_id in self.replicas and replica_id not in reading.dead:
                self.replicas[replica_id].processes = dict(started)
        self._find_unplaced(reading, now)
        stops: list[tuple[str, Obituary]] = []
        for sample in reading.samples:
            place = self.places.get(sample.gpu.key)
            if place is None:
                continue
            here = [replica for replica in self.replicas.values() if replica.gpu == sample.gpu.key]
            # One that said hello while the machine was being read has no processes yet but its first.
            claims = [Claim(one.id, frozenset(one.processes or {one.pid}), one.reported_kib) for one in here]
            attribution = attribute(
                sample,
                claims,
                known=reading.known.__contains__,
                private_kib=lambda pid: reading.private_kib.get(pid, 0),
            )
            if sample.fault is not None and sample.fault != place.fault:
                self._note("fault", f"{sample.gpu.key}: {sample.fault}", gpu=sample.gpu.key)
            self._act(place, place.measured(sample, attribution, now))
            if sample.fault is None:
                self._note_strangers(place)
            for replica in here:
                replica.held_kib = attribution.held[replica.id]
                self._count_held(replica, place, passed_s)
                obituary = self._judge(replica, place, now)
                if obituary is not None:
                    stops.append((replica.id, obituary))
        return stops

    def stop_failed(self, replica_id: str) -> None:
        """It lives although it was to be stopped: the next sample judges it again."""
        replica = self.replicas.get(replica_id)
        if replica is not None:
            replica.stopping = False
            self._note("fault", f"{replica.workload}, pid {replica.pid}, could not be ended", replica)

    def note(self, kind: EventKind, text: str, replica_id: str = "") -> None:
        """Put something in the list of what the agent did lately."""
        self._note(kind, text, self.replicas.get(replica_id))

    def snapshot(self) -> Snapshot:
        """All there is to know now."""
        return Snapshot(
            node_id=self.node_id,
            at=self._wall(),
            interval_s=self.interval_s,
            gpus=tuple(place.view(self.replicas) for place in self.places.values()),
            unplaced=tuple(replica.view(0) for replica in self.replicas.values() if replica.gpu is None),
            tallies=tuple(count.view(workload, gpu) for (workload, gpu), count in self._counts.items()),
            events=tuple(self._events),
            starts=self._starts.all(),
        )

    def _may_kib(self, replica: Replica) -> int | None:
        place = self.places.get(replica.gpu or "")
        if place is None or not place.gpu.virtual:
            return None
        return max(replica.floor_kib, place.lease_kib(replica.id))

    def _came_back(self, replica: Replica, hello: Hello, now: float) -> None:
        """Its connection was lost and made again. What happened meanwhile is what it says; its place stays."""
        replica.connected = True
        replica.tier, replica.pids = hello.tier, hello.pids
        self._welcome(replica)
        place = self.places.get(replica.gpu or "")
        if place is None or place.ledger is None:
            return
        self._act(place, place.ledger.withdraw(replica.id, now))
        state = place.ledger.state(replica.id)
        if not hello.holds_full and state >= State.AWAKE and not replica.tenant.pinned:
            # It slept, or never heard of its grant.
            self._act(place, self._slept(replica, place, now))
        elif state is State.RECALLED:
            self._send(replica.id, Recalled(wanted_by=place.ledger.recalled[replica.id]))
        elif not hello.holds_full and state is State.AWAKE:
            self._send(replica.id, Granted())

    def _join(self, replica: Replica, gpu: Gpu, now: float, *, holds_full: bool) -> None:
        place = self.places[gpu.key]
        actions, note = place.join(replica, now, holds_full=holds_full, opens_at=self._opens_at)
        replica.gpu = gpu.key
        self.replicas[replica.id] = replica
        if note:
            self._note("unknown", note, replica)
        self._act(place, actions)

    def _place(self, replica: Replica, gpu: Gpu, now: float) -> None:
        """It has become known on which GPU a replica is. It holds memory there, so it is taken as awake."""
        self._join(replica, gpu, now, holds_full=replica.tier is Tier.RESIDENT)
        self._welcome(replica)
        self._note("joined", f"{replica.workload} is on {gpu.key}", replica)

    def _find_unplaced(self, reading: Reading, now: float) -> None:
        """A replica that did not know its GPU is where NVML names one of its processes."""
        for replica in self.replicas.values():
            if replica.gpu is not None:
                continue
            for sample in reading.samples:
                named = {process.pid for process in sample.processes or ()}
                if named <= reading.known and not named.isdisjoint(replica.processes):
                    try:
                        self._place(replica, sample.gpu, now)
                    except CotenantError as error:
                        self._note("refused", str(error), replica)
                    break

    def _slept(self, replica: Replica, place: Place, now: float) -> list[Action]:
        assert place.ledger is not None
        was_awake = place.ledger.state(replica.id) >= State.AWAKE
        actions = place.ledger.slept(replica.id, now)
        if was_awake and not replica.tenant.pinned:
            # What it held awake says nothing about the floor.
            replica.watch = guard.Watch()
            self._count(replica, place).sleeps += 1
            freed = gib_text(replica.budget_kib - replica.floor_kib)
            self._note("slept", f"{replica.workload} gave back {freed}", replica)
        return actions

    def _act(self, place: Place, actions: Iterable[Action]) -> None:
        """Tell replicas what the ledger says."""
        for action in actions:
            replica = self.replicas[action.tenant]
            if isinstance(action, Grant):
                replica.watch = guard.Watch()
                self._count(replica, place).wakes += 1
                self._send(replica.id, Granted())
                self._note("granted", f"{replica.workload} may hold {gib_text(replica.budget_kib)}", replica)
            else:
                self._send(replica.id, Recalled(wanted_by=action.wanted_by))
                wanted_by = self.replicas.get(action.wanted_by)
                for_whom = "there is too little" if action.wanted_by == OVERCOMMITTED else "another waits"
                if wanted_by is not None:
                    for_whom = f"{wanted_by.workload} waits"
                self._note("recalled", f"{replica.workload} is to sleep: {for_whom}", replica)

    def _judge(self, replica: Replica, place: Place, now: float) -> Obituary | None:
        if replica.stopping:
            return None
        holding = replica.holding(place.lease_kib(replica.id), exact=place.gpu.virtual)
        verdict, replica.watch = guard.judge(holding, replica.watch, now, self._limits)
        count = self._count(replica, place)
        if isinstance(verdict, guard.Warn):
            count.warnings += 1
            held, may = gib_text(verdict.held_kib), gib_text(verdict.may_kib)
            self._note("warned", f"{replica.workload} holds {held} of {may}", replica)
        elif isinstance(verdict, guard.Stop):
            count.stops += 1
            replica.stopping = True
            obituary = self._obituary(replica, verdict)
            self._note("stopped", obituary.text, replica)
            return obituary
        return None

    def _obituary(self, replica: Replica, stop: guard.Stop) -> Obituary:
        held, may = gib_text(stop.held_kib), gib_text(stop.may_kib)
        if stop.past_budget:
            text = (
                f"{replica.workload} held {held} of GPU memory, past its budget of {may}, and was stopped; "
                "ask for less at once, or raise its vram_gib"
            )
        else:
            text = (
                f"{replica.workload} kept {held} of GPU memory without a lease, past its floor of {may}, and was "
                "stopped; raise its asleep_gib"
            )
        return Obituary(
            application=replica.identity.application,
            deployment=replica.identity.deployment,
            replica=replica.id,
            actor_id=replica.identity.actor_id,
            node_id=self.node_id,
            pid=replica.pid,
            workload=replica.workload,
            gpu=replica.gpu or "",
            held_mib=round(stop.held_kib / 1024, 1),
            may_mib=round(stop.may_kib / 1024, 1),
            budget_mib=round(replica.budget_kib / 1024, 1),
            past_budget=stop.past_budget,
            at=self._wall(),
            text=text,
        )

    def _count_held(self, replica: Replica, place: Place, passed_s: float) -> None:
        count = self._count(replica, place)
        replica.peak_kib = max(replica.peak_kib, replica.held_kib or 0)
        count.peak_kib = max(count.peak_kib, replica.peak_kib)
        occupied = max(place.lease_kib(replica.id), replica.held_kib or 0)
        seconds = passed_s * min(1.0, occupied / max(1, place.usable_kib))
        replica.gpu_seconds += seconds
        count.gpu_seconds += seconds

    def _count(self, replica: Replica, place: Place) -> Count:
        return self._counts.setdefault((replica.workload, place.gpu.key), Count())

    def _note_strangers(self, place: Place) -> None:
        """Report each unknown process once, when it was seen twice: it may be a replica about to say hello."""
        for stranger in place.attribution.unknown:
            if place.strangers.get(stranger.pid) == 2:
                held = "an unknown amount" if stranger.held_kib is None else gib_text(stranger.held_kib)
                text = f"process {stranger.pid} holds {held} of {place.gpu.key} and is no replica"
                self._note("unknown", text, gpu=place.gpu.key)

    def _note_fault(self, fault: str) -> None:
        if fault != self._fault:
            self._fault = fault
            self._note("fault", fault or "the driver answers again")

    def _welcome(self, replica: Replica) -> None:
        self._send(replica.id, Welcome(node_id=self.node_id, gpu=replica.gpu, interval_s=self.interval_s))

    def _send(self, replica_id: str, answer: Answer) -> None:
        self._outbox.append((replica_id, answer))

    def _note(self, kind: EventKind, text: str, replica: Replica | None = None, gpu: str = "") -> None:
        self._events.append(
            Event(
                at=self._wall(),
                kind=kind,
                text=text,
                gpu=gpu or (replica.gpu if replica is not None else "") or "",
                workload=replica.workload if replica is not None else "",
                replica=replica.id if replica is not None else "",
            )
        )
