"""The gateway as a Serve application without a route: each replica is an HTTP server of its own.

Serve places, health-checks, updates and drains the replica; requests never pass Serve's proxies. The server
starts with the first `reconfigure`, when it knows what is served, and a changed workload only swaps the directory.
Replicas of a node share the port, so with `max_surge_percent: 100` the next one listens before the last one stops.
"""

import os
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.deployment import Application

from cotenant.calls import Directory, Served
from cotenant.calls.counted import CountedBackend
from cotenant.config import Jobs
from cotenant.config.model import Gateway as GatewayConfig
from cotenant.gateway.app import create_app
from cotenant.gateway.keys import load_keys
from cotenant.gateway.server import HttpServer
from cotenant.telemetry.logs import configure_logs
from cotenant.telemetry.metrics import GatewayMetrics
from cotenant.upstream.spill import METRICS, SpillingBackend
from deployments.backend import ServeBackend
from deployments.demand import NOTHING_SCALES, DemandTeller
from deployments.desk import open_desk
from deployments.gate import Gate
from deployments.spilling import connect

#: How long a replica that goes may finish its answers where nothing says how long they may take. Serve waits longer
#: before it kills, by what `manifests.serve` says.
GRACE_S = 50.0


class GatewayArgs(BaseModel):
    """What the Serve config gives to `build`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gateway: GatewayConfig
    jobs: Jobs = Jobs(ingresses=0)


def build(args: GatewayArgs) -> Application:
    """The Serve application of the gateway."""
    return serve.deployment(
        Gateway,
        name="Gateway",
        max_surge_percent=100,
        ray_actor_options={"num_cpus": 0.1},
        graceful_shutdown_timeout_s=GRACE_S + 10,
        graceful_shutdown_wait_loop_s=0.5,
    ).bind(args.model_dump())


class Gateway:
    """One HTTP door onto the platform's workloads, and onto its jobs where it serves any."""

    def __init__(self, args: dict[str, Any]) -> None:
        configure_logs()
        self._directory: Directory | None = None
        self._backend = ServeBackend(gate=Gate(lambda: self._teller.heard, lambda name: self._served(name).queue))
        self._spilling = SpillingBackend(
            self._backend, served=self._served, connect=connect, running=self._backend.replicas
        )
        counted = CountedBackend(self._spilling, has_room=self._has_room)
        self._teller = DemandTeller("gateway", counted.asked)
        given = GatewayArgs.model_validate(args)
        config = given.gateway
        # Keys first: a door that may not open fails here, before it listens.
        keys = load_keys(config, os.environ)
        self._desk = open_desk(given.jobs, self._serving)
        metrics = GatewayMetrics()
        metrics.show(METRICS, self._spilling.rows)
        app = create_app(
            self._serving,
            counted,
            config,
            keys,
            metrics,
            desk=self._desk.desk,
            no_desk=self._desk.why_none,
            max_job_s=given.jobs.max_job_s,
        )
        self._server = HttpServer(app, host=config.host, port=config.port, grace_s=GRACE_S)

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Serve these workloads: `{"workloads": […], "scaling": {…}, "spill": […]}`. Listen, if this is the first."""
        self._directory = Directory.from_plain(user_config["workloads"])
        self._spilling.spill(user_config.get("spill", ()))
        self._teller.scale(user_config.get("scaling", NOTHING_SCALES))
        if not self._server.serving:
            await self._server.start()
            self._teller.start()

    async def check_health(self) -> None:
        """Raises when nothing listens any more, so that Serve replaces the replica."""
        if not self._server.serving:
            raise RuntimeError("the gateway does not listen; its deployment needs a user_config with workloads")

    async def __del__(self) -> None:
        # As long as an answer may take, whatever is served by then; Serve waits as long, and a little longer.
        await self._server.stop(max((served.deadline_s for served in self._serving().workloads), default=GRACE_S))
        self._teller.stop()
        await self._desk.close()
        await self._spilling.close()
        await self._backend.close()

    def _serving(self) -> Directory:
        return self._directory or Directory(())

    def _served(self, name: str) -> Served:
        return self._serving().named(name)

    def _has_room(self, workload: str, sent: int) -> bool:
        return sent < self._served(workload).slots * self._teller.running(workload)
