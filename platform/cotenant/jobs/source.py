"""The edge to the message queue: Pub/Sub in production, its in-memory twin without it.

One contract-test class runs against both. Always true of a source:

- A message is delivered again until it is acked: after a nack, after its lease ran out, after the puller's death.
- `pull` waits a moment for messages and then returns none; it is never cancelled, because a cancelled pull may
  have leased messages that nobody then holds.
- `ack`, `nack` and `extend` of a lease that is already lost do nothing and raise nothing.
- Every method raises SourceUnavailable, and nothing else, when the queue does not answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cotenant.config import Jobs


@dataclass(frozen=True)
class Message:
    """What is published. Messages of one ordering key (not empty) are delivered in their order, where that is on."""

    data: bytes
    attributes: Mapping[str, str] = field(default_factory=dict)
    ordering_key: str = ""


@dataclass(frozen=True)
class Delivery:
    """One delivery of a message. `attempt` counts deliveries from 1, `published_at_s` is Unix time."""

    ack_id: str
    message_id: str
    data: bytes
    attributes: Mapping[str, str] = field(default_factory=dict)
    attempt: int = 1
    published_at_s: float = 0.0
    ordering_key: str = ""


class JobSource(Protocol):
    """One subscription to pull from, and the topics beside it."""

    async def setup(self) -> None:
        """Create the topics and the subscription where they are missing."""
        ...

    async def pull(self, limit: int) -> Sequence[Delivery]:
        """Up to `limit` messages, leased for `lease_s`; none if there were none for a moment."""
        ...

    async def extend(self, ack_ids: Sequence[str]) -> None:
        """Lease them for `lease_s` from now."""
        ...

    async def ack(self, ack_ids: Sequence[str]) -> None: ...

    async def nack(self, ack_ids: Sequence[str], delay_s: float = 0.0) -> None:
        """Give them back, to be delivered again after `delay_s` or later. Spends a delivery."""
        ...

    async def publish(self, topic: str, messages: Sequence[Message]) -> Sequence[str]:
        """Publish to a topic by its short name; message ids in order. All or, after an error, an unknown part."""
        ...

    async def close(self) -> None: ...


def backstop_attempts(jobs: Jobs) -> int:
    """Deliveries after which the *queue* gives a message up, unasked and without a reason.

    The pump dead-letters at `max_attempts` failures, with the reason. This is only for a message that kills the
    ingress before it can say so; deliveries also go by when a redeploy hands messages back, hence the room.
    Pub/Sub takes 5 to 100.
    """
    return min(100, max(5, 10 * jobs.max_attempts))
