"""A network in memory under the guarded client: answers played back, and where it was asked to connect."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import httpcore

from cotenant.outbound.addresses import Resolve

PUBLIC = "93.184.216.34"


def resolver_of(names: Mapping[str, Sequence[str]]) -> Resolve:
    """A resolver that knows these names alone."""

    async def resolver(host: str, port: int) -> Sequence[str]:
        if host not in names:
            raise OSError("unknown host")
        return names[host]

    return resolver


def answer(body: bytes = b"picture", *, status: str = "200 OK", **headers: str) -> bytes:
    fields = {"content-type": "image/png", "content-length": str(len(body)), "connection": "close"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


class Stream(httpcore.AsyncMockStream):
    """Plays back an answer and keeps what was written and which name TLS was asked to verify."""

    def __init__(self, network: Network, data: bytes) -> None:
        super().__init__([data[i : i + 65536] for i in range(0, len(data), 65536)])
        self._network = network

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._network.reads += 1
        data = await super().read(max_bytes, timeout)
        if not data and self._network.hangs:
            await asyncio.sleep(60)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._network.written += buffer

    async def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: Any = None) -> Any:
        self._network.verified.append(server_hostname)
        return self


class Network(httpcore.AsyncNetworkBackend):
    """Answers in order, one a connection, and remembers where it was asked to connect.

    With `hangs`, a host that has said all it has to say leaves the line open.
    """

    def __init__(self, *answers: bytes, refuse: Sequence[str] = (), hangs: bool = False) -> None:
        self.answers, self.refuse, self.hangs = list(answers), refuse, hangs
        self.connected: list[tuple[str, int]] = []
        self.verified: list[str | None] = []
        self.written = b""
        self.reads = 0

    async def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        self.connected.append((host, port))
        if host in self.refuse:
            raise httpcore.ConnectError("refused")
        return Stream(self, self.answers.pop(0))

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
