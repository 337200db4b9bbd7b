"""The ingress as a Serve deployment without a route: `jobs.Pump` between the job source and the workloads.

Serve health-checks, redeploys and drains it like any replica. The pump starts in the first `reconfigure`, where
the loop that it belongs to runs, and drains in `__del__`, which Serve awaits before it stops the process.
"""

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.deployment import Application

from cotenant.calls import Directory
from cotenant.config import Jobs
from cotenant.jobs.memory import MemorySource
from cotenant.jobs.pump import Pump
from cotenant.jobs.source import JobSource, Message
from cotenant.jobs.store import open_store
from cotenant.telemetry.logs import configure_logs, event
from deployments.backend import ServeBackend

#: `memory` keeps jobs in this replica, where there is neither Pub/Sub nor its emulator. Never chosen unasked: a
#: platform that should have Pub/Sub must not accept jobs that die with a process.
SOURCE_ENV = "COTENANT_JOBS_SOURCE"
#: What Serve allows beyond the drain before it kills the replica.
_DRAIN_MARGIN_S = 15.0

_log = logging.getLogger("cotenant.ingress")


class IngressArgs(BaseModel):
    """What the Serve config says about the ingress."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    jobs: Jobs
    drain_s: float = Field(60.0, gt=0, description="Running jobs may finish for so long before they are handed back.")


def build(args: IngressArgs) -> Application:
    """The Serve application `ingress`."""
    return serve.deployment(
        Ingress,
        name="Ingress",
        ray_actor_options={"num_cpus": 0.1},
        graceful_shutdown_timeout_s=args.drain_s + _DRAIN_MARGIN_S,
    ).bind(args.model_dump())


class Ingress:
    """One pump, and the way in for jobs that are held in memory."""

    def __init__(self, args: dict[str, Any]) -> None:
        configure_logs()
        self._args = IngressArgs.model_validate(args)
        self._source: JobSource | None = None
        self._pump: Pump | None = None
        self._backend = ServeBackend()

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Serve these workloads: `{"workloads": [Served as a dict, …]}`."""
        directory = Directory.from_plain(user_config["workloads"])
        if self._pump is not None:
            self._pump.reconfigure(directory)
            return
        jobs = self._args.jobs
        self._source = _source(jobs)
        self._pump = Pump(jobs, self._source, open_store(jobs.store), self._backend, directory)
        self._pump.start()

    async def submit(self, messages: Sequence[tuple[bytes, Mapping[str, str]]]) -> Sequence[str]:
        """Publish jobs, as (data, attributes); their message ids. The way in where jobs are held in memory."""
        assert self._source is not None
        return await self._source.publish(
            self._args.jobs.topic, [Message(data, dict(attributes)) for data, attributes in messages]
        )

    async def stats(self) -> dict[str, Any]:
        """`PumpStats` as a dict."""
        return dataclasses.asdict(self._pump.stats()) if self._pump is not None else {}

    async def check_health(self) -> None:
        reason = self._pump.stuck() if self._pump is not None else None
        if reason is not None:
            raise RuntimeError(reason)

    async def __del__(self) -> None:
        if self._pump is not None:
            await self._pump.drain(self._args.drain_s)
        if self._source is not None:
            await self._source.close()
        await self._backend.close()


def _source(jobs: Jobs) -> JobSource:
    wanted = os.environ.get(SOURCE_ENV, "pubsub")
    if wanted == "memory":
        event(_log, "jobs_held_in_memory", level=logging.WARNING, consequence="they end with this process")
        return MemorySource(jobs)
    if wanted != "pubsub":
        raise ValueError(f"{SOURCE_ENV} is {wanted!r}; set it to pubsub or memory")
    from cotenant.jobs.pubsub import PubSubSource  # noqa: PLC0415 (an extra: without it the memory source still serves)

    return PubSubSource(jobs)
