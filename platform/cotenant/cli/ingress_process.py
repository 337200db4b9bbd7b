"""The ingress as a process: from its first pull to the end of its drain, with probes beside it."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Mapping
from dataclasses import replace

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cotenant.calls import Backend, Directory, WorkloadStatus
from cotenant.config import Jobs, Platform
from cotenant.errors import CotenantError
from cotenant.gateway.server import HttpServer
from cotenant.jobs.assembly import make_pump, open_lanes
from cotenant.jobs.ingress.metrics import METRICS, rows
from cotenant.jobs.ingress.pump import Pump
from cotenant.telemetry.exposition import RowsCollector
from cotenant.telemetry.logs import event
from cotenant.upstream.auth import Auth
from cotenant.upstream.backend import UpstreamBackend

#: What answers to probes may take when the process ends.
_PROBES_END_S = 2.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_log = logging.getLogger("cotenant.ingress")


class FixedRoom:
    """A backend whose every workload is taken for one replica, so that slots are as many as the directory says."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.call = backend.call
        self.call_many = backend.call_many
        self.stream = backend.stream

    async def status(self) -> Mapping[str, WorkloadStatus]:
        known = await self._backend.status()
        # One that is at zero gets its calls too: they are what brings it back.
        return {name: replace(one, replicas=1) if one.ready else one for name, one in known.items()}


def with_concurrency(jobs: Jobs, directory: Directory, concurrency: int) -> tuple[Jobs, Directory]:
    """As an ingress sees them that shares its slots with nobody, however many there are."""
    workloads = tuple(replace(served, slots=concurrency) for served in directory.workloads)
    return jobs.model_copy(update={"ingresses": 1}), Directory(workloads)


async def serve(
    platform: Platform, upstream: str, auth: Auth, *, concurrency: int | None, host: str, port: int
) -> None:
    """Serve jobs until SIGTERM or SIGINT, then drain; a second signal ends the process where it stands.

    Raises:
        EnvironmentFault: it can't begin.
    """
    http = UpstreamBackend(upstream, dict.fromkeys(platform.workloads), auth=auth)
    backend: Backend = http
    jobs, directory = platform.jobs, Directory.of(platform)
    if concurrency is not None:
        jobs, directory = with_concurrency(jobs, directory, concurrency)
        backend = FixedRoom(http)
    pump = make_pump(jobs, open_lanes(jobs), backend, lambda: directory)
    stop = asyncio.Event()
    probes = HttpServer(
        probes_of(pump, backend, stop), host=host, port=port, grace_s=_PROBES_END_S, who="the ingress", setting="--"
    )
    loop = asyncio.get_running_loop()
    try:
        await probes.start()
        for number in _SIGNALS:
            loop.add_signal_handler(number, stop.set)
        pump.start()
        event(_log, "ingress_started", probes=probes.url, upstream=http.host)
        await stop.wait()
        event(_log, "ingress_drains", within_s=jobs.drain_s)
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
        await pump.drain(jobs.drain_s)
        settled = ", ".join(f"{outcome} {count}" for outcome, count in pump.stats().settled.items())
        event(_log, "ingress_ended", settled=settled or "nothing")
    finally:
        await probes.stop()
        await http.close()


def probes_of(pump: Pump, backend: Backend, stop: asyncio.Event) -> Starlette:
    """`/healthz` (503 when the pump is stuck), `/readyz` (503 when it drains, or no workload is ready), `/metrics`."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(RowsCollector(METRICS, lambda: rows(pump.stats())))

    async def healthz(request: Request) -> Response:
        stuck = pump.stuck()
        return JSONResponse({"status": stuck or "ok"}, 503 if stuck else 200)

    async def readyz(request: Request) -> Response:
        workloads: dict[str, bool] = {}
        why = "it drains" if stop.is_set() else ""
        if not why:
            try:
                status = await backend.status()
                workloads = {name: one.ready for name, one in status.items()}
                why = "" if any(workloads.values()) else next(iter(status.values())).message
            except CotenantError as error:
                why = str(error)
        return JSONResponse({"ready": not why, "why": why, "workloads": workloads}, 503 if why else 200)

    async def metrics(request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return Starlette(routes=[Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)])
