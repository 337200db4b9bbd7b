"""The desk as the gateway has it: over the store that the ingress writes to, publishing where the ingress pulls.

A desk that can't be had is no reason to keep the door shut: the gateway then says why it takes no jobs, and serves
everything else.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from ray import serve

from cotenant.calls import Directory
from cotenant.config import Jobs
from cotenant.errors import EnvironmentFault, SourceUnavailable
from cotenant.gateway.desk_routes import NO_JOBS
from cotenant.jobs.assembly import SOURCE_ENV
from cotenant.jobs.clerk.clerk import Clerk
from cotenant.jobs.clerk.webhooks import Webhooks, webhook_check
from cotenant.jobs.desk.desk import Desk
from cotenant.jobs.queue.publishing import LanePublisher
from cotenant.jobs.queue.source import Message
from cotenant.jobs.store.results import open_store
from cotenant.outbound.delivery import HttpDeliver, load_trusted_hosts
from cotenant.outbound.webhooks import Secrets, load_secrets
from cotenant.telemetry.logs import event

LOG = logging.getLogger("cotenant.gateway")

_HAND_OVER_TIMEOUT_S = 20.0


class Publisher(Protocol):
    """Publishes to topics by their short names. Raises SourceUnavailable, and nothing else."""

    async def publish(self, topic: str, messages: Sequence[Message]) -> object: ...

    async def close(self) -> None: ...


@dataclass(frozen=True)
class OpenDesk:
    """The desk and what it publishes by; without them, why."""

    desk: Desk | None = None
    publisher: Publisher | None = None
    why_none: str = NO_JOBS

    async def close(self) -> None:
        if self.publisher is not None:
            await self.publisher.close()


def open_desk(jobs: Jobs, directory: Callable[[], Directory]) -> OpenDesk:
    """The desk of a platform with these jobs, or the reason why there is none."""
    if not jobs.ingresses:
        return OpenDesk()
    try:
        if jobs.store.startswith("memory:"):
            raise EnvironmentFault(
                "jobs.store is memory://, which only the ingress can read; name a folder or a bucket to have jobs, "
                "files and batches here"
            )
        store = open_store(jobs.store)
        publisher = _publisher(jobs)
    except EnvironmentFault as fault:
        event(LOG, "no_desk", level=logging.ERROR, reason=str(fault))
        return OpenDesk(why_none=str(fault))
    check = on_cancelled = None
    if (known := _webhook_settings(jobs)) is not None:
        secrets, trusted = known
        check = webhook_check(secrets, trusted)
        webhooks = Webhooks(store.objects, publisher.publish, jobs, HttpDeliver(trusted=trusted), secrets)
        on_cancelled = Clerk(store, publisher.publish, jobs, directory, webhooks=webhooks).job_ended
    desk = Desk(store, publisher.publish, jobs, directory, check_webhook=check, on_cancelled=on_cancelled)
    return OpenDesk(desk, publisher)


class IngressPublisher:
    """Hands messages to the ingress, which holds them in memory."""

    def __init__(self) -> None:
        self._ingress: Any = None

    async def publish(self, topic: str, messages: Sequence[Message]) -> object:
        response = None
        try:
            if self._ingress is None:
                self._ingress = await asyncio.to_thread(serve.get_app_handle, "ingress")
            response = self._ingress.submit.remote(topic, list(messages))
            return await asyncio.wait_for(_outcome(response), _HAND_OVER_TIMEOUT_S)
        except Exception as error:
            if response is not None:
                with suppress(Exception):
                    response.cancel()
            last = (str(error).strip().splitlines() or [""])[-1]
            raise SourceUnavailable(f"the ingress did not take the jobs ({type(error).__name__}: {last})") from error

    async def close(self) -> None:
        return None


def _webhook_settings(jobs: Jobs) -> tuple[Secrets, frozenset[str]] | None:
    """What webhooks are signed with, and trusted hosts; None, and no webhooks are taken, where that can't be read."""
    try:
        return load_secrets(os.environ, jobs.webhooks_env), load_trusted_hosts(os.environ)
    except EnvironmentFault as fault:
        event(LOG, "no_webhooks", level=logging.ERROR, reason=str(fault))
        return None


async def _outcome(response: Any) -> object:
    return await response


def _publisher(jobs: Jobs) -> Publisher:
    if os.environ.get(SOURCE_ENV, "pubsub") == "memory":
        return IngressPublisher()
    try:
        from cotenant.jobs.queue.pubsub import PubSubLanes  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise EnvironmentFault(
            f"jobs need Google's Pub/Sub client, which is not installed here ({error}); install cotenant[gcp], or set "
            f"{SOURCE_ENV}=memory"
        ) from error
    return LanePublisher(jobs, PubSubLanes(jobs))
