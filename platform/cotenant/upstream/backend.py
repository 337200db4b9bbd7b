"""A `Backend` behind HTTP: another cotenant, or anything that speaks the OpenAI routes.

What always holds: chunks are passed on as they arrive; a call that nobody waits for closes its connection, which is
how the other side learns to stop; redirects are not followed, certificates are verified. The URL is the operator's
own, so it may be a private address.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import httpx

from cotenant.calls import JSON_TYPE, Call, Reply, StreamedReply, Together, Trip, WorkloadStatus
from cotenant.errors import CallError, DeadlineExceeded, UnknownWorkload, WorkloadUnavailable
from cotenant.upstream.auth import Auth, KeyAuth
from cotenant.upstream.failures import SHUT_OUT, error_of, failure_of
from cotenant.upstream.request import Part, request_of

_CONNECT_S = 5.0
_STATUS_S = 5.0
#: Idle connections are closed before servers (75 s ours) or load balancers (60 s many) close them.
_IDLE_S = 30.0
_IDLE_CONNECTIONS = 64
#: A peer that is gone without a word is noticed after about a minute, even while nothing is expected of it.
_KEEP_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
]
#: Headers that belong to one hop.
_OF_ONE_HOP = frozenset(
    {"connection", "content-length", "content-type", "date", "keep-alive", "server", "transfer-encoding", "trailer"}
)


class UpstreamBackend:
    """Calls `url` for the workloads that `models` names. Belongs to one event loop."""

    def __init__(
        self,
        url: str,
        models: Mapping[str, str | None],
        *,
        auth: Auth | None = None,
        spilled_from: str = "",
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """
        Args:
            url: of the server, without the route.
            models: by workload, what the other server calls its model; None where the request's name is right.
            spilled_from: the platform whose overflow is sent there; empty where this is the requests' only way.
            transport: given by tests only.
        """
        self._url = url.rstrip("/")
        self.host = httpx.URL(url).netloc.decode("ascii")
        self._models = dict(models)
        self._auth = auth or KeyAuth()
        self._spilled_from = spilled_from
        self._shut_out = False
        limits = httpx.Limits(
            max_connections=None, max_keepalive_connections=_IDLE_CONNECTIONS, keepalive_expiry=_IDLE_S
        )
        self._client = httpx.AsyncClient(
            transport=transport or httpx.AsyncHTTPTransport(limits=limits, socket_options=_KEEP_ALIVE, trust_env=False),
            headers={"user-agent": "cotenant"},
            follow_redirects=False,
            trust_env=False,
        )

    async def call(self, workload: str, call: Call) -> Reply:
        self._require(workload)
        try:
            return await asyncio.wait_for(self._whole(workload, call), call.deadline_s)
        except asyncio.TimeoutError:
            raise _late(workload, call) from None

    def call_many(self, workload: str, calls: Sequence[Call]) -> Trip:
        return Together([self.call(workload, call) for call in calls])

    async def stream(self, workload: str, call: Call) -> StreamedReply:
        self._require(workload)
        ends_at = None if call.deadline_s is None else time.monotonic() + call.deadline_s
        try:
            response = await asyncio.wait_for(self._begin(workload, call), call.deadline_s)
        except asyncio.TimeoutError:
            raise _late(workload, call) from None
        kind, headers = response.headers.get("content-type", JSON_TYPE), _passed_on(response.headers)
        late = None if ends_at is None else (ends_at, _late(workload, call))
        return StreamedReply(response.status_code, kind, _Chunks(self.host, response, late), headers)

    async def status(self) -> Mapping[str, WorkloadStatus]:
        """As the other gateway's `/readyz` tells. A server without one is ready if it lists its models.

        One that can't be reached, or lets nobody in, is not ready: whoever asks waits, and blames no job for it.
        """
        try:
            if self._shut_out:
                await self.ask("/v1/models", within_s=_STATUS_S)
                self._shut_out = False
            known = await self._get("/readyz")
            if known.status_code == 404:
                await self.ask("/v1/models", within_s=_STATUS_S)
                return dict.fromkeys(self._models, WorkloadStatus(True, 1))
        except CallError as error:
            return dict.fromkeys(self._models, WorkloadStatus(False, 0, str(error)))
        table = _table(known)
        if table is None:
            refusal = error_of(self.host, known.status_code, known.headers, known.content)
            why = str(refusal or f"{self.host} answers {known.status_code} to /readyz")
            return dict.fromkeys(self._models, WorkloadStatus(False, 0, why))
        return {
            name: _status(table[name]) if name in table else WorkloadStatus(False, 0, f"{self.host} has no {name}")
            for name in self._models
        }

    async def ask(self, path: str, *, within_s: float) -> Any:
        """What the server says at `path`, as JSON. Raises CallError."""
        reply = await self._get(path, within_s=within_s)
        refusal = error_of(self.host, reply.status_code, reply.headers, reply.content)
        if refusal is not None:
            raise refusal
        try:
            return reply.json()
        except ValueError:
            raise WorkloadUnavailable(f"{self.host} answers {path} with something else than JSON") from None

    async def close(self) -> None:
        """Close the connections; calls under way end with an error."""
        await self._client.aclose()

    def _require(self, workload: str) -> None:
        if workload not in self._models:
            raise UnknownWorkload(f"{self.host} is not asked for {workload!r}; it is for {', '.join(self._models)}")

    async def _whole(self, workload: str, call: Call) -> Reply:
        response = await self._begin(workload, call)
        try:
            body = b"".join([chunk async for chunk in response.aiter_raw()])
        except Exception as error:
            raise failure_of(self.host, error) from error
        finally:
            await response.aclose()
        kind = response.headers.get("content-type", JSON_TYPE)
        return Reply(response.status_code, body, kind, _passed_on(response.headers))

    async def _begin(self, workload: str, call: Call) -> httpx.Response:
        """The response, its head read and its status a reply's. Raises CallError."""
        sent = request_of(call, model=self._models[workload], spilled_from=self._spilled_from)
        auth = await self._auth.headers()
        request = self._client.build_request(
            call.method,
            self._url + call.url,
            headers={**sent.headers, **auth},
            content=sent.content if not sent.parts else None,
            files=_form(sent.parts) if sent.parts else None,
            # The whole is timed by whoever calls; a read alone must end too when nobody looks at the time.
            timeout=httpx.Timeout(call.deadline_s, connect=_CONNECT_S),
        )
        try:
            response = await self._client.send(request, stream=True)
        except Exception as error:
            raise failure_of(self.host, error) from error
        if 200 <= response.status_code < 300:
            return response
        try:
            body = await response.aread()
        except Exception as error:
            raise failure_of(self.host, error) from error
        finally:
            await response.aclose()
        self._shut_out = response.status_code in SHUT_OUT
        refusal = error_of(self.host, response.status_code, response.headers, body)
        if refusal is not None:
            raise refusal
        return httpx.Response(response.status_code, headers=response.headers, stream=httpx.ByteStream(body))

    async def _get(self, path: str, *, within_s: float = _STATUS_S) -> httpx.Response:
        auth = await self._auth.headers()
        try:
            return await asyncio.wait_for(
                self._client.get(self._url + path, headers=dict(auth), timeout=within_s), within_s
            )
        except asyncio.TimeoutError:
            raise WorkloadUnavailable(f"{self.host} does not answer {path} within {within_s:g} s") from None
        except Exception as error:
            raise _unavailable(failure_of(self.host, error)) from error


