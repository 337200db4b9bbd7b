"""The gateway's HTTP app: which routes there are, and what each does with a `Backend`.

The app holds no workload itself. It asks `directory_source` on every request, so what is served can change under
a running door, and it hands the body's own bytes on, so engines see exactly what the client sent. Handlers raise
`Refused` or a `CallError`; one place each turns those into OpenAI-shaped replies.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

import cotenant
from cotenant.calls import BY_URL, JSON_TYPE, Backend, Call, Directory, Reply, Served, StreamedReply, error_reply
from cotenant.calls.cost import units_of
from cotenant.calls.desk import Desk
from cotenant.calls.hops import hop_of
from cotenant.config.model import Gateway
from cotenant.errors import CallError, JobError, Overloaded, ReplicaDied, UnknownWorkload, WorkloadUnavailable
from cotenant.gateway import openapi
from cotenant.gateway.answers import (
    CLIENT_GONE,
    ClientGone,
    Refused,
    ReplyAnswer,
    StreamAnswer,
    reply_of,
    reply_of_job,
    while_connected,
)
from cotenant.gateway.bodies import MULTIPART, form_json, media_type, parse_json, parse_multipart, read_body
from cotenant.gateway.desk_routes import NO_JOBS, add_desk_routes
from cotenant.gateway.edge import Edge
from cotenant.gateway.keys import Keyring
from cotenant.gateway.visit import visit_of
from cotenant.telemetry.logs import event
from cotenant.telemetry.metrics import GatewayMetrics

LOG = logging.getLogger("cotenant.gateway")

DirectorySource = Callable[[], Directory]

TEMPLATES_URL = "/v1/mockups/templates"
_TEMPLATES_TIMEOUT_S = 30.0
_STATUS_TIMEOUT_S = 5.0


def create_app(
    directory_source: DirectorySource,
    backend: Backend,
    gateway: Gateway,
    keys: Keyring,
    metrics: GatewayMetrics,
    *,
    desk: Desk | None = None,
    no_desk: str = NO_JOBS,
    max_job_s: float | None = None,
) -> FastAPI:
    """The gateway's app. Serves whatever `directory_source` says at the moment of each request.

    Files, batches and jobs are asked of `desk`; without one their routes answer 404 with the text `no_desk`. A request
    that another ingress sends as a job may take up to `max_job_s`; None holds it to its workload's deadline.
    """
    app = FastAPI(
        title="cotenant",
        version=cotenant.__version__,
        summary="3D mockups, diffusion models and language models that share GPUs.",
        redoc_url=None,
        redirect_slashes=False,
    )
    max_body_bytes = int(gateway.max_body_mib * 2**20)
    door = _Door(directory_source, backend, max_body_bytes, metrics, max_job_s)
    for url, name in (("/v1/chat/completions", "chat"), ("/v1/completions", "completions")):
        app.add_api_route(url, door.language, methods=["POST"], name=name, **openapi.operation(url))
    app.add_api_route("/v1/models", door.models, methods=["GET"], tags=["models"])
    app.add_api_route("/v1/models/{model:path}", door.model, methods=["GET"], tags=["models"])
    app.add_api_route("/v1/mockups", door.mockup, methods=["POST"], **openapi.operation("/v1/mockups"))
    for url, name in (("/v1/images/generations", "generate images"), ("/v1/images/edits", "edit images")):
        app.add_api_route(url, door.image, methods=["POST"], name=name, **openapi.operation(url))
    app.add_api_route(TEMPLATES_URL, door.templates, methods=["GET"], tags=["mockups"])
    add_desk_routes(app, desk, max_body_bytes, no_desk=no_desk)
    for url, endpoint in (("/healthz", door.healthz), ("/readyz", door.readyz), ("/metrics", door.metrics)):
        app.add_api_route(url, endpoint, methods=["GET"], tags=["operation"])
        app.add_api_route(url, endpoint, methods=["HEAD"], include_in_schema=False)

    async def refused(request: Request, error: Exception) -> Response:
        if isinstance(error, Refused):
            return ReplyAnswer(error.reply)
        if isinstance(error, JobError):
            reply = reply_of_job(error)
            if reply.status >= 500:
                told = {"request_id": visit_of(request.scope).request_id, "reason": str(error)}
                event(LOG, "desk_failed", level=logging.WARNING, error=error, **told)
            return ReplyAnswer(reply)
        if isinstance(error, ClientGone):
            return ReplyAnswer(Reply(CLIENT_GONE, b""))  # for the log and the counts: nobody is there to read it
        return ReplyAnswer(reply_of(error if isinstance(error, CallError) else WorkloadUnavailable("failed")))

    async def not_served(request: Request, error: Exception) -> Response:
        return ReplyAnswer(_not_served(app, request, error))

    for kind in (Refused, ClientGone, CallError, JobError):
        app.add_exception_handler(kind, refused)
    app.add_exception_handler(HTTPException, not_served)
    app.add_middleware(Edge, keys=keys, metrics=metrics, open_metrics=gateway.open_metrics)
    openapi.install(app)
    return app


class _Door:
    """The routes' handlers."""

    def __init__(
        self,
        directory_source: DirectorySource,
        backend: Backend,
        max_body_bytes: int,
        metrics: GatewayMetrics,
        max_job_s: float | None,
    ) -> None:
        self._directory = directory_source
        self._backend = backend
        self._max_body_bytes = max_body_bytes
        self._metrics = metrics
        self._max_job_s = max_job_s
        self._created = int(time.time())

    async def language(self, request: Request) -> Response:
        """Answers a prompt, whole or (with `stream: true`) as server-sent events."""
        raw = await read_body(request, self._max_body_bytes)
        body = parse_json(request.headers, raw)
        served = self._route(request.scope["path"], body, "model")
        units = units_of(served.kind, body)
        return await self._pass_on(request, served, raw, units=units, stream=body.get("stream") is True)

    async def mockup(self, request: Request) -> Response:
        """Renders artwork on a 3D template; answers image bytes or JSON, by the Accept header."""
        raw = await read_body(request, self._max_body_bytes)
        files: dict[str, bytes] = {}
        if media_type(request.headers) == MULTIPART:
            body, files = await parse_multipart(request.headers, raw)
            raw = form_json(body)
        else:
            body = parse_json(request.headers, raw, accepted=f"{JSON_TYPE} or {MULTIPART}")
        served = self._route(request.scope["path"], body, "template")
        return await self._pass_on(request, served, raw, units=units_of(served.kind, body), files=files)

    async def image(self, request: Request) -> Response:
        """Makes pictures from words, or edits an image inside a mask; as OpenAI's image routes do."""
        raw = await read_body(request, self._max_body_bytes)
        files: dict[str, bytes] = {}
        edits = request.scope["path"].endswith("/edits")
        if edits and media_type(request.headers) == MULTIPART:
            body, files = await parse_multipart(request.headers, raw)
            raw = form_json(body)
        else:
            accepted = f"{JSON_TYPE} or {MULTIPART}" if edits else JSON_TYPE
            body = parse_json(request.headers, raw, accepted=accepted)
        served = self._route(request.scope["path"], body, "model")
        return await self._pass_on(request, served, raw, units=units_of(served.kind, body), files=files)

    async def models(self) -> Response:
        """Lists the models that requests may name."""
        cards = [self._card(name, served) for served in self._directory().workloads for name in served.models]
        return _json(200, {"object": "list", "data": cards})

    async def model(self, model: str) -> Response:
        """Tells about one model."""
        cards = {name: served for served in self._directory().workloads for name in served.models}
        if model not in cards:
            text = f"the model {model!r} does not exist; {_nearest(model, cards)}"
            return ReplyAnswer(error_reply(404, text, param="model", code="model_not_found"))
        return _json(200, self._card(model, cards[model]))

    async def templates(self, request: Request) -> Response:
        """Lists the mockup templates, and what each renderer is and allows; says which workload can't tell."""
        visit = visit_of(request.scope)
        call = Call(
            TEMPLATES_URL,
            method="GET",
            request_id=visit.request_id,
            tenant=visit.tenant,
            deadline_s=_TEMPLATES_TIMEOUT_S,
        )

        async def ask_all() -> list[dict[str, Any]]:
            return await asyncio.gather(*(self._templates_of(served, call) for served in mockups))

        mockups = self._directory().of_kind("mockup")
        answers = await while_connected(ask_all(), request.receive)
        broken = [answer for answer in answers if "error" in answer]
        if mockups and len(broken) == len(mockups):
            text = "; ".join(f"{answer['workload']}: {answer['error']}" for answer in broken)
            raise WorkloadUnavailable(f"no mockup workload could tell its templates: {text}")
        data = [
            {**template, "workload": answer["workload"], "variant": answer.get("variant")}
            for answer in answers
            for template in answer.pop("data", ())
        ]
        renderers = [answer for answer in answers if answer not in broken]
        return _json(200, {"object": "list", "data": data, "renderers": renderers, "unavailable": broken})

    async def healthz(self) -> Response:
        """200 while the gateway itself runs."""
        return _json(200, {"status": "ok"})

    async def readyz(self) -> Response:
        """200 when every workload can take requests; otherwise 503, with which can't and why."""
        try:
            known = await asyncio.wait_for(self._backend.status(), _STATUS_TIMEOUT_S)
        except asyncio.TimeoutError:
            raise WorkloadUnavailable(f"the workloads' status did not come within {_STATUS_TIMEOUT_S:g} s") from None
        table: dict[str, dict[str, Any]] = {}
        for served in self._directory().workloads:
            status = known.get(served.name)
            table[served.name] = (
                {"ready": status.ready, "replicas": status.replicas, "message": status.message}
                if status is not None
                else {"ready": False, "replicas": 0, "message": "is not deployed"}
            )
        waiting = [f"{name}: {row['message'] or 'no replica runs'}" for name, row in table.items() if not row["ready"]]
        if not waiting:
            return _json(200, {"ready": True, "workloads": table})
        error = error_reply(503, f"not ready: {'; '.join(waiting)}", code="not_ready").json()
        return _json(503, {"ready": False, "workloads": table, **error})

    async def metrics(self) -> Response:
        """The gateway's counts, for Prometheus."""
        return ReplyAnswer(Reply(200, self._metrics.render(), self._metrics.content_type))

    def _route(self, url: str, body: Mapping[str, Any], chooser: str) -> Served:
        """The workload for `body`. Raises Refused: 400 if it names no model or template, 404 for one nobody serves."""
        try:
            return self._directory().route(url, body)
        except UnknownWorkload as error:
            wanted = body.get(chooser)
            if not self._directory().of_kind(BY_URL[url].kind):
                reply = error_reply(404, str(error), code="not_served")
            elif isinstance(wanted, str) and wanted:
                reply = error_reply(404, str(error), param=chooser, code=f"{chooser}_not_found")
            else:
                reply = error_reply(400, str(error), param=chooser, code="missing_required_parameter")
            raise Refused(reply) from None

    async def _pass_on(
        self,
        request: Request,
        served: Served,
        raw: bytes,
        *,
        units: float,
        stream: bool = False,
        files: Mapping[str, bytes] | None = None,
    ) -> Response:
        """The backend's answer within the workload's deadline. Repeats the call once if its replica died."""
        visit = visit_of(request.scope)
        visit.workload = served.name
        self._metrics.handed_on(served.name)
        hop = hop_of(request.headers)
        deadline_s = served.deadline_s
        if hop.deadline_s is not None and self._max_job_s is not None:
            deadline_s = min(hop.deadline_s, self._max_job_s)
        late = f"{served.name} did not finish within its deadline of {deadline_s:g} s; the work was cancelled"
        call = Call(
            url=request.scope["path"],
            body=raw,
            accept=request.headers.get("accept", JSON_TYPE),
            files=files or {},
            request_id=visit.request_id,
            tenant=visit.tenant,
            deadline_s=deadline_s,
            batch=hop.batch,
            priority=hop.priority,
            units=units,
            spilled=hop.spilled,
        )

        def left_s() -> float:
            return max(0.0, deadline_s - visit.elapsed_s)

        async def attempt() -> Reply | StreamedReply:
            timed = replace(call, deadline_s=left_s())
            return await (self._backend.stream if stream else self._backend.call)(served.name, timed)

        async def work() -> Reply | StreamedReply:
            try:
                return await attempt()
            except ReplicaDied:
                event(LOG, "call_repeated", request_id=visit.request_id, workload=served.name)
                return await attempt()

        try:
            reply = await while_connected(work(), request.receive, timeout_s=left_s(), late=late)
        except Overloaded:
            self._metrics.refused(served.name)
            raise
        if isinstance(reply, Reply):
            return ReplyAnswer(reply)
        return StreamAnswer(reply, self._metrics, timeout_s=left_s(), late=late)

    async def _templates_of(self, served: Served, call: Call) -> dict[str, Any]:
        """One workload's own description of its templates, or the reason why there is none."""
        try:
            reply = await asyncio.wait_for(self._backend.call(served.name, call), _TEMPLATES_TIMEOUT_S)
            answer = reply.json()
        except (CallError, ValueError, asyncio.TimeoutError) as error:
            return {"workload": served.name, "error": str(error) or f"no answer within {_TEMPLATES_TIMEOUT_S:g} s"}
        if not reply.ok:
            return {"workload": served.name, "error": answer.get("error", {}).get("message", f"status {reply.status}")}
        return {"workload": served.name, **{name: value for name, value in answer.items() if name != "object"}}

    def _card(self, name: str, served: Served) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "cotenant",
            "root": served.models[0],
            "parent": None,
        }


def _not_served(app: FastAPI, request: Request, error: Exception) -> Reply:
    """The reply to a request that no route takes."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    path, method = request.scope["path"], request.method
    if status == 404:
        known = [path for path in app.openapi()["paths"] if "{" not in path]
        return error_reply(404, f"no route {path[:200]}; {_nearest(path, known)}", code="route_not_found")
    headers = dict(getattr(error, "headers", None) or {})
    if status == 405:
        allowed = headers.get("Allow", "another method")
        return error_reply(405, f"{path} does not take {method}; use {allowed}", code="wrong_method", headers=headers)
    return error_reply(status, str(getattr(error, "detail", "")) or "the request was refused", headers=headers)


def _nearest(wanted: str, known: Any) -> str:
    names = list(known)
    near = difflib.get_close_matches(wanted[:200], names, n=1)
    return f"did you mean {near[0]}?" if near else f"here are {', '.join(names)}"


def _json(status: int, body: Any) -> Response:
    return ReplyAnswer(Reply(status, orjson.dumps(body)))
