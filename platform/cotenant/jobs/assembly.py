"""An ingress put together from its parts: the same inside of Ray and outside, so both settle jobs alike."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping

from cotenant.calls import Backend, Directory
from cotenant.config import Jobs
from cotenant.errors import EnvironmentFault
from cotenant.jobs.clerk.clerk import Clerk
from cotenant.jobs.clerk.webhooks import Webhooks
from cotenant.jobs.ingress.grouping import Grouper
from cotenant.jobs.ingress.pump import Pump
from cotenant.jobs.queue.lanes import Lanes
from cotenant.jobs.queue.memory import MemoryLanes
from cotenant.jobs.queue.publishing import LanePublisher
from cotenant.jobs.store.results import open_store
from cotenant.outbound.delivery import HttpDeliver, load_trusted_hosts
from cotenant.outbound.webhooks import load_secrets
from cotenant.telemetry.logs import event

#: `memory` keeps jobs in this replica, where there is neither Pub/Sub nor its emulator. Never chosen unasked: a
#: platform that should have Pub/Sub must not accept jobs that die with a process.
SOURCE_ENV = "COTENANT_JOBS_SOURCE"

_log = logging.getLogger("cotenant.ingress")


def open_lanes(jobs: Jobs, environ: Mapping[str, str] = os.environ) -> Lanes:
    """The lanes of the source that the environment names.

    Raises:
        EnvironmentFault: it names none that there is, or Google's client is not installed.
    """
    wanted = environ.get(SOURCE_ENV, "pubsub")
    if wanted == "memory":
        event(_log, "jobs_held_in_memory", level=logging.WARNING, consequence="they end with this process")
        return MemoryLanes(jobs)
    if wanted != "pubsub":
        raise EnvironmentFault(f"{SOURCE_ENV} is {wanted!r}; set it to pubsub or memory")
    try:
        from cotenant.jobs.queue.pubsub import PubSubLanes  # noqa: PLC0415 (an extra: without it memory still serves)
    except ImportError as error:
        raise EnvironmentFault(
            f"jobs need Google's Pub/Sub client, which is not installed here ({error}); install cotenant[gcp]"
        ) from error
    return PubSubLanes(jobs)


def make_pump(
    jobs: Jobs,
    lanes: Lanes,
    backend: Backend,
    directory: Callable[[], Directory],
    environ: Mapping[str, str] = os.environ,
) -> Pump:
    """A pump with its store, clerk and webhooks; it is not started.

    Args:
        directory: what is served, asked at each use.

    Raises:
        EnvironmentFault: the store, or the webhooks' secrets, can't be had.
    """
    store = open_store(jobs.store)
    publish = LanePublisher(jobs, lanes).publish
    webhooks = Webhooks(
        store.objects,
        publish,
        jobs,
        HttpDeliver(trusted=load_trusted_hosts(environ)),
        load_secrets(environ, jobs.webhooks_env),
    )
    clerk = Clerk(store, publish, jobs, directory, webhooks=webhooks)
    caller = Grouper(backend, lambda workload: directory().named(workload).slots).call
    return Pump(jobs, lanes, store, backend, directory(), clerk=clerk, caller=caller)
