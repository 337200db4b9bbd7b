"""What the gateway notes about one request while it answers: for the access log and the metrics, nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

from starlette.types import Scope, Send

_KEY = "cotenant.visit"


@dataclass
class Visit:
    """One request, from its head to the last byte of its answer.

    `send` is the server's own: the framework wraps it in layers that only look at an answer's start, so a
    stream sends its chunks here and skips them. `outcome` is empty for an answer that went out whole.
    """

    request_id: str
    send: Send
    started_s: float
    tenant: str = ""
    workload: str = ""
    status: int = 0
    streamed: bool = False
    chunks: int = 0
    first_chunk_s: float | None = None
    outcome: str = ""

    @property
    def elapsed_s(self) -> float:
        return perf_counter() - self.started_s


def begin(scope: Scope, send: Send, request_id: str) -> Visit:
    visit = Visit(request_id, send, perf_counter())
    scope[_KEY] = visit
    return visit


def visit_of(scope: Scope) -> Visit:
    """The visit that `Edge` began for this request."""
    visit: Visit = scope[_KEY]
    return visit
