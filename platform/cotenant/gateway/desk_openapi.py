"""What `/openapi.json` says of files, batches and jobs. The objects are the desk's; here is how they look."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cotenant.calls import BY_URL, JSON_TYPE
from cotenant.gateway.bodies import MULTIPART
from cotenant.gateway.waiting import MAX_WAIT_S

_Json = dict[str, Any]


def _text(description: str = "", **more: Any) -> _Json:
    return {"type": "string", **({"description": description} if description else {}), **more}


def _number(description: str = "", **more: Any) -> _Json:
    return {"type": "integer", **({"description": description} if description else {}), **more}


def _or_null(schema: Mapping[str, Any]) -> _Json:
    return {**schema, "type": [schema["type"], "null"]}


def _object(properties: Mapping[str, Any], *, required: tuple[str, ...] = (), **more: Any) -> _Json:
    return {"type": "object", "required": list(required), "properties": dict(properties), **more}


def _list(of: str) -> _Json:
    page = {
        "object": {"const": "list"},
        "data": {"type": "array", "items": _ref(of)},
        "first_id": _or_null(_text()),
        "last_id": _or_null(_text("What `after` takes for the next page.")),
        "has_more": {"type": "boolean"},
    }
    return _object(page, required=("object", "data", "has_more"))


def _ref(name: str) -> _Json:
    return {"$ref": f"#/components/schemas/{name}"}


_WHEN = _number("Unix time in seconds.")
_WHEN_REACHED = {"type": ["integer", "null"], "description": "Unix time in seconds; null until then."}
_METADATA = {
    "type": ["object", "null"],
    "additionalProperties": {"type": "string"},
    "description": "Up to 16 texts of your own.",
}
_FILE_EXAMPLE = {
    "id": "file-077640a11a5aa2ec6dfe7e33",
    "object": "file",
    "bytes": 48_213,
    "created_at": 1_795_305_600,
    "filename": "mugs.jsonl",
    "purpose": "batch",
    "status": "processed",
}
_BATCH_EXAMPLE = {
    "id": "batch_b6fc63ebdfade4b6beb9701c",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "input_file_id": "file-077640a11a5aa2ec6dfe7e33",
    "completion_window": "24h",
    "status": "in_progress",
    "created_at": 1_795_305_610,
    "in_progress_at": 1_795_305_611,
    "expires_at": 1_795_392_010,
    "request_counts": {"total": 500, "completed": 120, "failed": 1},
    "output_file_id": None,
    "error_file_id": None,
    "metadata": {"season": "spring"},
}
_JOB_EXAMPLE = {
    "id": "job_5f0e9a61c2d84b3790ab12cd",
    "object": "job",
    "status": "queued",
    "created_at": 1_795_305_620,
    "url": "/v1/mockups",
    "workload": "mockups",
    "custom_id": None,
    "priority": 0,
    "deadline": None,
    "webhook_url": None,
    "position": 3,
    "estimate_s": 12.5,
    "attempts": [],
    "error": None,
    "output": None,
    "metadata": {"order": "A-1042"},
}
_BATCH_STATUSES = [
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]

_ATTEMPT = _object({"outcome": _text(), "reason": _text(), "at": _WHEN})
_OUTPUT = {
    "content_type": _text(),
    "bytes": _number(),
    "url": _text("Where it is to be had: at the store for an hour, or here."),
    "body": {"description": "Itself, where it is JSON and not large."},
}

#: The objects, by the names that the routes refer to.
SCHEMAS: dict[str, _Json] = {
    "Error": _object(
        {
            "error": _object(
                {
                    "message": _text("What is wrong and what to do about it."),
                    "type": _text(),
                    "param": _or_null(_text("The parameter at fault.")),
                    "code": _or_null(_text("The same for the same trouble.")),
                }
            )
        }
    ),
    "File": _object(
        {
            "id": _text(),
            "object": {"const": "file"},
            "bytes": _number(),
            "created_at": _WHEN,
            "filename": _text(),
            "purpose": _text(examples=["batch"]),
            "status": _text(enum=["uploaded", "processed", "error"]),
        },
        required=("id", "object", "bytes", "created_at", "filename", "purpose"),
        examples=[_FILE_EXAMPLE],
    ),
    "Batch": _object(
        {
            "id": _text(),
            "object": {"const": "batch"},
            "endpoint": _text("The route that all its requests go to."),
            "input_file_id": _text(),
            "completion_window": _text(),
            "status": _text(enum=_BATCH_STATUSES),
            "created_at": _WHEN,
            **{f"{event}_at": _WHEN_REACHED for event in ("in_progress", "expires", "finalizing", "completed")},
            **{f"{event}_at": _WHEN_REACHED for event in ("failed", "expired", "cancelling", "cancelled")},
            "request_counts": _object({"total": _number(), "completed": _number(), "failed": _number()}),
            "output_file_id": _or_null(_text("The file with a line for each request that was answered.")),
            "error_file_id": _or_null(_text("The file with a line for each request that failed.")),
            "errors": {"type": ["object", "null"], "description": "What is wrong with the input file, by line."},
            "metadata": _METADATA,
        },
        required=("id", "object", "endpoint", "input_file_id", "status", "created_at"),
        examples=[_BATCH_EXAMPLE],
    ),
    "Job": _object(
        {
            "id": _text(),
            "object": {"const": "job"},
            "status": _text(enum=["queued", "running", "succeeded", "failed", "cancelled", "expired"]),
            "created_at": _WHEN,
            "url": _text("The route that the job is a request to."),
            "workload": _text("Who does it."),
            "custom_id": _or_null(_text("Your own name for it.")),
            "priority": _number(),
            "deadline": {"type": ["number", "null"], "description": "Unix time; not begun by then, it is expired."},
            "webhook_url": _or_null(_text("Who is told when it has ended.")),
            "position": {"type": ["integer", "null"], "description": "How many jobs are before it while queued."},
            "estimate_s": {"type": ["number", "null"], "description": "Seconds until it is likely done."},
            "attempts": {"type": "array", "items": _ATTEMPT, "description": "Those that failed."},
            "error": _or_null(_object({"code": _or_null(_text()), "message": _or_null(_text())})),
            "output": _or_null(_object(_OUTPUT)),
            "metadata": _METADATA,
        },
        required=("id", "object", "status", "created_at", "url", "workload"),
        examples=[_JOB_EXAMPLE],
    ),
    **{f"{of}List": _list(of) for of in ("File", "Batch", "Job")},
    "Deleted": _object({"id": _text(), "object": {"const": "file"}, "deleted": {"type": "boolean"}}),
}

_PRIORITY = _number("Those with more of it go first.", minimum=-10, maximum=10, default=0)
_DEADLINE = {
    "type": ["number", "string"],
    "description": "Unix time in seconds, or RFC 3339 with a zone; what has not begun by then is expired.",
}
_WEBHOOK = _text("Who is told when it has ended: an https URL. See docs/webhooks.md.")
_EXPIRY = _object({"anchor": _text(enum=["created_at"]), "seconds": _number()})
_BATCH_BODY = _object(
    {
        "input_file_id": _text('A file that was uploaded with the purpose "batch".'),
        "endpoint": _text("The route that all its requests go to.", enum=list(BY_URL)),
        "completion_window": _text(examples=["24h"]),
        "output_expires_after": _EXPIRY,
        "metadata": _METADATA,
        "priority": _PRIORITY,
        "deadline": _DEADLINE,
        "webhook_url": _WEBHOOK,
    },
    required=("input_file_id", "endpoint", "completion_window"),
    examples=[{key: _BATCH_EXAMPLE[key] for key in ("input_file_id", "endpoint", "completion_window", "metadata")}],
)
_JOB_BODY = _object(
    {
        "url": _text("The route that the job is a request to.", enum=list(BY_URL)),
        "body": {"type": "object", "description": "What the route takes as its JSON body."},
        "custom_id": _text("Your own name for it."),
        "priority": _PRIORITY,
        "deadline": _DEADLINE,
        "webhook_url": _WEBHOOK,
        "metadata": _METADATA,
    },
    required=("url", "body"),
    examples=[{"url": "/v1/mockups", "body": {"template": "mug", "artwork": "https://example.com/a.png"}}],
)
_FILE_FORM = _object(
    {
        "purpose": _text('What the file is for: "batch" for the requests of a batch. Best sent before the file.'),
        "file": _text("Up to 512 MB, 200 MB for a batch.", format="binary"),
        "expires_after[anchor]": _text(enum=["created_at"]),
        "expires_after[seconds]": _number("After how long the file is deleted; before the file, too."),
    },
    required=("purpose", "file"),
)


def _query(name: str, schema: Mapping[str, Any], description: str) -> _Json:
    return {"in": "query", "name": name, "required": False, "schema": schema, "description": description}


def _header(name: str, description: str) -> _Json:
    return {"in": "header", "name": name, "required": False, "schema": {"type": "string"}, "description": description}


def _paging(most: int, default: int) -> list[_Json]:
    return [
        _query("limit", {"type": "integer", "minimum": 1, "maximum": most, "default": default}, "Objects of a page."),
        _query("after", {"type": "string"}, "The id of the last object of the page before."),
        _query("order", {"type": "string", "enum": ["asc", "desc"], "default": "desc"}, "By the time of creation."),
    ]


_WAIT = f"Seconds that the answer may wait for the job's end; more than {MAX_WAIT_S:g} is {MAX_WAIT_S:g}."
_WAITING = [_header("Prefer", f"`wait=N`. {_WAIT}"), _query("wait_s", {"type": "number", "minimum": 0}, _WAIT)]
_IDEMPOTENCY = _header("Idempotency-Key", "The same key and body again give the job that is there, not another one.")

_ROUTES: dict[tuple[str, str], _Json] = {
    ("POST", "/v1/files"): {"answer": "File", "body": (MULTIPART, _FILE_FORM)},
    ("GET", "/v1/files"): {
        "answer": "FileList",
        "parameters": [*_paging(10_000, 10_000), _query("purpose", {"type": "string"}, "Only files of this purpose.")],
    },
    ("GET", "/v1/files/{file_id}"): {"answer": "File"},
    ("DELETE", "/v1/files/{file_id}"): {"answer": "Deleted"},
    ("GET", "/v1/files/{file_id}/content"): {},
    ("POST", "/v1/batches"): {"answer": "Batch", "body": (JSON_TYPE, _BATCH_BODY)},
    ("GET", "/v1/batches"): {"answer": "BatchList", "parameters": _paging(100, 20)},
    ("GET", "/v1/batches/{batch_id}"): {"answer": "Batch"},
    ("POST", "/v1/batches/{batch_id}/cancel"): {"answer": "Batch"},
    ("POST", "/v1/jobs"): {
        "answer": "Job",
        "body": (JSON_TYPE, _JOB_BODY),
        "parameters": [_IDEMPOTENCY, *_WAITING],
        "status": 202,
    },
    ("GET", "/v1/jobs"): {"answer": "JobList", "parameters": _paging(100, 20)},
    ("GET", "/v1/jobs/{job_id}"): {"answer": "Job", "parameters": _WAITING},
    ("DELETE", "/v1/jobs/{job_id}"): {"answer": "Job"},
    ("GET", "/v1/jobs/{job_id}/content"): {},
}
_HEADERS = {
    "Location": {"schema": {"type": "string"}, "description": "Where the job is."},
    "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds after which to look at an open job again."},
}


def described(method: str, url: str) -> dict[str, Any]:
    """Keywords of `add_api_route` for a route of files, batches or jobs."""
    route = _ROUTES[method, url]
    status = route.get("status", 200)
    answer: _Json = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
    if "answer" in route:
        answer = {"content": {JSON_TYPE: {"schema": _ref(route["answer"])}}}
    if route.get("answer") == "Job":
        answer["headers"] = {name: header for name, header in _HEADERS.items() if status == 202 or name != "Location"}
    extra: _Json = {"parameters": route.get("parameters", []), "responses": {str(status): answer}}
    if "body" in route:
        content_type, schema = route["body"]
        extra["requestBody"] = {"required": True, "content": {content_type: {"schema": schema}}}
    error = {"content": {JSON_TYPE: {"schema": _ref("Error")}}}
    return {
        "tags": [url.split("/")[2]],
        "status_code": status,
        "responses": {"4XX": {"description": "Refused, and why.", **error}},
        "openapi_extra": extra,
    }
