"""Brings topics and subscriptions to what the topology says, and says who needs which right on them.

Returns data and prints nothing. Always true: what exists is never deleted, what can't be changed in place is only
told, and doing it all again changes nothing more.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

from cotenant.config import Jobs
from cotenant.errors import SourceUnavailable
from cotenant.jobs.queue.topology import (
    CLOUD,
    Difference,
    Powers,
    Resource,
    Step,
    Subscription,
    Topic,
    Topology,
    differences,
    kept_jobs,
    lane_topics,
    wanted,
    within,
)

_AT_ONCE = 8


class Admin(Protocol):
    """The edge to what exists in one project. Every method raises SourceUnavailable when it is not answered.

    `powers`: what its subscriptions can do.
    """

    powers: Powers

    async def topic(self, name: str) -> Topic | None:
        """The topic as it is; None if there is none."""
        ...

    async def subscription(self, name: str) -> Subscription | None: ...

    async def create(self, resource: Resource) -> bool:
        """Create it; whether it was missing. What is there already is left as it is."""
        ...

    async def update(self, resource: Resource, mask: Sequence[str]) -> None:
        """Change the fields that `mask` names to what `resource` says."""
        ...

    async def bindings(self, kind: str, name: str) -> Mapping[str, frozenset[str]] | None:
        """Members by role of a topic's or subscription's own policy; None where that can't be asked."""
        ...

    async def allowed(self, kind: str, name: str, permissions: Sequence[str]) -> frozenset[str] | None:
        """Which of these permissions the caller has; None where that can't be asked."""
        ...

    async def close(self) -> None: ...


async def found(admin: Admin, wanted: Topology) -> Topology:
    """What there is of `wanted`, as it is. Raises SourceUnavailable."""
    turns = asyncio.Semaphore(_AT_ONCE)

    async def topic(name: str) -> Topic | None:
        async with turns:
            return await admin.topic(name)

    async def subscription(name: str) -> Subscription | None:
        async with turns:
            return await admin.subscription(name)

    topics, subscriptions = await asyncio.gather(
        asyncio.gather(*(topic(one.name) for one in wanted.topics)),
        asyncio.gather(*(subscription(one.name) for one in wanted.subscriptions)),
    )
    return Topology(
        tuple(one for one in topics if one is not None), tuple(one for one in subscriptions if one is not None)
    )


async def check(admin: Admin, wanted: Topology) -> tuple[Difference, ...]:
    """What differs from `wanted`, which is cut to what this queue can keep. Raises SourceUnavailable."""
    possible = within(wanted, admin.powers)
    return differences(possible, await found(admin, possible))


@dataclass(frozen=True)
class Applied:
    """A difference, whether it is gone now, and if not, why."""

    difference: Difference
    done: bool
    trouble: str = ""


async def apply(admin: Admin, steps: Sequence[Difference], *, dry_run: bool = False) -> tuple[Applied, ...]:
    """Create and update, one after the other; one that fails does not keep the next from being tried.

    With `dry_run` nothing is changed, and what would have been has `done` False and no trouble.
    """
    applied = []
    for step in steps:
        if step.step is Step.RECREATE:
            applied.append(Applied(step, False, _BY_HAND))
        elif dry_run:
            applied.append(Applied(step, False))
        else:
            applied.append(await _apply(admin, step))
    return tuple(applied)


async def _apply(admin: Admin, step: Difference) -> Applied:
    try:
        if step.step is Step.CREATE:
            await admin.create(step.resource)
        else:
            await admin.update(step.resource, step.mask)
    except SourceUnavailable as error:
        return Applied(step, False, str(error))
    return Applied(step, True)


_BY_HAND = (
    "Pub/Sub can't change this; when the subscription is empty, delete it and set up again. Deleting it drops what "
    "waits in it"
)


def recreate_commands(project: str, difference: Difference) -> tuple[str, ...]:
    """The commands that make a subscription anew, to be run when nothing waits in it."""
    name = difference.resource.name
    return (f"gcloud pubsub subscriptions delete {name} --project {project}", "cotenant jobs setup")


