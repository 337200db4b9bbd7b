"""The ingress as a Serve deployment without a route: `jobs.Pump` between the job source and the workloads.

Serve health-checks, redeploys and drains it like any replica. The pump starts in the first `reconfigure`, where
the loop that it belongs to runs, and drains in `__del__`, which Serve awaits before it stops the process.
"""

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.deployment import Application

from cotenant.calls import Directory
from cotenant.config import Jobs
from cotenant.jobs.clerk.clerk import Clerk
from cotenant.jobs.clerk.webhooks import Webhooks
from cotenant.jobs.ingress import metrics
from cotenant.jobs.ingress.grouping import Grouper
from cotenant.jobs.ingress.pump import Pump
from cotenant.jobs.queue.lanes import Lanes
from cotenant.jobs.queue.memory import MemoryLanes
from cotenant.jobs.queue.publishing import LanePublisher
from cotenant.jobs.queue.source import Message
from cotenant.jobs.store.results import open_store
from cotenant.outbound.delivery import HttpDeliver, load_trusted_hosts
from cotenant.outbound.webhooks import load_secrets
from cotenant.telemetry.logs import configure_logs, event
from deployments.backend import ServeBackend
from deployments.demand import NOTHING_SCALES, DemandTeller
from deployments.gate import Gate
from deployments.published import Published

#: `memory` keeps jobs in this replica, where there is neither Pub/Sub nor its emulator. Never chosen unasked: a
#: platform that should have Pub/Sub must not accept jobs that die with a process.
SOURCE_ENV = "COTENANT_JOBS_SOURCE"
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

_log = logging.getLogger("cotenant.ingress")


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
        self._backend = ServeBackend(gate=Gate(self._heard, lambda name: self._directory.named(name).queue))

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Serve these workloads: `{"workloads": [Served as a dict, …], "scaling": {…}}`."""
        directory = Directory.from_plain(user_config["workloads"])
        scaling = user_config.get("scaling", NOTHING_SCALES)
        if self._pump is not None and self._teller is not None:
            self._teller.scale(scaling)
            self._directory = directory
            self._pump.reconfigure(directory)
            return
        jobs = self._args.jobs
        self._lanes = _lanes(jobs)
        store = open_store(jobs.store)
        publish = LanePublisher(jobs, self._lanes).publish
        self._directory = directory
        webhooks = Webhooks(
            store.objects,
            publish,
            jobs,
            HttpDeliver(trusted=load_trusted_hosts(os.environ)),
            load_secrets(os.environ, jobs.webhooks_env),
        )
        clerk = Clerk(store, publish, jobs, lambda: self._directory, webhooks=webhooks)
        caller = Grouper(self._backend, self._slots_of).call
        self._pump = Pump(jobs, self._lanes, store, self._backend, directory, clerk=clerk, caller=caller)
        self._pump.start()
        self._teller = DemandTeller("ingress", self._pump.asked, on_running=self._pump.serving)
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
        await self._backend.close()

    def _heard(self) -> bool:
        return self._teller is not None and self._teller.heard

    def _slots_of(self, workload: str) -> int:
        return self._directory.named(workload).slots

    async def _publish_metrics(self, pump: Pump) -> None:
        published = Published(metrics.METRICS)
        while True:
            published.publish(metrics.rows(pump.stats()))
            await asyncio.sleep(_METRICS_EVERY_S)


def _lanes(jobs: Jobs) -> Lanes:
    wanted = os.environ.get(SOURCE_ENV, "pubsub")
    if wanted == "memory":
        event(_log, "jobs_held_in_memory", level=logging.WARNING, consequence="they end with this process")
        return MemoryLanes(jobs)
    if wanted != "pubsub":
        raise ValueError(f"{SOURCE_ENV} is {wanted!r}; set it to pubsub or memory")
    from cotenant.jobs.queue.pubsub import PubSubLanes  # noqa: PLC0415 (an extra: without it the memory source still serves)

    return PubSubLanes(jobs)
