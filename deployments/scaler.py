"""The scaler as a Ray actor: hears of demand from the doors, of replicas from Serve, and says how many there should be.

One for a cluster, on its head, detached and started again by whoever misses it; what it knew the others tell it anew,
only what it had learned is lost. When nobody speaks to it any more it ends, and the nodes that it kept ready go.
It decides when a door tells something new, and often besides.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import ray
from pydantic import BaseModel, ConfigDict
from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray.experimental import internal_kv
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cotenant.calls.demand import Asked
from cotenant.cli.machine.cluster import AGENT_NAMESPACE, SCALER
from cotenant.scaling import metrics
from cotenant.scaling.autoscaler import Autoscaler, Decision, Scaled
from cotenant.scaling.rooms import free_shares
from cotenant.scaling.terms import Bounds
from cotenant.telemetry.logs import configure_logs, event
from deployments.headroom import Headroom, let_go
from deployments.published import Published

LOG = logging.getLogger("cotenant.scaling")

#: Everything is decided anew so often, whether or not anything was told.
_DECIDE_EVERY_S = 0.2
_LOOK_EVERY_S = 2.0
_METRICS_EVERY_S = 2.0
_NODES_EVERY_S = 5.0
_FORECAST_EVERY_S = 300.0
#: A scaler that nobody has spoken to for so long is of no use to anybody.
_ALONE_S = 90.0
#: Seconds until a replica on a new node serves, where no workload says.
_NODE_S = 180.0
#: Where Ray keeps what forecasts are made from.
_FORECAST_KEY = b"cotenant:forecast"
#: Which scaler says so, the version of its targets, the targets.
News = tuple[str, int, Mapping[str, int]]
_CHANGES_KEPT = 1000


class Workload(BaseModel):
    """A workload as `manifests.scaling` describes it."""

    # What a newer platform says more, an older scaler that still runs passes over.
    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    pool_resource: str
    spread_resource: str | None = None
    num_gpus: float
    cpus: float
    slots: int
    min: int
    max: int
    target_wait_s: float
    wake_s: float
    share_s: float
    node_s: float

    @property
    def scaled(self) -> Scaled:
        # Which replicas sleep is the affair of their node's agent: Serve knows them all as running.
        bounds = Bounds(self.slots, self.min, self.max, self.target_wait_s)
        return Scaled(bounds, self.wake_s, self.share_s, self.node_s)


def ensure_scaler() -> Any:
    """The scaler's handle; it is started on the head if it runs nowhere."""
    remote: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=0, max_concurrency=256)(Scaler)
    return remote.options(
        name=SCALER,
        namespace=AGENT_NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        scheduling_strategy=NodeAffinitySchedulingStrategy(_head(), soft=True),
    ).remote()


def _head() -> str:
    """The head's node id; an actor that books nothing would keep any other node from being idle."""
    alive = (node for node in ray.nodes() if node["Alive"])
    heads = (node["NodeID"] for node in alive if HEAD_NODE_RESOURCE_NAME in node["Resources"])
    return str(next(heads, ray.get_runtime_context().get_node_id()))


def find_scaler() -> Any:
    """The scaler's handle. Raises ValueError if it does not run."""
    return ray.get_actor(SCALER, namespace=AGENT_NAMESPACE)


