"""What a job is and what its result looks like. Pure.

A job is one line of an OpenAI batch file, `{custom_id, method, url, body}`, and its result one line of that
format's output file, so existing batch files work unchanged. Always true:

- Identity is tenant + batch + custom_id; custom_id alone is unique only within one submission.
- `sha256` covers method, url and the *meaning* of the body (canonical JSON), so a repetition that reorders keys
  is the same job, and another job under the same identity is seen.
- A message never carries more than `MAX_INLINE_BYTES` of body. A larger one lies in the store under its own hash
  and the line says `body_ref` instead of `body`; a hash can name nobody else's object.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NoReturn

from cotenant.calls import JSON_TYPE, Reply
from cotenant.errors import MalformedJob

#: Bodies above this travel by object reference (Pub/Sub refuses messages over 10 MB).
MAX_INLINE_BYTES = 1 << 20
#: A body above this is refused: OpenAI's whole batch file may have 200 MB, our gateway's request 32 MiB.
MAX_BODY_BYTES = 64 << 20
#: Pub/Sub's limit on an attribute value is 1,024 bytes, and the custom_id travels as one.
MAX_CUSTOM_ID_BYTES = 512

DEFAULT_TENANT = "default"

#: Message attributes, in and out.
TENANT, BATCH, CUSTOM_ID = "tenant", "batch", "custom_id"
STATUS, REASON, OUTCOME, ATTEMPTS = "status", "reason", "outcome", "attempts"
PRIORITY, DEADLINE, WEBHOOK, QUEUED_AT = "priority", "deadline", "webhook", "queued_at"
#: Of a message that was moved to its workload's lane: that it has failed before, and its first message id, which is
#: the batch of one that has none.
RETRIED, ORIGIN = "retried", "origin"
#: Of a dead letter, besides REASON, OUTCOME and ATTEMPTS.
HISTORY, MESSAGE_ID, SOURCE_TOPIC = "attempt_history", "message_id", "source_topic"
#: Attributes that a dead letter has from us: not the publisher's, and not to be published again.
BURIAL_ATTRIBUTES = frozenset({OUTCOME, REASON, ATTEMPTS, HISTORY, MESSAGE_ID, SOURCE_TOPIC, RETRIED})
#: Of a dead letter that the queue itself made, at its backstop: deliveries, where from, when it was published.
QUEUE_COUNT = "CloudPubSubDeadLetterSourceDeliveryCount"
QUEUE_SUBSCRIPTION = "CloudPubSubDeadLetterSourceSubscription"
QUEUE_PROJECT = "CloudPubSubDeadLetterSourceSubscriptionProject"
QUEUE_TIME = "CloudPubSubDeadLetterSourceTopicPublishTime"
QUEUE_ATTRIBUTES = frozenset({QUEUE_COUNT, QUEUE_SUBSCRIPTION, QUEUE_PROJECT, QUEUE_TIME})

#: Priorities that a job may have; a higher one goes first.
MIN_PRIORITY, MAX_PRIORITY = -10, 10

_KEYS = ("custom_id", "method", "url", "body")
_Json = dict[str, Any]


@dataclass(frozen=True)
class Identity:
    """Which job this is."""

    tenant: str
    batch: str
    custom_id: str

    @property
    def job_id(self) -> str:
        """A short name for people and for the result line's `id`."""
        return "job_" + digest(canonical([self.tenant, self.batch, self.custom_id]))[:24]

    @property
    def attributes(self) -> dict[str, str]:
        return {TENANT: self.tenant, BATCH: self.batch, CUSTOM_ID: self.custom_id}