# --- rights -------------------------------------------------------------------------------------------------


class Part(str, Enum):
    """Who does what: each runs as an account of its own, with no more rights than it needs."""

    GATEWAY = "gateway"
    """Takes jobs by HTTP: publishes to lanes, reads and writes the store."""
    INGRESS = "ingress"
    """Pulls from every lane, publishes results, dead letters and what it moves between lanes."""
    SUBMITTER = "submitter"
    """`cotenant submit`, `results` and `jobs` on somebody's machine."""
    UNDERTAKER = "undertaker"
    """`cotenant dead`: reads the dead letters and publishes them again."""


PUBLISHER, SUBSCRIBER = "roles/pubsub.publisher", "roles/pubsub.subscriber"
OBJECT_USER = "roles/storage.objectUser"

#: Roles that include the rights of another.
_INCLUDES: Mapping[str, Collection[str]] = {
    PUBLISHER: (PUBLISHER, "roles/pubsub.editor", "roles/pubsub.admin", "roles/editor", "roles/owner"),
    SUBSCRIBER: (SUBSCRIBER, "roles/pubsub.editor", "roles/pubsub.admin", "roles/editor", "roles/owner"),
}
_PERMISSION = {PUBLISHER: "pubsub.topics.publish", SUBSCRIBER: "pubsub.subscriptions.consume"}
_ANY_AGENT = re.compile(r"serviceAccount:service-\d+@gcp-sa-pubsub\.iam\.gserviceaccount\.com")


@dataclass(frozen=True)
class Grant:
    """A role of a member on a topic, subscription or bucket. Member "" stands for Pub/Sub's own agent."""

    kind: str
    name: str
    role: str
    member: str = ""

    def command(self, project: str) -> str:
        """The `gcloud` line that gives it."""
        member = self.member or _agent(project)
        if self.kind == "bucket":
            return (
                f'gcloud storage buckets add-iam-policy-binding gs://{self.name} --member="{member}" --role={self.role}'
            )
        return (
            f"gcloud pubsub {self.kind}s add-iam-policy-binding {self.name} --project={project} "
            f'--member="{member}" --role={self.role}'
        )


def agent_of(project_number: int) -> str:
    """Pub/Sub's own service agent in a project: it is who forwards to dead-letter topics."""
    return f"serviceAccount:service-{project_number}@gcp-sa-pubsub.iam.gserviceaccount.com"


def _agent(project: str) -> str:
    number = f"$(gcloud projects describe {project} --format='value(projectNumber)')"
    return f"serviceAccount:service-{number}@gcp-sa-pubsub.iam.gserviceaccount.com"


def agent_grants(topology: Topology, project_number: int | None = None) -> tuple[Grant, ...]:
    """What Pub/Sub's agent needs so that its dead-letter policies work: without it a message comes for ever."""
    member = agent_of(project_number) if project_number is not None else ""
    backed = [one for one in topology.subscriptions if one.dead_letter]
    publishes = dict.fromkeys(Grant("topic", one.dead_letter or "", PUBLISHER, member) for one in backed)
    return (*publishes, *(Grant("subscription", one.name, SUBSCRIBER, member) for one in backed))


def part_grants(part: Part, jobs: Jobs, workloads: Iterable[str], member: str) -> tuple[Grant, ...]:
    """The least that `member` needs to be that part of the platform."""
    workloads = tuple(workloads)
    topics = list(lane_topics(jobs, workloads))
    subscriptions: list[str] = []
    if part is Part.INGRESS:
        topics += [jobs.results, jobs.dead_letter]
        kept = kept_jobs(jobs).subscription
        subscriptions = [one.name for one in wanted(jobs, workloads).subscriptions if one.name != kept]
    if part is Part.UNDERTAKER:
        subscriptions = [kept_jobs(jobs).subscription]
    grants = [Grant("topic", name, PUBLISHER, member) for name in dict.fromkeys(topics)]
    grants += [Grant("subscription", name, SUBSCRIBER, member) for name in subscriptions]
    if jobs.store.startswith("gs://"):
        grants.append(Grant("bucket", jobs.store.removeprefix("gs://").split("/")[0], OBJECT_USER, member))
    return tuple(grants)


