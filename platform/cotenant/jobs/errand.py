"""What the ingress does about jobs besides doing them: errands, which come by the clerk's lane.

An errand is a message that names what is to be seen through (a batch, a webhook); everything about it lies in the
store, so any ingress can take it up where another left it. The pump holds its message, calls `advance` until it is
done, and lets go of it like of any other when it drains.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from cotenant.calls.demand import Line
from cotenant.errors import MalformedJob
from cotenant.jobs.model import Job, Result
from cotenant.jobs.queue.source import Delivery, Message

Kind = Literal["batch", "webhook"]


@dataclass(frozen=True)
class Errand:
    """What is to be seen through: the batch or the webhook called `id` of a tenant."""

    kind: Kind
    tenant: str
    id: str

    def message(self) -> Message:
        data = json.dumps({"kind": self.kind, "tenant": self.tenant, "id": self.id}).encode()
        return Message(data, self.attributes)

    @property
    def attributes(self) -> dict[str, str]:
        """The attributes of its message."""
        return {"kind": self.kind, "tenant": self.tenant}

    @classmethod
    def of(cls, delivery: Delivery) -> Errand:
        """Raises MalformedJob for a message that is no errand."""
        return cls.parse(delivery.data)

    @classmethod
    def parse(cls, data: bytes) -> Errand:
        """The errand that a message's data names. Raises MalformedJob for what is none."""
        try:
            raw = json.loads(data)
            if not isinstance(raw, Mapping) or raw["kind"] not in ("batch", "webhook"):
                raise ValueError("kind needs to be batch or webhook")
            return cls(raw["kind"], str(raw["tenant"]), str(raw["id"]))
        except (ValueError, KeyError, TypeError) as error:
            raise MalformedJob(f"is no errand: {error}") from None


class Clerk(Protocol):
    """Runs errands. Every method may raise StoreUnavailable and SourceUnavailable, and is called again then."""

    async def advance(self, errand: Errand) -> float | None:
        """Take an errand as far as it goes now. Seconds until the next look at it; None when it is done, or put off.

        Raises:
            MalformedJob: there is no such thing, and never will be.
        """
        ...

    def behind(self) -> Iterable[tuple[str, Line]]:
        """By workload, jobs that errands have still to publish."""
        ...

    async def tick(self) -> None:
        """Called now and then: bring back errands that were put off."""
        ...

    async def job_ended(self, job: Job, result: Result) -> None:
        """A job whose result is visible wants to be told of (`job.wishes.webhook`). Safe to be called again."""
        ...
