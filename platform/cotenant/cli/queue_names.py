"""Names of topics, subscriptions and rights for the set-up script: what the jobs package knows, for the manifests."""

from __future__ import annotations

from collections.abc import Iterable

from cotenant.config import Platform
from cotenant.jobs.queue.setup import Grant, Part, agent_grants, part_grants
from cotenant.jobs.queue.topology import labels_of, wanted
from cotenant.manifests.gke.queue import Queue, Right


def queue_names(platform: Platform) -> Queue:
    """What gateways and ingresses need, which run as one account; without ingresses what gateways need."""
    jobs = platform.jobs
    parts = [Part.GATEWAY, Part.INGRESS] if jobs.ingresses else [Part.GATEWAY]
    topology = wanted(jobs, platform.workloads, labels_of(platform.name, platform.environment))
    grants = [grant for part in parts for grant in part_grants(part, jobs, platform.workloads, "")]
    return Queue(
        project=jobs.project,
        topics=tuple(topic.name for topic in topology.topics),
        subscriptions=tuple(subscription.name for subscription in topology.subscriptions),
        rights=_rights(grants),
        agent_rights=_rights(agent_grants(topology)),
    )


def _rights(grants: Iterable[Grant]) -> tuple[Right, ...]:
    return tuple(dict.fromkeys(Right(grant.kind, grant.name, grant.role) for grant in grants))
