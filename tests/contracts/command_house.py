"""What the tests of the job commands share: a platform file, a queue that is a list, and an ingress that is a loop.

The clerk, the desk and the store are the real ones; only the workloads are replaced, by a function.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cotenant.calls import Reply
from cotenant.cli import jobs_door, main
from cotenant.config import Jobs
from cotenant.jobs import model
from cotenant.jobs.clerk.clerk import Clerk
from cotenant.jobs.clerk.webhooks import Webhooks
from cotenant.jobs.desk.references import resolve_files
from cotenant.jobs.errand import Errand
from cotenant.jobs.queue.source import Delivery, Message
from cotenant.jobs.store.results import ResultStore, open_store
from cotenant.outbound.delivery import InMemoryDeliver
from cotenant.outbound.webhooks import Secrets
from tests.contracts.jobs_house import DIRECTORY

PLATFORM = """
workloads:
  mockups: {mockup: {templates: [mug]}, gpu: {vram_gib: 1}}
  writer: {llm: {model: tiny}, gpu: {vram_gib: 2}}
environments: {local: {pools: {shared: {accelerator: cpu, vram_gib: 12}}}}
"""

Answer = Callable[[model.Job], Reply | None]


def done(job: model.Job) -> Reply | None:
    del job
    return Reply(200, b'{"ok": true}')


def cotenant(*arguments: str, stdin: bytes | None = None) -> Result:
    """Run a command on the platform file of the current folder."""
    words = 2 if arguments[0] in ("jobs", "dead") else 1
    return CliRunner().invoke(main, [*arguments[:words], "-f", "platform.yaml", *arguments[words:]], input=stdin)


def file_of(*jobs: Any) -> bytes:
    return b"\n".join(json.dumps(job).encode() for job in jobs) + b"\n"


class House:
    """A folder with a platform, whose jobs go into `published` and are done when a test says so."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.published: list[tuple[str, Message]] = []
        self.done: Counter[str] = Counter()
        """How often each custom_id was worked on."""
        self.bodies: dict[str, bytes] = {}
        self._open: list[Errand] = []

    @classmethod
    def build(cls, folder: Path, patch: pytest.MonkeyPatch) -> House:
        (folder / "platform.yaml").write_text(PLATFORM)
        patch.chdir(folder)
        patch.setenv("COTENANT_HOME", str(folder / "home"))
        patch.setenv("PUBSUB_EMULATOR_HOST", "a.list:1")
        house = cls(folder)
        patch.setattr(jobs_door, "publisher", house.publisher)
        return house

    @property
    def store(self) -> ResultStore:
        return open_store(str(self.folder / "results"))

    @property
    def stored(self) -> list[str]:
        """The files of the store."""
        root = self.folder / "results"
        return sorted(
            path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file() and path.parent != root
        )

    @property
    def errands(self) -> list[Errand]:
        """The errands that were published and not seen to yet."""
        return [
            Errand.of(Delivery("", "1", message.data)) for topic, message in self.published if topic == "jobs-clerk"
        ]

    @asynccontextmanager
    async def publisher(self, door: Any) -> AsyncIterator[Any]:
        del door

        async def publish(topic: str, messages: Sequence[Message]) -> None:
            self.published += [(topic, message) for message in messages]

        yield publish

    def ingress(self, answer: Answer = done, *, rounds: int = 8) -> None:
        """Be an ingress for a while: run errands, do jobs. A job that `answer` gives None for stays undone."""
        asyncio.run(self._ingress(answer, rounds))

    async def _ingress(self, answer: Answer, rounds: int) -> None:
        store, jobs = self.store, Jobs()

        async def publish(topic: str, messages: Sequence[Message]) -> None:
            self.published += [(topic, message) for message in messages]

        webhooks = Webhooks(store.objects, publish, jobs, InMemoryDeliver({}), Secrets())
        clerk = Clerk(store, publish, jobs, lambda: DIRECTORY, webhooks=webhooks)
        self._open += self.errands
        undone: list[tuple[str, Message]] = []
        for _ in range(rounds):
            self._open = [errand for errand in dict.fromkeys(self._open) if await clerk.advance(errand) is not None]
            taken, self.published = self.published, []
            for topic, message in taken:
                if topic != "jobs-clerk" and not await self._do(store, message, answer):
                    undone.append((topic, message))
        self.published += undone

    async def _do(self, store: ResultStore, message: Message, answer: Answer) -> bool:
        job = model.parse_job(message.data, message.attributes, "1")
        if await store.result(job.identity) is not None:
            return True
        reply = answer(job)
        if reply is None:
            return False
        self.done[job.identity.custom_id] += 1
        body, files = await resolve_files(store.objects, job.identity.tenant, await store.body(job))
        self.bodies[job.identity.custom_id] = next(iter(files.values()), body)
        stored = await store.put_output(job.identity, reply) if model.is_large(reply) else None
        await store.create_result(model.Result(job.identity, job.sha256, model.result_line(job, reply, stored)))
        return True


def soon(condition: Callable[[], object], within_s: float = 20.0) -> None:
    """Returns when `condition` holds; fails the test if it does not in time."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.02)
