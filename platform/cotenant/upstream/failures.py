"""What another server's answer, or its silence, means to whoever called a workload: the one place that translates.

Always true: what the operator got wrong (a key, a path, a model that is not there) is never a reply to the customer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import httpx

from cotenant.calls import JSON_TYPE
from cotenant.errors import (
    BudgetExceeded,
    CallError,
    DeadlineExceeded,
    Overloaded,
    ReplicaDied,
    UnknownWorkload,
    WorkloadUnavailable,
)

#: A server that names no time to come back at is asked again after this.
_RETRY_AFTER_S = 1.0
_LONGEST_RETRY_S = 3600.0
#: Statuses of a server that does not know who calls.
SHUT_OUT = frozenset({401, 403})
#: Codes with which a gateway says that it serves no such thing.
_NOT_SERVED = frozenset({"model_not_found", "template_not_found", "not_served", "route_not_found"})


def error_of(host: str, status: int, headers: Mapping[str, str], body: bytes) -> CallError | None:
    """The error that an answer stands for; None where it is the engine's own reply. `headers` by lower-case name."""
    message, code = _told(headers, body)
    if status == 429:
        return Overloaded(message or f"{host} has a full queue", retry_after_s=retry_after_s(headers))
    if status in (408, 504):
        return DeadlineExceeded(message or f"{host} had no answer in time")
    if status == 507 and code == "budget_exceeded":
        return BudgetExceeded(message)
    if status == 404 and (code in _NOT_SERVED or not _is_json(headers)):
        return UnknownWorkload(f"{host} does not serve this: {message or 'it answers 404'}")
    if status in SHUT_OUT:
        return WorkloadUnavailable(
            f"{host} does not let this platform in ({status}); check the key or the service account that it is called "
            "with"
        )
    if status == 503 and code == "replica_died":
        return ReplicaDied(message)
    if status in (502, 503):
        return WorkloadUnavailable(message or f"{host} can't take requests now ({status})")
    if 300 <= status < 400:
        return WorkloadUnavailable(f"{host} answers {status}, which leads elsewhere; name the URL that it leads to")
    if status >= 500 and not _is_json(headers):
        return WorkloadUnavailable(f"{host} failed ({status})")
    return None


def failure_of(host: str, error: Exception) -> CallError:
    """The error that a failed exchange stands for."""
    match error:
        case CallError():
            return error
        case httpx.ConnectError() | httpx.ConnectTimeout():
            return WorkloadUnavailable(f"{host} can't be reached ({type(error).__name__})")
        case httpx.TimeoutException():
            return DeadlineExceeded(f"{host} had no answer in time")
        case httpx.NetworkError() | httpx.RemoteProtocolError():
            return ReplicaDied(f"{host} closed the connection with the request in it; send it again")
    return WorkloadUnavailable(f"{host} failed: {type(error).__name__}")


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Seconds that `Retry-After` names. A date, or nonsense, is as if it were not there."""
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return _RETRY_AFTER_S
    return _RETRY_AFTER_S if math.isnan(seconds) else min(max(0.0, seconds), _LONGEST_RETRY_S)


def _told(headers: Mapping[str, str], body: bytes) -> tuple[str, str]:
    """Message and code of an OpenAI-shaped error; empty where it is none."""
    if not _is_json(headers):
        return "", ""
    try:
        error = json.loads(body)["error"]
        message, code = error.get("message"), error.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", ""
    return message if isinstance(message, str) else "", code if isinstance(code, str) else ""


def _is_json(headers: Mapping[str, str]) -> bool:
    return headers.get("content-type", "").partition(";")[0].strip().lower() == JSON_TYPE
