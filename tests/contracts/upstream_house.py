"""Another cotenant, as far as one that calls it can tell: a gateway on a port, over functions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from cotenant.calls import Backend, Call, Directory, InMemoryBackend, Reply, StreamedReply
from cotenant.calls.backend import Handler
from cotenant.config.model import Gateway
from cotenant.errors import CallError, WorkloadUnavailable
from cotenant.gateway.app import create_app
from cotenant.gateway.keys import load_keys
from cotenant.gateway.server import HttpServer
from cotenant.telemetry.metrics import GatewayMetrics


@dataclass
class Upstream:
    """One that listens."""

    server: HttpServer
    backend: Backend
    metrics: GatewayMetrics

    @property
    def url(self) -> str:
        return self.server.url


@asynccontextmanager
async def gateway_over(
    backend: Backend,
    directory: Directory,
    *,
    keys: str = "",
    port: int = 0,
    grace_s: float = 1,
    max_job_s: float | None = None,
) -> AsyncIterator[Upstream]:
    """A gateway on loopback over any backend."""
    config, metrics = Gateway(), GatewayMetrics()
    app = create_app(
        lambda: directory, backend, config, load_keys(config, {"COTENANT_API_KEYS": keys}), metrics, max_job_s=max_job_s
    )
    server = HttpServer(app, host="127.0.0.1", port=port, grace_s=grace_s)
    await server.start()
    try:
        yield Upstream(server, backend, metrics)
    finally:
        await server.stop()


@asynccontextmanager
async def upstream(
    handlers: Mapping[str, Handler], directory: Directory, *, slots: int = 2, queue: int = 256, **options: Any
) -> AsyncIterator[Upstream]:
    """A gateway on loopback over functions."""
    backend = InMemoryBackend(
        {name: _as_a_replica_would(handler) for name, handler in handlers.items()}, slots=slots, queue=queue
    )
    async with gateway_over(backend, directory, **options) as running:
        yield running


def _as_a_replica_would(handler: Handler) -> Handler:
    """What an engine raises comes out of a replica as a CallError."""

    async def answer(call: Call) -> Reply | StreamedReply:
        try:
            result: Any = handler(call)
            return await result if isinstance(result, Awaitable) else result  # type: ignore[no-any-return]
        except CallError:
            raise
        except Exception as error:
            raise WorkloadUnavailable(f"{type(error).__name__}: {error}") from error

    return answer


async def until(condition: Callable[[], object], *, within_s: float = 10.0) -> None:
    """Returns when `condition` holds; fails the test if it does not in time."""
    loop = asyncio.get_running_loop()
    end = loop.time() + within_s
    while not condition():
        assert loop.time() < end, "it did not come true in time"
        await asyncio.sleep(0.01)