@dataclass(frozen=True)
class BodyRef:
    """A body that lies in the store, named by its hash."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Wishes:
    """What a job's message asks for beside the work; no part of what the job is.

    `priority`: a higher one goes first. `deadline_at_s`: after this Unix time it is not begun any more, and ends as
    expired. `webhook`: URL that is told of the end. `queued_at_s`: Unix time at which it was submitted by itself, which
    is its place in `keys.queued_key`.
    """

    priority: int = 0
    deadline_at_s: float | None = None
    webhook: str | None = None
    queued_at_s: float | None = None

    @property
    def attributes(self) -> dict[str, str]:
        """As message attributes; what is not asked for is left out."""
        given = {
            PRIORITY: str(self.priority) if self.priority else None,
            DEADLINE: None if self.deadline_at_s is None else f"{self.deadline_at_s:.3f}",
            WEBHOOK: self.webhook,
            QUEUED_AT: None if self.queued_at_s is None else f"{self.queued_at_s:.3f}",
        }
        return {name: value for name, value in given.items() if value is not None}

    @classmethod
    def of(cls, attributes: Mapping[str, str]) -> Wishes:
        """The wishes in a message's attributes. A deadline is Unix time in seconds or RFC 3339.

        Raises:
            MalformedJob: a value that is none, and which it should be.
        """
        return cls(
            priority=_priority(attributes.get(PRIORITY)),
            deadline_at_s=_time(DEADLINE, attributes.get(DEADLINE)),
            webhook=attributes.get(WEBHOOK) or None,
            queued_at_s=_time(QUEUED_AT, attributes.get(QUEUED_AT)),
        )


@dataclass(frozen=True)
class Job:
    """One job. Exactly one of `body` (canonical JSON) and `body_ref` is given."""

    identity: Identity
    url: str
    body: bytes | None
    body_ref: BodyRef | None = None
    wishes: Wishes = field(default_factory=Wishes)

    @property
    def sha256(self) -> str:
        """Hash of what is asked for, without the identity."""
        body = self.body_ref.sha256 if self.body_ref is not None else digest(self.body or b"")
        return digest(canonical(["POST", self.url, body]))

    @property
    def attributes(self) -> dict[str, str]:
        """The attributes of the job's message."""
        return {**self.identity.attributes, **self.wishes.attributes}

    def line(self) -> bytes:
        """The job as message data."""
        head: _Json = {"custom_id": self.identity.custom_id, "method": "POST", "url": self.url}
        if self.body_ref is not None:
            return canonical({**head, "body_ref": {"bytes": self.body_ref.bytes, "sha256": self.body_ref.sha256}})
        return canonical({**head, "body": json.loads(self.body or b"{}")})


def parse_job(data: bytes, attributes: Mapping[str, str], message_id: str) -> Job:
    """The job that a message carries. A message without a batch is its own batch.

    Raises:
        MalformedJob: it is none, and why.
    """
    tenant = attributes.get(TENANT) or DEFAULT_TENANT
    batch = attributes.get(BATCH) or attributes.get(ORIGIN) or message_id
    for what, value in ((TENANT, tenant), (BATCH, batch)):
        check_name(f"the attribute {what}", value)
    return replace(parse_line(data, tenant=tenant, batch=batch), wishes=Wishes.of(attributes))


def parse_line(data: bytes, *, tenant: str, batch: str) -> Job:
    """The job that one line of a batch file describes.

    Raises:
        MalformedJob: it is none, and why.
    """
    line = _loads(data)
    if not isinstance(line, dict):
        raise MalformedJob(f"a job is a JSON object with {', '.join(_KEYS)}; this is {_kind(line)}")
    by_reference = "body_ref" in line
    wanted = (*_KEYS[:3], "body_ref") if by_reference else _KEYS
    missing = [key for key in wanted if key not in line]
    unknown = [key for key in line if key not in wanted]
    if missing:
        raise MalformedJob(f"{', '.join(missing)} missing; a job has {', '.join(_KEYS)}")
    if unknown:
        raise MalformedJob(f"{', '.join(repr(key)[:60] for key in unknown[:5])} unknown; a job has {', '.join(_KEYS)}")
    custom_id, method, url = line["custom_id"], line["method"], line["url"]
    check_name("custom_id", custom_id)
    if method != "POST":
        raise MalformedJob(f'method needs to be "POST", got {_short(method)}')
    if not isinstance(url, str) or not url.startswith("/v1/") or len(url) > 256:
        raise MalformedJob(f"url needs to be a route such as /v1/chat/completions, got {_short(url)}")
    identity = Identity(tenant, batch, custom_id)
    if by_reference:
        return Job(identity, url, None, _body_ref(line["body_ref"]))
    if not isinstance(line["body"], dict):
        raise MalformedJob(f"body needs to be a JSON object, got {_kind(line['body'])}")
    body = canonical(line["body"])
    if len(body) > MAX_BODY_BYTES:
        raise MalformedJob(f"body has {len(body)} bytes, at most {MAX_BODY_BYTES} are taken")
    return Job(identity, url, body)


def parse_body(body: bytes) -> _Json:
    """A canonical body as a dict. Raises MalformedJob for anything else."""
    value = _loads(body)
    if not isinstance(value, dict):
        raise MalformedJob(f"body needs to be a JSON object, got {_kind(value)}")
    return value


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: the same meaning gives the same bytes.

    Raises:
        MalformedJob: a number that JSON has no text for.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise MalformedJob(f"is not JSON: {error}") from None


