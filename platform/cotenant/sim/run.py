"""The event loop: requests come, replicas start, work, wake and go, and the scaler is asked every so often.

A request takes a slot of its workload's replicas, first come first served, for as long as it says. Whatever the scaler
says is carried out as the platform would: sleepers are woken first, then free shares are taken, then nodes are made;
what already starts counts; what is too much goes from the emptiest node first, after its last call.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from itertools import count

from cotenant.scaling.learning import Rate, ServiceTimes, StartTime
from cotenant.scaling.terms import Demand, Starts, Supply
from cotenant.sim.backlog import Backlog, Call
from cotenant.sim.fleet import Fleet, Node, Replica, Spent, State
from cotenant.sim.model import PARTS, Request, Sample, Scaler, Scene, SimWorkload, View
from cotenant.sim.stages import Image
from cotenant.sim.tally import Waits

#: The empties are looked after this often.
_HOUSEKEEPING_S = 5.0
_RATE_WINDOW_S = 60.0
_LEAST_START_S = 0.001
_NEVER = float("inf")


@dataclass
class _Line:
    """The calls of one workload: those that wait, and which replicas have a slot for them."""

    waiting: Backlog
    open: list[Replica] = field(default_factory=list)
    running: int = 0
    arrived: int = 0
    waits: Waits = field(default_factory=Waits)
    lately: Waits = field(default_factory=Waits)
    """Since the last sample; not in `waits` yet."""
    dated: Waits = field(default_factory=Waits)
    overdue: int = 0
    times: ServiceTimes = field(default_factory=ServiceTimes)
    rate: Rate = field(default_factory=lambda: Rate(_RATE_WINDOW_S))
    unrated: int = 0
    """Arrived since the rate was last told, without those with a deadline: for them nothing is kept ready."""


@dataclass
class Outcome:
    """What came of it."""

    scaler: str
    waits: list[Waits]
    """By workload, of calls without a deadline of their own."""
    dated: list[Waits]
    """Of those with one."""
    overdue: list[int]
    """Of the dated: begun after their deadlines."""
    spent: Spent
    samples: list[Sample]
    ended_s: float
    undone: int
    busy_s: list[float]
    """Slot-seconds of work done, by workload."""

    def cost_usd(self, usd_per_h: tuple[float, ...]) -> float:
        return sum(seconds / 3600 * usd for seconds, usd in zip(self.spent.node_s, usd_per_h, strict=True))


class Simulation:
    """One scene under one scaler. Same scene, scaler and seed: same outcome."""

    def __init__(self, scene: Scene, scaler: Scaler) -> None:
        self._scene = scene
        self._scaler = scaler
        self._fleet = Fleet(scene.pools, scene.workloads, scene.seed)
        self._lines = [_Line(Backlog(spec.bounds.target_wait_s)) for spec in scene.workloads]
        self._starts = [_Starts.of(spec, scene.pools[spec.pool].image) for spec in scene.workloads]
        self._busy_s = [0.0] * len(scene.workloads)
        self._events: list[tuple[float, int, object]] = []
        self._order = count()
        self._now = 0.0
        self._samples: list[Sample] = []
        self._calls = count()

    def run(self) -> Outcome:
        """Play the scene to its end."""
        scene = self._scene
        for number, spec in enumerate(scene.workloads):
            for _ in range(spec.bounds.min):
                started = self._fleet.start(number, 0.0, ready=True)
                if started is not None:
                    self._opened(started[0])
                    self._made(started[1])
        self._housekeeping(ready=True)
        requests = iter(scene.requests)
        coming = next(requests, None)
        decide_s = look_s = sample_s = 0.0
        end_s = scene.until_s + scene.patience_s
        while True:
            timer_s = min(decide_s, look_s, sample_s)
            event_s = self._events[0][0] if self._events else float("inf")
            if coming is not None and coming.at_s <= event_s and coming.at_s <= timer_s:
                self._now = coming.at_s
                self._arrive(coming)
                coming = next(requests, None)
                continue
            if event_s <= timer_s:
                self._now, _, event = heapq.heappop(self._events)
                self._happen(event)
                continue
            self._now = timer_s
            if coming is None and timer_s > scene.until_s and (timer_s >= end_s or not self._busy):
                break
            if timer_s == decide_s:
                self._scale()
                decide_s += self._scaler.every_s
            if timer_s == look_s:
                self._housekeeping()
                look_s += _HOUSEKEEPING_S
            if timer_s == sample_s:
                self._sample()
                sample_s += scene.sample_s
        if self._samples[-1].at_s < self._now:
            self._sample()
        self._fleet.close(self._now)
        return Outcome(
            self._scaler.name,
            [line.waits for line in self._lines],
            [line.dated for line in self._lines],
            [line.overdue for line in self._lines],
            self._fleet.spent,
            self._samples,
            self._now,
            sum(len(line.waiting) + line.running for line in self._lines),
            self._busy_s,
        )

    @property
    def _busy(self) -> bool:
        return any(line.waiting or line.running for line in self._lines)

    # --- calls ---

    def _arrive(self, request: Request) -> None:
        line = self._lines[request.workload]
        at_s, _, service_s, within_s, units = request
        dated = within_s > self._scene.workloads[request.workload].bounds.target_wait_s
        call = Call(at_s + within_s if dated else _NEVER, at_s, service_s, units)
        line.arrived += 1
        line.unrated += not dated
        replica = self._with_a_slot(line)
        if replica is None:
            line.waiting.add(call)
        else:
            self._begin(line, replica, call)

    def _with_a_slot(self, line: _Line) -> Replica | None:
        """A replica that can take a call. Those that can't any more are dropped from the list on the way."""
        while line.open:
            replica = line.open[-1]
            slots = self._scene.workloads[replica.workload].bounds.slots
            if replica.state is State.RESIDENT and replica.busy < slots:
                return replica
            line.open.pop()
            replica.listed = False
        return None

    def _opened(self, replica: Replica) -> None:
        """The replica has, or may have, free slots: give them to what waits."""
        line = self._lines[replica.workload]
        slots = self._scene.workloads[replica.workload].bounds.slots
        while line.waiting and replica.busy < slots:
            self._begin(line, replica, line.waiting.take())
        if replica.busy < slots and not replica.listed:
            replica.listed = True
            line.open.append(replica)

    def _begin(self, line: _Line, replica: Replica, call: Call) -> None:
        due_s, came_s, service_s, _ = call
        if due_s == _NEVER:
            line.lately.add(self._now - came_s)
        else:
            line.dated.add(self._now - came_s)
            line.overdue += self._now > due_s
        line.running += 1
        replica.busy += 1
        number = next(self._calls)
        replica.calls[number] = call
        heapq.heappush(self._events, (self._now + service_s, next(self._order), (replica, number)))

    def _ended(self, replica: Replica, call: int) -> None:
        found = replica.calls.pop(call, None)
        if found is None:
            return  # its replica was lost, and the call begun again elsewhere
        _, _, service_s, units = found
        line = self._lines[replica.workload]
        line.running -= 1
        replica.busy -= 1
        line.times.ended(units, service_s)
        self._busy_s[replica.workload] += service_s
        if replica.state is State.RESIDENT:
            self._opened(replica)
        elif replica.state is State.DRAINING and not replica.busy:
            self._fleet.remove(replica, self._now)

    # --- replicas and nodes ---

    def _happen(self, event: object) -> None:
        if isinstance(event, tuple):
            self._ended(*event)
        elif isinstance(event, Replica):
            # One that was moved to a node that was there sooner is ready sooner than was told at first.
            if event.state in (State.STARTING, State.WAKING) and event.ready_s <= self._now:
                if event.state is State.STARTING:
                    self._starts[event.workload].took(event, self._now)
                event.state = State.RESIDENT
                self._opened(event)
        elif isinstance(event, Node) and not event.gone:
            self._lose(event)

    def _at(self, at_s: float, event: object) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), event))

    def _lose(self, node: Node) -> None:
        """The node is taken away: what ran on it waits again, first in line."""
        for replica in self._fleet.lose(node, self._now):
            line = self._lines[replica.workload]
            line.running -= len(replica.calls)
            line.waiting.again(list(replica.calls.values()))
            replica.calls.clear()
            replica.busy = 0
        for line in self._lines:
            while line.waiting and (free := self._with_a_slot(line)) is not None:
                self._begin(line, free, line.waiting.take())

    def _made(self, node: Node | None) -> None:
        if node is not None and (lasts_s := self._fleet.lasts_s(node)) is not None:
            self._at(node.ready_s + lasts_s, node)

    def _housekeeping(self, *, ready: bool = False) -> None:
        for pool in range(len(self._scene.pools)):
            for node in self._fleet.keep_nodes(pool, self._now, ready=ready):
                self._made(node)

    # --- scaling ---

    def _scale(self) -> None:
        for replica in self._fleet.settle(self._now):
            self._at(replica.ready_s, replica)
        for number in range(len(self._lines)):
            view = self._view(number)
            target = self._scaler.target(number, view, self._now)
            self._carry_out(number, target.resident, target.replicas)

    def _view(self, number: int) -> View:
        line, spec = self._lines[number], self._scene.workloads[number]
        if line.unrated:
            line.rate.came(line.unrated, self._now)
            line.unrated = 0
        mean_s = line.times.mean_s
        queues = line.waiting.queues(self._now, line.times) if line.waiting else ()
        demand = Demand(self._now, line.running, queues, line.rate.per_s(self._now), mean_s)
        resident = asleep = 0
        starting: list[float] = []
        for replica in self._fleet.replicas[number]:
            if replica.state is State.RESIDENT:
                resident += 1
            elif replica.state is State.ASLEEP:
                asleep += 1
            else:
                starting.append(max(0.0, replica.ready_s - self._now))
        supply = Supply(resident, asleep, tuple(starting))
        starts = Starts(*self._starts[number].seconds, self._fleet.free_shares(number))
        return View(spec.bounds, demand, supply, starts)

    def _carry_out(self, number: int, resident: int, replicas: int) -> None:
        mine = self._fleet.replicas[number]
        while len(mine) < replicas:
            started = self._fleet.start(number, self._now)
            if started is None:
                break
            self._at(started[0].ready_s, started[0])
            self._made(started[1])
        surplus = len(mine) - replicas
        if surplus > 0:
            # What does not work yet is given up first, then what idles.
            order = {State.ASLEEP: 0, State.STARTING: 1, State.WAKING: 2, State.RESIDENT: 3}
            for replica in sorted(mine, key=lambda one: (order[one.state], self._fleet.emptiest_first(one)))[:surplus]:
                self._give_up(replica)
        awake = [one for one in mine if one.state is not State.ASLEEP]
        if len(awake) < resident:
            for replica in [one for one in mine if one.state is State.ASLEEP][: resident - len(awake)]:
                self._fleet.wake(replica, self._now)
                self._at(replica.ready_s, replica)
        elif len(awake) > resident:
            idle = [one for one in awake if one.state is State.RESIDENT and not one.busy]
            for replica in sorted(idle, key=self._fleet.emptiest_first)[: len(awake) - resident]:
                replica.state = State.ASLEEP

    def _give_up(self, replica: Replica) -> None:
        if replica.busy:
            self._fleet.drain(replica)
        else:
            self._fleet.remove(replica, self._now)

    def _sample(self) -> None:
        sample = Sample(self._now)
        for number, line in enumerate(self._lines):
            states = [replica.state for replica in self._fleet.replicas[number]]
            sample.arrived.append(line.arrived)
            sample.waiting.append(len(line.waiting))
            sample.resident.append(states.count(State.RESIDENT))
            sample.asleep.append(states.count(State.ASLEEP))
            sample.starting.append(states.count(State.STARTING) + states.count(State.WAKING))
            lately = line.lately
            sample.waits_s.append(tuple(map(lately.quantile, PARTS)) if lately.count else None)
            line.waits.merge(lately)
            line.lately = Waits()
        sample.nodes = [len(nodes) for nodes in self._fleet.nodes]
        sample.node_s = [self._fleet.node_s(pool, self._now) for pool in range(len(sample.nodes))]
        self._samples.append(sample)


@dataclass
class _Starts:
    """What the scaler takes a workload's starts for: their means, or what was assumed and then seen."""

    wake: StartTime
    share: StartTime
    node: StartTime
    learns: bool

    @classmethod
    def of(cls, spec: SimWorkload, image: Image) -> _Starts:
        stages = spec.stages
        share_s = stages.mean_share_s
        means_s = stages.wake.mean_s, share_s, share_s + stages.mean_node_s(image)
        wake, share, node = (StartTime(max(seconds, _LEAST_START_S)) for seconds in spec.assumed_s or means_s)
        return cls(wake, share, node, learns=spec.assumed_s is not None)

    @property
    def seconds(self) -> tuple[float, float, float]:
        return self.wake.seconds, self.share.seconds, self.node.seconds

    def took(self, replica: Replica, now: float) -> None:
        """The replica serves now."""
        if self.learns:
            with_node = replica.node.ready_s > replica.began_s
            (self.node if with_node else self.share).took(now - replica.began_s)


def simulate(scene: Scene, scaler: Scaler) -> Outcome:
    """Play a scene under a scaler."""
    return Simulation(scene, scaler).run()
