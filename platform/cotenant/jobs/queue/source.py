"""The edge to the message queue: Pub/Sub in production, its in-memory twin without it.

One contract-test class runs against both. Always true of a source:

- A message is delivered again until it is acked: after a nack, after its lease ran out, after the puller's death.
- `pull` waits a moment for messages and then returns none; it is never cancelled, because a cancelled pull may
  have leased messages that nobody then holds.
- `ack`, `nack` and `extend` of a lease that is already lost do nothing and raise nothing.
- Where the subscription keeps order, messages of one ordering key come in their order. One pull may bring several of
  them, for the puller to work on in turn; the next ones come when those are settled, to whoever pulls then. After a
  nack the same one comes again before those behind it.
- Every method raises SourceUnavailable, and nothing else, when the queue does not answer. Only `publish` raises
  MalformedJob too, for a message that the queue could never take, and then nothing of the call was published.

When a message with an ordering key comes again, Pub/Sub may deliver again what came behind it, acked or not. The
emulator keeps order but for one thing: it puts a message that was nacked behind those of its key that it had not
delivered yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from cotenant.config import Jobs
from cotenant.errors import MalformedJob

#: Pub/Sub's limits on one message (https://cloud.google.com/pubsub/quotas#resource_limits). The emulator takes more
#: attributes than that, and hangs on more bytes.
MAX_MESSAGE_BYTES = 10_000_000
MAX_ATTRIBUTES = 100
MAX_ATTRIBUTE_NAME_BYTES = 256
MAX_ATTRIBUTE_BYTES = 1024
MAX_ORDERING_KEY_BYTES = 1024


@dataclass(frozen=True)
class Message:
    """What is published. Messages of one ordering key (not empty) are delivered in their order, where that is on."""

    data: bytes
    attributes: Mapping[str, str] = field(default_factory=dict)
    ordering_key: str = ""

    @property
    def size_bytes(self) -> int:
        """What it weighs in a request, without the few bytes of framing. Raises UnicodeEncodeError."""
        attributes = sum(len(name.encode()) + len(value.encode()) for name, value in self.attributes.items())
        return len(self.data) + attributes + len(self.ordering_key.encode())


@dataclass(frozen=True)
class Delivery:
    """One delivery of a message. `published_at_s` is Unix time.

    `attempt` counts deliveries from 1 where the subscription has a dead-letter topic; elsewhere Pub/Sub does not count
    them, and it stays 1.
    """

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
        """Publish to a topic by its short name; message ids in order. All or, after an error, an unknown part.

        A topic drops what comes before it has a subscription: who publishes to a lane that may be new sets it up first.

        Raises:
            MalformedJob: a message is larger than Pub/Sub takes, or has attributes that it refuses; none was published.
        """
        ...

    async def close(self) -> None: ...


def backstop_attempts(jobs: Jobs) -> int:
    """Deliveries after which the *queue* gives a message up, unasked and without a reason.

    The pump dead-letters at `max_attempts` failures, with the reason. This is only for a message that kills the
    ingress before it can say so; deliveries also go by when a redeploy hands messages back, hence the room.
    Pub/Sub takes 5 to 100.
    """
    return min(100, max(5, 10 * jobs.max_attempts))


def check_messages(messages: Sequence[Message]) -> None:
    """Raises MalformedJob if there is one among them that the queue could never take."""
    for number, message in enumerate(messages, start=1):
        reason = _why_unpublishable(message)
        if reason is not None:
            which = f"message {number} of {len(messages)}" if len(messages) > 1 else "the message"
            raise MalformedJob(f"{which} {reason}")


def fitting(message: Message, ours: Mapping[str, str] | None = None) -> Message:
    """`message` with the attributes `ours` set, cut to what the queue takes: what came by it can always go on by it.

    Values that are too long are clipped. Where there are too many attributes, the publisher's later ones go; where
    there are too many bytes, ours go, the last one first. The data is never touched.
    """
    extra = {name: _clipped(value, MAX_ATTRIBUTE_BYTES) for name, value in (ours or {}).items()}
    theirs = {
        name: _clipped(value, MAX_ATTRIBUTE_BYTES)
        for name, value in message.attributes.items()
        if name and name not in extra and name == _clipped(name, MAX_ATTRIBUTE_NAME_BYTES)
    }
    theirs = dict(list(theirs.items())[: MAX_ATTRIBUTES - len(extra)])
    fitted = replace(message, attributes={**theirs, **extra})
    while extra and fitted.size_bytes > MAX_MESSAGE_BYTES:
        extra.popitem()
        fitted = replace(message, attributes={**theirs, **extra})
    return fitted


def _clipped(text: str, most_bytes: int) -> str:
    return text.encode("utf-8", "replace")[:most_bytes].decode("utf-8", "ignore")


def _why_unpublishable(message: Message) -> str | None:
    if not message.data and not message.attributes:
        return "is empty; give it data or an attribute"
    if len(message.attributes) > MAX_ATTRIBUTES:
        return f"has {len(message.attributes)} attributes, at most {MAX_ATTRIBUTES} are taken"
    try:
        for name, value in message.attributes.items():
            if not 0 < len(name.encode()) <= MAX_ATTRIBUTE_NAME_BYTES:
                return f"has an attribute name of {len(name.encode())} bytes, 1 to {MAX_ATTRIBUTE_NAME_BYTES} are taken"
            if len(value.encode()) > MAX_ATTRIBUTE_BYTES:
                return (
                    f"has {len(value.encode())} bytes in the attribute {name}, at most {MAX_ATTRIBUTE_BYTES} are taken"
                )
        if len(message.ordering_key.encode()) > MAX_ORDERING_KEY_BYTES:
            size = len(message.ordering_key.encode())
            return f"has an ordering key of {size} bytes, at most {MAX_ORDERING_KEY_BYTES} are taken"
        size = message.size_bytes
    except UnicodeEncodeError:
        return "has half a surrogate pair in an attribute or its ordering key, which has no UTF-8"
    if size > MAX_MESSAGE_BYTES:
        return (
            f"has {size} bytes, Pub/Sub takes at most {MAX_MESSAGE_BYTES}; put a large body into the store and name it "
            "by body_ref"
        )
    return None
