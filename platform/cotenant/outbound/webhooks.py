"""Webhooks by the Standard Webhooks specification 1.0.0: what is sent, how it is signed, when it is tried again. Pure.

What always holds: the signature covers the very bytes that are sent, together with the message's id and the time of
this attempt, so neither can be changed or replayed later; the id stays the same from attempt to attempt, so a receiver
can tell a repetition. A secret is never part of a text: not of an error, not of a repr.

While a tenant has several secrets (rotation), each signs: receivers find the one that they know already.
"""

from __future__ import annotations

import base64
import binascii
import email.utils
import enum
import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from cotenant.errors import EnvironmentFault, SignatureInvalid

SECRETS = "COTENANT_WEBHOOK_SECRETS"
DEFAULT_TENANT = "default"
SECRET_PREFIX = "whsec_"  # noqa: S105 (what every secret begins with)
#: Least and most bytes of a secret, by the specification.
SECRET_BYTES = (24, 64)
TOLERANCE_S = 300.0
ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"

#: Delay before each attempt, by the specification's example: ten attempts in three days and some hours.
SCHEDULE_S = (0.0, 5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
#: The most of a delay that jitter adds to it.
JITTER = 0.1
#: Longest wait that a receiver's Retry-After can ask for.
MAX_RETRY_AFTER_S = SCHEDULE_S[-1]

_VERSION = "v1"
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MESSAGE_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_UNIX_SECONDS = re.compile(r"[0-9]{1,12}")


# --- secrets ---


@dataclass(frozen=True)
class Secret:
    """One signing key."""

    key: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Secret:
        """The secret that `whsec_…` writes out. Raises ValueError, which does not quote it."""
        try:
            encoded = text.removeprefix(SECRET_PREFIX).rstrip("=")
            key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        least, most = SECRET_BYTES
        if not text.startswith(SECRET_PREFIX) or not least <= len(key) <= most:
            raise ValueError(f"a webhook secret is {SECRET_PREFIX} and the base64 of {least} to {most} random bytes")
        return cls(key)

    def __str__(self) -> str:
        return f"{SECRET_PREFIX}…"


@dataclass(frozen=True)
class Secrets:
    """Every tenant's secrets, in the order in which they were listed, and the variable that listed them."""

    tenants: Mapping[str, Sequence[Secret]] = field(default_factory=dict, repr=False)
    variable: str = SECRETS

    def for_tenant(self, tenant: str) -> Sequence[Secret]:
        """The secrets that sign for `tenant`: one, or several while they are rotated.

        Raises:
            EnvironmentFault: there is none. Nothing is ever sent unsigned, nor with another tenant's secret.
        """
        found = self.tenants.get(tenant, ())
        if not found:
            raise EnvironmentFault(
                f"tenant {tenant} has no webhook secret; add {tenant}:{SECRET_PREFIX}… to the variable {self.variable}"
            )
        return found


def load_secrets(environ: Mapping[str, str], variable: str = SECRETS) -> Secrets:
    """The secrets that `variable` lists: `tenant:whsec_…`, comma-separated; one without tenant is `default`'s.

    A tenant that is listed twice has both: that is how a secret is rotated.

    Raises:
        EnvironmentFault: an entry is malformed, or two tenants have the same secret.
    """
    tenants: dict[str, list[Secret]] = {}
    owners: dict[bytes, str] = {}
    for number, raw in enumerate(environ.get(variable, "").split(","), start=1):
        if not (entry := raw.strip()):
            continue
        tenant, colon, text = entry.partition(":")
        if not colon:
            tenant, text = DEFAULT_TENANT, entry
        tenant = tenant.strip()
        # The entry itself is never quoted: it holds the secret.
        try:
            if not _TENANT.fullmatch(tenant):
                raise ValueError("a tenant is letters, digits, dots, dashes and underscores (64 at most)")
            secret = Secret.parse(text.strip())
        except ValueError as error:
            raise EnvironmentFault(
                f"entry {number} of the variable {variable} is not tenant:{SECRET_PREFIX}…; {error}; "
                'make one with: echo "whsec_$(openssl rand -base64 32)"'
            ) from None
        if owners.setdefault(secret.key, tenant) != tenant:
            raise EnvironmentFault(
                f"entry {number} of the variable {variable} gives {tenant} a secret that another tenant has; change one"
            )
        if secret not in tenants.setdefault(tenant, []):
            tenants[tenant].append(secret)
    return Secrets({tenant: tuple(listed) for tenant, listed in tenants.items()}, variable)


# --- messages ---


class Event(str, enum.Enum):
    """What a webhook tells of."""

    JOB_SUCCEEDED = "job.succeeded"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"
    JOB_EXPIRED = "job.expired"
    BATCH_COMPLETED = "batch.completed"
    BATCH_FAILED = "batch.failed"
    BATCH_CANCELLED = "batch.cancelled"
    BATCH_EXPIRED = "batch.expired"


def payload(event: Event, at_s: float, data: Mapping[str, Any]) -> bytes:
    """The body of a webhook, compact JSON: `at_s` is when it happened (Unix seconds), whenever it is delivered.

    Raises:
        ValueError, TypeError: `data` is not JSON.
    """
    at = datetime.fromtimestamp(at_s, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    message = {"type": event.value, "timestamp": at, "data": dict(data)}
    return json.dumps(message, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def message_id(*parts: str) -> str:
    """An id that follows from what is told of (tenant, batch, custom_id, event), so that telling it twice shows."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return f"msg_{digest.hexdigest()[:32]}"


# --- signatures ---


def sign(secrets: Sequence[Secret], message_id: str, timestamp_s: int, body: bytes) -> str:
    """The `webhook-signature` of an attempt at `timestamp_s` (Unix seconds): one signature a secret.

    Raises:
        ValueError: there is no secret, or the id is more than letters, digits, `_` and `-` (128 at most): with a dot
            in it, one signature would fit two messages.
    """
    if not secrets:
        raise ValueError("a webhook needs a secret to be signed with")
    if not _MESSAGE_ID.fullmatch(message_id):
        raise ValueError("a webhook's id is letters, digits, _ and - (128 at most)")
    return " ".join(_signatures(secrets, message_id, str(int(timestamp_s)), body))


def signed_headers(secrets: Sequence[Secret], message_id: str, now_s: float, body: bytes) -> dict[str, str]:
    """All headers of an attempt at `now_s` (Unix seconds). Raises ValueError as `sign` does."""
    return {
        "content-type": "application/json",
        ID: message_id,
        TIMESTAMP: str(int(now_s)),
        SIGNATURE: sign(secrets, message_id, int(now_s), body),
    }


def verify(
    headers: Mapping[str, str],
    body: bytes,
    secrets: Sequence[Secret],
    now_s: float,
    tolerance_s: float = TOLERANCE_S,
) -> str:
    """The message's id, if one of `secrets` signed exactly this. Header names are taken in any case.

    A repetition has the same id: who remembers ids for `tolerance_s` is safe from replays.

    Raises:
        SignatureInvalid: a header is missing or malformed, the attempt is more than `tolerance_s` away from `now_s`
            (Unix seconds), or no signature fits.
    """
    fields = {name.lower(): value for name, value in headers.items()}
    missing = [name for name in (ID, TIMESTAMP, SIGNATURE) if not fields.get(name)]
    if missing:
        raise SignatureInvalid(f"a webhook needs the header {missing[0]}")
    if not _MESSAGE_ID.fullmatch(fields[ID]):
        raise SignatureInvalid(f"{ID} is not letters, digits, _ and -")
    timestamp = fields[TIMESTAMP]
    if not _UNIX_SECONDS.fullmatch(timestamp):
        raise SignatureInvalid(f"{TIMESTAMP} is not Unix seconds")
    if abs(now_s - int(timestamp)) > tolerance_s:
        age = "old" if int(timestamp) < now_s else "new"
        raise SignatureInvalid(f"the webhook is more than {tolerance_s:g} s too {age}; are the clocks right?")
    known = [text.encode() for text in _signatures(secrets, fields[ID], timestamp, body)]
    fits = False
    for presented in fields[SIGNATURE].split(" "):
        for signature in known:
            fits |= hmac.compare_digest(signature, presented.encode("utf-8", "surrogatepass"))
    if not fits:
        raise SignatureInvalid("no signature of the webhook fits a known secret; is the body what was received?")
    return fields[ID]


def _signatures(secrets: Iterable[Secret], message_id: str, timestamp: str, body: bytes) -> list[str]:
    content = b".".join((message_id.encode(), timestamp.encode(), body))
    digests = (hmac.digest(secret.key, content, hashlib.sha256) for secret in secrets)
    return [f"{_VERSION},{base64.b64encode(digest).decode('ascii')}" for digest in digests]


# --- attempts ---


class Failure(str, enum.Enum):
    """Why an attempt brought no status. None of them is for ever: names and trusted hosts change."""

    REFUSED = "refused"
    """The URL leads where no call may go; none was made."""
    UNREACHABLE = "unreachable"
    TIMED_OUT = "timed_out"


@dataclass(frozen=True)
class Answered:
    """The receiver answered. `retry_after_s` is how long it asked to be left alone."""

    status: int
    retry_after_s: float | None = None


@dataclass(frozen=True)
class Failed:
    """There was no answer, and why, in words that name no more than the receiver's host."""

    failure: Failure
    message: str


Outcome = Answered | Failed


class Fate(str, enum.Enum):
    """What becomes of a message after an attempt."""

    DELIVERED = "delivered"
    RETRY = "retry"
    GIVEN_UP = "given_up"
    DISABLED = "disabled"
    """The receiver answered 410: it wants no more webhooks at this URL."""


@dataclass(frozen=True)
class Next:
    """The fate, and for RETRY when (Unix seconds)."""

    fate: Fate
    at_s: float | None = None


def after(outcome: Outcome, attempts: int, now_s: float, *, jitter: float = 0.0) -> Next:
    """What follows from an attempt. Any 2xx delivers, 410 disables, all else (redirects, too) is tried again.

    Args:
        attempts: how many were made, this one included: 1 at least.
        now_s: Unix seconds, or any other clock's: `Next.at_s` is by the same.
        jitter: 0 to 1, random: how much of `JITTER` is added to the delay.
    """
    if isinstance(outcome, Answered):
        if 200 <= outcome.status < 300:
            return Next(Fate.DELIVERED)
        if outcome.status == 410:
            return Next(Fate.DISABLED)
    if attempts >= len(SCHEDULE_S):
        return Next(Fate.GIVEN_UP)
    delay_s = SCHEDULE_S[attempts] * (1 + JITTER * jitter)
    if isinstance(outcome, Answered) and outcome.retry_after_s is not None:
        delay_s = max(delay_s, min(outcome.retry_after_s, MAX_RETRY_AFTER_S))
    return Next(Fate.RETRY, now_s + delay_s)


def retry_after_s(value: str, now_s: float) -> float | None:
    """The seconds that a Retry-After header asks for, as seconds or as a date; None if it is neither."""
    text = value.strip()
    if text.isascii() and text.isdecimal():
        return float(text[:12])
    try:
        at = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return max(0.0, (at if at.tzinfo else at.replace(tzinfo=timezone.utc)).timestamp() - now_s)