def digest(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


# --- results ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ObjectRef:
    """A large reply that lies in the store, by its URL."""

    url: str
    content_type: str
    bytes: int


@dataclass(frozen=True)
class Result:
    """The visible result of a job: the output line, and the hash of the job that it answers."""

    identity: Identity
    job_sha256: str
    line: bytes

    @property
    def status(self) -> int:
        """HTTP status of the reply; 0 if there was none."""
        response = json.loads(self.line)["response"]
        return int(response["status_code"]) if response else 0

    def dump(self) -> bytes:
        """The object as the store keeps it."""
        return b'{"job_sha256":"' + self.job_sha256.encode() + b'","line":' + self.line + b"}\n"

    @classmethod
    def load(cls, identity: Identity, data: bytes) -> Result:
        """The opposite of `dump`. Raises ValueError if the object is not a result."""
        value = json.loads(data)
        if not isinstance(value, dict) or not {"job_sha256", "line"} <= value.keys():
            raise ValueError("not a result object")
        return cls(identity, str(value["job_sha256"]), dump_line(value["line"]))


def is_large(reply: Reply) -> bool:
    """Whether a reply has to become an object of its own: base64 makes four bytes of three."""
    embedded = len(reply.body) if _is_json(reply) else len(reply.body) * 4 // 3
    return embedded > MAX_INLINE_BYTES


def result_line(job: Job, reply: Reply, stored: ObjectRef | None = None) -> bytes:
    """The output line of a job whose workload replied, also with an error; `stored` is where a large body lies.

    A JSON body is embedded as it is, other bytes as `{b64_json, content_type}`, a large one as
    `{object, content_type, bytes}`.
    """
    body: Any
    if stored is not None:
        body = {"object": stored.url, "content_type": stored.content_type, "bytes": stored.bytes}
    elif _is_json(reply):
        body = json.loads(reply.body)
    else:
        body = {"b64_json": base64.b64encode(reply.body).decode(), "content_type": reply.content_type}
    request_id = reply.headers.get("x-request-id") or job.identity.job_id
    return _line(job.identity, {"status_code": reply.status, "request_id": request_id, "body": body}, None)


def error_line(identity: Identity, code: str, message: str) -> bytes:
    """The output line of a job that ended without a reply."""
    return _line(identity, None, {"code": code, "message": message})


def dump_line(line: Any) -> bytes:
    """A line in the key order of the format."""
    return json.dumps(line, separators=(",", ":")).encode()


def _line(identity: Identity, response: _Json | None, error: _Json | None) -> bytes:
    return dump_line(
        {"id": identity.job_id, "custom_id": identity.custom_id, "response": response, "error": error},
    )


def _is_json(reply: Reply) -> bool:
    """Whether the body can be embedded as JSON: by its type, and in truth."""
    if reply.content_type.split(";")[0].strip().lower() != JSON_TYPE:
        return False
    try:
        json.loads(reply.body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False
    return True


# --- strictness ---------------------------------------------------------------------------------------------


def _loads(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise MalformedJob("is not UTF-8") from None
    except RecursionError:
        raise MalformedJob("is nested too deeply") from None
    except ValueError as error:
        raise MalformedJob(f"is not JSON: {error}") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> _Json:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{_short(twice)} is given twice in one object")
    return mapping


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def check_name(what: str, value: Any) -> None:
    """Raises MalformedJob if `value` is no name that a message can carry."""
    if not isinstance(value, str) or not value:
        raise MalformedJob(f"{what} needs to be a string that is not empty, got {_short(value)}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise MalformedJob(f"{what} holds half a surrogate pair, which has no UTF-8") from None
    if size > MAX_CUSTOM_ID_BYTES:
        raise MalformedJob(f"{what} has {size} bytes, at most {MAX_CUSTOM_ID_BYTES} are taken")
    if not value.isprintable():
        raise MalformedJob(f"{what} holds a character that can't be printed: {_short(value)}")


def _body_ref(value: Any) -> BodyRef:
    if not isinstance(value, dict) or value.keys() != {"sha256", "bytes"}:
        raise MalformedJob('body_ref needs to be {"sha256": …, "bytes": …}')
    sha256, size = value["sha256"], value["bytes"]
    if not isinstance(sha256, str) or len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
        raise MalformedJob(f"body_ref.sha256 needs 64 hex digits, got {_short(sha256)}")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= MAX_BODY_BYTES:
        raise MalformedJob(f"body_ref.bytes needs a number of bytes up to {MAX_BODY_BYTES}, got {_short(size)}")
    return BodyRef(sha256, size)


def _priority(text: str | None) -> int:
    try:
        priority = int(text or 0)
    except ValueError:
        priority = MAX_PRIORITY + 1
    if not MIN_PRIORITY <= priority <= MAX_PRIORITY:
        raise MalformedJob(f"priority needs a whole number from {MIN_PRIORITY} to {MAX_PRIORITY}, got {_short(text)}")
    return priority


def _time(name: str, text: str | None) -> float | None:
    if not text:
        return None
    try:
        at_s = float(text)
    except ValueError:
        try:
            at = datetime.fromisoformat(text.replace("Z", "+00:00"))
            at_s = at.timestamp() if at.tzinfo is not None else math.nan
        except ValueError:
            at_s = math.nan
    if not math.isfinite(at_s):
        raise MalformedJob(
            f"{name} needs Unix time in seconds or RFC 3339 with a zone (2026-11-24T10:00:00Z), got {_short(text)}"
        )
    return at_s


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _short(value: Any) -> str:
    return repr(value)[:60]
