"""Tenancies over the real GPU agent and its sockets: the same promises as over the in-memory twin."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable
from itertools import repeat
from pathlib import Path

import pytest

from cotenant.agent.client import AgentLink
from cotenant.agent.paths import socket_path
from cotenant.agent.protocol import Identity
from cotenant.agent.server import Agent
from cotenant.agent.tenancy import Tenancy
from cotenant.agent.turns import StartTurn
from cotenant.config.model import Residency
from cotenant.gpu.probe.fake import FakeProbe
from cotenant.gpu.probe.host import ProcessTable
from cotenant.gpu.terms import Priority, Terms, Tier
from cotenant.telemetry.starts import Recorder, Span
from tests.contracts.tenancy_house import WatchedEngine
from tests.contracts.tenancy_house import terms as tenancy_terms
from tests.unit.agent.light_engine import L4, NODE

pytestmark = pytest.mark.integration
#: `scripts/test` runs it beside another.
WAITS_MORE_THAN_IT_COMPUTES = True

CALLS = 300


class Replica:
    """A tenancy, its engine and its line."""

    def __init__(self, workload: str, residency: Residency) -> None:
        self.terms: Terms = tenancy_terms(residency, workload=workload, idle_s=0.05).model_copy(
            update={"accelerator": "nvidia-l4", "usable_gib": 20.0}
        )
        self.engine = WatchedEngine(wake_s=repeat(0.01), sleep_s=repeat(0.005))
        self.link = AgentLink(
            socket_path(NODE),
            Identity(application=workload, deployment=workload, replica=f"{workload}#1", pid=os.getpid()),
            self.terms,
            on_recall=lambda wanted_by: self.tenancy.recall(),
            loop=asyncio.get_running_loop(),
        )
        self.starts = Recorder(workload, tell=self.link.started)
        self.tenancy = Tenancy(
            self.terms, self.engine, self.link, turn=lambda: StartTurn("gpu", workload), starts=self.starts
        )

    async def call(self, seconds: float, priority: Priority, agent: Agent) -> None:
        async with self.tenancy.lease(priority):
            (gpu,) = agent.snapshot().gpus
            lease = next(view.lease_mib for view in gpu.replicas if view.workload == self.terms.workload)
            self.engine.require(lease == self.terms.vram_gib * 1024, "at work without a lease")
            await self.engine.work(seconds)


@pytest.fixture
async def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Agent]:
    monkeypatch.setenv("COTENANT_AGENT_DIR", str(tmp_path / "agents"))
    agent = Agent(FakeProbe([L4]), ProcessTable(), node_id=NODE, interval_s=0.05)
    await agent.start()
    yield agent
    await agent.close()


async def test_every_call_is_served_or_left_and_no_lease_leaks(agent: Agent) -> None:
    """Three of 10 GiB on a GPU of 20, where only one can be awake; a fifth of the callers go away."""
    chance = random.Random(5)
    kinds: tuple[Residency, ...] = ("sleep", "sleep", "on-demand")
    replicas = [Replica(f"w{number}", kind) for number, kind in enumerate(kinds)]
    for replica in replicas:
        replica.link.start()
    await asyncio.gather(*(replica.tenancy.start() for replica in replicas))

    async def caller() -> str:
        await asyncio.sleep(chance.uniform(0, 2.0))
        call = chance.choice(replicas).call(chance.uniform(0, 0.02), chance.choice(list(Priority)), agent)
        task = asyncio.create_task(call)
        if chance.random() < 0.2:
            await asyncio.sleep(chance.uniform(0, 0.05))
            task.cancel()
        await asyncio.wait([task])
        return "left" if task.cancelled() else "served" if task.exception() is None else repr(task.exception())

    ends = await asyncio.wait_for(asyncio.gather(*(caller() for _ in range(CALLS))), 60)
    assert set(ends) == {"served", "left"}
    assert [replica.engine.misuse for replica in replicas] == [[], [], []]
    assert all(replica.tenancy.broken() is None for replica in replicas)

    def held_mib() -> list[float]:
        return [view.lease_mib for gpu in agent.snapshot().gpus for view in gpu.replicas]

    floors = [replica.terms.floor_gib * 1024 for replica in replicas]
    for _ in range(1000):
        if held_mib() == floors:
            break
        await asyncio.sleep(0.01)
    assert held_mib() == floors, "a lease has leaked"
    assert [replica.tenancy.tier for replica in replicas] == [Tier.ASLEEP, Tier.ASLEEP, Tier.COLD]
    for replica in replicas:
        assert replica.tenancy.wakes.slept == replica.tenancy.wakes.woken + replica.tenancy.wakes.loaded
        await replica.tenancy.close()
        await asyncio.to_thread(replica.link.close)


async def until(what: Callable[[], bool]) -> None:
    for _ in range(1000):
        if what():
            return
        await asyncio.sleep(0.01)
    raise AssertionError


async def test_starts_reach_the_agent_and_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COTENANT_AGENT_DIR", str(tmp_path / "agents"))
    news: list[Span] = []

    def another() -> Agent:
        return Agent(
            FakeProbe([L4]), ProcessTable(), node_id=NODE, interval_s=0.05, on_start=lambda _, spans: news.extend(spans)
        )

    first, second = another(), another()
    await first.start()
    replica = Replica("w", "sleep")
    replica.link.start()
    await replica.tenancy.start()
    replica.tenancy.recall()
    await until(lambda: replica.tenancy.tier is Tier.ASLEEP)
    await replica.call(0.01, Priority.INTERACTIVE, first)
    replica.starts.answered(0.0)
    await until(lambda: [span.stage for span in news] == ["turn", "weights", "turn", "wake", "first_result"])
    told = first.snapshot().starts
    assert [start.kind for start in told] == ["load", "wake"]
    assert {(start.workload, start.replica, start.node) for start in told} == {("w", "w#1", NODE)}
    await first.close()
    await second.start()
    await until(lambda: second.snapshot().starts == told)
    await replica.tenancy.close()
    await asyncio.to_thread(replica.link.close)
    await second.close()
