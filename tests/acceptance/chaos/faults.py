"""What is broken in a chaos run, and when: drawn from the seed, done to the stage, and kept with what came of it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from google.api_core import exceptions as google_errors

from cotenant.errors import CotenantError
from cotenant.jobs.store.records import Board
from tests.acceptance.chaos.stage import RENDERER, SIMULATED, Stage
from tests.acceptance.chaos.topics import Topics
from tests.acceptance.chaos.witness import Witness

#: Kinds by how often they are drawn; of each there is at least one.
WEIGHTS: Mapping[str, int] = {
    "ingress killed": 24,
    "workload killed": 24,
    "controller killed": 6,
    "emulator paused": 8,
    "store away": 8,
    "results topic deleted": 6,
    "ingress redeployed": 4,
    "workload redeployed": 6,
    "published again": 12,
    "identity taken": 4,
}
#: A board is renewed at least this often by an ingress that lives, and read this much later.
_BOARDS_RENEWED_S = 7.0


@dataclass(frozen=True)
class Plan:
    """A fault to come: when, in seconds from the beginning; for how long; and which one of several is hit."""

    at_s: float
    kind: str
    lasts_s: float
    which: int


@dataclass
class Fault:
    """A fault that happened; times are Unix time. `held` are the job ids that a killed ingress had."""

    kind: str
    began_s: float
    ended_s: float
    pid: int | None = None
    held: tuple[str, ...] = ()
    note: str = ""


def plan_faults(seed: int, count: int, over_s: float, *, only: str | None = None) -> list[Plan]:
    """`count` faults by time, each kind at least once if there are enough; or `only` one kind, evenly over the time."""
    rng = random.Random(f"faults {seed}")
    if only is not None:
        return [Plan((n + 0.5) * over_s / count, only, rng.uniform(2, 9), rng.randrange(1000)) for n in range(count)]
    kinds = list(WEIGHTS)[:count]
    kinds += rng.choices(list(WEIGHTS), weights=list(WEIGHTS.values()), k=count - len(kinds))
    rng.shuffle(kinds)
    times = sorted(rng.uniform(0.03, 0.97) * over_s for _ in kinds)
    return [Plan(at_s, kind, rng.uniform(2, 9), rng.randrange(1000)) for at_s, kind in zip(times, kinds, strict=True)]


@dataclass
class Breaker:
    """Does what is planned. `publish_again` and `take_identity` are the load's own faults."""

    stage: Stage
    topics: Topics
    witness: Witness
    publish_again: Callable[[int], Awaitable[int]]
    take_identity: Callable[[int], Awaitable[bool]]
    happened: list[Fault] = field(default_factory=list)
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)
    _watches: list[asyncio.Task[None]] = field(default_factory=list)

    async def run(self, plans: Sequence[Plan], began_s: float, say: Callable[[str], None]) -> None:
        """All of them at their times, some at once; returns when all are over. `began_s` is by `time.monotonic`."""

        async def one(plan: Plan) -> None:
            await asyncio.sleep(max(0.0, began_s + plan.at_s - time.monotonic()))
            async with self._locks.setdefault(plan.kind, asyncio.Lock()):
                began = time.time()
                fault = await self._do(plan)
            if fault is None:
                say(f"{plan.kind}: nothing there to break")
                return
            fault.began_s, fault.ended_s = fault.began_s or began, time.time()
            self.happened.append(fault)
            say(f"{plan.kind} {fault.note}")

        await asyncio.gather(*(one(plan) for plan in plans))
        await asyncio.gather(*self._watches)

    async def _do(self, plan: Plan) -> Fault | None:
        kind, stage = plan.kind, self.stage
        match kind:
            case "ingress killed":
                return await self._kill_ingress(plan)
            case "workload killed":
                workload = (*SIMULATED, *SIMULATED, RENDERER)[plan.which % 5]
                pid = await asyncio.to_thread(stage.kill_replica, workload, plan.which)
                return None if pid is None else Fault(kind, 0, 0, pid, note=workload)
            case "controller killed":
                pid = await asyncio.to_thread(stage.kill_controller)
                return None if pid is None else Fault(kind, 0, 0, pid)
            case "emulator paused":
                stage.pause_emulator()
                await asyncio.sleep(plan.lasts_s)
                stage.resume_emulator()
            case "store away":
                stage.swap_store()
                await asyncio.sleep(plan.lasts_s)
                stage.swap_store()
            case "results topic deleted":
                return await self._delete_results(plan)
            case "ingress redeployed" | "workload redeployed":
                application = "ingress" if kind.startswith("ingress") else (*SIMULATED, RENDERER)[plan.which % 3]
                try:
                    await asyncio.to_thread(stage.redeploy, application)
                except CotenantError as error:
                    return Fault(kind, 0, 0, note=f"{application}: {error}")
                return Fault(kind, 0, 0, note=application)
            case "published again":
                return Fault(kind, 0, 0, note=f"{await self.publish_again(plan.which)} messages")
            case "identity taken":
                return Fault(kind, 0, 0) if await self.take_identity(plan.which) else None
        return Fault(kind, 0, 0, note=f"for {plan.lasts_s:.1f} s")

    async def _delete_results(self, plan: Plan) -> Fault:
        topic = self.stage.jobs.results
        await self._stubbornly(lambda: self.topics.delete(topic))
        await asyncio.sleep(plan.lasts_s)
        await self._stubbornly(lambda: self.topics.create(topic))
        await self._stubbornly(self.witness.watch_results)
        return Fault(plan.kind, 0, 0, note=f"for {plan.lasts_s:.1f} s")

    async def _stubbornly(self, ask: Callable[[], None]) -> None:
        """Until the emulator, which may be paused just now, has done it."""
        while True:
            try:
                return await asyncio.to_thread(ask)
            except (google_errors.GoogleAPIError, OSError):
                await asyncio.sleep(0.5)

    async def _kill_ingress(self, plan: Plan) -> Fault | None:
        before = boards(self.stage.store)
        pid = await asyncio.to_thread(self.stage.kill_replica, "ingress", plan.which)
        if pid is None:
            return None
        fault = Fault(plan.kind, time.time(), 0, pid)
        self._watches.append(asyncio.create_task(self._find_out_what_it_held(fault, before)))
        return fault

    async def _find_out_what_it_held(self, fault: Fault, before: Mapping[str, Board]) -> None:
        """Whose board is not renewed any more is the one that was killed, if there is only one such."""
        await asyncio.sleep(_BOARDS_RENEWED_S)
        after = boards(self.stage.store)
        fresh = {name: board for name, board in before.items() if fault.began_s - board.at_s < _BOARDS_RENEWED_S}
        silent = [board for name, board in fresh.items() if name in after and after[name].at_s < fault.began_s + 0.5]
        if len(silent) == 1:
            fault.held = silent[0].running + silent[0].waiting


def boards(store: Path) -> dict[str, Board]:
    """The boards in the store, by ingress."""
    found = {}
    for path in store.glob("_boards/*.json"):
        try:
            board = Board.load(path.read_bytes())
        except OSError:
            continue
        if board is not None:
            found[board.ingress] = board
    return found
