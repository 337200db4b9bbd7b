"""The emulator as the chaos test's own client sees it: topics that come and go, and subscriptions to watch them by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from google.api_core import exceptions as google_errors
from google.cloud import pubsub_v1

_SHORT_S = 5.0


class Topics:
    """Blocking; for threads. Finds the emulator by PUBSUB_EMULATOR_HOST."""

    def __init__(self, project: str) -> None:
        self._project = project
        self._publisher = pubsub_v1.PublisherClient()
        self._subscriber = pubsub_v1.SubscriberClient()

    def create(self, topic: str) -> None:
        with suppress(google_errors.AlreadyExists):
            self._publisher.create_topic(name=self._topic(topic), timeout=_SHORT_S)

    def delete(self, topic: str) -> None:
        with suppress(google_errors.NotFound):
            self._publisher.delete_topic(topic=self._topic(topic), timeout=_SHORT_S)

    def subscribe(self, subscription: str, topic: str) -> None:
        with suppress(google_errors.AlreadyExists):
            self._subscriber.create_subscription(
                name=self._subscription(subscription), topic=self._topic(topic), timeout=_SHORT_S
            )

    def pull(self, subscription: str, *, most: int = 500, wait_s: float = 2.0, ack: bool = True) -> list[Any]:
        """Messages that wait, acked unless they are to stay; none where there are none."""
        name = self._subscription(subscription)
        try:
            found = self._subscriber.pull(subscription=name, max_messages=most, timeout=wait_s, retry=None)
        except (google_errors.DeadlineExceeded, google_errors.ServiceUnavailable):
            return []
        received = list(found.received_messages)
        if ack and received:
            self._subscriber.acknowledge(subscription=name, ack_ids=[one.ack_id for one in received], timeout=_SHORT_S)
        return [one.message for one in received]

    def subscriptions(self, prefix: str) -> Iterator[str]:
        """Short names of the subscriptions that begin so."""
        for found in self._subscriber.list_subscriptions(project=f"projects/{self._project}"):
            name = str(found.name).rsplit("/", 1)[1]
            if name.startswith(prefix):
                yield name

    def _topic(self, name: str) -> str:
        return f"projects/{self._project}/topics/{name}"

    def _subscription(self, name: str) -> str:
        return f"projects/{self._project}/subscriptions/{name}"
