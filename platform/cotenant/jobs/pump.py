"""The ingress's loop: pulls what free slots can take, and settles every message it holds.

Three loops run side by side, and each delivery is a task of its own: *pull* asks for as many messages as there is
room for, *leases* extends what is held, *status* learns how many slots there are. Always true:

- A message is held until the settlement table says otherwise; whatever happens to its task, it is acked, given
  back, or left to its lease. None is forgotten.
- A pull is never cancelled. A drain waits for it and hands back what it brought.
- A queue, store or workload that is down slows the pump and never ends it: each loop backs off and goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from cotenant.calls import Backend, Directory
from cotenant.config import Jobs
from cotenant.errors import CotenantError, SourceUnavailable
from cotenant.jobs.batcher import Batcher
from cotenant.jobs.clock import Clock, SystemClock
from cotenant.jobs.leases import Leases
from cotenant.jobs.settlement import TABLE, Action, Outcome, Settlement, settle
from cotenant.jobs.slots import slot_limits, wanted
from cotenant.jobs.source import Delivery, JobSource
from cotenant.jobs.store import ResultStore
from cotenant.jobs.work import Phase, Steps, Work, names
from cotenant.telemetry.logs import event

STATUS_EVERY_S = 1.0
MAX_BACKOFF_S = 15.0
#: A pull ends by itself long before this; the drain waits no longer for one that does not.
PULL_ENDS_WITHIN_S = 15.0
#: A loop that has not come round for this long is stuck: every wait in it is shorter.
STUCK_AFTER_S = 180.0

_log = logging.getLogger("cotenant.jobs")


@dataclass(frozen=True)
class PumpStats:
    """What the pump holds now, and what it has settled since it started, by outcome."""

    waiting: int
    running: int
    settling: int
    slots: int
    running_by_workload: Mapping[str, int]
    settled: Mapping[str, int]
    last_trouble: str = ""


class Pump:
    """Serves jobs from `source` until drained."""

    def __init__(
        self,
        jobs: Jobs,
        source: JobSource,
        store: ResultStore,
        backend: Backend,
        directory: Directory,
        *,
        clock: Clock | None = None,
    ) -> None:
        self._jobs = jobs
        self._source = source
        self._backend = backend
        self._clock = clock or SystemClock()
        self._steps = Steps(jobs, source, store, backend, directory)
        self._leases = Leases(jobs.lease_s)
        self._acks = Batcher[str](source.ack)
        self._held: dict[asyncio.Task[None], Work] = {}
        self._loops: dict[str, asyncio.Task[None]] = {}
        self._beats: dict[str, float] = {}
        self._abandoned: list[str] = []
        self._pulling = False
        self._draining = False
        self._trouble = ""
        self.settled: Counter[Outcome] = Counter()

    def start(self) -> None:
        """Begin to pull. Call once, inside the running loop."""
        loops = {"pull": self._pull, "leases": self._extend, "status": self._learn_status}
        for name, turn in loops.items():
            self._beats[name] = self._clock.now()
            self._loops[name] = asyncio.create_task(self._loop(name, turn), name=f"jobs-{name}")

    def reconfigure(self, directory: Directory) -> None:
        """Serve other workloads from now on; jobs that run keep running."""
        self._steps.directory = directory
        self._resize()

    async def drain(self, timeout_s: float) -> None:
        """Stop pulling, let running jobs finish for `timeout_s`, hand back everything else, stop."""
        self._draining = True
        self._steps.slots.changed.set()
        deadline = self._clock.now() + timeout_s
        for task, work in self._held.items():
            if work.phase is Phase.WAITING:
                task.cancel()
        pull = self._loops.get("pull")
        if pull is not None:
            if not self._pulling:
                pull.cancel()
            await asyncio.wait({pull}, timeout=max(timeout_s, PULL_ENDS_WITHIN_S))
        await self._hand_back()
        while self._held and (left := deadline - self._clock.now()) > 0:
            timer = asyncio.ensure_future(self._clock.sleep(left))
            await asyncio.wait({*self._held, timer}, return_when=asyncio.FIRST_COMPLETED)
            timer.cancel()
        for task in self._held:
            task.cancel()
        while self._held:
            await asyncio.wait(set(self._held))
            await asyncio.sleep(0)
        await self._hand_back()
        for task in self._loops.values():
            task.cancel()
        await asyncio.gather(*self._loops.values(), return_exceptions=True)
        self._loops.clear()

    def stuck(self) -> str | None:
        """Why the pump makes no progress any more, or None while it is well."""
        now = self._clock.now()
        for name, task in self._loops.items():
            if task.done() and not self._draining:
                return f"the {name} loop of the ingress ended"
            if not self._draining and now - self._beats[name] > STUCK_AFTER_S:
                return f"the {name} loop of the ingress has stood still for {now - self._beats[name]:.0f} s"
        return None

    def stats(self) -> PumpStats:
        phases = Counter(work.phase for work in self._held.values())
        return PumpStats(
            waiting=phases[Phase.WAITING],
            running=phases[Phase.RUNNING],
            settling=phases[Phase.SETTLING],
            slots=self._steps.slots.total,
            running_by_workload={name: n for name, n in self._steps.slots.running.items() if n},
            settled={outcome.value: n for outcome, n in self.settled.items()},
            last_trouble=self._trouble,
        )

    # --- the loops ---

    async def _loop(self, name: str, turn: Callable[[], Awaitable[None]]) -> None:
        """Take turns for ever; a turn that fails is taken again after a growing pause."""
        failures = 0
        if name == "pull":
            turn = _first(self._source.setup, turn)
        while not (self._draining and name == "pull"):
            self._beats[name] = self._clock.now()
            try:
                await turn()
                failures = 0
            except Exception as error:
                failures += 1
                self._trouble = f"{name}: {error}"
                level = logging.WARNING if isinstance(error, CotenantError) else logging.ERROR
                # The text of our own errors is fit to be shown; a foreign one's may quote a job.
                trouble = str(error) if isinstance(error, CotenantError) else None
                event(_log, f"{name}_failed", level=level, error=error, trouble=trouble)
                if name == "pull" and isinstance(error, SourceUnavailable):
                    # An emulator that was restarted has forgotten its topics.
                    turn = _first(self._source.setup, self._pull)
                await self._clock.sleep(min(0.5 * 2 ** min(failures - 1, 10), MAX_BACKOFF_S))

    async def _pull(self) -> None:
        if not self._steps.slots.total:
            await self._learn()
        want = wanted(
            slots=self._steps.slots.total,
            look_ahead=self._jobs.look_ahead,
            undone=sum(work.undone for work in self._held.values()),
            held=len(self._held),
        )
        if want == 0:
            self._steps.slots.changed.clear()
            await self._steps.slots.changed.wait()
            return
        asked_at = self._clock.now()
        self._pulling = True
        try:
            deliveries = await self._source.pull(want)
        finally:
            self._pulling = False
        self._leases.hold((delivery.ack_id for delivery in deliveries), asked_at)
        for delivery in deliveries:
            self._hold(delivery)

    async def _extend(self) -> None:
        await self._clock.sleep(self._jobs.lease_s / 8)
        asked_at = self._clock.now()
        due = self._leases.due(asked_at)
        if due:
            await self._source.extend(due)
            self._leases.hold((ack_id for ack_id in due if ack_id in self._leases), asked_at)

    async def _learn_status(self) -> None:
        await self._clock.sleep(STATUS_EVERY_S)
        await self._learn()

    async def _learn(self) -> None:
        self._steps.status = await self._backend.status()
        self._resize()

    def _resize(self) -> None:
        self._steps.slots.resize(slot_limits(self._steps.directory, self._steps.status))

    # --- one delivery ---

    def _hold(self, delivery: Delivery) -> None:
        if self._draining:
            self._abandoned.append(delivery.ack_id)
            return
        work = Work(delivery)
        task = asyncio.create_task(self._see_through(work), name=f"job-{delivery.message_id}")
        self._held[task] = work
        task.add_done_callback(self._let_go)

    def _let_go(self, task: asyncio.Task[None]) -> None:
        work = self._held.pop(task)
        self._leases.release(work.delivery.ack_id)
        self._steps.forget(work)
        self._steps.slots.changed.set()
        if not work.settled:
            self._abandoned.append(work.delivery.ack_id)

    async def _hand_back(self) -> None:
        """Give back, in one request, what a drain has cut short."""
        abandoned, self._abandoned = self._abandoned, []
        if abandoned:
            self.settled[Outcome.HANDED_BACK] += len(abandoned)
            with contextlib.suppress(SourceUnavailable):
                await self._source.nack(abandoned)

    async def _see_through(self, work: Work) -> None:
        """Advance `work` until it is settled. Broken in a way nobody foresaw, it is given back."""
        try:
            while True:
                outcome = await self._steps.advance(work)
                settlement = settle(
                    outcome, attempt=work.delivery.attempt, max_attempts=self._jobs.max_attempts, holds=work.holds
                )
                if await self._apply(settlement, work):
                    return
        except Exception as error:
            event(_log, "settling_failed", level=logging.ERROR, error=error, **names(work))
            await self._give_back(work, Settlement(Outcome.CRASHED, Action.RETRY, TABLE[Outcome.CRASHED].delay_s))

    async def _apply(self, settlement: Settlement, work: Work) -> bool:
        """Do what the table says; whether that settled the message."""
        if settlement.action is Action.DEAD_LETTER:
            if settlement.outcome is Outcome.EXHAUSTED:
                work.reason = f"gave up after {work.delivery.attempt} attempts, the last: {work.reason}"
            work.given_up, work.holds = settlement.outcome, 0
            return False
        if settlement.action is Action.ACK:
            try:
                await self._acks.add(work.delivery.ack_id)
            except SourceUnavailable as error:
                work.reason = str(error)
                settlement = settle(Outcome.SOURCE_DOWN, attempt=1, max_attempts=2, holds=work.holds)
            else:
                work.settled = True
                self._count(work.given_up or settlement.outcome, work)
                return True
        if settlement.action is Action.RETRY:
            await self._give_back(work, settlement)
            return True
        work.holds += 1
        self._trouble = f"{settlement.outcome.value}: {work.reason}" if work.reason else self._trouble
        if work.undone:
            work.phase = Phase.WAITING
            if self._draining:
                await self._give_back(work, Settlement(Outcome.HANDED_BACK, Action.RETRY))
                return True
        await self._clock.sleep(settlement.delay_s)
        return False

    async def _give_back(self, work: Work, settlement: Settlement) -> None:
        """Nack. If even that fails, the lease runs out and the message comes again by itself."""
        work.settled = True
        self._count(settlement.outcome, work)
        with contextlib.suppress(SourceUnavailable):
            await self._source.nack([work.delivery.ack_id], settlement.delay_s)

    def _count(self, outcome: Outcome, work: Work) -> None:
        self.settled[outcome] += 1
        quiet = outcome in (Outcome.DONE, Outcome.ALREADY_DONE)
        level = logging.DEBUG if quiet else logging.INFO
        event(_log, "job_settled", level=level, outcome=outcome.value, attempt=work.delivery.attempt, **names(work))


def _first(once: Callable[[], Awaitable[None]], then: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """`once` until it succeeds once, `then` after that."""
    pending = True

    async def turn() -> None:
        nonlocal pending
        if pending:
            await once()
            pending = False
        await then()

    return turn
