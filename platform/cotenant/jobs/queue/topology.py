"""Which topics and subscriptions there must be, with which settings, and what differs from those that there are. Pure.

Always true:

- Every topic that jobs or dead letters go to has a subscription, since a topic without one drops what it is sent. The
  results topic has none of ours: whoever wants result messages subscribes.
- No subscription of ours expires, and what waits in it waits `retention_d`; a dead letter waits as long as Pub/Sub
  allows.
- The queue's own dead-letter policy is a backstop. The clerk's lane has none: its errands are tried again for as long
  as it takes, and one that was forwarded would be a batch that nobody sees through.
- What differs is mended in place where Pub/Sub can do that. A filter, an order or a topic can't be changed: such a
  subscription must be made anew, which drops its backlog, so nothing here ever does it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import TypeAlias

from cotenant.config import Jobs
from cotenant.jobs.queue.lanes import CLERK, MAIN, lane_jobs, lane_of, topic_of
from cotenant.jobs.queue.source import backstop_attempts

DAY_S = 86_400
#: Pub/Sub keeps no message that is not acked for longer.
LONGEST_RETENTION_S = 31 * DAY_S
#: Pauses that Pub/Sub makes before it delivers a message again, growing between these. Short: the pump asks for longer
#: ones itself (by the lease of what it gives back), and a message that kills its ingress waits for its lease anyway.
MIN_BACKOFF_S, MAX_BACKOFF_S = 1, 10
LABELS: Mapping[str, str] = {"app": "cotenant"}
KEPT = "-kept"


@dataclass(frozen=True)
class Topic:
    """A topic by its short name."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Subscription:
    """A subscription by its short name; topics by theirs. `expires_after_s` None: never."""

    name: str
    topic: str
    lease_s: int
    retention_s: int
    labels: Mapping[str, str] = field(default_factory=dict)
    dead_letter: str | None = None
    max_deliveries: int = 0
    min_backoff_s: float | None = None
    max_backoff_s: float | None = None
    ordering: bool = False
    exactly_once: bool = False
    filter: str = ""
    expires_after_s: int | None = None


Resource: TypeAlias = Topic | Subscription


@dataclass(frozen=True)
class Powers:
    """What a queue can do: how long it keeps messages, and whether it paces deliveries of the same message."""

    longest_retention_s: int = LONGEST_RETENTION_S
    paces: bool = True


CLOUD = Powers()
#: Pub/Sub's emulator (0.8.20) keeps messages for a week. With a retry policy it never again delivers what was given
#: back for a few seconds twice; the pauses that the pump asks for are then all there are.
EMULATOR = Powers(7 * DAY_S, paces=False)


@dataclass(frozen=True)
class Topology:
    topics: tuple[Topic, ...] = ()
    subscriptions: tuple[Subscription, ...] = ()

    @property
    def resources(self) -> tuple[Resource, ...]:
        """All of them, in an order in which they can be created."""
        return (*self.topics, *self.subscriptions)


def kept_jobs(jobs: Jobs) -> Jobs:
    """`jobs` whose subscription is the one that dead letters wait in."""
    names = {"topic": jobs.dead_letter, "subscription": f"{jobs.dead_letter}{KEPT}"}
    return jobs.model_copy(update={**names, "filter": None, "ordering": False, "exactly_once": False})


def labels_of(platform: str, environment: str) -> Mapping[str, str]:
    """What everything of one platform is labelled with. Both names fit: lower case, digits, `-` and `_`."""
    return {**LABELS, "platform": platform, "environment": environment}


def lane_topology(jobs: Jobs, lane: str, labels: Mapping[str, str] = LABELS) -> Topology:
    """What has to be there for one lane: its topic and subscription, and the topics of results and dead letters."""
    mine = lane_jobs(jobs, lane)
    backstop = lane != CLERK
    subscription = Subscription(
        name=mine.subscription,
        topic=mine.topic,
        lease_s=mine.lease_s,
        retention_s=mine.retention_d * DAY_S,
        labels=labels,
        dead_letter=mine.dead_letter if backstop else None,
        max_deliveries=backstop_attempts(mine) if backstop else 0,
        min_backoff_s=MIN_BACKOFF_S,
        max_backoff_s=MAX_BACKOFF_S,
        ordering=mine.ordering,
        exactly_once=mine.exactly_once,
        filter=mine.filter or "",
    )
    names = dict.fromkeys((mine.topic, mine.results, mine.dead_letter))
    kept = kept_topology(jobs, labels)
    return Topology(tuple(Topic(name, labels) for name in names), (subscription, *kept.subscriptions))


