"""The gateway's own HTTP server: uvicorn inside a loop that is already running, on a port that can be shared.

SO_REUSEPORT lets the next gateway listen before the last one stops, so a redeploy refuses nobody. Stopping closes
the listener at once, then lets answers under way finish for a stated time before it cancels them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from cotenant.errors import EnvironmentFault
from cotenant.telemetry.logs import event

LOG = logging.getLogger("cotenant.gateway")

_BACKLOG = 2048
#: Longer than clients keep idle connections (httpx 5 s, most load balancers 60 s), so that they close first.
_KEEP_ALIVE_S = 75
_TICK_S = 0.01


class HttpServer:
    """One listening door. `start` once, `stop` once; both from the loop that serves."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str,
        port: int,
        grace_s: float = 30.0,
        who: str = "the gateway",
        setting: str = "gateway.",
    ) -> None:
        """`port` 0 takes any free port. `grace_s`: how long `stop` waits for answers under way. `who` listens, and what
        its settings `host` and `port` are led by, for error texts."""
        self._who, self._setting = who, setting
        self._host = host
        self._port = port
        config = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(grace_s),
        )
        self._server = _Uvicorn(config)
        self._task: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._port

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def serving(self) -> bool:
        return self._task is not None and not self._task.done() and self._server.started

    async def start(self) -> None:
        """Listen. Raises EnvironmentFault if the address can't be taken."""
        listener = _listen(self._host, self._port, self._who, self._setting)
        self._port = listener.getsockname()[1]
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]), name="gateway-http")
        while not self._server.started:
            if self._task.done():
                listener.close()
                self._task.result()
                raise EnvironmentFault(f"the HTTP server on {self.url} ended before it listened; see its log")
            await asyncio.sleep(_TICK_S)
        event(LOG, "listening", url=self.url)

    async def stop(self, within_s: float | None = None) -> None:
        """Refuse new connections from now on, finish the answers under way, cancel what is left after `within_s`
        (default: the grace)."""
        if self._task is None:
            return
        if within_s is not None:
            self._server.config.timeout_graceful_shutdown = math.ceil(within_s)
        for server in getattr(self._server, "servers", ()):
            server.close()
        self._server.should_exit = True
        await asyncio.wait((self._task,))
        event(LOG, "stopped", url=self.url)


class _Uvicorn(uvicorn.Server):
    """Uvicorn as a guest: signals belong to whoever owns the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(host: str, port: int, who: str, setting: str) -> socket.socket:
    """A listening socket whose port others of the same user may share."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise EnvironmentFault(
            f"{who} can't listen on {host!r}: {error.strerror}; set {setting}host to an address of this machine"
        ) from error
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setblocking(False)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise EnvironmentFault(_why_not(error, host, port, who, setting)) from error
    return listener


def _why_not(error: OSError, host: str, port: int, who: str, setting: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"{who} needs port {port} on {host}, and another program has it; "
            f"stop that one (ss -ltnp 'sport = :{port}' names it) or set {setting}port to a free one"
        )
    if error.errno == errno.EACCES:
        return f"{who} may not take port {port}; set {setting}port to one above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"this machine has no address {host}; set {setting}host to one it has, such as 127.0.0.1"
    return f"{who} can't listen on {host}:{port}: {error.strerror}"
