"""A request for a job, checked as a whole: the body of `POST /v1/jobs`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cotenant.calls import BY_URL, Directory
from cotenant.errors import MalformedJob, RequestRefused, UnknownWorkload
from cotenant.jobs.desk.files import Files
from cotenant.jobs.desk.params import (
    check_deadline,
    check_known,
    check_metadata,
    check_priority,
    check_webhook_url,
    required_text,
)
from cotenant.jobs.desk.references import check_files
from cotenant.jobs.model import MAX_BODY_BYTES, Wishes, canonical, check_name, digest

_PARAMS = ("url", "body", "method", "custom_id", "priority", "deadline", "webhook_url", "metadata")


@dataclass(frozen=True)
class Asked:
    """What a request asks for. `body` is canonical JSON, `sha256` the hash of the whole request."""

    url: str
    body: bytes
    workload: str
    custom_id: str | None
    wishes: Wishes
    metadata: Mapping[str, str] | None
    sha256: str


async def check_job(
    tenant: str,
    body: Mapping[str, Any],
    *,
    directory: Directory,
    files: Files,
    check_webhook: Callable[[str, str], None] | None,
    now_s: float,
) -> Asked:
    """What `body` asks for, at `now_s` (Unix time).

    Raises:
        RequestRefused: it is no request for a job: 400, 404 or 413, with the parameter that is wrong.
        StoreUnavailable: a file that it refers to can't be looked up.
    """
    check_known(body, _PARAMS, "a job")
    url = required_text(body, "url")
    if url not in BY_URL:
        raise _refused(f"url needs one of {', '.join(BY_URL)}, got {url[:80]!r}", "url", "invalid_value")
    if body.get("method", "POST") != "POST":
        raise _refused('method needs to be "POST"', "method", "invalid_value")
    custom_id = _custom_id(body.get("custom_id"))
    inner = body.get("body")
    if inner is None:
        raise _refused("the job needs body, a JSON object", "body", "missing_required_parameter")
    if not isinstance(inner, dict):
        raise _refused("body needs to be a JSON object", "body", "invalid_type")
    data, workload = _routed(url, inner, directory)
    wishes = Wishes(
        priority=check_priority(body.get("priority")),
        deadline_at_s=check_deadline(body.get("deadline"), now_s),
        webhook=check_webhook_url(check_webhook, tenant, body.get("webhook_url")),
        # To the millisecond, as a message carries it.
        queued_at_s=round(now_s, 3),
    )
    metadata = check_metadata(body.get("metadata"))
    try:
        await check_files(files, tenant, inner)
    except RequestRefused as error:
        error.param = f"body.{error.param}"
        raise
    return Asked(url, data, workload, custom_id, wishes, metadata, request_sha256(body))


def request_sha256(body: Mapping[str, Any]) -> str:
    """The hash by which a repeated request is told from another. Raises RequestRefused for what is not JSON."""
    try:
        return digest(canonical(dict(body)))
    except MalformedJob as error:
        raise _refused(f"the request {error}", None, "invalid_value") from None


def _routed(url: str, inner: dict[str, Any], directory: Directory) -> tuple[bytes, str]:
    """The body as canonical JSON, and the workload that takes it."""
    if inner.get("stream"):
        raise _refused("a job has nobody to stream to; leave stream out", "body.stream", "streaming_unsupported")
    try:
        data = canonical(inner)
    except MalformedJob as error:
        raise _refused(f"body {error}", "body", "invalid_value") from None
    if len(data) > MAX_BODY_BYTES:
        text = f"body has {len(data)} bytes, at most {MAX_BODY_BYTES} are taken; upload pictures to /v1/files"
        raise _refused(text, "body", "body_too_large", status=413)
    try:
        return data, directory.route(url, inner).name
    except UnknownWorkload as error:
        route = BY_URL[url]
        chooser = "template" if route.kind == "mockup" else "model"
        if not directory.of_kind(route.kind):
            raise _refused(str(error), "url", "not_served", status=404) from None
        if isinstance(inner.get(chooser), str) and inner[chooser]:
            raise _refused(str(error), f"body.{chooser}", f"{chooser}_not_found", status=404) from None
        raise _refused(str(error), f"body.{chooser}", "missing_required_parameter") from None


def _custom_id(value: Any) -> str | None:
    if value is None:
        return None
    try:
        check_name("custom_id", value)
    except MalformedJob as error:
        raise _refused(str(error), "custom_id", "invalid_value") from None
    return str(value)


def _refused(message: str, param: str | None, code: str, *, status: int = 400) -> RequestRefused:
    return RequestRefused(message, status=status, param=param, code=code)
