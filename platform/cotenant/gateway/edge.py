"""The outermost layer of the app: request id, key, crash barrier, access log, metrics. Plain ASGI.

Every request that gets here leaves with an `x-request-id`, one access line and one count, however it ends. The
send wrapper is a plain function that hands on the server's own awaitable, so a chunk pays no coroutine here.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Awaitable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cotenant.calls import Reply, error_reply
from cotenant.gateway.answers import CLIENT_GONE, ReplyAnswer
from cotenant.gateway.keys import Keyring
from cotenant.gateway.visit import Visit, begin
from cotenant.telemetry.logs import event
from cotenant.telemetry.metrics import GatewayMetrics

ACCESS = logging.getLogger("cotenant.gateway.access")
LOG = logging.getLogger("cotenant.gateway")

#: Paths that need no key: probes have none to give, and the API's description holds no secret.
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/openapi.json", "/docs"})
#: Paths asked every second or so, whose lines would drown the rest of the access log.
_QUIET_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_LOOPBACK_HOST = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?", re.IGNORECASE)
_LOOPBACK_ORIGIN = re.compile(rf"https?://{_LOOPBACK_HOST.pattern}", re.IGNORECASE)


class Edge:
    def __init__(self, app: ASGIApp, *, keys: Keyring, metrics: GatewayMetrics, open_metrics: bool = False) -> None:
        """`open_metrics`: who asks for `/metrics` needs no key."""
        self._app = app
        self._open = OPEN_PATHS | {"/metrics"} if open_metrics else OPEN_PATHS
        self._keys = keys
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        visit = begin(scope, send, given if _REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}")
        id_header = (b"x-request-id", visit.request_id.encode())

        def noting(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                message["headers"] = [*message.get("headers", ()), id_header]
            return send(message)

        try:
            refusal = self._refusal(scope["path"], headers, visit)
            if refusal is not None:
                await ReplyAnswer(refusal)(scope, receive, noting)
            else:
                await self._app(scope, receive, noting)
        except Exception as error:
            event(LOG, "request_crashed", level=logging.ERROR, error=error, request_id=visit.request_id)
            visit.outcome = "crashed"
            if visit.status:
                return  # unfinished, so the server closes the connection: the only way left to say so
            await ReplyAnswer(error_reply(500, f"the gateway failed; quote request {visit.request_id}"))(
                scope, receive, noting
            )
        finally:
            self._account(scope, visit)

    def _refusal(self, path: str, headers: Headers, visit: Visit) -> Reply | None:
        """The reply to a caller who may not come in; notes the tenant of one who may."""
        if path in self._open:
            return None
        if not self._keys:
            # Without a key only loopback is served: not a web page that rebinds its name to it, nor one from
            # elsewhere that has its visitor's browser post here.
            origin = headers.get("origin")
            if _LOOPBACK_HOST.fullmatch(headers.get("host", "")) and (
                origin is None or _LOOPBACK_ORIGIN.fullmatch(origin)
            ):
                return None
            return error_reply(
                403,
                "no API key is configured, so Host and Origin must be this machine; set an API key to be asked by name",
            )
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else headers.get("api-key", "")
        tenant = self._keys.tenant_of(key) if key else None
        if tenant is None:
            have = "the API key is nobody's" if key else "no API key was given"
            return error_reply(
                401,
                f"{have}; send one as 'Authorization: Bearer <key>'",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        visit.tenant = tenant
        return None

    def _account(self, scope: Scope, visit: Visit) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        status = visit.status or CLIENT_GONE
        self._metrics.answered(
            workload=visit.workload, route=route, status=status, tenant=visit.tenant, seconds=visit.elapsed_s
        )
        if scope["path"] in _QUIET_PATHS and status == 200:
            return
        event(
            ACCESS,
            "request",
            request_id=visit.request_id,
            method=scope["method"],
            route=route,
            status=status,
            tenant=visit.tenant or None,
            workload=visit.workload or None,
            seconds=round(visit.elapsed_s, 4),
            chunks=visit.chunks if visit.streamed else None,
            first_chunk_s=round(visit.first_chunk_s, 4) if visit.first_chunk_s is not None else None,
            outcome=visit.outcome or None,
        )
