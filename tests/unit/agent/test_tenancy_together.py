"""Several tenancies on one GPU, under any interleaving: nobody holds what it may not, and everybody is served.

Time is virtual, so a scenario of minutes runs in milliseconds; a deadlock ends it at once. Moments are drawn from a
coarse grid, so that many things happen in the same instant, and `hops` puts them some steps of the loop apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cotenant.agent.memory_link import MemoryAgent
from cotenant.agent.tenancy import Tenancy, Wakes
from cotenant.config.model import Residency
from cotenant.errors import WorkloadUnavailable
from cotenant.gpu.ledger import Ledger, State, Tenant
from cotenant.gpu.terms import Priority, Tier
from tests.contracts.tenancy_house import WatchedEngine, terms
from tests.contracts.virtual_time import run

pytestmark = pytest.mark.unit

MIN_HOLD_S, PATIENCE_S, REMIND_S = 2.0, 8.0, 16.0
GRID = st.integers(0, 24).map(lambda quarters: quarters / 4)
RESIDENCIES: tuple[Residency, ...] = ("sleep", "sleep", "on-demand", "on-demand", "always")
SOON = st.sampled_from([0.0, 0.0, 0.25, 0.5, 1.0, 2.0])


@dataclass(frozen=True)
class Kind:
    """A tenant: what it may hold, how it is kept warm, how long it takes to wake and sleep."""

    residency: Residency
    full: int
    floor: int
    idle_s: float
    wake_s: tuple[float, ...]
    sleep_s: tuple[float, ...]
    wake_fails: tuple[bool, ...] = ()

    @property
    def always(self) -> int:
        return self.full if self.residency == "always" else self.floor


@dataclass(frozen=True)
class Call:
    to: int
    at: float
    seconds: float
    priority: Priority
    leaves_after: float | None = None
    hops: int = 0


@dataclass(frozen=True)
class Recall:
    """One that the ledger knows nothing of: a tenant takes it as any other."""

    of: int
    at: float
    hops: int = 0


@dataclass(frozen=True)
class Scenario:
    kinds: tuple[Kind, ...]
    calls: tuple[Call, ...]
    recalls: tuple[Recall, ...] = ()
    delays: tuple[float, ...] = (0.0,)
    spare: int = 0

    @property
    def usable(self) -> int:
        """Just enough for all to be here, and for the widest to wake, and something to spare."""
        return sum(kind.always for kind in self.kinds) + max(k.full - k.always for k in self.kinds) + self.spare


@st.composite
def kinds(draw: st.DrawFn, *, failing: bool) -> Kind:
    full = draw(st.integers(1, 12))
    residency = draw(st.sampled_from(RESIDENCIES))
    fails = draw(st.lists(st.booleans(), max_size=4)) if failing else []
    return Kind(
        residency=residency,
        full=full,
        floor=draw(st.integers(0, min(full, 3))),
        idle_s=draw(st.sampled_from([0.0, 0.5, 3.0, 20.0])),
        wake_s=tuple(draw(st.lists(SOON, min_size=1, max_size=3))),
        sleep_s=tuple(draw(st.lists(SOON, min_size=1, max_size=3))),
        wake_fails=tuple(fails if residency == "on-demand" else [False, *fails]),
    )


@st.composite
def scenarios(draw: st.DrawFn, *, failing: bool = False) -> Scenario:
    chosen = tuple(draw(st.lists(kinds(failing=failing), min_size=2, max_size=4)))
    which = st.integers(0, len(chosen) - 1)
    hops = st.integers(0, 6)
    calls = st.builds(
        Call,
        to=which,
        at=GRID,
        seconds=SOON,
        priority=st.sampled_from(Priority),
        leaves_after=st.none() | SOON,
        hops=hops,
    )
    return Scenario(
        kinds=chosen,
        calls=tuple(draw(st.lists(calls, min_size=1, max_size=14))),
        recalls=tuple(draw(st.lists(st.builds(Recall, of=which, at=GRID, hops=hops), max_size=4))),
        delays=tuple(draw(st.lists(st.sampled_from([0.0, 0.0, 0.25, 0.5]), min_size=1, max_size=4))),
        spare=draw(st.sampled_from([0, 0, 2, 8])),
    )


@dataclass
class Member:
    """A tenant at play, by what it really holds."""

    kind: Kind
    engine: WatchedEngine
    tenancy: Tenancy
    holds: int = 0
    moves: list[Tier] = field(default_factory=list)


class Gpu:
    """The scenario as it plays, and what is checked at every move."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.loop = asyncio.get_running_loop()
        self.ledger = Ledger(scenario.usable, min_hold_s=MIN_HOLD_S, patience_s=PATIENCE_S, remind_s=REMIND_S)
        self.agent = MemoryAgent(self.ledger, clock=self.loop.time, delay_s=cycle(scenario.delays).__next__)
        self.turn = asyncio.Lock()
        self.members = [self._join(number, kind) for number, kind in enumerate(scenario.kinds)]

    def _join(self, number: int, kind: Kind) -> Member:
        name = f"t{number}"
        pinned = kind.residency == "always"
        engine = WatchedEngine(
            wake_s=cycle(kind.wake_s),
            sleep_s=cycle(kind.sleep_s),
            wake_fails=[RuntimeError("no luck") if fails else None for fails in kind.wake_fails],
        )
        tenant = Tenant(name, kind.full, kind.always, max(kind.wake_s), pinned)
        link = self.agent.join(tenant, lambda wanted_by: tenancy.recall())
        terms_ = terms(kind.residency, workload=name, idle_s=kind.idle_s)
        tenancy = Tenancy(terms_, engine, link, turn=self._turn, clock=self.loop.time)
        member = Member(kind, engine, tenancy)
        engine.on_tier = lambda tier, moving: self._moved(member, tier, moving)
        return member

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        async with self.turn:
            yield

    def _moved(self, member: Member, tier: Tier, begins: bool) -> None:
        require = member.engine.require
        if begins:
            require(member.tenancy.running == 0, "moved while a call has a lease")
            if tier is Tier.RESIDENT:
                require(self.ledger.state(member.tenancy.terms.workload) >= State.AWAKE, "woken without a lease")
                require(member.engine.tier is not Tier.COLD or self.turn.locked(), "loaded out of turn")
                member.holds = member.kind.full
        else:
            member.moves.append(tier)
            member.holds = member.kind.full if tier is Tier.RESIDENT else member.kind.floor
        require(sum(each.holds for each in self.members) <= self.scenario.usable, "more is held than there is")
        for each in self.members:
            leased = self.ledger.holdings[each.tenancy.terms.workload]
            require(each.holds <= leased, "holds more than its lease")

    async def call(self, call: Call) -> str:
        member = self.members[call.to]
        try:
            async with member.tenancy.lease(call.priority):
                leased = self.ledger.state(member.tenancy.terms.workload) >= State.AWAKE
                member.engine.require(leased, "at work without a lease")
                await member.engine.work(call.seconds)
        except WorkloadUnavailable:
            return "failed"
        return "served"

    async def later(self, at: float, hops: int, do: Callable[[], object]) -> None:
        await asyncio.sleep(max(0.0, at - self.loop.time()))
        for _ in range(hops):
            await asyncio.sleep(0)
        do()

    async def come(self, call: Call) -> str:
        """Call, and go away again if that is what the call does."""
        await self.later(call.at, call.hops, lambda: None)
        task = asyncio.create_task(self.call(call))
        if call.leaves_after is None:
            return await task
        await self.later(self.loop.time() + call.leaves_after, call.hops, task.cancel)
        await asyncio.wait([task])
        return "left" if task.cancelled() else task.result()

    async def play(self) -> list[str]:
        """How each call ended, once all is quiet again."""
        starts = [asyncio.create_task(member.tenancy.start()) for member in self.members]
        recalls = [
            asyncio.create_task(self.later(r.at, r.hops, self.members[r.of].tenancy.recall))
            for r in self.scenario.recalls
        ]
        calls = [asyncio.create_task(self.come(call)) for call in self.scenario.calls]
        started = await asyncio.gather(*starts, return_exceptions=True)
        assert all(error is None or isinstance(error, WorkloadUnavailable) for error in started)
        ends = await asyncio.gather(*calls)
        await asyncio.gather(*recalls)
        await asyncio.sleep(max(kind.idle_s for kind in self.scenario.kinds) + 20.0)
        self._check_quiet([error is None for error in started])
        for member in self.members:
            await member.tenancy.close()
        return ends

    def _check_quiet(self, started: list[bool]) -> None:
        assert [member.engine.misuse for member in self.members] == [[]] * len(self.members)
        assert self.ledger.waiting == ()
        assert self.ledger.recalled == {}
        for member, well in zip(self.members, started, strict=True):
            tenancy, moves = member.tenancy, member.moves
            assert (tenancy.running, tenancy.waiting) == (0, 0)
            pinned = member.kind.residency == "always"
            name = tenancy.terms.workload
            if not pinned:
                assert self.ledger.holdings[name] == member.kind.floor, "a lease has leaked"
                assert tenancy.tier is not Tier.RESIDENT or not well
            elif well:
                assert tenancy.broken() is not None or tenancy.tier is not Tier.ASLEEP
            rests = {"sleep": Tier.ASLEEP, "on-demand": Tier.COLD}.get(member.kind.residency)
            if not any(member.kind.wake_fails):
                assert tenancy.broken() is None
                wakes = sum(move is Tier.RESIDENT for move in moves)
                assert (tenancy.wakes.woken + tenancy.wakes.loaded, tenancy.wakes.slept) == (wakes, len(moves) - wakes)
                assert set(moves) <= {Tier.RESIDENT, rests}
                assert tenancy.wakes.loaded == (wakes if rests is Tier.COLD else min(1, wakes))
                if pinned:
                    assert tenancy.wakes == Wakes(loaded=1, last_wake_s=tenancy.wakes.last_wake_s)


async def play(scenario: Scenario) -> list[str]:
    return await Gpu(scenario).play()


MANY = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@MANY
@given(scenarios())
def test_every_call_is_served_or_left_and_nobody_holds_more_than_its_lease(scenario: Scenario) -> None:
    ends = run(play(scenario), collect=False)
    for call, end in zip(scenario.calls, ends, strict=True):
        assert end == "served" or (end == "left" and call.leaves_after is not None), (call, end)


@MANY
@given(scenarios(failing=True))
def test_where_wakes_fail_a_call_is_served_or_told(scenario: Scenario) -> None:
    ends = run(play(scenario), collect=False)
    for call, end in zip(scenario.calls, ends, strict=True):
        may_fail = any(scenario.kinds[call.to].wake_fails)
        assert end == "served" or call.leaves_after is not None or (end == "failed" and may_fail), (call, end)
