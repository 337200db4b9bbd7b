"""What the tests of the pump share: a platform of two workloads, lines for both, and a store that can be down."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from cotenant.calls import Call, Directory, Reply, Served
from cotenant.jobs.queue.source import Message
from cotenant.jobs.store.objects import MemoryObjects
from cotenant.jobs.store.results import ResultStore

DIRECTORY = Directory(
    (
        Served("writer", "llm", models=("tiny", "writer"), slots=4, deadline_s=30),
        Served("mockups", "mockup", templates=("mug",), slots=2, deadline_s=30),
    )
)


def chat(custom_id: str, **body: Any) -> dict[str, Any]:
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "tiny", "messages": [], **body},
    }


def render(custom_id: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/mockups", "body": {"template": "mug", **body}}


def message(line: Mapping[str, Any] | bytes, *, batch: str = "b1", tenant: str = "acme") -> Message:
    data = line if isinstance(line, bytes) else json.dumps(line).encode()
    return Message(data, {"batch": batch, "tenant": tenant})


def echo(call: Call) -> Reply:
    """An LLM that says its own body back."""
    return Reply(200, json.dumps({"echo": json.loads(call.body)}).encode())


def picture(call: Call) -> Reply:
    return Reply(200, b"\x89PNG" + call.body[:20], "image/png")


class FlakyStore(ResultStore):
    """A store in a dict, which no thread of its own makes wait: for tests that own the clock. Down on request."""

    objects: MemoryObjects

    def __init__(self) -> None:
        super().__init__(MemoryObjects())

    @property
    def down(self) -> bool:
        return self.objects.down

    @down.setter
    def down(self, value: bool) -> None:
        self.objects.down = value

    @property
    def created(self) -> list[str]:
        return self.objects.created

    @property
    def results(self) -> list[str]:
        """Keys of result objects, in the order in which they were created."""
        return [key for key in self.created if "/results/" in key]


async def eventually(condition: Callable[[], object], *, within_s: float = 10.0) -> None:
    """Returns when `condition` holds; fails the test if it does not in time."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        await asyncio.sleep(0.005)
