"""Several pumps on the same lanes, with everything going wrong that can, in virtual time.

A test does steps: has clients ask for jobs, lets time pass, breaks something. `heal` then mends everything, waits
until the queue is empty and checks (`chaos_verdict`): no job is lost, no result ever changed, every result message
says what the result object says, every dead letter is deserved, every line of a batch is told once, nothing stays
unsettled, and no pump remembers anything of what it has let go.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from cotenant.calls import Directory, Served
from cotenant.config import Jobs
from cotenant.jobs.clerk.clerk import Clerk
from cotenant.jobs.clerk.webhooks import Webhooks
from cotenant.jobs.ingress.grouping import Grouper
from cotenant.jobs.ingress.pump import Pump
from cotenant.jobs.ingress.slots import ahead
from cotenant.jobs.queue.lanes import CLERK, MAIN, lane_of
from cotenant.jobs.queue.memory import MemoryLanes
from cotenant.jobs.store import keys
from cotenant.jobs.store.results import ResultStore
from cotenant.outbound.delivery import InMemoryDeliver
from cotenant.outbound.webhooks import ID, Answered
from tests.contracts.chaos_clients import HOOK, SECRETS, Clients
from tests.contracts.chaos_jobs import DIRECTORY
from tests.contracts.chaos_verdict import Tally, Verdict, check_forgotten
from tests.contracts.chaos_wires import (
    OWNER,
    Books,
    LoopClock,
    Tasks,
    Weather,
    Wire,
    WiredBackend,
    WiredLanes,
    WiredObjects,
    Workshop,
)

INGRESSES = 2
JOBS = Jobs(lease_s=10, max_attempts=3, look_ahead=2, ingresses=INGRESSES, max_job_s=50, drain_s=10, ordering=True)
#: The engines' jobs are not shorter than that on average.
SHORTEST_MEAN_S = 0.02
#: A drain that is given less still waits so long for a pull, and then for the requests that give everything back.
PULL_S, REQUESTS_S = 15.0, 30.0

_T = TypeVar("_T")


@dataclass
class Ingress:
    """A pump and its wire; `ending` while it drains."""

    name: str
    pump: Pump
    wire: Wire
    ending: asyncio.Task[None] | None = None
    ended: bool = False


class ChaosHouse:
    """See the module's docstring. Lives in one event loop in virtual time."""

    def __init__(self, seed: int, jobs: Jobs = JOBS, directory: Directory = DIRECTORY) -> None:
        self._loop = asyncio.get_running_loop()
        self._rng = random.Random(seed)
        self._tasks = Tasks(self._loop)
        self._names = itertools.count(1)
        self._repairs: list[tuple[asyncio.TimerHandle, Callable[[], None]]] = []
        self.jobs = jobs
        self.clock = LoopClock(self._loop)
        self.weather = Weather(self._rng)
        self.lanes = MemoryLanes(jobs, clock=self.clock, pull_wait_s=4.0)
        self.lane_names = [MAIN, CLERK, *(lane_of(served.name) for served in directory.workloads)]
        for lane in self.lane_names:
            self.lanes.open(lane)
        self.objects = Books(self.clock)
        self.directory = self.served = directory
        self.removed: set[str] = set()
        self.clients = Clients(
            jobs,
            self.lanes,
            ResultStore(self.objects),
            lambda: self.served,
            wire=Wire(self.weather),
            clock=self.clock,
            rng=self._rng,
        )
        slots = {served.name: -(-served.slots // jobs.ingresses) for served in directory.workloads}
        self.shop = Workshop(slots, self._rng, self.clients.key_of)
        self._refused: set[str] = set()
        self.deliver = InMemoryDeliver({HOOK: self._receive})
        self.faults: Counter[str] = Counter()
        self.trouble_until_s = 0.0
        self.ingresses: list[Ingress] = []
        for _ in range(jobs.ingresses):
            self.start_ingress()

    # --- ingresses ---

    def start_ingress(self) -> None:
        name, wire, clock = f"pump{next(self._names)}", Wire(self.weather), self.clock
        store, lanes = ResultStore(WiredObjects(self.objects, wire)), WiredLanes(self.lanes, wire)
        publish, now = lanes.open(MAIN).publish, clock.unix_s
        webhooks = Webhooks(store.objects, publish, self.jobs, self.deliver, SECRETS, now=now, jitter=lambda: 0.0)
        clerk = Clerk(store, publish, self.jobs, lambda: self.served, webhooks=webhooks, now=now)
        backend = WiredBackend(self.shop, name, wire)
        caller = Grouper(backend, lambda workload: self.directory.named(workload).slots).call
        pump = Pump(self.jobs, lanes, store, backend, self.served, clerk=clerk, caller=caller, clock=clock)
        self.ingresses.append(Ingress(name, pump, wire))
        self._as(name, pump.start)

    def _as(self, name: str, start: Callable[[], _T]) -> _T:
        """Have what `start` starts belong to a pump."""
        before = OWNER.set(name)
        try:
            return start()
        finally:
            OWNER.reset(before)

    async def kill_ingress(self, index: int, *, back_after_s: float = 2.0) -> None:
        living = self._living
        if not living:
            return
        self.faults["ingress killed"] += 1
        ingress = living[index % len(living)]
        ingress.wire.cut = ingress.ended = True
        await self._tasks.kill(ingress.name)
        ingress.ending = None
        self._later(back_after_s, self.start_ingress)

    async def redeploy_ingress(self, index: int, *, first_the_new: bool = False, drain_s: float = 10.0) -> None:
        staying = [ingress for ingress in self._living if ingress.ending is None]
        if not staying:
            return
        self.faults["ingress redeployed"] += 1
        ingress = staying[index % len(staying)]
        if first_the_new:
            self.start_ingress()
        ingress.ending = self._as(ingress.name, lambda: asyncio.ensure_future(self._drain(ingress, drain_s)))
        if not first_the_new:
            ingress.ending.add_done_callback(lambda _: self._later(1.0, self.start_ingress))

    async def _drain(self, ingress: Ingress, drain_s: float) -> None:
        began = self.clock.now()
        # Who could not give a message back in an outage left it to its lease.
        calm = began > self.trouble_until_s + self.jobs.lease_s
        await ingress.pump.drain(drain_s)
        took = self.clock.now() - began
        leased = {(lane, ack_id) for lane in self.lane_names for ack_id in self.lanes.open(lane)._waiting._leased}
        if calm and self.trouble_until_s < began:
            kept = leased & ingress.wire.pulled
            assert not kept, f"{ingress.name} did not hand back {kept}"
        most_s = max(drain_s, PULL_S) + REQUESTS_S
        assert took <= most_s, f"{ingress.name} took {took:.0f} s to drain within {drain_s:.0f} s"
        ingress.ended = True
        check_forgotten(ingress.name, ingress.pump)

    @property
    def _living(self) -> list[Ingress]:
        return [ingress for ingress in self.ingresses if not ingress.ended]

    def _receive(self, headers: Mapping[str, str], body: bytes) -> Answered:
        """Somebody's server, which does not take some webhooks at once."""
        del body
        if headers[ID] in self._refused or self._rng.random() < 0.7:
            return Answered(204)
        self._refused.add(headers[ID])
        return Answered(500)

    # --- what goes wrong ---

    def kill_replica(self, workload: str) -> None:
        self.faults["replica killed"] += 1
        self.shop.kill_replica(workload)

    def redeploy_workload(self, workload: str, down_s: float, *, hard: bool) -> None:
        self.faults["workload redeployed"] += 1
        floor = self.shop.floors[workload]
        floor.ready = False
        if hard:
            self.shop.kill_replica(workload)
        self._later(down_s, lambda: setattr(floor, "ready", True))

    def silence_controller(self, down_s: float, *, hangs: bool) -> None:
        self.faults["controller killed"] += 1
        self.shop.told_down_until_s, self.shop.hangs = self.clock.now() + down_s, hangs
        self._trouble(down_s)

    def break_store(self, down_s: float) -> None:
        self.faults["store down"] += 1
        self.objects.down = True
        self._later(down_s, lambda: setattr(self.objects, "down", False))

    def break_source(self, what: str, down_s: float) -> None:
        """`what` is results, dead, jobs or a lane's subscription or topic by its full name."""
        self.faults["source down"] += 1
        self.lanes.down.add(what)
        self._later(down_s, lambda: self.lanes.down.discard(what))

    def storm(self, for_s: float, *, source_lost: float, store_lost: float, slow: float) -> None:
        self.faults["storm"] += 1
        weather = self.weather
        weather.source_lost, weather.store_lost, weather.slow = source_lost, store_lost, slow
        self._later(for_s, self._calm)

    def remove_workload(self, workload: str, for_s: float) -> None:
        """The platform serves without it for a while."""
        self.faults["workload removed"] += 1
        self.removed.add(workload)
        self._serve(tuple(served for served in self.directory.workloads if served.name != workload))
        self._later(for_s, lambda: self._serve(self.directory.workloads))

    def _serve(self, workloads: tuple[Served, ...]) -> None:
        self.served = Directory(workloads)
        for ingress in self._living:
            self._as(ingress.name, lambda ingress=ingress: ingress.pump.reconfigure(self.served))

    def _calm(self) -> None:
        self.weather.source_lost = self.weather.store_lost = self.weather.slow = 0.0

    def _trouble(self, seconds: float) -> None:
        self.trouble_until_s = max(self.trouble_until_s, self.clock.now() + seconds)

    def _later(self, seconds: float, repair: Callable[[], None]) -> None:
        self._trouble(seconds)
        self._repairs.append((self._loop.call_later(seconds, repair), repair))

    # --- the end ---

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._check_loops()

    async def heal(self) -> Tally:
        """Mend everything, wait until all is settled, check, and stop the pumps."""
        await self._mend()
        began = self.clock.now()
        limit_s = 900 + 90 * (len(self.clients.sent) + sum(len(batch.lines) for batch in self.clients.batches))
        while self._busy:
            assert self.clock.now() - began < limit_s, f"not settled {limit_s} s after all was well: {self._why()}"
            await self.pass_time(2)
        heal_s = self.clock.now() - began
        await self.pass_time(2 * self.jobs.lease_s)
        assert self.lanes.unsettled == 0
        for ingress in self._living:
            check_forgotten(ingress.name, ingress.pump)
        for ingress in self._living:
            await self._as(ingress.name, lambda ingress=ingress: asyncio.ensure_future(self._drain(ingress, 1)))
            await self._tasks.kill(ingress.name)
        await self._tasks.kill("")
        verdict = Verdict(
            self.jobs, self.clients, self.lanes, self.objects, self.shop, self.deliver, self.removed,
            self.trouble_until_s,
        )  # fmt: skip
        await verdict.check()
        return verdict.tally(self.faults, virtual_s=self.clock.now(), heal_s=heal_s)

    async def _mend(self) -> None:
        for timer, repair in self._repairs:
            if timer.when() > self.clock.now():
                timer.cancel()
                repair()
        self._calm()
        self.objects.down = False
        self.lanes.down.clear()
        self.shop.told_down_until_s = 0.0
        for floor in self.shop.floors.values():
            floor.ready = True
        self._serve(self.directory.workloads)
        for ingress in self.ingresses:
            if ingress.ending is not None:
                await ingress.ending
        while len(self._living) < self.jobs.ingresses:
            self.start_ingress()

    @property
    def _busy(self) -> bool:
        """Whether anything is on its way: queued, held, or put off for later."""
        put_off = any(key.startswith(keys.PUT_OFF) for key in self.objects.objects)
        return bool(self.lanes.unsettled or put_off or any(not _idle(one.pump) for one in self._living))

    def _why(self) -> str:
        return "; ".join(f"{ingress.name}: {ingress.pump.stats()}" for ingress in self._living)

    def _check_loops(self) -> None:
        """What must hold at any time."""
        assert not self.shop.wrongs, self.shop.wrongs
        most = sum(
            slots + ahead(slots=slots, look_ahead=self.jobs.look_ahead, mean_s=SHORTEST_MEAN_S)
            for slots in self.shop.slots.values()
        )
        for ingress in self._living:
            undone = sum(work.undone for work in ingress.pump._held.values())
            if not self.removed:
                assert undone <= 3 * most, f"{ingress.name} hoards {undone} jobs"
            if ingress.ending is None:
                assert ingress.pump.stuck() is None, ingress.pump.stuck()
            elif ingress.ending.done():
                ingress.ending.result()


def _idle(pump: Pump) -> bool:
    stats = pump.stats()
    return not (stats.waiting or stats.running or stats.settling)
