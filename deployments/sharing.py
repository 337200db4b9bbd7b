"""A replica's place on its GPU: its node's agent, its line to it, its slots and its tenancy, put together.

Whoever comes first on a node starts the node's agent (`deployments.agent`); everybody else finds it. Ray starts it
again when it dies; should it be gone for good, the next replica that misses it starts a new one.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Protocol

import ray
from ray import serve
from ray.util import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cotenant.agent import mps
from cotenant.agent.client import AgentLink, Figures
from cotenant.agent.paths import socket_path
from cotenant.agent.protocol import Identity
from cotenant.agent.tenancy import Engine, Tenancy
from cotenant.agent.turns import StartTurn
from cotenant.calls import Call
from cotenant.engines.admission import Admission
from cotenant.engines.precedence import priority_of
from cotenant.gpu.probe import count_gpus
from cotenant.gpu.shares import budget_kib
from cotenant.gpu.terms import Terms, Tier
from cotenant.telemetry.logs import event
from cotenant.telemetry.starts import OnStage, Recorder, Start, traced_back
from deployments.agent import ensure_agent
from deployments.asked import Asked

LOG = logging.getLogger("cotenant.sharing")

#: A line that has been down for so long makes the replica look after the agent itself.
_MISSED_S = 10.0


class SharedEngine(Engine, Protocol):
    """An engine that can tell what it holds."""

    on_stage: OnStage
    """Told, while it loads from cold, what it is at: imports, weights, warm-up."""

    def memory_bytes(self) -> int | None:
        """What its own allocators hold of the GPU; None if it can't tell (the agent then measures processes)."""
        ...


