"""The contract between the front doors and the engines: calls, replies, routes, the backend edge. No Ray."""

from cotenant.calls.backend import Backend, InMemoryBackend, WorkloadStatus
from cotenant.calls.reply import JSON_TYPE, Call, Reply, StreamedReply, error_body, error_reply
from cotenant.calls.routes import BY_URL, ROUTES, Directory, Route, Served, template_name
from cotenant.calls.trip import Answer, Answers, Together, Trip

__all__ = [
    "BY_URL",
    "JSON_TYPE",
    "ROUTES",
    "Answer",
    "Answers",
    "Backend",
    "Call",
    "Directory",
    "InMemoryBackend",
    "Reply",
    "Route",
    "Served",
    "StreamedReply",
    "Together",
    "Trip",
    "WorkloadStatus",
    "error_body",
    "error_reply",
    "template_name",
]
