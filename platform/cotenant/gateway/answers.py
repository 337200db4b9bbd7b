"""How replies leave: whole, streamed, or as an error; and how work ends early when nobody waits for it.

Work behind a request never outlives it: when the client leaves or the deadline passes, it is cancelled and seen
to its end before the request is.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cotenant.calls import Reply, StreamedReply, error_reply
from cotenant.errors import (
    BudgetExceeded,
    CallError,
    DeadlineExceeded,
    IdentityConflict,
    JobError,
    MalformedJob,
    Overloaded,
    ReplicaDied,
    RequestRefused,
    SourceUnavailable,
    StoreUnavailable,
    UnknownWorkload,
)
from cotenant.gateway.visit import visit_of
from cotenant.telemetry.logs import event
from cotenant.telemetry.metrics import GatewayMetrics

LOG = logging.getLogger("cotenant.gateway")

#: Status noted (never sent) for a client that left before its answer; nginx's number for it.
CLIENT_GONE = 499

EVENT_STREAM = "text/event-stream"

#: When to come back to a store or a queue that did not answer.
_RETRY_JOBS_S = 5

#: Headers that belong to one hop, or that the server writes itself.
_NOT_PASSED_ON = frozenset({"connection", "content-length", "content-type", "date", "keep-alive", "server",
                            "te", "trailer", "transfer-encoding", "upgrade", "x-request-id"})  # fmt: skip

T = TypeVar("T")


class ClientGone(Exception):
    """The client left before its answer."""


class Refused(Exception):
    """The request itself is at fault; holds the reply that says so."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(f"refused with {reply.status}")
        self.reply = reply


def reply_of(error: CallError) -> Reply:
    """The OpenAI-shaped reply for a call that ended without one."""
    text = str(error)
    if isinstance(error, UnknownWorkload):
        return error_reply(404, text, code="model_not_found")
    if isinstance(error, Overloaded):
        return error_reply(429, text, code="queue_full", headers=_retry_after(error.retry_after_s))
    if isinstance(error, DeadlineExceeded):
        return error_reply(504, text, code="deadline_exceeded")
    if isinstance(error, BudgetExceeded):
        return error_reply(507, text, code="budget_exceeded")
    code = "replica_died" if isinstance(error, ReplicaDied) else "workload_unavailable"
    return error_reply(503, text, code=code, headers=_retry_after(1 if isinstance(error, ReplicaDied) else 5))


def reply_of_job(error: JobError) -> Reply:
    """The OpenAI-shaped reply for a request about jobs, batches or files that could not be granted.

    What the store or the queue said is for the operator's log: it names buckets and projects.
    """
    if isinstance(error, RequestRefused):
        return error_reply(error.status, str(error), param=error.param, code=error.code)
    if isinstance(error, StoreUnavailable | SourceUnavailable):
        what, code = (
            ("store", "store_unavailable") if isinstance(error, StoreUnavailable) else ("queue", "queue_unavailable")
        )
        text = f"the jobs' {what} does not answer; nothing was lost, send the request again in {_RETRY_JOBS_S} seconds"
        return error_reply(503, text, code=code, headers=_retry_after(_RETRY_JOBS_S))
    if isinstance(error, IdentityConflict):
        return error_reply(409, str(error), code="identity_conflict")
    if isinstance(error, MalformedJob):
        return error_reply(400, str(error), code="malformed_job")
    return error_reply(500, "what is kept about this can't be read; the gateway's log has the request's id and why")


