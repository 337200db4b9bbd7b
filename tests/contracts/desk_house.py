"""What the tests of desk and clerk share: a store that can fail at any call, topics that keep what is published, and
ingresses that are told when to do what was published. Time passes only when a test says so."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any

from cotenant.calls import Reply
from cotenant.calls.desk import Json
from cotenant.config import Jobs
from cotenant.errors import SourceUnavailable, StoreUnavailable
from cotenant.jobs.clerk.clerk import Clerk
from cotenant.jobs.clerk.webhooks import Webhooks, webhook_check
from cotenant.jobs.desk.batches import Batches
from cotenant.jobs.desk.desk import Desk
from cotenant.jobs.desk.files import Files
from cotenant.jobs.errand import Errand
from cotenant.jobs.model import Job, Result, parse_job, result_line
from cotenant.jobs.queue.source import Delivery, Message
from cotenant.jobs.store.objects import Entry, MemoryObjects, Objects
from cotenant.jobs.store.records import Board, Records, WorkloadPace
from cotenant.jobs.store.results import ResultStore
from cotenant.outbound.delivery import InMemoryDeliver
from cotenant.outbound.webhooks import Answered, Secret, Secrets
from tests.contracts.jobs_house import DIRECTORY

HOOK = "https://hooks.example.com/jobs"
SECRETS = Secrets({"acme": (Secret(b"k" * 32),)})
#: 2026-01-01.
START_S = 1_767_225_600.0


class FaultyObjects(MemoryObjects):
    """A store in memory that fails at the `fail_at`-th call from now, before it does anything or after it."""

    def __init__(self) -> None:
        super().__init__("memory://house")
        self.calls = 0
        self.fail_at: int | None = None
        self.after = False

    def tick(self, *, after: bool = False) -> None:
        """Count a call, or the end of one."""
        if not after:
            self.calls += 1
        if self.calls == self.fail_at and after == self.after:
            self.fail_at = None
            raise StoreUnavailable("the store failed as it was told to")

    async def create(self, key: str, data: bytes) -> bool:
        self.tick()
        done = await super().create(key, data)
        self.tick(after=True)
        return done

    async def put(self, key: str, data: bytes) -> None:
        self.tick()
        await super().put(key, data)
        self.tick(after=True)

    async def get(self, key: str) -> bytes | None:
        self.tick()
        return await super().get(key)

    async def part(self, key: str, start: int, length: int) -> bytes | None:
        self.tick()
        return await super().part(key, start, length)

    async def read(self, key: str) -> AsyncIterator[bytes]:
        self.tick()
        async for chunk in super().read(key):
            yield chunk

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[Entry]:
        self.tick()
        async for entry in super().list(prefix, after=after):
            yield entry

    async def delete(self, keys: Iterable[str]) -> None:
        self.tick()
        await super().delete(keys)
        self.tick(after=True)


def worked(job: Job) -> Reply:
    """An engine that refuses jobs whose custom_id begins with `bad`."""
    if job.identity.custom_id.startswith("bad"):
        return Reply(400, b'{"error": {"message": "no", "type": "invalid_request_error", "code": "bad"}}')
    return Reply(200, json.dumps({"made": job.identity.custom_id}).encode())


class House:
    """A desk, a clerk, and what they share."""

    def __init__(self, objects: Objects | None = None) -> None:
        self.now_s = START_S
        self.jobs = Jobs()
        self.objects = objects if objects is not None else FaultyObjects()
        self.store = ResultStore(self.objects)
        self.records = Records(self.objects)
        self.published: list[tuple[str, Message]] = []
        self.down: set[str] = set()
        self.worked = 0
        self.runs: Counter[str] = Counter()
        self.receivers: dict[str, Any] = {HOOK: lambda headers, body: Answered(200)}
        self.deliver = InMemoryDeliver(self.receivers)
        self.check = webhook_check(SECRETS)
        self.files = Files(self.objects, now=self.now)
        self.batches = Batches(self.objects, self.publish, self.jobs, check_webhook=self.check, now=self.now)
        self.clerk = self.new_clerk()
        self.desk = Desk(
            self.store,
            self.publish,
            self.jobs,
            lambda: DIRECTORY,
            check_webhook=self.check,
            on_cancelled=self.clerk.job_ended,
            now=self.now,
        )

    def now(self) -> float:
        return self.now_s

    def new_clerk(self) -> Clerk:
        self.webhooks = Webhooks(
            self.objects, self.publish, self.jobs, self.deliver, SECRETS, now=self.now, jitter=lambda: 0.0
        )
        return Clerk(self.store, self.publish, self.jobs, lambda: DIRECTORY, webhooks=self.webhooks, now=self.now)

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        if isinstance(self.objects, FaultyObjects):
            self.objects.tick()
        if topic in self.down:
            raise SourceUnavailable(f"{topic} does not answer")
        self.published += [(topic, message) for message in messages]
        if isinstance(self.objects, FaultyObjects):
            self.objects.tick(after=True)

    def on(self, topic: str) -> list[Message]:
        return [message for to, message in self.published if to == topic]

    @property
    def errands(self) -> list[Errand]:
        return [Errand.of(Delivery("", "", message.data)) for message in self.on("jobs-clerk")]

    @property
    def sent(self) -> list[Job]:
        """The jobs that are published, in their order."""
        return [parse_job(m.data, m.attributes, "1") for topic, m in self.published if topic != "jobs-clerk"]

    async def work(self, most: int | None = None, engine: Callable[[Job], Reply | None] = worked) -> int:
        """Do what is published and not done, as ingresses would: a result that is there is left alone.

        A job that the engine has no reply for stays undone.
        """
        jobs = self.sent[self.worked :][:most]
        for job in jobs:
            self.worked += 1
            if await self.store.result(job.identity) is None and job.identity not in await self.store.cancelled():
                self.runs[job.identity.custom_id] += 1
                if (reply := engine(job)) is not None:
                    await self.store.create_result(Result(job.identity, job.sha256, result_line(job, reply)))
        return len(jobs)

    async def upload(self, *lines: Mapping[str, Any] | bytes, purpose: str = "batch") -> str:
        """The id of a file with these lines."""
        data = b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines)
        file = await self.desk.create_file("acme", filename="in.jsonl", purpose=purpose, chunks=chunks(data))
        return str(file["id"])

    async def batch(self, *lines: Mapping[str, Any] | bytes, **asked: Any) -> str:
        """The id of a batch of these lines."""
        body = {
            "input_file_id": await self.upload(*lines),
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            **asked,
        }
        return str((await self.desk.create_batch("acme", body))["id"])

    async def shown(self, batch: str) -> Json:
        return await self.desk.batch("acme", batch)

    async def lines(self, file_id: str | None) -> list[Json]:
        if file_id is None:
            return []
        content = await self.desk.file_content("acme", file_id)
        data = b"".join([chunk async for chunk in content.chunks])
        assert len(data) == content.bytes
        return [json.loads(line) for line in data.splitlines()]

    async def put_board(self, *, running: Sequence[str] = (), **paces: WorkloadPace) -> None:
        await self.records.put_board(Board("ingress-1", self.now_s, running=tuple(running), workloads=paces))


async def chunks(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]