class Scaler:
    """Hosts an `Autoscaler`."""

    def __init__(self) -> None:
        configure_logs()
        self._autoscaler = Autoscaler()
        self._workloads: dict[str, Workload] = {}
        self._has: dict[str, tuple[int, int]] = {}
        self._headroom: Headroom | None = None
        self._told_of: Mapping[str, Any] = {}
        self._telling = asyncio.Lock()
        self._born = secrets.token_hex(8)
        self._heard_at = time.monotonic()
        self._decisions: dict[str, Decision] = {}
        self._changes: deque[dict[str, Any]] = deque(maxlen=_CHANGES_KEPT)
        self._version = 0
        self._news = asyncio.Condition()
        self._published = Published(metrics.METRICS)
        self._tasks = [
            asyncio.get_running_loop().create_task(each)
            for each in (
                self._often(self._decide_all, _DECIDE_EVERY_S),
                self._often(self._look, _LOOK_EVERY_S),
                self._often(self._keep_nodes, _NODES_EVERY_S),
                self._often(self._keep_forecast, _FORECAST_EVERY_S),
                self._often(self._publish, _METRICS_EVERY_S),
            )
        ]

    # --- Serve ---

    async def serve_has(self, has: Mapping[str, tuple[int, int]]) -> News:
        """Of each workload how many replicas serve and how many are asked of Serve. What there is to know at once."""
        self._heard_at = time.monotonic()
        self._has = dict(has)
        self._hear_of_serve()
        await self._decide_all()
        return self._news_now()

    async def news(self, known: int, timeout_s: float) -> News:
        """The targets when there are others than at version `known`, or after the time."""
        self._heard_at = time.monotonic()
        self._hear_of_serve()
        async with self._news:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._news.wait_for(lambda: self._version != known), timeout_s)
        return self._news_now()

    # --- doors ---

    async def terms(self, terms: Mapping[str, Any]) -> None:
        """What there is to scale: `manifests.scaling.scaling_terms`."""
        async with self._telling:
            if terms == self._told_of:
                return
            workloads = {plain["name"]: Workload.model_validate(plain) for plain in terms["workloads"]}
            if self._headroom is None or terms["pools"] != self._told_of.get("pools"):
                state = self._headroom.state() if self._headroom is not None else await asyncio.to_thread(_kept)
                node_s = max((workload.node_s for workload in workloads.values()), default=_NODE_S)
                self._headroom = await asyncio.to_thread(Headroom, terms["pools"], node_start_s=node_s, state=state)
            self._workloads, self._told_of = workloads, terms
        self._hear_of_serve()
        await self._decide_all()

    async def tell(self, door: str, asked: Mapping[str, Asked]) -> tuple[bool, Mapping[str, int]]:
        """What a door sees. Whether it is known what there is to scale, and of each how many replicas serve."""
        self._heard_at = time.monotonic()
        self._autoscaler.told(door, asked, self._heard_at)
        await self._decide(name for name in asked if name in self._workloads)
        return bool(self._told_of), {name: serving for name, (serving, _) in self._has.items()}

    # --- whoever wants to know ---

    async def look(self) -> dict[str, Any]:
        """The last decisions, as plain data."""
        return {name: metrics.plain(decision) for name, decision in self._decisions.items()}

    async def changes(self) -> list[dict[str, Any]]:
        """The latest changes of targets, oldest first: when (Unix time), of what, from what, to what, why."""
        return list(self._changes)

    async def pid(self) -> int:
        """Its process."""
        return os.getpid()

    # --- itself ---

    def _hear_of_serve(self) -> None:
        now = time.monotonic()
        for name, (serving, target) in self._has.items():
            workload = self._workloads.get(name)
            if workload is not None:
                self._autoscaler.scale(name, workload.scaled, now)
                self._autoscaler.serve_has(name, serving, target, now)

    def _news_now(self) -> News:
        return self._born, self._version, self._targets()

    def _targets(self) -> Mapping[str, int]:
        return {name: decision.target.replicas for name, decision in self._decisions.items()}

    async def _decide_all(self) -> None:
        self._autoscaler.tidy(time.monotonic())
        for name in self._decisions.keys() - set(self._autoscaler.workloads):
            del self._decisions[name]
        await self._decide(self._autoscaler.workloads)

    async def _decide(self, names: Any) -> None:
        changed = False
        known = set(self._autoscaler.workloads)
        for name in (name for name in names if name in known):
            decision = self._autoscaler.decide(name, time.monotonic())
            before = self._decisions.get(name)
            self._decisions[name] = decision
            if before is None or before.target.replicas != decision.target.replicas:
                changed = True
                change = {
                    "workload": name,
                    "before": before.target.replicas if before is not None else None,
                    "replicas": decision.target.replicas,
                    "why": decision.target.why,
                }
                self._changes.append({"at_s": time.time(), **change})
                event(LOG, "scaled", **change)
        if changed:
            async with self._news:
                self._version += 1
                self._news.notify_all()

    async def _look(self) -> None:
        """See how many more replicas of each workload fit on the nodes that are there."""
        nodes = await asyncio.to_thread(ray._private.state.available_resources_per_node)
        for workload in list(self._workloads.values()):
            shares = free_shares(
                nodes.values(), workload.pool_resource, workload.num_gpus, workload.cpus, workload.spread_resource
            )
            if workload.name in self._autoscaler.workloads:
                self._autoscaler.room_for(workload.name, shares)

    async def _keep_nodes(self) -> None:
        if time.monotonic() - self._heard_at > _ALONE_S:
            await self._end()
        elif self._headroom is not None:
            await asyncio.to_thread(self._headroom.keep, time.time())

    async def _keep_forecast(self) -> None:
        if self._headroom is not None:
            await asyncio.to_thread(_keep, self._headroom.state())

    async def _end(self) -> None:
        """Serve and all doors are gone: let go of the nodes that are kept ready, and end."""
        event(LOG, "scaler_ends", alone_s=_ALONE_S)
        await asyncio.to_thread(let_go)
        ray.kill(find_scaler(), no_restart=True)

    async def _publish(self) -> None:
        self._published.publish(metrics.rows(self._decisions))

    async def _often(self, turn: Any, every_s: float) -> None:
        while True:
            try:
                await turn()
            except Exception as error:
                event(LOG, "scaler_turn_failed", level=logging.ERROR, error=error, turn=turn.__name__)
            await asyncio.sleep(every_s)


def _keep(state: Mapping[str, Any]) -> None:
    internal_kv._internal_kv_put(_FORECAST_KEY, json.dumps(state).encode(), overwrite=True)


def _kept() -> Mapping[str, Any] | None:
    """What an earlier scaler of this Ray has kept."""
    data = internal_kv._internal_kv_get(_FORECAST_KEY)
    state: Mapping[str, Any] | None = json.loads(data) if data else None
    return state