async def while_connected(
    work: Coroutine[Any, Any, T], receive: Receive, *, timeout_s: float | None = None, late: str = ""
) -> T:
    """The result of `work`, cancelled when the client leaves or `timeout_s` is over. The body must be read already.

    Works as `asyncio.timeout` does, in the caller's own task: a request pays for one watcher and no more.

    Raises:
        ClientGone: the client left.
        DeadlineExceeded: with the text `late`.
    """
    loop, me = asyncio.get_running_loop(), asyncio.current_task()
    assert me is not None
    ended: list[Exception] = []

    def end(why: Exception) -> None:
        if not ended:
            ended.append(why)
            me.cancel()

    def left(watcher: asyncio.Task[None]) -> None:
        if not watcher.cancelled():
            end(ClientGone())

    timer = loop.call_later(timeout_s, end, DeadlineExceeded(late)) if timeout_s is not None else None
    watcher = loop.create_task(_disconnected(receive))
    watcher.add_done_callback(left)
    try:
        result = await work
    except BaseException as error:
        if not ended or _cancelled_by_another(me) or not isinstance(error, asyncio.CancelledError):
            raise
        raise ended[0] from None
    finally:
        watcher.remove_done_callback(left)
        watcher.cancel()
        if timer is not None:
            timer.cancel()
    if ended:  # it ended all the same, too late for anybody to have it
        _cancelled_by_another(me)
        await close(result)
        raise ended[0]
    return result


class ReplyAnswer(Response):
    """A whole reply."""

    def __init__(self, reply: Reply) -> None:
        self.status_code = reply.status
        self.background = None
        self.body = reply.body
        self.raw_headers = [*_head(reply.content_type, reply.headers), (b"content-length", b"%d" % len(reply.body))]


class StreamAnswer(Response):
    """A reply whose chunks go out as they come: no framework layer per chunk, no task per chunk.

    A failure in the middle reaches the client as an SSE `data: {"error": …}` and the end of the stream, since the
    status is long sent. Closes the reply's chunks however it ends.
    """

    def __init__(self, reply: StreamedReply, metrics: GatewayMetrics, *, timeout_s: float, late: str) -> None:
        self.status_code = reply.status
        self.background = None
        self.raw_headers = [*_head(reply.content_type, reply.headers), (b"cache-control", b"no-store"),
                            (b"x-accel-buffering", b"no")]  # fmt: skip
        self._reply = reply
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._late = late

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        visit = visit_of(scope)
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            try:
                await while_connected(self._pump(scope), receive, timeout_s=self._timeout_s, late=self._late)
            except ClientGone:
                visit.outcome = "client_gone"
                return
            except Exception as error:
                visit.outcome = "broken"
                event(LOG, "stream_broke", level=logging.WARNING, error=error, request_id=visit.request_id)
                if not self._reply.content_type.startswith(EVENT_STREAM):
                    return  # unfinished, so the server closes the connection: the only way left to say so
                told = reply_of(error) if isinstance(error, CallError) else error_reply(500, "the stream broke")
                await visit.send(_chunk(b"data: " + told.body + b"\n\n"))
            await visit.send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await close(self._reply)

    async def _pump(self, scope: Scope) -> None:
        visit = visit_of(scope)
        visit.streamed = True
        send = visit.send
        async for chunk in self._reply.chunks:
            if visit.chunks == 0:
                visit.first_chunk_s = visit.elapsed_s
                self._metrics.first_chunk(visit.workload, visit.first_chunk_s)
            visit.chunks += 1
            await send(_chunk(chunk))


async def close(reply: object) -> None:
    """End the work behind a streamed reply; does nothing to any other."""
    if isinstance(reply, StreamedReply):
        aclose = getattr(reply.chunks, "aclose", None)
        if aclose is not None:
            await aclose()


def _chunk(body: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": True}


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _cancelled_by_another(task: asyncio.Task[Any]) -> bool:
    """Take back our own cancellation of `task`; whether somebody else asked for one too."""
    uncancel = getattr(task, "uncancel", None)  # Python 3.10 does not count
    return uncancel is not None and uncancel() > 0


def _head(content_type: str, headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    passed = [(name.lower(), value) for name, value in headers.items() if name.lower() not in _NOT_PASSED_ON]
    return [
        (name.encode("latin-1"), value.encode("latin-1")) for name, value in (("content-type", content_type), *passed)
    ]


def _retry_after(seconds: float) -> dict[str, str]:
    return {"retry-after": str(max(1, math.ceil(seconds)))}