def is_granted(grant: Grant, bindings: Mapping[str, Collection[str]]) -> bool:
    """Whether a resource's own policy gives it. A policy further up may give it too: False is only "not here"."""
    members = {one for role in _INCLUDES.get(grant.role, (grant.role,)) for one in bindings.get(role, ())}
    return grant.member in members if grant.member else any(_ANY_AGENT.fullmatch(one) for one in members)


@dataclass(frozen=True)
class Right:
    """A grant, and whether it is given: None where that could not be found out."""

    grant: Grant
    given: bool | None


async def agent_rights(admin: Admin, topology: Topology, project_number: int | None = None) -> tuple[Right, ...]:
    """Whether Pub/Sub's agent may forward to the dead-letter topics, as far as the resources' own policies say.

    Raises:
        SourceUnavailable: Pub/Sub does not answer.
    """
    rights = []
    for grant in agent_grants(topology, project_number):
        bindings = await admin.bindings(grant.kind, grant.name)
        rights.append(Right(grant, None if bindings is None else is_granted(grant, bindings)))
    return tuple(rights)


async def own_rights(admin: Admin, part: Part, jobs: Jobs, workloads: Iterable[str]) -> tuple[Right, ...]:
    """Whether who asks may do what that part does, on topics and subscriptions. Raises SourceUnavailable."""
    rights = []
    for grant in part_grants(part, jobs, workloads, "you"):
        permission = _PERMISSION.get(grant.role)
        if permission is not None:
            allowed = await admin.allowed(grant.kind, grant.name, [permission])
            rights.append(Right(grant, None if allowed is None else permission in allowed))
    return tuple(rights)


class MemoryAdmin:
    """The twin of the edge: topics and subscriptions in a dict, with policies to test with."""

    def __init__(self, topology: Topology | None = None, *, powers: Powers = CLOUD) -> None:
        self.powers = powers
        self.there: dict[tuple[str, str], Resource] = {}
        self.policies: dict[tuple[str, str], Mapping[str, frozenset[str]]] = {}
        self.permissions: frozenset[str] | None = None
        self.refused: set[str] = set()
        """Names that may not be created or changed: a fault to test with."""
        for resource in topology.resources if topology is not None else ():
            self.there[_key(resource)] = resource

    async def topic(self, name: str) -> Topic | None:
        there = self.there.get(("topic", name))
        return there if isinstance(there, Topic) else None

    async def subscription(self, name: str) -> Subscription | None:
        there = self.there.get(("subscription", name))
        return there if isinstance(there, Subscription) else None

    async def create(self, resource: Resource) -> bool:
        self._check(resource)
        if isinstance(resource, Subscription) and ("topic", resource.topic) not in self.there:
            raise SourceUnavailable(f"there is no topic {resource.topic}")
        missing = _key(resource) not in self.there
        self.there.setdefault(_key(resource), resource)
        return missing

    async def update(self, resource: Resource, mask: Sequence[str]) -> None:
        self._check(resource)
        there = self.there[_key(resource)]
        # What can't be changed stays, whatever the request says.
        if isinstance(resource, Subscription) and isinstance(there, Subscription):
            fixed = {"topic": there.topic, "filter": there.filter, "ordering": there.ordering}
            resource = replace(resource, **fixed)  # type: ignore[arg-type]
        self.there[_key(resource)] = resource

    async def bindings(self, kind: str, name: str) -> Mapping[str, frozenset[str]] | None:
        return self.policies.get((kind, name))

    async def allowed(self, kind: str, name: str, permissions: Sequence[str]) -> frozenset[str] | None:
        return None if self.permissions is None else self.permissions & frozenset(permissions)

    async def close(self) -> None:
        return None

    def _check(self, resource: Resource) -> None:
        if resource.name in self.refused:
            raise SourceUnavailable(f"may not change {resource.name}")


def _key(resource: Resource) -> tuple[str, str]:
    return ("topic" if isinstance(resource, Topic) else "subscription", resource.name)
