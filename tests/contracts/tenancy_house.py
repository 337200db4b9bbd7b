"""What the tests of tenancies share: terms, an engine that notices misuse, and a link that does as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import repeat

from cotenant.agent.tenancy import Tenancy
from cotenant.config.model import Residency
from cotenant.gpu.terms import Priority, Terms, Tier
from cotenant.telemetry.starts import Recorder, Start

BATCH, INTERACTIVE = Priority.BATCH, Priority.INTERACTIVE
WAKE_S, SLEEP_S, IDLE_S = 2.0, 1.0, 30.0


def terms(residency: Residency = "sleep", *, workload: str = "painter", idle_s: float = IDLE_S) -> Terms:
    return Terms(
        workload=workload,
        kind="image",
        pool="shared",
        accelerator="cpu",
        usable_gib=24,
        vram_gib=10,
        floor_gib=10 if residency == "always" else 1,
        num_gpus=0.5,
        residency=residency,
        idle_s=idle_s,
    )


@dataclass
class WatchedEngine:
    """Takes the seconds that it is given, fails where it is told to, and never lets itself be misused."""

    wake_s: Iterator[float] = field(default_factory=lambda: repeat(WAKE_S))
    sleep_s: Iterator[float] = field(default_factory=lambda: repeat(SLEEP_S))
    wake_fails: list[BaseException | None] = field(default_factory=list)
    sleep_fails: list[BaseException | None] = field(default_factory=list)
    on_tier: Callable[[Tier, bool], None] = lambda tier, moving: None
    """Told of a move when it begins (of where it goes) and when it is done."""
    tier: Tier = Tier.COLD
    moving: bool = False
    at_work: int = 0
    log: list[str] = field(default_factory=list)
    misuse: list[str] = field(default_factory=list)
    """What was done to it that must not be: what it raises then, a tenancy takes for a failed wake."""

    async def wake(self) -> None:
        self.require(self.tier is not Tier.RESIDENT, "woken while resident")
        await self._move(Tier.RESIDENT, next(self.wake_s), self.wake_fails)

    async def sleep(self, tier: Tier) -> None:
        self.require(tier is not Tier.RESIDENT, "told to sleep resident")
        await self._move(tier, next(self.sleep_s), self.sleep_fails)

    async def _move(self, tier: Tier, seconds: float, fails: list[BaseException | None]) -> None:
        self.require(not self.moving, "two moves at once")
        self.require(not self.at_work, "moved while at work")
        self.moving = True
        self.on_tier(tier, True)
        try:
            await asyncio.sleep(seconds)
            error = fails.pop(0) if fails else None
            if error is not None:
                self.log.append(f"failed to be {tier.value}")
                raise error
        finally:
            self.moving = False
        self.tier = tier
        self.log.append(tier.value)
        self.on_tier(tier, False)

    async def work(self, seconds: float) -> None:
        """What a call does while it has a lease."""
        self.require(self.tier is Tier.RESIDENT and not self.moving, "at work while not resident")
        self.at_work += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self.at_work -= 1
            self.require(self.tier is Tier.RESIDENT and not self.moving, "moved while at work")

    def require(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.misuse.append(otherwise)
            raise AssertionError(otherwise)


class ScriptedLink:
    """A link that grants when the test says so. `said` is all that the agent was told, in order."""

    def __init__(self, *, grants: bool = True) -> None:
        self.grants = grants
        self.refuses: BaseException | None = None
        self.said: list[str] = []
        self._asks: list[asyncio.Future[None]] = []

    @property
    def asks(self) -> int:
        """Asks that wait."""
        return len(self._asks)

    async def ask(self, priority: Priority) -> None:
        self.said.append(f"ask {priority.name.lower()}")
        if self.refuses is not None:
            raise self.refuses
        if self.grants:
            return
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asks.append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if len(self._asks) == 1:
                self.said.append("withdraw")
            raise
        finally:
            self._asks.remove(mine)

    def grant(self) -> None:
        for ask in self._asks:
            if not ask.done():
                ask.set_result(None)

    def refuse(self, error: Exception) -> None:
        self._asks[-1].set_exception(error)

    def busy(self, priority: Priority) -> None:
        self.said.append(f"busy {priority.name.lower()}")

    def idle(self) -> None:
        self.said.append("idle")

    def slept(self) -> None:
        self.said.append("slept")


@dataclass
class House:
    """A tenancy with its engine and link, and calls to it."""

    tenancy: Tenancy
    engine: WatchedEngine
    link: ScriptedLink
    starts: list[Start]
    """What was recorded."""

    async def call(self, seconds: float = 1.0, priority: Priority = INTERACTIVE) -> float:
        """Work for so long under a lease; returns when the work began."""
        async with self.tenancy.lease(priority):
            began = asyncio.get_running_loop().time()
            await self.engine.work(seconds)
            return began

    def spawn(self, seconds: float = 1.0, priority: Priority = INTERACTIVE) -> asyncio.Task[float]:
        return asyncio.create_task(self.call(seconds, priority))


def house(
    residency: Residency = "sleep",
    *,
    idle_s: float = IDLE_S,
    engine: WatchedEngine | None = None,
    link: ScriptedLink | None = None,
) -> House:
    """To be made in the loop that it lives in; its clock is that loop's."""
    engine, link = engine or WatchedEngine(), link or ScriptedLink()
    clock = asyncio.get_running_loop().time
    told: list[Start] = []
    starts = Recorder("painter", tell=told.append, clock=lambda: 1_000.0 + clock())
    tenancy = Tenancy(terms(residency, idle_s=idle_s), engine, link, starts=starts, clock=clock)
    return House(tenancy, engine, link, told)


async def settle() -> None:
    """Let everything happen that happens without time passing."""
    for _ in range(50):
        await asyncio.sleep(0)
