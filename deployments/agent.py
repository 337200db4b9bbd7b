"""The GPU agent as a Ray actor: one a node, named after it, started by whoever needs it first.

It is detached, since it belongs to the node and to no application, and Ray starts it again when it dies: what it
knew, its replicas tell it anew. It takes no share of anything that is booked. When nobody has been there for a while
it ends by itself, so that a Ray that was only borrowed is left as it was.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cotenant.agent import metrics
from cotenant.agent.node import Obituary
from cotenant.agent.server import Agent
from cotenant.agent.snapshot import Snapshot
from cotenant.cli.machine.cluster import AGENT_NAMESPACE, AGENT_PREFIX
from cotenant.errors import EnvironmentFault
from cotenant.gpu.probe.host import ProcessTable, VirtualGpus
from cotenant.gpu.probe.nvml import NvmlProbe
from cotenant.gpu.probe.protocol import GpuProbe
from cotenant.gpu.shares import usable_kib
from cotenant.gpu.terms import Terms
from cotenant.telemetry import traces
from cotenant.telemetry.logs import configure_logs, event
from cotenant.telemetry.starts import Span, Start
from deployments import obituaries
from deployments.draining import drain
from deployments.published import Published

LOG = logging.getLogger("cotenant.agent")

#: An agent without replicas ends after this long. Until then Ray's autoscaler takes its node for one in use.
IDLE_S = 30.0
_START_S = 60.0
#: So long before it takes a spot machine away Compute Engine says so; it promises no more than to try.
_NOTICE_S = 30.0
#: A dead agent's successor may start before the kernel has taken its lock away.
_LOCK_TRIES, _LOCK_WAIT_S = 20, 0.25


def name_of(node_id: str) -> str:
    """The actor's name on that node."""
    return f"{AGENT_PREFIX}{node_id}"


async def ensure_agent(node_id: str, terms: Terms) -> None:
    """See that this node's agent runs.

    Raises:
        EnvironmentFault: it did not start; the text says why.
    """
    remote: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=3, max_concurrency=16)(GpuAgent)
    actor: ActorHandle = remote.options(
        name=name_of(node_id),
        namespace=AGENT_NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
    ).remote(node_id, usable_kib(terms.usable_gib) if terms.on_cpu else None)
    try:
        await asyncio.wait_for(actor.ready.remote(), _START_S)
    except (asyncio.TimeoutError, ray.exceptions.RayError) as error:
        why = getattr(error, "cause", None) or error or "it gave no sign of life"
        raise EnvironmentFault(f"the GPU agent of node {node_id[:12]} did not start: {why}") from error


class GpuAgent:
    """Hosts an `Agent` and publishes what it sees through Ray's metrics endpoint."""

    def __init__(self, node_id: str, virtual_gpu_kib: int | None) -> None:
        """`virtual_gpu_kib` is what each GPU of a CPU pool has; None where the node has real ones."""
        configure_logs()
        self._node_id = node_id
        self._virtual_gpu_kib = virtual_gpu_kib
        self._published = Published((*metrics.METRICS, metrics.START))
        self._traces = traces.from_environment()
        self._used_at = time.monotonic()
        # At once, not when somebody first asks: after a restart nobody might.
        self._starting = asyncio.get_running_loop().create_task(self._start())
        self._watching = asyncio.get_running_loop().create_task(self._watch_preemption())

    async def ready(self) -> None:
        """Return when the agent listens. Raises EnvironmentFault if it can't; who asks again has it tried again."""
        self._used_at = time.monotonic()
        if self._starting.done() and (self._starting.cancelled() or self._starting.exception() is not None):
            self._starting = asyncio.get_running_loop().create_task(self._start())
        await asyncio.shield(self._starting)

    async def snapshot(self) -> dict[str, Any]:
        """What the agent knows, as `Snapshot` spells it."""
        agent = await asyncio.shield(self._starting)
        return agent.snapshot().model_dump(mode="json")

    async def _start(self) -> Agent:
        agent = Agent(
            self._probe(),
            ProcessTable(),
            node_id=self._node_id,
            on_stop=self._on_stop,
            on_sample=self._on_sample,
            on_start=self._on_start,
        )
        for attempt in range(_LOCK_TRIES):
            try:
                await agent.start()
                event(LOG, "agent_started", node=self._node_id)
                return agent
            except EnvironmentFault:
                if attempt == _LOCK_TRIES - 1:
                    raise
                await asyncio.sleep(_LOCK_WAIT_S)
        raise AssertionError

    async def _watch_preemption(self) -> None:
        """Have this node's replicas moved before the machine is taken away, where somebody tells of that."""
        # Here, since every replica imports this module and needs no HTTP client.
        from cotenant.agent.preemption import metadata_url, preempted  # noqa: PLC0415

        if not await preempted(metadata_url(os.environ)):
            return
        event(LOG, "node_preempted", level=logging.WARNING, node=self._node_id, notice_s=_NOTICE_S)
        try:
            await asyncio.to_thread(drain, self._node_id, why="The machine is being preempted.", within_s=_NOTICE_S)
        except Exception as error:
            # The machine goes anyway; then its replicas' calls are repeated as after any death.
            event(LOG, "node_not_drained", level=logging.ERROR, node=self._node_id, error=error)

    def _probe(self) -> GpuProbe:
        if self._virtual_gpu_kib is None:
            return NvmlProbe()
        have = next(node for node in ray.nodes() if node["NodeID"] == self._node_id)["Resources"]
        return VirtualGpus(self._virtual_gpu_kib, count=int(have.get("GPU", 1)))

    async def _on_stop(self, obituary: Obituary) -> None:
        await asyncio.to_thread(obituaries.write, obituary)

    def _on_sample(self, snapshot: Snapshot) -> None:
        self._published.publish(metrics.rows(snapshot))
        now = time.monotonic()
        if snapshot.unplaced or any(gpu.replicas for gpu in snapshot.gpus):
            self._used_at = now
        elif now - self._used_at > IDLE_S:
            event(LOG, "agent_ends", node=self._node_id, idle_s=IDLE_S)
            asyncio.get_running_loop().create_task(self._end())

    def _on_start(self, start: Start, news: tuple[Span, ...]) -> None:
        self._published.publish(metrics.start_rows(start, news))
        if self._traces is not None:
            self._traces.export(start, news)
        event(
            LOG,
            "replica_started",
            workload=start.workload,
            kind=start.kind,
            ready_s=round(start.ready_s, 3),
            stages=", ".join(f"{stage} {seconds:.3f}" for stage, seconds in start.seconds().items()),
        )

    async def _end(self) -> None:
        await (await self._starting).close()
        # exit_actor works from within a call of the actor only; this is a task of its own.
        ray.kill(ray.get_actor(name_of(self._node_id), namespace=AGENT_NAMESPACE), no_restart=True)
