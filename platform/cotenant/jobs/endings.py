"""What the line of a job that ended says: its status, why it failed, what it made. Pure."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from cotenant.calls import JSON_TYPE
from cotenant.calls.desk import Json

Ended = Literal["succeeded", "failed", "cancelled", "expired"]

CANCELLED, EXPIRED = "cancelled", "expired"
BATCH_CANCELLED, BATCH_EXPIRED = "batch_cancelled", "batch_expired"
_BY_CODE: dict[str, Ended] = {
    CANCELLED: "cancelled",
    BATCH_CANCELLED: "cancelled",
    EXPIRED: "expired",
    BATCH_EXPIRED: "expired",
}

#: How much of a result object tells its status: everything before it is short.
HEAD_BYTES = 2048
# In a JSON string the quotes would be escaped, so no custom_id looks like this.
_STATUS = re.compile(rb'"response":(?:null|\{"status_code":(\d{3}))')


@dataclass(frozen=True)
class Output:
    """What a job made: bytes, or the URL of the object in the store that has them.

    `embedded`: it is JSON, and stands in the line as it is.
    """

    content_type: str
    size_bytes: int
    data: bytes | None = None
    object_url: str | None = None
    embedded: bool = False


def parsed(line: bytes) -> Json:
    """An output line as a dict."""
    value: Json = json.loads(line)
    return value


def status_of(line: Json) -> Ended:
    """How the job ended: succeeded with any status below 400."""
    response = line["response"]
    if response is not None:
        return "succeeded" if int(response["status_code"]) < 400 else "failed"
    return _BY_CODE.get((line["error"] or {}).get("code", ""), "failed")


def error_of(line: Json) -> Json | None:
    """Why it did not succeed, as `{code, message}`; None if it did."""
    if status_of(line) == "succeeded":
        return None
    if line["response"] is None:
        error = line["error"] or {}
        return {"code": error.get("code"), "message": error.get("message")}
    status, body = line["response"]["status_code"], line["response"]["body"]
    told = body.get("error") if isinstance(body, dict) else None
    if not isinstance(told, dict):
        return {"code": f"http_{status}", "message": f"the workload answered {status}"}
    code = told.get("code") or told.get("type") or f"http_{status}"
    return {"code": str(code), "message": str(told.get("message") or f"the workload answered {status}")}


def output_of(line: Json) -> Output | None:
    """What it made; None if it did not succeed."""
    if status_of(line) != "succeeded":
        return None
    body: Any = line["response"]["body"]
    if isinstance(body, dict) and body.keys() == {"object", "content_type", "bytes"}:
        return Output(body["content_type"], body["bytes"], object_url=body["object"])
    if isinstance(body, dict) and body.keys() == {"b64_json", "content_type"}:
        data = base64.b64decode(body["b64_json"])
        return Output(body["content_type"], len(data), data=data)
    data = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
    return Output(JSON_TYPE, len(data), data=data, embedded=True)


def status_in(head: bytes) -> int | None:
    """The HTTP status that the beginning of a result object tells; 0 for one without a reply, None if it can't be told.

    `head` is the object's first `HEAD_BYTES`.
    """
    found = _STATUS.search(head)
    return None if found is None else int(found[1] or 0)


def shown_ending(job_id: str, line: Json) -> Json:
    """What can be said of a job that ended from its line alone: the beginning of a job object."""
    output = output_of(line)
    return {
        "id": job_id,
        "object": "job",
        "status": status_of(line),
        "error": error_of(line),
        "output": {"content_type": output.content_type, "bytes": output.size_bytes} if output is not None else None,
    }
