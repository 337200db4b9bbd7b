"""Webhooks: what is to be told to whom, kept in the store until it was delivered or given up.

A webhook's id follows from what it tells, so who tells it again (after a crash, by a second delivery) tells the same
one, and the receiver knows it by its id. Its body is written once; what was tried is noted in its record.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from cotenant.config import Jobs
from cotenant.errors import EnvironmentFault, JobError, MalformedJob, OutboundError, RequestRefused
from cotenant.jobs.desk.batches import PublishTo
from cotenant.jobs.errand import Errand
from cotenant.jobs.queue.lanes import CLERK, topic_of
from cotenant.jobs.store import keys
from cotenant.jobs.store.objects import Objects
from cotenant.outbound.delivery import Deliver, check_url
from cotenant.outbound.webhooks import (
    Answered,
    Event,
    Failed,
    Failure,
    Fate,
    Outcome,
    Secrets,
    after,
    message_id,
    payload,
    signed_headers,
)

#: Attempts at once for one tenant in one process: receivers that hang must not keep others waiting.
TRIED_AT_ONCE = 8
#: When to look again at a webhook whose turn has not come.
CROWDED_S = 20.0


@dataclass(frozen=True)
class WebhookRecord:
    """A webhook; times are Unix time. `fate` is delivered, given_up or disabled once it has ended."""

    id: str
    tenant: str
    url: str
    event: str
    body: str
    created_at_s: float
    next_at_s: float
    attempts: tuple[Mapping[str, Any], ...] = ()
    fate: str | None = None

    def dump(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def load(cls, data: bytes) -> WebhookRecord:
        """The opposite of `dump`. Raises JobError."""
        try:
            raw = json.loads(data)
            return cls(**{**raw, "attempts": tuple(raw["attempts"])})
        except (ValueError, TypeError, KeyError) as error:
            raise JobError(f"the record of a webhook can't be read ({error})") from error


class Webhooks:
    """The webhooks in a store. Every method may raise StoreUnavailable; `tell` SourceUnavailable."""

    def __init__(
        self,
        objects: Objects,
        publish: PublishTo,
        jobs: Jobs,
        deliver: Deliver,
        secrets: Secrets,
        *,
        now: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._objects = objects
        self._publish = publish
        self._jobs = jobs
        self._deliver = deliver
        self._secrets = secrets
        self._now = now
        self._jitter = jitter
        self._trying: dict[str, set[str]] = {}

    async def tell(self, tenant: str, url: str, event: Event, data: Mapping[str, Any], *about: str) -> None:
        """See to it that `url` is told. `about` names what of the tenant is told of. Safe to be called again."""
        now = self._now()
        webhook_id = message_id(tenant, *about, event.value)
        body = payload(event, now, data).decode()
        record = WebhookRecord(webhook_id, tenant, url, event.value, body, created_at_s=now, next_at_s=now)
        if not await self._objects.create(keys.webhook_key(tenant, webhook_id), record.dump()):
            there = await self.find(tenant, webhook_id)
            if there is not None and there.fate is not None:
                return
        await self._publish(topic_of(self._jobs, CLERK), [Errand("webhook", tenant, webhook_id).message()])

    async def find(self, tenant: str, webhook_id: str) -> WebhookRecord | None:
        data = await self._objects.get(keys.webhook_key(tenant, webhook_id))
        return None if data is None else WebhookRecord.load(data)

    async def advance(self, tenant: str, webhook_id: str) -> float | None:
        """Try to deliver it if it is time: seconds until the next attempt, None when it has ended.

        Raises:
            MalformedJob: there is no such webhook.
        """
        record = await self.find(tenant, webhook_id)
        if record is None:
            raise MalformedJob(f"there is no webhook {webhook_id}")
        if record.fate is not None:
            return None
        now = self._now()
        if record.next_at_s > now:
            return record.next_at_s - now
        trying = self._trying.setdefault(tenant, set())
        if webhook_id in trying or len(trying) >= TRIED_AT_ONCE:
            return CROWDED_S
        trying.add(webhook_id)
        try:
            return await self._try(record)
        finally:
            trying.discard(webhook_id)
            if not trying:
                self._trying.pop(tenant, None)

    async def _try(self, record: WebhookRecord) -> float | None:
        outcome = await self._attempt(record)
        now = self._now()
        attempts = (*record.attempts, {"at_s": now, **_told(outcome)})
        coming = after(outcome, len(attempts), now, jitter=self._jitter())
        ended = None if coming.fate is Fate.RETRY else coming.fate.value
        next_at_s = coming.at_s if coming.at_s is not None else now
        await self._objects.put(
            keys.webhook_key(record.tenant, record.id),
            replace(record, attempts=attempts, fate=ended, next_at_s=next_at_s).dump(),
        )
        return None if ended is not None else max(0.0, next_at_s - now)

    async def _attempt(self, record: WebhookRecord) -> Outcome:
        body = record.body.encode()
        try:
            secrets = self._secrets.for_tenant(record.tenant)
        except EnvironmentFault as error:
            return Failed(Failure.REFUSED, str(error))
        return await self._deliver.post(record.url, signed_headers(secrets, record.id, self._now(), body), body)


def webhook_check(secrets: Secrets, trusted: frozenset[str] = frozenset()) -> Callable[[str, str], None]:
    """A check for a tenant's webhook URLs when they are handed in; it raises RequestRefused (400)."""

    def check(tenant: str, url: str) -> None:
        try:
            check_url(url, trusted)
            secrets.for_tenant(tenant)
        except OutboundError as error:
            raise RequestRefused(str(error), param="webhook_url", code="invalid_webhook_url") from None
        except EnvironmentFault as error:
            raise RequestRefused(str(error), param="webhook_url", code="no_webhook_secret") from None

    return check


def _told(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, Answered):
        return {"status": outcome.status}
    return {"failure": outcome.failure.value, "message": outcome.message[:300]}