class _Chunks(AsyncIterator[bytes]):
    """The chunks of one answer as they arrive. Closing them before their end ends the work behind them."""

    def __init__(self, host: str, response: httpx.Response, late: tuple[float, CallError] | None) -> None:
        self._host = host
        self._response = response
        self._late = late
        self._chunks = response.aiter_raw()

    def __aiter__(self) -> _Chunks:
        return self

    async def __anext__(self) -> bytes:
        if self._late is not None and time.monotonic() > self._late[0]:
            await self.aclose()
            raise self._late[1]
        try:
            return await self._chunks.__anext__()
        except StopAsyncIteration:
            raise
        except Exception as error:
            raise failure_of(self._host, error) from error

    async def aclose(self) -> None:
        await self._response.aclose()


def _form(parts: Sequence[Part]) -> Any:
    return list(parts)


def _passed_on(headers: httpx.Headers) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in _OF_ONE_HOP}


def _late(workload: str, call: Call) -> CallError:
    return DeadlineExceeded(f"{workload} had no answer within {call.deadline_s or 0:g} s and was cancelled")


def _unavailable(error: CallError) -> WorkloadUnavailable:
    return error if isinstance(error, WorkloadUnavailable) else WorkloadUnavailable(str(error))


def _table(reply: httpx.Response) -> Mapping[str, Any] | None:
    try:
        table = reply.json()["workloads"]
    except (ValueError, KeyError, TypeError):
        return None
    return table if isinstance(table, dict) else None


def _status(row: Any) -> WorkloadStatus:
    try:
        return WorkloadStatus(bool(row["ready"]), int(row["replicas"]), str(row.get("message", "")))
    except (KeyError, TypeError, ValueError):
        return WorkloadStatus(False, 0, "its status can't be read")
