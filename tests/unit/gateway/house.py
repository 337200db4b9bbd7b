"""A gateway over plain functions, as the unit tests build it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from cotenant.calls import Call, Directory, InMemoryBackend, Reply, Served, StreamedReply
from cotenant.calls.backend import Handler
from cotenant.calls.desk import Desk
from cotenant.config.model import Gateway
from cotenant.gateway.app import create_app
from cotenant.gateway.keys import Keyring, load_keys
from cotenant.telemetry.metrics import GatewayMetrics

WRITER = Served("writer", "llm", models=("tiny", "org/tiny", "writer"), deadline_s=5)
MOCKUPS = Served("mockups", "mockup", templates=("mug", "poster"), deadline_s=5)


def echo(call: Call) -> Reply:
    """Answers with what the engine was given."""
    seen = {
        "url": call.url,
        "method": call.method,
        "accept": call.accept,
        "tenant": call.tenant,
        "request_id": call.request_id,
        "body": json.loads(call.body or b"null"),
        "files": {name: len(data) for name, data in call.files.items()},
    }
    return Reply(200, json.dumps(seen).encode(), headers={"x-engine": "echo", "content-length": "1"})


def three_events(call: Call) -> StreamedReply:
    async def events() -> AsyncIterator[bytes]:
        for word in ("one", "two", "[DONE]"):
            yield f"data: {word}\n\n".encode()

    return StreamedReply(200, "text/event-stream", events())


@dataclass
class House:
    """A gateway over plain functions, and a client on its doorstep."""

    handlers: Mapping[str, Handler]
    directory: Directory = field(default_factory=lambda: Directory((WRITER, MOCKUPS)))
    keys: Keyring = field(default_factory=Keyring)
    gateway: Gateway = field(default_factory=Gateway)
    slots: int = 2
    queue: int = 8
    desk: Desk | None = None

    def __post_init__(self) -> None:
        self.backend = InMemoryBackend(self.handlers, slots=self.slots, queue=self.queue)
        self.metrics = GatewayMetrics()
        self.app = create_app(
            lambda: self.directory, self.backend, self.gateway, self.keys, self.metrics, desk=self.desk
        )

    def client(self, **headers: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app)
        return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"cotenant_gateway_{name}", labels) or 0.0


def keyring(text: str, **gateway: Any) -> Keyring:
    return load_keys(Gateway(**gateway), {"COTENANT_API_KEYS": text})
