"""Pub/Sub, real or emulated: the one file that knows Google's client.

Unary pulls on the asynchronous client, not the streaming one: that one leases whatever it can hold, and a killed
ingress then delays by minutes what another could have done at once. The clients are made inside the running loop
(they belong to it), so nothing here works before `setup`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import google.auth
import grpc
from google.api_core import exceptions as google_errors
from google.auth import exceptions as auth_errors
from google.protobuf import duration_pb2
from google.pubsub_v1 import PublisherAsyncClient, SubscriberAsyncClient
from google.pubsub_v1 import types as pubsub_types
from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcAsyncIOTransport

from cotenant.config import Jobs
from cotenant.errors import SourceUnavailable
from cotenant.jobs.lanes import lane_jobs
from cotenant.jobs.source import Delivery, Message, backstop_attempts
from cotenant.telemetry.logs import event

EMULATOR_ENV = "PUBSUB_EMULATOR_HOST"

_SCOPES = ("https://www.googleapis.com/auth/pubsub",)
_log = logging.getLogger("cotenant.jobs")

#: Pub/Sub's limits on one request: 1,000 messages, 10 MB, 2,500 ack ids (we stay at 1,000).
_MAX_MESSAGES = 1000
_MAX_PUBLISH_BYTES = 8_000_000
_MAX_ACK_IDS = 1000
_MAX_NACK_DELAY_S = 600
_CALL_TIMEOUT_S = 20.0

#: Not Google's trouble but a wrong name, project or right: still "does not answer", with the text that says which.
_FAILURES = (google_errors.GoogleAPIError, auth_errors.GoogleAuthError, grpc.RpcError, OSError)


class PubSubSource:
    """A `JobSource` on Pub/Sub. `pull_wait_s` is how long an empty pull takes."""

    def __init__(self, jobs: Jobs, *, emulator_host: str | None = None, pull_wait_s: float = 5.0) -> None:
        self._jobs = jobs
        self._emulator = emulator_host or os.environ.get(EMULATOR_ENV)
        self._pull_wait_s = pull_wait_s
        self._subscription = f"projects/{jobs.project}/subscriptions/{jobs.subscription}"
        self._subscriber: Any = None
        self._publisher: Any = None

    async def setup(self) -> None:
        """Create the topics and subscriptions where they are missing; what exists is left as it is."""
        await self._connect()
        jobs = self._jobs
        for topic in dict.fromkeys((jobs.topic, jobs.results, jobs.dead_letter)):
            await self._create(self._publisher.create_topic, {"name": self._topic(topic)})
        await self._create(
            self._subscriber.create_subscription,
            pubsub_types.Subscription(
                name=self._subscription,
                topic=self._topic(jobs.topic),
                ack_deadline_seconds=jobs.lease_s,
                dead_letter_policy=pubsub_types.DeadLetterPolicy(
                    dead_letter_topic=self._topic(jobs.dead_letter), max_delivery_attempts=backstop_attempts(jobs)
                ),
            ),
        )
        # A topic without a subscription drops what is published: dead letters must wait for someone to look.
        await self._create(
            self._subscriber.create_subscription,
            pubsub_types.Subscription(
                name=f"projects/{jobs.project}/subscriptions/{jobs.dead_letter}-kept",
                topic=self._topic(jobs.dead_letter),
                ack_deadline_seconds=jobs.lease_s,
                message_retention_duration=duration_pb2.Duration(seconds=7 * 86_400),
            ),
        )

    async def pull(self, limit: int) -> Sequence[Delivery]:
        await self._connect()
        request = pubsub_types.PullRequest(subscription=self._subscription, max_messages=min(limit, _MAX_MESSAGES))
        try:
            response = await self._subscriber.pull(request, timeout=self._pull_wait_s, retry=None)
        except google_errors.DeadlineExceeded:
            return []
        except _FAILURES as error:
            raise self._unavailable("pull", error) from error
        return [
            Delivery(
                ack_id=received.ack_id,
                message_id=received.message.message_id,
                data=bytes(received.message.data),
                attributes=dict(received.message.attributes),
                attempt=max(1, received.delivery_attempt),
                published_at_s=received.message.publish_time.timestamp(),
            )
            for received in response.received_messages
        ]

    async def extend(self, ack_ids: Sequence[str]) -> None:
        await self._modify(ack_ids, self._jobs.lease_s)

    async def ack(self, ack_ids: Sequence[str]) -> None:
        await self._connect()
        for some in _chunks(ack_ids):
            await self._call("ack", self._subscriber.acknowledge(subscription=self._subscription, ack_ids=some))

    async def nack(self, ack_ids: Sequence[str], delay_s: float = 0.0) -> None:
        """By a lease that ends after `delay_s`: Pub/Sub has no nack with a delay of its own."""
        await self._modify(ack_ids, min(round(delay_s), _MAX_NACK_DELAY_S))

    async def publish(self, topic: str, messages: Sequence[Message]) -> Sequence[str]:
        await self._connect()
        ids: list[str] = []
        for some in _sized(messages):
            request = pubsub_types.PublishRequest(
                topic=self._topic(topic),
                messages=[pubsub_types.PubsubMessage(data=m.data, attributes=dict(m.attributes)) for m in some],
            )
            response = await self._call("publish", self._publisher.publish(request))
            ids += response.message_ids
        return ids

    async def close(self) -> None:
        for client in (self._subscriber, self._publisher):
            if client is not None:
                await client.transport.close()
        self._subscriber = self._publisher = None

    async def _connect(self) -> None:
        if self._subscriber is not None:
            return
        try:
            if self._emulator:
                options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
                channels = [grpc.aio.insecure_channel(self._emulator, options) for _ in range(2)]
                publisher = PublisherAsyncClient(transport=PublisherGrpcAsyncIOTransport(channel=channels[0]))
                subscriber = SubscriberAsyncClient(transport=SubscriberGrpcAsyncIOTransport(channel=channels[1]))
            else:
                # Looks for credentials, at the metadata server too: not on the loop.
                credentials, _ = await asyncio.to_thread(google.auth.default, scopes=_SCOPES)
                publisher = PublisherAsyncClient(credentials=credentials)
                subscriber = SubscriberAsyncClient(credentials=credentials)
        except _FAILURES as error:
            raise self._unavailable("connect", error) from error
        self._publisher, self._subscriber = publisher, subscriber

    async def _modify(self, ack_ids: Sequence[str], seconds: int) -> None:
        await self._connect()
        for some in _chunks(ack_ids):
            await self._call(
                "modify leases",
                self._subscriber.modify_ack_deadline(
                    subscription=self._subscription, ack_ids=some, ack_deadline_seconds=seconds
                ),
            )

    async def _create(self, create: Callable[..., Awaitable[Any]], request: Any) -> None:
        try:
            await create(request, timeout=_CALL_TIMEOUT_S)
        except google_errors.AlreadyExists:
            return
        except google_errors.PermissionDenied as error:
            # Least privilege: the ingress may only use what somebody else set up. If that is missing, pulls say so.
            event(_log, "may_not_create_topics", level=logging.WARNING, error=error)
        except _FAILURES as error:
            raise self._unavailable("create", error) from error

    async def _call(self, what: str, call: Awaitable[Any]) -> Any:
        try:
            return await asyncio.wait_for(call, _CALL_TIMEOUT_S)
        except (*_FAILURES, asyncio.TimeoutError) as error:
            raise self._unavailable(what, error) from error

    def _unavailable(self, what: str, error: BaseException) -> SourceUnavailable:
        where = f"the emulator at {self._emulator}" if self._emulator else f"Pub/Sub project {self._jobs.project}"
        text = " ".join(str(error).split())[:300] or type(error).__name__
        if isinstance(error, auth_errors.DefaultCredentialsError):
            text += f"; without Google Cloud set {EMULATOR_ENV}, or COTENANT_JOBS_SOURCE=memory"
        return SourceUnavailable(f"{where} did not {what}: {text}")

    def _topic(self, name: str) -> str:
        return f"projects/{self._jobs.project}/topics/{name}"


class PubSubLanes:
    """Lanes on Pub/Sub."""

    def __init__(self, jobs: Jobs, *, emulator_host: str | None = None) -> None:
        self._jobs = jobs
        self._emulator = emulator_host

    def open(self, lane: str) -> PubSubSource:
        return PubSubSource(lane_jobs(self._jobs, lane), emulator_host=self._emulator)


def _chunks(ack_ids: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(ack_ids), _MAX_ACK_IDS):
        yield list(ack_ids[start : start + _MAX_ACK_IDS])


def _sized(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """Runs of messages that fit in one request."""
    some: list[Message] = []
    size = 0
    for message in messages:
        length = len(message.data) + sum(len(k) + len(v.encode()) for k, v in message.attributes.items()) + 64
        if some and (len(some) == _MAX_MESSAGES or size + length > _MAX_PUBLISH_BYTES):
            yield some
            some, size = [], 0
        some.append(message)
        size += length
    if some:
        yield some
