"""The desk as the command line has it: straight at the store, publishing only if something is published."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from cotenant.calls import Directory
from cotenant.calls.desk import Page
from cotenant.cli import jobs_door
from cotenant.config import Platform
from cotenant.jobs.desk.batches import Batches, PublishTo
from cotenant.jobs.desk.singles import Singles
from cotenant.jobs.model import Identity
from cotenant.jobs.queue.source import Message
from cotenant.jobs.store.results import ResultStore

_BATCHES_AT_ONCE = 100


@dataclass(frozen=True)
class BatchJob:
    """A job of a batch, and the hash of what it asks for."""

    identity: Identity
    sha256: str


@dataclass(frozen=True)
class Desk:
    """What the commands ask of jobs."""

    store: ResultStore
    batches: Batches
    singles: Singles
    publish: PublishTo
    _known: dict[tuple[str, str], dict[str, BatchJob]] = field(default_factory=dict)

    async def find_in_batches(self, tenant: str, job_id: str, batch: str | None = None) -> BatchJob | None:
        """The job of a batch that has this id: looked for in one batch, or in all of the tenant's, the newest first."""
        if batch is not None:
            return await self._find_in(tenant, batch, job_id)
        after: str | None = None
        while True:
            page = await self.batches.page(tenant, Page(_BATCHES_AT_ONCE, after))
            for one in page["data"]:
                found = await self._find_in(tenant, one["id"], job_id)
                if found is not None:
                    return found
            if not page["has_more"]:
                return None
            after = page["last_id"]

    async def _find_in(self, tenant: str, batch: str, job_id: str) -> BatchJob | None:
        known = self._known.get((tenant, batch))
        if known is None:
            data = await self.store.manifest(tenant, batch)
            jobs = json.loads(data)["jobs"] if data is not None else ()
            found = (BatchJob(Identity(tenant, batch, custom_id), sha256) for custom_id, sha256 in jobs)
            known = self._known[tenant, batch] = {one.identity.job_id: one for one in found}
        return known.get(job_id)


@asynccontextmanager
async def opened(platform: Platform) -> AsyncIterator[Desk]:
    """The desk of a platform's environment. Raises EnvironmentFault where its store can't be read from here."""
    door = jobs_door.door_of(platform)
    store = jobs_door.existing_store(platform, door.state)
    async with AsyncExitStack() as stack:
        opened_publish: list[PublishTo] = []

        async def publish(topic: str, messages: Sequence[Message]) -> object:
            if not opened_publish:
                opened_publish.append(await stack.enter_async_context(jobs_door.publisher(door)))
            return await opened_publish[0](topic, messages)

        yield Desk(
            store,
            Batches(store.objects, publish, platform.jobs),
            Singles(store, publish, platform.jobs, lambda: Directory.of(platform)),
            publish,
        )
