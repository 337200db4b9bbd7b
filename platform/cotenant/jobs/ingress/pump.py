"""The ingress's loop: pulls what free slots can take, and settles every message it holds.

Each lane has a loop that pulls as many messages as its workload has room for; beside them one extends what is held,
one learns how many slots there are, one watches for cancellations and tells the board. Each delivery is a task of its
own. Always true:

- A message is held until the settlement table says otherwise; whatever happens to its task, it is acked, given
  back, or left to its lease. None is forgotten.
- A pull is never cancelled. A drain waits for it and hands back what it brought.
- A queue, store or workload that is down slows the pump and never ends it: each loop backs off and goes on.
- Messages of one ordering key are worked on one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from cotenant.calls import Backend, Call, Directory, Reply, WorkloadStatus
from cotenant.calls.demand import Asked, Line
from cotenant.config import Jobs
from cotenant.errors import CotenantError, MalformedJob, SourceUnavailable, StoreUnavailable
from cotenant.jobs.clock import Clock, SystemClock
from cotenant.jobs.errand import Clerk, Errand
from cotenant.jobs.ingress.asked import asked
from cotenant.jobs.ingress.census import Census
from cotenant.jobs.ingress.holding import BUSY_S, Holding
from cotenant.jobs.ingress.rooms import Rooms
from cotenant.jobs.ingress.settlement import TABLE, Action, Outcome, Settlement, settle
from cotenant.jobs.ingress.slots import slot_limits
from cotenant.jobs.ingress.work import Caller, Edges, Phase, Steps, Work, names
from cotenant.jobs.model import Job, Result
from cotenant.jobs.queue.lanes import CLERK, MAIN, Lanes, lane_of
from cotenant.jobs.queue.publishing import LanePublisher
from cotenant.jobs.queue.source import Delivery
from cotenant.jobs.store.records import Board, Records, WorkloadPace
from cotenant.jobs.store.results import ResultStore
from cotenant.telemetry.logs import event

STATUS_EVERY_S = 2.0
WATCH_EVERY_S = 1.0
PUT_OFF_EVERY_S = 10.0
#: A board is renewed this often though nothing on it changed; see `records.BOARD_STALE_S`.
BOARD_AT_LEAST_EVERY_S = 5.0
MAX_BACKOFF_S = 15.0
#: A pull ends by itself long before this; the drain waits no longer for one that does not.
PULL_ENDS_WITHIN_S = 15.0
#: A loop that has not come round for this long is stuck: every wait in it is shorter.
STUCK_AFTER_S = 180.0
#: A lane without room looks again after this long, though nothing was heard of the workloads or of its jobs.
LOOK_AGAIN_S = 30.0

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
    oldest_waiting_s: float = 0.0
    last_trouble: str = ""
    ingress: str = ""
    tallies: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    """Settled by workload, tenant and outcome."""
    seconds: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """Seconds in a slot, by workload and tenant."""
    paces: Mapping[str, WorkloadPace] = field(default_factory=dict)


class NoClerk:
    """For an ingress that runs no errands."""

    async def advance(self, errand: Errand) -> float | None:
        raise MalformedJob(f"nobody here runs errands such as {errand.kind}")

    def behind(self) -> Iterable[tuple[str, Line]]:
        return ()

    async def tick(self) -> None:
        return None

    async def job_ended(self, job: Job, result: Result) -> None:
        return None


class Pump:
    """Serves jobs from `lanes` until drained."""

    def __init__(
        self,
        jobs: Jobs,
        lanes: Lanes,
        store: ResultStore,
        backend: Backend,
        directory: Directory,
        *,
        clerk: Clerk | None = None,
        caller: Caller | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._jobs = jobs
        self._lanes = lanes
        self._store = store
        self._records = Records(store.objects)
        self._backend = backend
        self._clock = clock or SystemClock()
        self._holdings: dict[str, Holding] = {}
        self._clerk = clerk or NoClerk()
        edges = Edges(LanePublisher(jobs, lanes).publish, store, backend, self._clerk, caller or self._alone)
        self._held: dict[asyncio.Task[None], Work] = {}
        self._census = Census()
        self._steps = Steps(
            jobs,
            edges,
            directory,
            self._clock,
            has_room=lambda workload, work: self._rooms.for_main(workload, work) > 0,
            counts=self._counts,
        )
        self._rooms = Rooms(jobs, self._steps, self._census, self._open)
        self._loops: dict[str, asyncio.Task[None]] = {}
        self._beats: dict[str, float] = {}
        self._last_of_key: dict[tuple[str, str], asyncio.Future[bool]] = {}
        self._draining = False
        self._trouble = ""
        self._lanes_known = False
        self._ingress = f"ingress-{secrets.token_hex(6)}"
        self._board: Board | None = None
        self._tallies: Counter[tuple[str, str, str]] = Counter()
        self.settled: Counter[Outcome] = Counter()

    def start(self) -> None:
        """Begin to pull. Call once, inside the running loop."""
        self._begin("leases", self._extend)
        self._begin("status", self._learn_status)
        self._begin("watch", self._watch)
        self._begin("put-off", self._bring_back)
        self._pull_from_all()

    def reconfigure(self, directory: Directory) -> None:
        """Serve other workloads from now on; jobs that run keep running."""
        self._steps.directory = directory
        self._lanes_known = False
        self._resize()
        self._pull_from_all()

    async def drain(self, timeout_s: float) -> None:
        """Stop pulling, let running jobs finish for `timeout_s`, hand back everything else, stop."""
        self._draining = True
        deadline = self._clock.now() + timeout_s
        for task, work in self._held.items():
            if work.phase is Phase.WAITING:
                task.cancel()
        pulls = {task for name, task in self._loops.items() if name.startswith("pull")}
        for holding in self._holdings.values():
            holding.changed.set()
            if not holding.pulling and (pull := self._loops.get(f"pull{holding.lane}")) is not None:
                pull.cancel()
        if pulls:
            await asyncio.wait(pulls, timeout=max(timeout_s, PULL_ENDS_WITHIN_S))
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
        with contextlib.suppress(StoreUnavailable):
            await self._records.drop_board(self._ingress)

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
        waiting = [w.delivery.published_at_s for w in self._held.values() if w.phase is Phase.WAITING and w.undone]
        return PumpStats(
            waiting=phases[Phase.WAITING],
            running=phases[Phase.RUNNING],
            settling=phases[Phase.SETTLING],
            slots=self._steps.slots.total,
            running_by_workload={name: n for name, n in self._steps.slots.running.items() if n},
            settled={outcome.value: n for outcome, n in self.settled.items()},
            oldest_waiting_s=max(0.0, self._clock.unix_s() - min(waiting)) if waiting else 0.0,
            last_trouble=self._trouble,
            ingress=self._ingress,
            tallies=dict(self._tallies),
            seconds=dict(self._steps.seconds),
            paces=self._paces(),
        )

    def asked(self) -> dict[str, Asked]:
        """What is asked of each workload, as far as is seen here. What has ended is told once."""
        return asked(
            self._held.values(),
            self._clerk.behind(),
            self._steps.slots,
            self._steps.directory,
            full_pulls=self._rooms.full_pulls,
            unix_s=self._clock.unix_s(),
        )

    def serving(self, replicas: Mapping[str, int]) -> None:
        """So many replicas of workloads serve: heard before the next look at the status would show it."""
        told = {name: WorkloadStatus(True, n) for name, n in replicas.items() if n}
        self._steps.learn_status({**self._steps.status, **told})
        self._resize()

    # --- lanes ---

    def _open(self, lane: str) -> Holding:
        if lane not in self._holdings:
            source = self._lanes.open(lane)
            self._holdings[lane] = Holding(lane, source, self._jobs.lease_s, self._clock)
        return self._holdings[lane]

    def _pull_from_all(self) -> None:
        for lane in (MAIN, CLERK, *(lane_of(served.name) for served in self._steps.directory.workloads)):
            self._pull_from(lane)

    def _pull_from(self, lane: str) -> None:
        holding = self._open(lane)
        if f"pull{lane}" not in self._loops and not self._draining:
            self._begin(f"pull{lane}", partial(self._pull, holding))

    def _counts(self, work: Work) -> None:
        self._census.note(work)
        if not work.undone:
            self._notify()

    def _notify(self) -> None:
        for holding in self._holdings.values():
            holding.changed.set()

    # --- the loops ---

    def _begin(self, name: str, turn: Callable[[], Awaitable[None]]) -> None:
        self._beats[name] = self._clock.now()
        self._loops[name] = asyncio.create_task(self._loop(name, turn), name=f"jobs-{name}")

    async def _loop(self, name: str, turn: Callable[[], Awaitable[None]]) -> None:
        """Take turns for ever; a turn that fails is taken again after a growing pause."""
        failures = 0
        while not (self._draining and name.startswith("pull")):
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
                event(_log, "loop_failed", level=level, error=error, loop=name, trouble=trouble)
                await self._clock.sleep(min(0.5 * 2 ** min(failures - 1, 10), MAX_BACKOFF_S))

    async def _pull(self, holding: Holding) -> None:
        if not self._steps.slots.total:
            await self._learn()
        want = self._rooms.wanted(holding.lane)
        if want <= 0:
            holding.changed.clear()
            # Whether a lane is busy changes with time alone.
            busy = holding.lane == MAIN and any(other.busy for other in self._holdings.values())
            await self._change(holding, BUSY_S if busy else LOOK_AGAIN_S)
            return
        for delivery in await holding.pull(want):
            self._hold(delivery, holding)

    async def _change(self, holding: Holding, timeout_s: float) -> None:
        """Wait until there may be more room, or a time has passed."""
        waits = {
            asyncio.ensure_future(holding.changed.wait()),
            asyncio.ensure_future(self._clock.sleep(timeout_s)),
        }
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _extend(self) -> None:
        await self._clock.sleep(self._jobs.lease_s / 8)
        failures = await asyncio.gather(
            *(holding.extend() for holding in list(self._holdings.values())), return_exceptions=True
        )
        for failure in failures:
            if failure is not None:
                raise failure

    async def _learn_status(self) -> None:
        await self._clock.sleep(STATUS_EVERY_S)
        await self._learn()
        if not self._lanes_known:
            # Jobs may wait in the lane of a workload that is gone: they are told so, not left there.
            for workload in await self._records.lanes():
                self._pull_from(lane_of(workload))
            for served in self._steps.directory.workloads:
                await self._records.remember_lane(served.name)
            self._lanes_known = True

    async def _learn(self) -> None:
        self._steps.learn_status(await self._backend.status())
        self._resize()

    def _resize(self) -> None:
        limits = slot_limits(self._steps.directory, self._steps.status, ingresses=self._jobs.ingresses)
        self._steps.slots.resize(limits)
        self._notify()

    async def _watch(self) -> None:
        await self._clock.sleep(WATCH_EVERY_S)
        if self._held:
            self._steps.marks = await self._store.cancelled()
            for work in list(self._held.values()):
                if work.job is not None and work.undone and work.job.identity in self._steps.marks:
                    work.cancel()
        board = self._board_now()
        last = self._board
        if last is None or not _same(board, last) or board.at_s - last.at_s >= BOARD_AT_LEAST_EVERY_S:
            await self._records.put_board(board)
            self._board = board

    async def _bring_back(self) -> None:
        await self._clock.sleep(PUT_OFF_EVERY_S)
        await self._clerk.tick()

    def _board_now(self) -> Board:
        ids: dict[Phase, list[str]] = {phase: [] for phase in Phase}
        for work in self._held.values():
            if work.job is not None:
                ids[work.phase].append(work.job.identity.job_id)
        return Board(
            ingress=self._ingress,
            at_s=self._clock.unix_s(),
            running=tuple(ids[Phase.RUNNING] + ids[Phase.SETTLING]),
            waiting=tuple(ids[Phase.WAITING]),
            workloads=self._paces(),
            settled={outcome.value: n for outcome, n in self.settled.items()},
        )

    def _paces(self) -> dict[str, WorkloadPace]:
        slots = self._steps.slots
        running = slots.running
        return {
            name: WorkloadPace(slots.limit(name), running[name], slots.waiting(name), round(slots.mean_s(name), 3))
            for name in (served.name for served in self._steps.directory.workloads)
        }

    # --- one delivery ---

    def _hold(self, delivery: Delivery, holding: Holding) -> None:
        if self._draining:
            holding.release(delivery.ack_id, settled=False)
            return
        work = Work(delivery, holding.lane)
        turn = self._turn_of_key(work)
        task = asyncio.create_task(self._see_through(work, holding, turn), name=f"job-{delivery.message_id}")
        self._held[task] = work
        self._census.note(work)
        task.add_done_callback(self._let_go)

    def _turn_of_key(self, work: Work) -> asyncio.Future[bool] | None:
        """For a message with an ordering key: how the one before it ended; None if there is none."""
        if not work.delivery.ordering_key:
            return None
        key = (work.lane, work.delivery.ordering_key)
        before = self._last_of_key.get(key)
        self._last_of_key[key] = asyncio.get_running_loop().create_future()
        work.ended_in_order = self._last_of_key[key]
        return before

    def _let_go(self, task: asyncio.Task[None]) -> None:
        work = self._held.pop(task)
        self._census.drop(work)
        self._holdings[work.lane].release(work.delivery.ack_id, settled=work.settled)
        self._steps.forget(work)
        if work.ended_in_order is not None:
            work.ended_in_order.set_result(work.settled and not work.given_back)
            key = (work.lane, work.delivery.ordering_key)
            if self._last_of_key.get(key) is work.ended_in_order:
                del self._last_of_key[key]
        self._notify()

    async def _hand_back(self) -> None:
        for holding in list(self._holdings.values()):  # a lane may be opened meanwhile
            count = await holding.hand_back()
            if count:
                self.settled[Outcome.HANDED_BACK] += count

    async def _see_through(self, work: Work, holding: Holding, before: asyncio.Future[bool] | None) -> None:
        """Advance `work` until it is settled. Broken in a way nobody foresaw, it is given back."""
        try:
            if before is not None and not await asyncio.shield(before):
                # The one before it comes again, and so must this one, after it.
                await self._give_back(work, holding, Settlement(Outcome.HANDED_BACK, Action.RETRY))
                return
            while True:
                outcome = await self._steps.advance(work)
                settlement = settle(
                    outcome,
                    attempts=len(work.attempts),
                    max_attempts=self._jobs.max_attempts,
                    holds=work.holds,
                    in_place=bool(work.delivery.ordering_key),
                )
                if await self._apply(settlement, work, holding):
                    return
        except Exception as error:
            event(_log, "settling_failed", level=logging.ERROR, error=error, **names(work))
            crashed = Settlement(Outcome.CRASHED, Action.RETRY, TABLE[Outcome.CRASHED].delay_s)
            await self._give_back(work, holding, crashed)

    async def _apply(self, settlement: Settlement, work: Work, holding: Holding) -> bool:
        """Do what the table says; whether that settled the message."""
        if settlement.action is Action.DEAD_LETTER:
            if settlement.outcome is Outcome.EXHAUSTED:
                work.reason = f"gave up after {len(work.attempts)} attempts, the last: {work.reason}"
            work.given_up, work.holds = settlement.outcome, 0
            self._counts(work)
            return False
        if settlement.action is Action.ACK:
            try:
                await holding.ack(work.delivery.ack_id)
            except SourceUnavailable as error:
                work.reason = str(error)
                settlement = settle(Outcome.SOURCE_DOWN, attempts=0, max_attempts=1, holds=work.holds)
            else:
                work.settled = True
                self._count(work.given_up or settlement.outcome, work)
                return True
        if settlement.action is Action.RETRY:
            await self._give_back(work, holding, settlement)
            return True
        if settlement.outcome is Outcome.WATCHING:
            work.holds, delay_s = 0, work.look_again_s
        else:
            work.holds, delay_s = work.holds + 1, settlement.delay_s
            if TABLE[settlement.outcome].attempt:
                self._count(settlement.outcome, work)
        self._trouble = f"{settlement.outcome.value}: {work.reason}" if work.reason else self._trouble
        if work.undone or work.lane == CLERK:
            work.phase = Phase.WAITING
            if self._draining:
                await self._give_back(work, holding, Settlement(Outcome.HANDED_BACK, Action.RETRY))
                return True
        if delay_s > 0:
            await self._clock.sleep(delay_s)
        return False

    async def _give_back(self, work: Work, holding: Holding, settlement: Settlement) -> None:
        work.settled = work.given_back = True
        self._count(settlement.outcome, work)
        await holding.give_back(work.delivery.ack_id, settlement.delay_s)

    def _count(self, outcome: Outcome, work: Work) -> None:
        self.settled[outcome] += 1
        self._tallies[work.workload, work.job.identity.tenant if work.job else "", outcome.value] += 1
        quiet = outcome in (Outcome.DONE, Outcome.ALREADY_DONE, Outcome.FORWARDED)
        level = logging.DEBUG if quiet else logging.INFO
        event(_log, "job_settled", level=level, outcome=outcome.value, attempts=len(work.attempts), **names(work))

    async def _alone(self, workload: str, call: Call, group: Hashable | None) -> Reply:
        del group
        return await self._backend.call(workload, call)


def _same(one: Board, other: Board) -> bool:
    return (one.running, one.waiting, one.workloads, one.settled) == (
        other.running,
        other.waiting,
        other.workloads,
        other.settled,
    )
