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
from pathlib import Path
from typing import Any

from cotenant.cli.machine import ray_node
from cotenant.cli.machine.state import RunState
from cotenant.config import Platform
from cotenant.errors import EnvironmentFault, SourceUnavailable
from cotenant.jobs.batch import Publish
from cotenant.jobs.source import Message
from cotenant.jobs.store import ResultStore, absolute_store, open_store

_SUBMIT_TIMEOUT_S = 60.0


def running(platform: Platform) -> RunState | None:
    """What `cotenant up` runs of this platform and environment on this machine."""
    state = RunState.load(platform.name)
    return state if state is not None and state.environment == platform.environment else None


def result_store(platform: Platform, state: RunState | None) -> ResultStore:
    """The store that the ingress writes to. Raises EnvironmentFault where no other process can read it."""
    url = state.store if state is not None and state.store else absolute_store(platform.jobs.store, Path.cwd())
    if url.startswith("memory:"):
        raise EnvironmentFault(
            "jobs.store is memory://, which only the ingress can read; name a folder or a bucket for this command"
        )
    return open_store(url)


@asynccontextmanager
async def publisher(platform: Platform, state: RunState | None) -> AsyncIterator[Publish]:
    """Publishes to the jobs topic, in whichever way this environment has.

    Raises:
        EnvironmentFault: it has none, and what would give it one.
    """
    emulator = os.environ.get("PUBSUB_EMULATOR_HOST") or (state.pubsub_emulator_host if state is not None else None)
    if emulator or platform.gke is not None:
        from cotenant.jobs.pubsub import PubSubSource  # noqa: PLC0415 (Google's client takes a second to import)

        source = PubSubSource(platform.jobs, emulator_host=emulator)
        try:
            await source.setup()
            yield lambda messages: source.publish(platform.jobs.topic, messages)
        finally:
            await source.close()
    elif state is not None:
        ingress = await asyncio.to_thread(_ingress, state)
        yield lambda messages: asyncio.to_thread(_hand_over, ingress, platform.jobs.topic, messages)
    else:
        raise EnvironmentFault(
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