def kept_topology(jobs: Jobs, labels: Mapping[str, str] = LABELS) -> Topology:
    """The topic of dead letters, and the subscription in which they wait for someone to look."""
    mine = kept_jobs(jobs)
    kept = Subscription(mine.subscription, mine.topic, mine.lease_s, LONGEST_RETENTION_S, labels)
    return Topology((Topic(mine.topic, labels),), (kept,))


def wanted(jobs: Jobs, workloads: Iterable[str], labels: Mapping[str, str] = LABELS) -> Topology:
    """What has to be there for all lanes: the main one, each workload's, the clerk's."""
    lanes = [MAIN, CLERK, *(lane_of(workload) for workload in workloads)]
    parts = [lane_topology(jobs, lane, labels) for lane in lanes]
    return Topology(
        tuple({topic.name: topic for part in parts for topic in part.topics}.values()),
        tuple({one.name: one for part in parts for one in part.subscriptions}.values()),
    )


def within(topology: Topology, powers: Powers) -> Topology:
    """`topology` as far as a queue can do it."""

    def possible(one: Subscription) -> Subscription:
        one = replace(one, retention_s=min(one.retention_s, powers.longest_retention_s))
        return one if powers.paces else replace(one, min_backoff_s=None, max_backoff_s=None)

    return replace(topology, subscriptions=tuple(map(possible, topology.subscriptions)))


def lane_topics(jobs: Jobs, workloads: Iterable[str]) -> tuple[str, ...]:
    """Short names of all topics that jobs and errands are published to."""
    return tuple(topic_of(jobs, lane) for lane in (MAIN, CLERK, *map(lane_of, workloads)))


# --- what differs -------------------------------------------------------------------------------------------


class Step(str, Enum):
    """What it takes to mend a difference."""

    CREATE = "create"
    UPDATE = "update"
    RECREATE = "recreate"
    """By hand: Pub/Sub can't change it, and deleting a subscription drops its backlog."""


@dataclass(frozen=True)
class Change:
    """One setting: as it is, and as it has to be. In words fit to be shown."""

    setting: str
    found: str
    wanted: str


@dataclass(frozen=True)
class Difference:
    """One topic or subscription that is missing, or has other settings than it should.

    `mask` names the fields of Pub/Sub's update request; it is empty where nothing can be updated.
    """

    step: Step
    resource: Resource
    changes: tuple[Change, ...] = ()
    mask: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return "topic" if isinstance(self.resource, Topic) else "subscription"


#: Settings, and the field of the update request that carries each.
_MASKS: Mapping[str, str] = {
    "labels": "labels",
    "lease_s": "ack_deadline_seconds",
    "retention_s": "message_retention_duration",
    "dead_letter": "dead_letter_policy",
    "max_deliveries": "dead_letter_policy",
    "min_backoff_s": "retry_policy",
    "max_backoff_s": "retry_policy",
    "exactly_once": "enable_exactly_once_delivery",
    "expires_after_s": "expiration_policy",
}


def differences(wanted: Topology, found: Topology) -> tuple[Difference, ...]:
    """What it takes to get from `found` to `wanted`, in the order in which it can be done.

    What is found beside what is wanted is left alone, other labels than ours too. A subscription with settings of
    both kinds gives two differences: one to be updated, one to be made anew.
    """
    there: dict[tuple[type[Resource], str], Resource] = {(type(one), one.name): one for one in found.resources}
    steps: list[Difference] = []
    for resource in wanted.resources:
        has = there.get((type(resource), resource.name))
        steps += _compare(resource, has) if has is not None else [Difference(Step.CREATE, resource)]
    return tuple(sorted(steps, key=lambda one: one.step is Step.RECREATE))


def _compare(wants: Resource, has: Resource) -> list[Difference]:
    in_place: list[Change] = []
    by_hand: list[Change] = []
    mask: dict[str, None] = {}
    for name in (one.name for one in fields(wants) if one.name != "name"):
        is_now, shall_be = getattr(has, name), getattr(wants, name)
        if name == "labels":
            shall_be = {**is_now, **shall_be}
        if is_now == shall_be:
            continue
        change = Change(name, _words(is_now), _words(shall_be))
        if name in _MASKS:
            in_place.append(change)
            mask[_MASKS[name]] = None
        else:
            by_hand.append(change)
    steps = []
    if in_place:
        merged = replace(wants, labels={**has.labels, **wants.labels})
        steps.append(Difference(Step.UPDATE, merged, tuple(in_place), tuple(mask)))
    if by_hand:
        steps.append(Difference(Step.RECREATE, wants, tuple(by_hand)))
    return steps


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={value[key]}" for key in sorted(value)) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "none" if value in (None, "") else str(value)
