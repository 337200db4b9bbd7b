"""The ingress as a Serve deployment without a route: `jobs.Pump` between the job source and the workloads.

Serve health-checks, redeploys and drains it like any replica. The pump starts in the first `reconfigure`, where
the loop that it belongs to runs, and drains in `__del__`, which Serve awaits before it stops the process.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.deployment import Application

from cotenant.calls import Directory, Served
from cotenant.config import Jobs
from cotenant.jobs.assembly import make_pump, open_lanes
from cotenant.jobs.ingress import metrics
from cotenant.jobs.ingress.pump import Pump
from cotenant.jobs.queue.lanes import Lanes
from cotenant.jobs.queue.publishing import LanePublisher
from cotenant.jobs.queue.source import Message
from cotenant.telemetry.logs import configure_logs
from cotenant.upstream.spill import METRICS as SPILL_METRICS
from cotenant.upstream.spill import SpillingBackend
from deployments.backend import ServeBackend
from deployments.demand import NOTHING_SCALES, DemandTeller
from deployments.gate import Gate
from deployments.published import Published
from deployments.spilling import connect

#: What Serve allows beyond the drain before it kills the replica.
_DRAIN_MARGIN_S = 15.0
_METRICS_EVERY_S = 2.0
_TOLD = (
    "waiting",
    "running",
    "settling",
    "slots",
    "running_by_workload",
    "settled",
    "oldest_waiting_s",
    "last_trouble",
)


class IngressArgs(BaseModel):
    """What the Serve config says about the ingress."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    jobs: Jobs


def build(args: IngressArgs) -> Application:
    """The Serve application `ingress`."""
    return serve.deployment(
        Ingress,
        name="Ingress",
        ray_actor_options={"num_cpus": 0.1},
        graceful_shutdown_timeout_s=args.jobs.drain_s + _DRAIN_MARGIN_S,
    ).bind(args.model_dump())


class Ingress:
    """One pump, and the way in for jobs that are held in memory."""

    def __init__(self, args: dict[str, Any]) -> None:
        configure_logs()
        self._args = IngressArgs.model_validate(args)
        self._lanes: Lanes | None = None
        self._directory = Directory(())
        self._pump: Pump | None = None
        self._teller: DemandTeller | None = None
        self._backend = ServeBackend(gate=Gate(self._heard, lambda name: self._served(name).queue))
        self._spilling = SpillingBackend(
            self._backend,
            served=self._served,
            connect=connect,
            running=self._backend.replicas,
            batch=True,
        )

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Serve these workloads: `{"workloads": [Served as a dict, …], "scaling": {…}, "spill": […]}`."""
        directory = Directory.from_plain(user_config["workloads"])
        scaling = user_config.get("scaling", NOTHING_SCALES)
        self._spilling.spill(user_config.get("spill", ()))
        if self._pump is not None and self._teller is not None:
            self._teller.scale(scaling)
            self._directory = directory
            self._pump.reconfigure(directory)
            return
        self._directory = directory
        self._lanes = open_lanes(self._args.jobs)
        self._pump = make_pump(self._args.jobs, self._lanes, self._spilling, lambda: self._directory)
        self._pump.start()
        serving = self._pump.serving
        self._teller = DemandTeller(
            "ingress", self._pump.asked, on_running=lambda running: serving(self._spilling.with_room(running))
        )
        self._teller.scale(scaling)
        self._teller.start()
        self._publishing = asyncio.create_task(self._publish_metrics(self._pump))

    async def submit(self, topic: str, messages: Sequence[Message]) -> Sequence[str]:
        """Publish to a topic; the message ids. The way in where jobs are held in memory."""
        assert self._lanes is not None
        return await LanePublisher(self._args.jobs, self._lanes).publish(topic, messages)

    async def stats(self) -> dict[str, Any]:
        """What of `PumpStats` is plain."""
        stats = self._pump.stats() if self._pump is not None else None
        return {name: getattr(stats, name) for name in _TOLD} if stats is not None else {}

    async def check_health(self) -> None:
        reason = self._pump.stuck() if self._pump is not None else None
        if reason is not None:
            raise RuntimeError(reason)

    async def __del__(self) -> None:
        if self._pump is not None:
            self._publishing.cancel()
            await self._pump.drain(self._args.jobs.drain_s)
            if self._teller is not None:
                self._teller.stop()
        await self._spilling.close()
        await self._backend.close()

    def _served(self, name: str) -> Served:
        return self._directory.named(name)

    def _heard(self) -> bool:
        return self._teller is not None and self._teller.heard

    async def _publish_metrics(self, pump: Pump) -> None:
        published = Published((*metrics.METRICS, *SPILL_METRICS))
        while True:
            published.publish([*metrics.rows(pump.stats()), *self._spilling.rows()])
            await asyncio.sleep(_METRICS_EVERY_S)
