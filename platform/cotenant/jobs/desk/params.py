"""Parameters of requests about batches and jobs, checked one by one. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from cotenant.errors import MalformedJob, RequestRefused
from cotenant.jobs.model import DEADLINE, MAX_PRIORITY, MIN_PRIORITY, Wishes

#: OpenAI's limits on metadata: pairs, and characters of a key and of a value.
MAX_PAIRS, MAX_KEY_CHARS, MAX_VALUE_CHARS = 16, 64, 512


def check_known(body: Mapping[str, Any], known: Collection[str], what: str) -> None:
    """Raises RequestRefused for a parameter that `what` does not have."""
    unknown = next((name for name in body if name not in known), None)
    if unknown is not None:
        raise RequestRefused(
            f"{unknown[:80]!r} is no parameter here; {what} has {', '.join(sorted(known))}",
            param=unknown[:80],
            code="unknown_parameter",
        )


def required_text(body: Mapping[str, Any], name: str) -> str:
    """A parameter that has to be given, and be text. Raises RequestRefused."""
    value = body.get(name)
    if value is None:
        raise RequestRefused(f"the body needs {name}", param=name, code="missing_required_parameter")
    if not isinstance(value, str):
        raise RequestRefused(f"{name} needs a string, got {repr(value)[:40]}", param=name, code="invalid_type")
    return value


def check_metadata(value: Any) -> dict[str, str] | None:
    """Metadata as OpenAI bounds it. Raises RequestRefused."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise RequestRefused("metadata needs an object of strings", param="metadata", code="invalid_type")
    if len(value) > MAX_PAIRS:
        raise RequestRefused(
            f"metadata has {len(value)} pairs, at most {MAX_PAIRS} are taken", param="metadata", code="invalid_value"
        )
    for key, text in value.items():
        param = f"metadata.{str(key)[:MAX_KEY_CHARS]}"
        if not isinstance(key, str) or not isinstance(text, str):
            raise RequestRefused(f"{param} needs a string", param=param, code="invalid_type")
        if len(key) > MAX_KEY_CHARS or len(text) > MAX_VALUE_CHARS:
            raise RequestRefused(
                f"{param} is too long: keys may have {MAX_KEY_CHARS} characters, values {MAX_VALUE_CHARS}",
                param=param,
                code="string_above_max_length",
            )
    return dict(value)


def check_priority(value: Any) -> int:
    """A priority, 0 if none is given. Raises RequestRefused."""
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or not MIN_PRIORITY <= value <= MAX_PRIORITY:
        raise RequestRefused(
            f"priority needs a whole number from {MIN_PRIORITY} to {MAX_PRIORITY}, got {repr(value)[:40]}",
            param="priority",
            code="invalid_value",
        )
    return value


def check_webhook_url(check: Callable[[str, str], None] | None, tenant: str, url: Any) -> str | None:
    """A webhook's URL, if one is given; `check` raises RequestRefused where that tenant may not have it."""
    if url is None:
        return None
    if not isinstance(url, str) or not url:
        raise RequestRefused("webhook_url needs a URL", param="webhook_url", code="invalid_type")
    if check is None:
        raise RequestRefused("this platform sends no webhooks", param="webhook_url", code="webhooks_unavailable")
    check(tenant, url)
    return url


def check_deadline(value: Any, now_s: float) -> float | None:
    """A deadline as Unix time, if one is given, as RFC 3339 or as Unix time in seconds. Raises RequestRefused."""
    if value is None:
        return None
    takes = "deadline needs RFC 3339 with a zone (2026-11-24T10:00:00Z) or Unix time in seconds"
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise RequestRefused(f"{takes}, got {repr(value)[:40]}", param="deadline", code="invalid_type")
    try:
        at_s = Wishes.of({DEADLINE: str(value)}).deadline_at_s
    except MalformedJob:
        at_s = None
    if at_s is None:
        raise RequestRefused(f"{takes}, got {repr(value)[:40]}", param="deadline", code="invalid_value")
    if at_s <= now_s:
        raise RequestRefused(
            f"deadline {repr(value)[:40]} has passed: it is {now_s:.0f} now", param="deadline", code="invalid_value"
        )
    return at_s