class Share:
    """One replica's slots, lease, line, engine and starts."""

    def __init__(
        self, terms: Terms, engine: SharedEngine, gpu: str | None, starts: Recorder, asked: Awaitable[Asked]
    ) -> None:
        context = serve.get_replica_context()
        self._node_id = ray.get_runtime_context().get_node_id()
        self._terms = terms
        self._engine = engine
        self._link = AgentLink(
            socket_path(self._node_id),
            Identity(
                application=context.app_name,
                deployment=context.deployment,
                replica=context.replica_tag,
                actor_id=ray.get_runtime_context().get_actor_id() or "",
                node_id=self._node_id,
                pid=os.getpid(),
            ),
            terms,
            gpu=gpu,
            figures=self._figures,
            on_recall=self._recalled,
            loop=asyncio.get_running_loop(),
        )
        self._starts = starts
        self._asked = asked
        starts.tell = self._tell_start
        self._told: asyncio.Task[None] | None = None
        engine.on_stage = starts.enter
        self.tenancy = Tenancy(terms, engine, self._link, turn=self._turn, starts=starts)
        self.admission = Admission(terms.slots)
        self._watch: asyncio.Task[None] | None = None

    @classmethod
    async def join(
        cls,
        terms: Terms,
        engine: SharedEngine,
        *,
        gpu: str | None,
        starts: Recorder,
        asked: Awaitable[Asked],
        agent: Awaitable[None],
    ) -> "Share":
        """Take a place on GPU `gpu` (None: the agent finds out) and load the engine, if its residency asks for that.
        `starts` has the start of this process under way; it goes on, and ends when the replica is ready. `asked` is
        when it was asked for (to be had any number of times), `agent` is done when the node's agent runs.

        Raises:
            Exception: what the engine raised, or why there is no room on this GPU.
        """
        starts.enter("turn")
        _cap(terms)
        share = cls(terms, engine, gpu, starts, asked)
        await agent
        share._link.start()
        share._watch = asyncio.create_task(share._look_after_agent())
        await share.tenancy.start()
        if share.tenancy.tier is Tier.COLD:  # on demand: it can be asked, and holds nothing
            starts.ready()
        return share

    def answering(self, call: Call) -> AbstractAsyncContextManager[None]:
        """To be entered around all that it takes to answer `call`: the first since a start is its first result."""
        if (not self._starts.awaits_result and self.tenancy.tier is Tier.RESIDENT) or call.method == "GET":
            return nullcontext()
        return self._answered(time.time())

    @asynccontextmanager
    async def _answered(self, came_at: float) -> AsyncIterator[None]:
        yield
        self._starts.answered(came_at)

    @asynccontextmanager
    async def slot(self, call: Call) -> AsyncIterator[None]:
        """A slot of its class for all that `call` takes, so that no more is in hand than the budget counts.

        To be entered before `lease`: who waits for a slot must not keep the engine from being put to sleep.
        """
        if call.method == "GET":  # lists and metrics: nothing that takes memory or time
            yield
            return
        async with self.admission.entered(priority_of(call)):
            yield

    def lease(self, call: Call) -> AbstractAsyncContextManager[None]:
        """The right to have the engine work on `call`."""
        return self.tenancy.lease(priority_of(call))

    def check(self) -> None:
        """Raises RuntimeError when the replica can't go on."""
        broken = self.tenancy.broken()
        if broken is not None:
            raise RuntimeError(broken)

    async def close(self) -> None:
        """Take no more work. The line stays open: what the engine holds is free when this process has ended."""
        if self._watch is not None:
            self._watch.cancel()
        await self.tenancy.close()

    def _figures(self) -> Figures:
        return Figures(
            tier=self.tenancy.tier,
            allocated_bytes=self._engine.memory_bytes(),
            running=self.tenancy.running,
            waiting=self.tenancy.waiting,
            pids=tuple(getattr(self._engine, "pids", ())),
        )

    def _tell_start(self, start: Start) -> None:
        before = self._told
        self._told = asyncio.get_running_loop().create_task(self._tell_start_after(before, start))

    async def _tell_start_after(self, before: asyncio.Task[None] | None, start: Start) -> None:
        if before is not None:
            await before
        asked = await self._asked
        self._link.started(traced_back(start, asked_at=asked.at, node_began_at=asked.node_began_at))

    def _recalled(self, wanted_by: str) -> None:
        event(LOG, "recalled", workload=self._terms.workload, wanted_by=wanted_by)
        self.tenancy.recall()

    def _turn(self) -> StartTurn:
        gpu = self._link.gpu or "any"
        return StartTurn(
            f"{self._node_id[:12]}-{gpu}", self._terms.workload, lambda why: event(LOG, "start_waits", why=why)
        )

    async def _look_after_agent(self) -> None:
        while True:
            await asyncio.sleep(_MISSED_S)
            if not self._link.connected:
                event(LOG, "agent_missed", level=logging.WARNING, workload=self._terms.workload)
                try:
                    await ensure_agent(self._node_id, self._terms)
                except Exception as error:
                    # Whatever it is, the next try may go well, and nobody else looks after this node.
                    event(LOG, "agent_missing", level=logging.ERROR, workload=self._terms.workload, error=error)


def own_gpu() -> str | None:
    """Index of the GPU that Ray gave to this actor; None if it gave none."""
    ids = ray.get_runtime_context().get_accelerator_ids().get("GPU") or []
    return str(ids[0]) if ids else None


async def gpu_of_bundle(terms: Terms) -> str | None:
    """Index of the GPU that this actor's placement group holds, for an engine that works in an actor of its own.

    Ray tells only who books it, so where there are several a task in the group is asked.
    """
    if terms.on_cpu:
        return own_gpu()
    group = get_current_placement_group()
    if group is None or count_gpus() < 2:
        return None
    strategy = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=0)
    ask = ray.remote(num_cpus=0, num_gpus=group.bundle_specs[0]["GPU"], scheduling_strategy=strategy)(own_gpu)
    index: str | None = await ask.remote()
    return index


def _cap(terms: Terms) -> None:
    """Let the driver itself refuse what goes past the budget, where an MPS daemon serves this node."""
    if terms.on_cpu:
        return
    pipes = mps.find_daemon(os.environ)
    variables = mps.replica_environment(pipes, device="0", budget_kib=budget_kib(terms.vram_gib))
    if variables:
        os.environ.update(variables)
        # vLLM's worker on a GPU is an actor of its own; it copies what is named here.
        os.environ["VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"] = ",".join(variables)
        event(LOG, "mps_limit", workload=terms.workload, variables=", ".join(variables))
