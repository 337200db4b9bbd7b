"""Topics and subscriptions of a Pub/Sub project, as `setup.Admin` sees them: specs to requests, and back."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from google.api_core import exceptions as google_errors
from google.iam.v1 import iam_policy_pb2
from google.protobuf import duration_pb2, field_mask_pb2
from google.pubsub_v1 import types as pubsub_types

from cotenant.jobs.queue.pubsub_client import FAILURES, Connection
from cotenant.jobs.queue.topology import (
    CLOUD,
    EMULATOR,
    LONGEST_RETENTION_S,
    Resource,
    Subscription,
    Topic,
    Topology,
    within,
)
from cotenant.telemetry.logs import event

_log = logging.getLogger("cotenant.jobs")


class PubSubAdmin:
    """`setup.Admin` of one project. The emulator knows no policies, and updates neither labels nor the expiry."""

    def __init__(self, project: str, emulator_host: str | None = None, *, connection: Connection | None = None) -> None:
        self._project = project
        self._connection = connection or Connection(project, emulator_host)
        self.powers = EMULATOR if self._connection.emulator else CLOUD

    async def topic(self, name: str) -> Topic | None:
        await self._connection.hold(self)
        request = pubsub_types.GetTopicRequest(topic=self._name("topic", name))
        there = await self._get(f"look up the topic {name}", self._connection.publisher.get_topic, request)
        return None if there is None else Topic(name, dict(there.labels))

    async def subscription(self, name: str) -> Subscription | None:
        await self._connection.hold(self)
        request = pubsub_types.GetSubscriptionRequest(subscription=self._name("subscription", name))
        what = f"look up the subscription {name}"
        there = await self._get(what, self._connection.subscriber.get_subscription, request)
        return None if there is None else read_subscription(name, there)

    async def create(self, resource: Resource) -> bool:
        await self._connection.hold(self)
        try:
            if isinstance(resource, Topic):
                request = pubsub_types.Topic(name=self._name("topic", resource.name), labels=dict(resource.labels))
                await self._connection.attempt(self._connection.publisher.create_topic, request)
            else:
                await self._connection.attempt(
                    self._connection.subscriber.create_subscription, subscription_request(self._project, resource)
                )
        except google_errors.AlreadyExists:
            return False
        except FAILURES as error:
            raise self._connection.unavailable(f"create {resource.name}", error) from error
        return True

    async def ensure(self, topology: Topology) -> None:
        """Create what is missing of it, and leave what is there as it is. Raises SourceUnavailable.

        Where this account may not create, that is logged and nothing else: it may only use what somebody else set up,
        and if that is missing, pulls say so.
        """
        await self._connection.hold(self)
        for resource in within(topology, self.powers).resources:
            try:
                await self.create(resource)
            except Exception as error:
                if not isinstance(error.__cause__, google_errors.PermissionDenied):
                    raise
                event(_log, "may_not_create", level=logging.WARNING, error=error, name=resource.name)
                return

    async def update(self, resource: Resource, mask: Sequence[str]) -> None:
        await self._connection.hold(self)
        paths = field_mask_pb2.FieldMask(paths=list(mask))
        what = f"update {resource.name}"
        if isinstance(resource, Topic):
            topic = pubsub_types.Topic(name=self._name("topic", resource.name), labels=dict(resource.labels))
            request: Any = pubsub_types.UpdateTopicRequest(topic=topic, update_mask=paths)
            await self._connection.call(what, self._connection.publisher.update_topic, request)
        else:
            wanted = subscription_request(self._project, resource)
            request = pubsub_types.UpdateSubscriptionRequest(subscription=wanted, update_mask=paths)
            await self._connection.call(what, self._connection.subscriber.update_subscription, request)

    async def bindings(self, kind: str, name: str) -> Mapping[str, frozenset[str]] | None:
        await self._connection.hold(self)
        request = iam_policy_pb2.GetIamPolicyRequest(resource=self._name(kind, name))
        policy = await self._ask(f"show the policy of {name}", self._connection.publisher.get_iam_policy, request)
        return None if policy is None else {one.role: frozenset(one.members) for one in policy.bindings}

    async def allowed(self, kind: str, name: str, permissions: Sequence[str]) -> frozenset[str] | None:
        await self._connection.hold(self)
        request = iam_policy_pb2.TestIamPermissionsRequest(
            resource=self._name(kind, name), permissions=list(permissions)
        )
        answer = await self._ask(f"test rights on {name}", self._connection.publisher.test_iam_permissions, request)
        return None if answer is None else frozenset(answer.permissions)

    async def close(self) -> None:
        await self._connection.release(self)

    async def _get(self, what: str, method: Any, request: Any) -> Any:
        try:
            return await self._connection.attempt(method, request)
        except google_errors.NotFound:
            return None
        except FAILURES as error:
            raise self._connection.unavailable(what, error) from error

    async def _ask(self, what: str, method: Any, request: Any) -> Any:
        """None where the question itself is not allowed, or not known (the emulator), or about nothing."""
        unanswerable = (google_errors.PermissionDenied, google_errors.MethodNotImplemented, google_errors.NotFound)
        try:
            return await self._connection.attempt(method, request)
        except unanswerable:
            return None
        except FAILURES as error:
            raise self._connection.unavailable(what, error) from error

    def _name(self, kind: str, name: str) -> str:
        return f"projects/{self._project}/{kind}s/{name}"


def subscription_request(project: str, spec: Subscription) -> pubsub_types.Subscription:
    """The subscription as a request has it."""
    request = pubsub_types.Subscription(
        name=f"projects/{project}/subscriptions/{spec.name}",
        topic=f"projects/{project}/topics/{spec.topic}",
        ack_deadline_seconds=spec.lease_s,
        message_retention_duration=_duration(spec.retention_s),
        labels=dict(spec.labels),
        enable_message_ordering=spec.ordering,
        enable_exactly_once_delivery=spec.exactly_once,
        filter=spec.filter,
        # A policy without a time to live means never; no policy would mean 31 days.
        expiration_policy=pubsub_types.ExpirationPolicy(
            ttl=None if spec.expires_after_s is None else _duration(spec.expires_after_s)
        ),
    )
    if spec.dead_letter is not None:
        request.dead_letter_policy = pubsub_types.DeadLetterPolicy(
            dead_letter_topic=f"projects/{project}/topics/{spec.dead_letter}",
            max_delivery_attempts=spec.max_deliveries,
        )
    if spec.min_backoff_s is not None and spec.max_backoff_s is not None:
        request.retry_policy = pubsub_types.RetryPolicy(
            minimum_backoff=_duration(spec.min_backoff_s), maximum_backoff=_duration(spec.max_backoff_s)
        )
    return request


def read_subscription(name: str, there: pubsub_types.Subscription) -> Subscription:
    """The opposite of `subscription_request`."""
    policy, retries = there.dead_letter_policy, there.retry_policy
    backed, paced = bool(policy.dead_letter_topic), "retry_policy" in there
    ttl_s = _seconds(there.expiration_policy.ttl) if "expiration_policy" in there else LONGEST_RETENTION_S
    return Subscription(
        name=name,
        topic=_short(there.topic),
        lease_s=there.ack_deadline_seconds,
        retention_s=int(_seconds(there.message_retention_duration)),
        labels=dict(there.labels),
        dead_letter=_short(policy.dead_letter_topic) if backed else None,
        max_deliveries=policy.max_delivery_attempts if backed else 0,
        min_backoff_s=_seconds(retries.minimum_backoff) if paced else None,
        max_backoff_s=_seconds(retries.maximum_backoff) if paced else None,
        ordering=there.enable_message_ordering,
        exactly_once=there.enable_exactly_once_delivery,
        filter=there.filter,
        expires_after_s=int(ttl_s) or None,
    )


def _short(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _duration(seconds: float) -> duration_pb2.Duration:
    return duration_pb2.Duration(seconds=int(seconds), nanos=round(seconds % 1 * 1e9))


def _seconds(duration: Any) -> float:
    """Of what the client gives for a Duration: a timedelta, or None where it is not set."""
    return duration.total_seconds() if duration is not None else 0.0
