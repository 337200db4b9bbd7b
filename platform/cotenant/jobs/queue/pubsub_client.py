"""The connection to Pub/Sub, real or emulated: channels, credentials, patience, and what a failure is called.

One connection serves every source of a process and event loop, since the clients belong to the loop that they were
made in. It has two channels, so that a pull that waits, or a publish of ten megabytes, holds up no ack. A channel
whose server went away connects again by itself, a few seconds after the server is back at the latest.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import google.auth
import grpc
from google.api_core import exceptions as google_errors
from google.api_core.retry import AsyncRetry, if_exception_type
from google.auth import exceptions as auth_errors
from google.pubsub_v1 import PublisherAsyncClient, SubscriberAsyncClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcAsyncIOTransport

from cotenant.errors import SourceUnavailable

EMULATOR_ENV = "PUBSUB_EMULATOR_HOST"

_SCOPES = ("https://www.googleapis.com/auth/pubsub",)

#: How long one call may take, its repetitions included.
CALL_TIMEOUT_S = 20.0

#: Not Google's trouble but a wrong name, project or right: still "does not answer", with the text that says which.
FAILURES = (google_errors.GoogleAPIError, auth_errors.GoogleAuthError, grpc.RpcError, OSError, asyncio.TimeoutError)

#: Safe to repeat, and gone soon. A publish whose answer was lost is published twice, which costs the ingress a lookup.
_TRANSIENT = (
    google_errors.Aborted,
    google_errors.InternalServerError,
    google_errors.ResourceExhausted,
    google_errors.ServiceUnavailable,
    google_errors.Unknown,
)

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 250),
    # gRPC itself goes up to two minutes.
    ("grpc.max_reconnect_backoff_ms", 3000),
    # Channels with the same options would share one connection.
    ("grpc.use_local_subchannel_pool", 1),
]
#: So that a connection which the network forgot is not taken for an empty queue. The emulator refuses such pings.
_KEEPALIVE = [("grpc.keepalive_time_ms", 30_000), ("grpc.keepalive_timeout_ms", 10_000)]


class Connection:
    """Clients for one project. Whoever uses it holds it (`hold`, `release`); the last to let go closes it."""

    def __init__(self, project: str, emulator_host: str | None = None) -> None:
        self.project = project
        self.emulator = emulator_host or os.environ.get(EMULATOR_ENV)
        self._publisher: Any = None
        self._subscriber: Any = None
        self._acker: Any = None
        self._holders: set[int] = set()
        self._connecting = asyncio.Lock()

    async def hold(self, holder: object) -> None:
        """Connect if nobody did. Raises SourceUnavailable without credentials."""
        async with self._connecting:
            if self._subscriber is None:
                await self._connect()
            self._holders.add(id(holder))

    async def release(self, holder: object) -> None:
        async with self._connecting:
            self._holders.discard(id(holder))
            if self._holders or self._subscriber is None:
                return
            clients = (self._subscriber, self._publisher)
            self._subscriber = self._publisher = self._acker = None
            for client in clients:
                await client.transport.close()

    @property
    def publisher(self) -> Any:
        return self._publisher

    @property
    def puller(self) -> Any:
        """The subscriber client for pulls, which wait."""
        return self._subscriber

    @property
    def subscriber(self) -> Any:
        """The subscriber client for everything else, by the publisher's channel."""
        return self._acker

    @property
    def reached(self) -> bool:
        """Whether the pulls' channel has its server: a deadline that passed on one that has not is no empty queue."""
        return bool(self._subscriber.transport.grpc_channel.get_state() is grpc.ChannelConnectivity.READY)

    async def call(self, what: str, method: Callable[..., Awaitable[Any]], request: Any) -> Any:
        """One call, repeated while it fails in passing, for `CALL_TIMEOUT_S` together. Raises SourceUnavailable."""
        try:
            return await self.attempt(method, request)
        except FAILURES as error:
            raise self.unavailable(what, error) from error

    async def attempt(self, method: Callable[..., Awaitable[Any]], request: Any) -> Any:
        """As `call`, with Google's own exceptions."""
        retry = AsyncRetry(if_exception_type(*_TRANSIENT), initial=0.1, maximum=2.0, timeout=CALL_TIMEOUT_S)
        # gRPC keeps its deadline; this is for the waiting that is not gRPC's: for a token, for a thread.
        return await asyncio.wait_for(method(request, timeout=CALL_TIMEOUT_S, retry=retry), CALL_TIMEOUT_S + 1)

    def unavailable(self, what: str, error: BaseException) -> SourceUnavailable:
        """What is raised for any of `FAILURES`: where, what, why, and what to do where that is known."""
        where = f"the emulator at {self.emulator}" if self.emulator else f"Pub/Sub project {self.project}"
        text = " ".join(str(error).split())[:300] or type(error).__name__
        advice = next((advice for kind, advice in _ADVICE.items() if isinstance(error, kind)), "")
        return SourceUnavailable(f"{where} did not {what}: {text}{advice}")

    async def _connect(self) -> None:
        try:
            if self.emulator:
                channels = [grpc.aio.insecure_channel(self.emulator, _OPTIONS) for _ in range(2)]
                publisher = PublisherAsyncClient(transport=PublisherGrpcAsyncIOTransport(channel=channels[0]))
                subscriber = SubscriberAsyncClient(transport=SubscriberGrpcAsyncIOTransport(channel=channels[1]))
            else:
                # Looks for credentials, at the metadata server too: not on the loop.
                credentials, _ = await asyncio.to_thread(google.auth.default, scopes=_SCOPES)
                publisher = PublisherAsyncClient(
                    credentials=credentials, transport=_tuned(PublisherGrpcAsyncIOTransport)
                )
                subscriber = SubscriberAsyncClient(
                    credentials=credentials, transport=_tuned(SubscriberGrpcAsyncIOTransport)
                )
        except FAILURES as error:
            raise self.unavailable("connect", error) from error
        shared = SubscriberGrpcAsyncIOTransport(channel=publisher.transport.grpc_channel)
        self._acker = SubscriberAsyncClient(transport=shared)
        self._publisher, self._subscriber = publisher, subscriber


def _tuned(transport: Any) -> Callable[..., Any]:
    """Google's transport, endpoint and mutual TLS as it chooses them, on a channel with our options beside its own."""

    def channel(*args: Any, options: list[tuple[str, Any]], **named: Any) -> Any:
        chosen = dict([*options, *_OPTIONS, *_KEEPALIVE])
        return transport.create_channel(*args, options=list(chosen.items()), **named)

    return functools.partial(transport, channel=channel)


_ADVICE: Mapping[type[Exception], str] = {
    auth_errors.DefaultCredentialsError: (f"; without Google Cloud set {EMULATOR_ENV}, or COTENANT_JOBS_SOURCE=memory"),
    google_errors.NotFound: "; `cotenant jobs setup` creates what is missing",
    google_errors.PermissionDenied: "; docs/pubsub.md lists who needs which role",
}
