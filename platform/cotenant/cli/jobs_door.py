"""Where the job commands find the result store, and a way to publish: Pub/Sub, its emulator, or the ingress itself.

In this order: `PUBSUB_EMULATOR_HOST`, the emulator that `cotenant up` started, real Pub/Sub where the environment
has a Google Cloud project, and last the running ingress, reached through Ray, which then holds the jobs in memory.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cotenant.cli.machine import ray_node
from cotenant.cli.machine.state import RunState
from cotenant.config import Platform
from cotenant.errors import EnvironmentFault, SourceUnavailable
from cotenant.jobs.desk.batches import PublishTo
from cotenant.jobs.queue.publishing import LanePublisher
from cotenant.jobs.queue.source import JobSource, Message
from cotenant.jobs.store.results import ResultStore, absolute_store, open_store

if TYPE_CHECKING:
    from cotenant.jobs.queue.setup import Admin

_SUBMIT_TIMEOUT_S = 60.0
#: How long an empty subscription of dead letters takes to say so; twice, to be sure.
_PULL_WAIT_S = 2.0


@dataclass(frozen=True)
class Door:
    """Where jobs of a platform's environment go in. `emulator` is the address of Pub/Sub's, where there is one."""

    platform: Platform
    state: RunState | None
    emulator: str | None

    @property
    def has_pubsub(self) -> bool:
        return self.emulator is not None or self.platform.gke is not None

    @property
    def is_there(self) -> bool:
        """Whether anything takes jobs here."""
        return self.has_pubsub or self.state is not None


def door_of(platform: Platform) -> Door:
    """The door of a platform from here."""
    state = running(platform)
    emulator = os.environ.get("PUBSUB_EMULATOR_HOST") or (state.pubsub_emulator_host if state is not None else None)
    return Door(platform, state, emulator or None)


def running(platform: Platform) -> RunState | None:
    """What `cotenant up` runs of this platform and environment on this machine."""
    state = RunState.load(platform.name)
    return state if state is not None and state.environment == platform.environment else None


def result_store(platform: Platform, state: RunState | None) -> ResultStore:
    """The store that the ingress writes to. Raises EnvironmentFault where no other process can read it."""
    return open_store(_store_url(platform, state))


def existing_store(platform: Platform, state: RunState | None) -> ResultStore:
    """The same for who only reads: a folder that is not there is not made. Raises EnvironmentFault."""
    url = _store_url(platform, state)
    if "://" not in url and not Path(url).is_dir():
        raise EnvironmentFault(
            f"there are no jobs at {url}: nothing was submitted from this folder, and no platform runs; go where it "
            "was, or make jobs.store an absolute path or a bucket"
        )
    return open_store(url)


def _store_url(platform: Platform, state: RunState | None) -> str:
    url = state.store if state is not None and state.store else absolute_store(platform.jobs.store, Path.cwd())
    if url.startswith("memory:"):
        raise EnvironmentFault(
            "jobs.store is memory://, which only the ingress can read; name a folder or a bucket for this command"
        )
    return url


@asynccontextmanager
async def publisher(door: Door) -> AsyncIterator[PublishTo]:
    """Publishes to topics by their short names, in whichever way this environment has.

    A lane's subscription is made before the first message for it: a topic without one drops what is published.

    Raises:
        EnvironmentFault: it has no way, and what would give it one.
    """
    if door.has_pubsub:
        from cotenant.jobs.queue.pubsub import PubSubLanes  # noqa: PLC0415 (Google's client takes a second to import)

        opened = LanePublisher(door.platform.jobs, PubSubLanes(door.platform.jobs, emulator_host=door.emulator))
        try:
            yield opened.publish
        finally:
            await opened.close()
    elif door.state is not None:
        ingress = await asyncio.to_thread(_ingress, door.state)

        async def publish(topic: str, messages: Sequence[Message]) -> None:
            await asyncio.to_thread(_hand_over, ingress, topic, messages)

        yield publish
    else:
        raise nothing_there(door.platform)


@asynccontextmanager
async def dead_letters(door: Door) -> AsyncIterator[JobSource]:
    """The subscription that dead letters wait in. Raises EnvironmentFault where there is no Pub/Sub."""
    if not door.has_pubsub:
        raise no_pubsub(door, "no dead letters wait")
    from cotenant.jobs.queue.pubsub import PubSubLanes  # noqa: PLC0415 (Google's client takes a second to import)

    lanes = PubSubLanes(door.platform.jobs, door.emulator, pull_wait_s=_PULL_WAIT_S)
    source = lanes.dead_letters()
    try:
        await source.setup()
        yield source
    finally:
        await source.close()


@asynccontextmanager
async def admin(door: Door) -> AsyncIterator[Admin]:
    """What topics and subscriptions are set up with.

    Raises:
        EnvironmentFault: there is no Pub/Sub here.
    """
    if not door.has_pubsub:
        raise no_pubsub(door, "there are no topics to set up")
    from cotenant.jobs.queue.pubsub_admin import PubSubAdmin  # noqa: PLC0415 (Google's client takes a second to import)

    opened = PubSubAdmin(door.platform.jobs.project, door.emulator)
    try:
        yield opened
    finally:
        await opened.close()


def no_pubsub(door: Door, so: str) -> EnvironmentFault:
    """That there is no Pub/Sub here, and what follows from that."""
    why = "the ingress holds the jobs in memory" if door.state is not None else "no platform runs here"
    return EnvironmentFault(
        f"environment {door.platform.environment} of {door.platform.name} has no Pub/Sub ({why}), so {so}; install "
        "the emulator and `cotenant up`, set PUBSUB_EMULATOR_HOST, or name an environment with gke"
    )


def nothing_there(platform: Platform) -> EnvironmentFault:
    return EnvironmentFault(
        f"nothing takes jobs of {platform.name} in environment {platform.environment} here: no platform runs, and "
        f"PUBSUB_EMULATOR_HOST is not set; start it with `cotenant up -e {platform.environment}`"
    )


def _ingress(state: RunState) -> Any:
    """Handle of the running ingress, whose memory holds the jobs where there is no Pub/Sub."""
    if state.token_file:
        os.environ.update(ray_node.ray_environment(Path(state.token_file)))
    try:
        import ray  # noqa: PLC0415
        from ray import serve  # noqa: PLC0415

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        ray.init(address=state.ray_address or "auto", log_to_driver=False, logging_level="ERROR")
        return serve.get_app_handle("ingress")
    except Exception as error:
        raise EnvironmentFault(
            f"the ingress of {state.platform} can't be reached ({type(error).__name__}: {error}); "
            f"is it up? `cotenant up -e {state.environment}`"
        ) from error


def _hand_over(ingress: Any, topic: str, messages: Sequence[Message]) -> None:
    try:
        ingress.submit.remote(topic, list(messages)).result(timeout_s=_SUBMIT_TIMEOUT_S)
    except Exception as error:
        raise SourceUnavailable(f"the ingress did not take the jobs ({type(error).__name__}: {error})") from error
