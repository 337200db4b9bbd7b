"""A replica's side of sharing a GPU: no work without a lease, no lease without need.

Every call goes through `Tenancy.lease`. While the engine is resident that costs next to nothing; otherwise the call
waits, and one driver task does what it takes, one step at a time: ask the GPU agent, wait for the grant, wake the
engine. It also puts the engine to sleep, when the agent recalls the lease or when there was nothing to do for
`idle_s`. Because only the driver changes the tier, a wake and a sleep can't cross. Always true:

- a call is at work only while the engine is resident and the lease is held;
- the engine sleeps only while no call is at work, and the agent hears of it only after the memory is given back: a
  replica that could not give it back keeps its lease and calls itself broken;
- calls that waited for a wake are let in by it, even if the agent recalled the lease meanwhile: a wake is never in
  vain, so two workloads that want the same memory both make progress;
- a call that waits is served, or told why not: also when the driver ends, however it ends.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

from cotenant.agent.callers import Callers
from cotenant.errors import CotenantError, WorkloadUnavailable
from cotenant.gpu.terms import Priority, Terms, Tier
from cotenant.telemetry.logs import event
from cotenant.telemetry.starts import Recorder

LOG = logging.getLogger("cotenant.tenancy")

#: Wakes that may fail in a row before the replica calls itself broken, so that Serve replaces it.
MAX_FAILURES = 3


class Engine(Protocol):
    """What can be put to sleep. Neither method is called while a call is at work, nor both at once."""

    async def wake(self) -> None:
        """Be resident, from whatever tier. Raises whatever went wrong; `sleep(Tier.COLD)` then follows."""
        ...

    async def sleep(self, tier: Tier) -> None:
        """Be asleep or cold: return when the memory is given back. Raises if it was not; nothing follows then."""
        ...


class Link(Protocol):
    """The replica's line to its node's GPU agent. `AgentLink` is the real one, `MemoryLink` its twin.

    Only `ask` raises. A recall that comes while nothing is granted was overtaken by `slept`; the link drops it.
    """

    async def ask(self, priority: Priority) -> None:
        """Return when the agent grants the whole budget: at once if it is granted, as it always is to the pinned.

        A further ask while one waits raises the priority and waits too; the grant lets all of them return. Cancelling
        the last one that waits withdraws the wish; a grant that no ask returned with is given back by the link.

        Raises:
            CotenantError: the agent refuses.
        """
        ...

    def busy(self, priority: Priority) -> None:
        """Calls are at work, the most urgent of this priority."""
        ...

    def idle(self) -> None:
        """No call is at work."""
        ...

    def slept(self) -> None:
        """The memory is given back: the floor is all that is held."""
        ...


Turn = Callable[[], AbstractAsyncContextManager[object]]


@dataclass(frozen=True)
class Wakes:
    """What warmth cost so far: wakes from asleep, loads from cold, sleeps, and how long the last wake took."""

    woken: int = 0
    loaded: int = 0
    slept: int = 0
    last_wake_s: float = 0.0


class Tenancy:
    """Keeps one engine within its lease. Belongs to one event loop; `start` before the first `lease`."""

    def __init__(
        self,
        terms: Terms,
        engine: Engine,
        link: Link,
        *,
        turn: Turn = nullcontext,
        starts: Recorder | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`turn` is entered around every load from cold: starts on one GPU go one at a time. `starts` is told of every
        load and wake; into its stages weights, warm-up and the like the engine divides a load by itself."""
        self.terms = terms
        self.tier = Tier.COLD
        self.wakes = Wakes()
        self._engine = engine
        self._link = link
        self._turn = turn
        self._starts = starts or Recorder(terms.workload)
        self._clock = clock
        self._pinned = terms.residency == "always"
        self._callers = Callers(self._tell)
        self._recalled = False
        self._falling = False
        self._closed = False
        self._used_at = clock()
        self._stirred = asyncio.Event()
        self._driver: asyncio.Task[None] | None = None
        self._failures = 0
        self._failure = ""
        self._fault = ""

    @property
    def running(self) -> int:
        """Calls at work."""
        return self._callers.running

    @property
    def waiting(self) -> int:
        """Calls that wait for the engine to wake."""
        return self._callers.waiting

    async def start(self) -> None:
        """Load the engine, unless the workload is on demand: then the first call does.

        Raises:
            WorkloadUnavailable: the engine did not load (`__cause__` says why), or the agent grants no memory.
            CotenantError: what the engine raised, if it is one. Serve then tells why the replica did not start.
        """
        self._driver = asyncio.create_task(self._run(), name=f"tenancy of {self.terms.workload}")
        if self.terms.residency == "on-demand":
            return
        try:
            async with self.lease(Priority.INTERACTIVE):
                pass
        except BaseException:
            await self.close()
            raise

    def recall(self) -> None:
        """The agent wants the lease back. Call it from the loop that this tenancy belongs to."""
        if not self._pinned:
            self._recalled = True
            self._stirred.set()

    def broken(self) -> str | None:
        """Why the replica can't go on and is to be replaced; None while it can."""
        if self._fault:
            return self._fault
        if self._failures >= MAX_FAILURES:
            return f"the engine failed to wake {self._failures} times in a row: {self._failure}"
        return None

    @asynccontextmanager
    async def lease(self, priority: Priority) -> AsyncIterator[None]:
        """The right to work. Waits for the engine to wake where it must. Not to be nested: a recall may lie between.

        Raises:
            WorkloadUnavailable: the engine did not wake, can't any more, or the replica is shutting down.
            CotenantError: what the engine raised on waking, if it is one.
        """
        if self._ready:
            self._callers.begin(priority)
        else:
            await self._admission(priority)
        try:
            yield
        finally:
            self._ended(priority)

    async def close(self) -> None:
        """Stop driving. Calls at work may finish; those that wait fail, and so does whoever comes later."""
        self._closed = True
        if self._driver is not None:
            self._driver.cancel()
            await asyncio.gather(self._driver, return_exceptions=True)
        self._callers.refuse(self._refusal())

    @property
    def _ready(self) -> bool:
        return self.tier is Tier.RESIDENT and not (self._recalled or self._falling or self._closed or self._fault)

    def _refusal(self) -> WorkloadUnavailable:
        why = f"can't go on: {self._fault}" if self._fault else "is shutting down"
        return WorkloadUnavailable(f"{self.terms.workload} {why}")

    async def _admission(self, priority: Priority) -> None:
        if self._closed or self._fault:
            raise self._refusal()
        turn = self._callers.wait(priority)
        self._stirred.set()
        try:
            await turn
        except asyncio.CancelledError:
            if self._callers.leave(turn):
                self._ended(priority)
            self._stirred.set()
            raise

    def _ended(self, priority: Priority) -> None:
        self._used_at = self._clock()
        self._callers.end(priority)
        if not self.running and not self._pinned:
            self._stirred.set()

    def _tell(self, work: Priority | None) -> None:
        """Let the agent know of the most urgent work, unless the lease is for good anyway."""
        if self._pinned:
            return
        if work is None:
            self._link.idle()
        else:
            self._link.busy(work)

    async def _run(self) -> None:
        """The driver. However it ends, nobody is left waiting for it."""
        try:
            await self._drive()
        except Exception as error:
            self._break(f"its tenancy's driver failed: {type(error).__name__}: {error}", error)
        finally:
            if not self._closed and not self._fault:
                self._break("its tenancy's driver was cancelled")
            self._callers.refuse(self._refusal())

    async def _drive(self) -> None:
        """Look at how things are, take one step, look again; wait only where there is none to take."""
        while not self._closed and not self._fault:
            self._stirred.clear()
            resident = self.tier is Tier.RESIDENT
            if resident and not self.running and (self._recalled or self._idle_left_s() == 0):
                await self._fall()
            elif not resident and self._callers.wanted is not None:
                await self._rise()
            else:
                await self._pause(self._idle_left_s())

    async def _pause(self, seconds: float | None) -> None:
        """Wait for something to happen, but no longer than that."""
        timer = None if seconds is None else asyncio.get_running_loop().call_later(seconds, self._stirred.set)
        try:
            await self._stirred.wait()
        finally:
            if timer is not None:
                timer.cancel()

    def _idle_left_s(self) -> float | None:
        """Seconds until the engine has been idle for long enough to sleep; None while that is out of the question."""
        if self._pinned or self.tier is not Tier.RESIDENT or self.running:
            return None
        return max(0.0, self._used_at + self.terms.idle_s - self._clock())

    async def _rise(self) -> None:
        """Get the lease, wake the engine, let in everybody who waits. Comes back early if nobody waits any more."""
        self._recalled = False
        cold = self.tier is Tier.COLD
        self._starts.begin("load" if cold else "wake", "turn")
        if not await self._granted():
            self._starts.drop()
            return
        try:
            async with self._turn() if cold else nullcontext():
                if self._callers.wanted is None:
                    self._starts.drop()
                    self._give_back()
                    return
                self._starts.enter("weights" if cold else "wake")
                began = self._clock()
                await self._engine.wake()
                took_s = self._clock() - began
        except Exception as error:
            self._starts.drop()
            await self._failed(error)
            return
        self._starts.ready()
        self._failures = 0
        self.tier = Tier.RESIDENT
        done = self.wakes
        self.wakes = replace(done, woken=done.woken + (not cold), loaded=done.loaded + cold, last_wake_s=took_s)
        event(LOG, "woke", workload=self.terms.workload, cold=cold, seconds=round(took_s, 3))
        self._used_at = self._clock()
        self._callers.admit()
        if not self.running and not self._pinned:
            self._link.idle()

    async def _granted(self) -> bool:
        """Ask until granted. False if nobody waits any more, or the agent refuses: then nothing is held."""
        asks: list[asyncio.Task[None]] = []
        asked: Priority | None = None
        try:
            while (wanted := self._callers.wanted) is not None and not any(ask.done() for ask in asks):
                self._stirred.clear()
                if asked is None or wanted > asked:
                    asked = wanted
                    asks.append(asyncio.create_task(self._link.ask(wanted)))
                    asks[-1].add_done_callback(lambda _: self._stirred.set())
                await self._stirred.wait()
            outcomes = await _outcomes(asks)
        except asyncio.CancelledError:
            if None in await _outcomes(asks):
                self._give_back()
            raise
        error = next((outcome for outcome in outcomes if isinstance(outcome, Exception)), None)
        if None in outcomes:
            if error is None and self._callers.wanted is not None:
                return True
            self._give_back()
        if isinstance(error, CotenantError):
            told = WorkloadUnavailable(f"{self.terms.workload} gets no GPU memory: {error}")
            told.__cause__ = error
            self._callers.refuse(told)
        elif error is not None:
            raise error
        return False

    def _give_back(self) -> None:
        if not self._pinned:
            self._link.slept()

    async def _failed(self, error: Exception) -> None:
        """The engine did not wake: give back what it may hold, tell the callers, be cold."""
        self._failures += 1
        self._failure = f"{type(error).__name__}: {error}"
        self.tier = Tier.COLD
        event(LOG, "wake_failed", level=logging.ERROR, workload=self.terms.workload, error=error)
        try:
            await self._engine.sleep(Tier.COLD)
        except Exception as second:
            self._break(f"its engine did not wake ({self._failure}), nor give its memory back: {second}", second)
        else:
            self._give_back()
        told = WorkloadUnavailable(f"{self.terms.workload} did not wake: {self._failure}")
        told.__cause__ = error
        self._callers.refuse(error if isinstance(error, CotenantError) else told)

    async def _fall(self) -> None:
        """Put the engine to sleep and give the lease back."""
        tier = Tier.COLD if self.terms.residency == "on-demand" else Tier.ASLEEP
        self._falling = True
        try:
            await self._engine.sleep(tier)
        except Exception as error:
            self._break(f"its engine did not sleep: {type(error).__name__}: {error}", error)
            return
        self._falling = False
        self.tier = tier
        self.wakes = replace(self.wakes, slept=self.wakes.slept + 1)
        event(LOG, "slept", workload=self.terms.workload, tier=tier.value, recalled=self._recalled)
        self._give_back()

    def _break(self, fault: str, error: BaseException | None = None) -> None:
        """Be broken: no call is taken any more, and the lease is kept, since memory may be held."""
        self._fault = fault
        event(LOG, "tenancy_broke", level=logging.ERROR, workload=self.terms.workload, fault=fault, error=error)


async def _outcomes(asks: list[asyncio.Task[None]]) -> list[BaseException | None]:
    """How each ask ended, those that still wait by being cancelled. None is a grant."""
    for ask in asks:
        ask.cancel()
    return await asyncio.gather(*asks, return_exceptions=True)
