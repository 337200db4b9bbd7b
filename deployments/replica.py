"""What every replica of a workload has: it answers one call, or several that came on one trip.

A trip's answers go back over the caller's relay as they are made, while the Serve call stays open around them and
holds the trip's place. Whatever ends the Serve call (the caller, its deadline, its death) ends the work behind it.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
import ray
from ray import serve

from cotenant.calls import Call, Reply, Together
from cotenant.calls.relay import RelaySender, Start, Target
from cotenant.calls.wire import encode
from cotenant.gpu.terms import Terms
from cotenant.telemetry.logs import configure_logs, event
from cotenant.telemetry.starts import Recorder
from deployments.agent import ensure_agent
from deployments.asked import find_out
from deployments.routing import ROUTER
from deployments.sharing import Share, SharedEngine

LOG = logging.getLogger("cotenant.replica")

#: How Serve deploys a replica: its callers route by work, and the doors log every request already, once.
DEPLOYMENT: Mapping[str, Any] = {"request_router_config": ROUTER, "logging_config": {"enable_access_log": False}}
#: What a trip's reader tells: the index of a call that nobody waits for any more.
ABANDON = struct.Struct("!I")
_HEAD = Start(200, "application/x-cotenant-answers")


class Answering:
    """A replica that answers calls; a subclass says how (`call`)."""

    def __init__(self) -> None:
        configure_logs()
        self._relay = RelaySender()

    async def call(self, call: Call) -> Reply:
        """The whole reply, the engine's errors included."""
        raise NotImplementedError

    async def calls(self, calls: Sequence[Call], target: Target) -> None:
        """Work on all of them side by side, and answer each into the caller's relay when it is ready."""
        sink = await self._relay.open(target)
        trip = Together([self.call(call) for call in calls], on_error=_crashed)
        try:
            sink.on_tell = lambda told: trip.abandon(*ABANDON.unpack(told))
            sink.start(_HEAD)
            async for answers in trip:
                await sink.chunk(b"".join(map(encode, answers)))
            sink.end()
        finally:
            await trip.aclose()

    async def __del__(self) -> None:
        self._relay.close()


class SharedReplica(Answering):
    """A replica with an engine that holds a share of a GPU; a subclass says how it answers (`answer`)."""

    _share: Share

    def __init__(self, terms: Terms) -> None:
        super().__init__()
        self._starts = Recorder(
            terms.workload, serve.get_replica_context().replica_tag, ray.get_runtime_context().get_node_id()
        )
        self._starts.begin("cold", "process", at=psutil.Process().create_time())
        self._starts.enter("imports")
        loop = asyncio.get_running_loop()
        self._asked = loop.create_task(find_out())
        # Beside the imports: the first on a node waits for the agent's process.
        self._agent = loop.create_task(ensure_agent(ray.get_runtime_context().get_node_id(), terms))
        self._terms = terms

    async def _join(self, engine: SharedEngine, gpu: str | None) -> Share:
        """Take this replica's place on its GPU. Raises as `Share.join` does."""
        return await Share.join(self._terms, engine, gpu=gpu, starts=self._starts, asked=self._asked, agent=self._agent)

    async def answer(self, call: Call) -> Reply:
        """The whole reply, the engine's errors included."""
        raise NotImplementedError

    async def call(self, call: Call) -> Reply:
        async with self._share.answering(call):
            return await self.answer(call)

    async def check_health(self) -> None:
        """Raises when the replica can't go on, so that Serve replaces it."""
        self._share.check()

    async def __del__(self) -> None:
        await super().__del__()
        share: Any = getattr(self, "_share", None)
        if share is not None:
            await share.close()


def _crashed(error: BaseException) -> None:
    event(LOG, "call_crashed", level=logging.ERROR, error=error)
