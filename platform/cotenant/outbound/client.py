"""HTTP calls by somebody else's URL, without letting the URL reach what only we can reach.

What always holds: a name is resolved once per hop, every address it resolves to must be public, and the connection
goes to an address out of that very list, so a name that changes its mind between check and use gains nothing. Each
redirect is a new hop with the same checks; only a GET follows one, and only where its policy says so. No proxy from
the environment is used: it would connect on our behalf, past these checks. An answer is cut off at the policy's cap
while it arrives.

Trusted hosts skip the address and port checks, and may be called by plain http: that is for servers inside one's own
network, and for tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx

from cotenant.errors import TimedOut, Unreachable, UrlInvalid, UrlRefused
from cotenant.outbound.addresses import Resolve, is_public, names_inside, resolve

PORTS = {"http": 80, "https": 443}
CONNECT_TIMEOUT_S = 5.0
#: How much of an unwanted answer is read, and for how long, so that a short one ends as its server means it to.
DRAINED_BYTES, DRAIN_S = 4096, 1.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: How many of a host's addresses are tried.
_MAX_ADDRESSES = 4

Accept = Callable[[int, Mapping[str, str]], None]
"""Looks at an answer's status and headers (names in lower case) before its body is read; may raise what it likes."""


@dataclass(frozen=True)
class Policy:
    """What one use of the client allows. `max_answer_bytes` None: the answer's body is not wanted, only its status."""

    done: str
    """What a call does with its subject, for error texts: `fetched`, `delivered`."""
    schemes: tuple[str, ...] = ("http", "https")
    """Of hosts that are not trusted."""
    max_redirects: int = 0
    max_answer_bytes: int | None = None
    read_timeout_s: float = 10.0
    total_timeout_s: float = 30.0


@dataclass(frozen=True)
class Answer:
    """What a host answered: names of header fields are in lower case; `whole` says that nothing was cut off."""

    status: int
    fields: Mapping[str, str]
    body: bytes
    whole: bool


@dataclass(frozen=True)
class Target:
    """A URL that keeps to the rules, as far as can be told without resolving its host."""

    url: httpx.URL
    host: str
    port: int
    trusted: bool


@dataclass(frozen=True)
class _Request:
    method: str
    what: str
    headers: Mapping[str, str]
    body: bytes | None
    accept: Accept | None
    redirects: int
    ends_at_s: float


class GuardedHttp:
    """Makes the calls of one policy. `resolver` and `backend` are the two ways out, given only by tests."""

    def __init__(
        self,
        policy: Policy,
        *,
        trusted: frozenset[str] = frozenset(),
        resolver: Resolve = resolve,
        backend: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._policy = policy
        self._trusted = trusted
        self._resolve = resolver
        self._backend = backend or httpcore.AnyIOBackend()
        self._tls: ssl.SSLContext | None = None

    async def call(
        self,
        method: str,
        url: str,
        what: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        accept: Accept | None = None,
    ) -> Answer:
        """The answer at the end of the redirects that the policy allows, whatever its status.

        Args:
            what: whose URL it is, for error texts: `artwork`, `webhook`.

        Raises:
            UrlInvalid, UrlRefused: this URL, or one that it redirects to, breaks the rules.
            TimedOut, Unreachable: there was no answer, or too many redirects.
        """
        redirects, within_s = self._policy.max_redirects if method == "GET" else 0, self._policy.total_timeout_s
        ends_at_s = asyncio.get_running_loop().time() + within_s
        request = _Request(method, what, headers, body, accept, redirects, ends_at_s)
        try:
            return await asyncio.wait_for(self._follow(url, request), within_s)
        except (asyncio.TimeoutError, httpcore.TimeoutException):
            raise TimedOut(f"the {what}'s host took too long to answer") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
            raise Unreachable(
                f"the {what} can't be {self._policy.done} ({type(error).__name__}); is the URL right?"
            ) from None

    async def _follow(self, url: str | httpx.URL, request: _Request) -> Answer:
        for _ in range(request.redirects + 1):
            target = checked(url, self._policy, self._trusted, request.what)
            answer = await self._exchange(target, await self._addresses(target, request.what), request)
            if isinstance(answer, Answer):
                return answer
            try:
                url = target.url.join(answer)
            except (httpx.InvalidURL, ValueError):
                raise _not_valid(request.what) from None
        raise Unreachable(f"the {request.what}'s URL redirects more than {request.redirects} times")

    async def _addresses(self, target: Target, what: str) -> Sequence[str]:
        """The addresses that may be connected to for this hop."""
        try:
            addresses = await self._resolve(target.url.raw_host.decode("ascii"), target.port)
        except OSError:
            addresses = ()
        except ValueError:
            raise _not_valid(what) from None
        if not addresses:
            raise Unreachable(f"the {what}'s host {target.host!r} has no address")
        if not target.trusted and not all(is_public(address) for address in addresses):
            raise _inside(target, what)
        return addresses

    async def _exchange(self, target: Target, addresses: Sequence[str], request: _Request) -> Answer | str:
        """The answer, or where a redirect leads."""
        url, read_s = target.url, self._policy.read_timeout_s
        ours = {"Accept-Encoding": "identity", "User-Agent": "cotenant"}
        sent = [("Host", url.netloc.decode("ascii")), *request.headers.items(), *ours.items()]
        timeouts = {"connect": CONNECT_TIMEOUT_S, "read": read_s, "write": read_s, "pool": 1.0}
        where = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        pool = httpcore.AsyncConnectionPool(
            ssl_context=self._context() if url.scheme == "https" else None,
            network_backend=_Pinned(addresses, self._backend),
        )
        stream = pool.stream(
            request.method, where, headers=sent, content=request.body, extensions={"timeout": timeouts}
        )
        async with pool, stream as response:
            fields = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
            if request.redirects and response.status in _REDIRECTS and "location" in fields:
                return fields["location"]
            if request.accept is not None:
                request.accept(response.status, fields)
            if self._policy.max_answer_bytes is None:
                await _drain(response, request.ends_at_s)
                return Answer(response.status, fields, b"", whole=False)
            data, whole = await _read(response, self._policy.max_answer_bytes)
            return Answer(response.status, fields, data, whole)

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = httpcore.default_ssl_context()
        return self._tls


def checked(url: str | httpx.URL, policy: Policy, trusted: frozenset[str], what: str) -> Target:
    """The URL as a target, if its text keeps to the rules. Nothing is resolved.

    Raises:
        UrlInvalid: it can't be parsed, has no host, another scheme, or a user name.
        UrlRefused: it names another port than its scheme's.
    """
    try:
        url = httpx.URL(url)
        host = url.host.lower()
        port = PORTS.get(url.scheme, 0) if url.port is None else url.port
    except (httpx.InvalidURL, ValueError):
        raise _not_valid(what) from None
    trust = bool(trusted & {host, f"{host}:{port}"})
    schemes = tuple(PORTS) if trust else policy.schemes
    if url.scheme not in schemes or not host:
        raise UrlInvalid(f"the {what}'s URL takes {' and '.join(schemes)} only")
    if url.userinfo:
        raise UrlInvalid(f"the {what}'s URL must not carry a user name or password")
    if not 0 < port < 2**16:
        raise _not_valid(what)
    if port != PORTS[url.scheme] and not trust:
        raise UrlRefused(f"the {what}'s URL takes port {PORTS[url.scheme]} only")
    return Target(url, host, port, trust)


def refuse_inside(target: Target, what: str) -> None:
    """Refuses a target that is inside by its text alone. Raises UrlRefused."""
    if not target.trusted and names_inside(target.url.raw_host.decode("ascii")):
        raise _inside(target, what)


def _inside(target: Target, what: str) -> UrlRefused:
    return UrlRefused(f"the {what}'s host {target.host!r} is not on the public internet")


def _not_valid(what: str) -> UrlInvalid:
    return UrlInvalid(f"the {what}'s URL is not valid")


async def _read(response: httpcore.Response, cap_bytes: int) -> tuple[bytes, bool]:
    body = bytearray()
    async for chunk in response.aiter_stream():
        body += chunk
        if len(body) > cap_bytes:
            del body[cap_bytes:]
            return bytes(body), False
    return bytes(body), True


async def _drain(response: httpcore.Response, ends_at_s: float) -> None:
    """Reads a little of an unwanted answer. However that goes, it ends in time for the status to count."""
    left_s = ends_at_s - asyncio.get_running_loop().time()
    failures = (asyncio.TimeoutError, httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError)
    with contextlib.suppress(*failures):
        await asyncio.wait_for(_read(response, DRAINED_BYTES), min(DRAIN_S, left_s / 2))


class _Pinned(httpcore.AsyncNetworkBackend):
    """Connects to the checked addresses, whatever host it is asked for; TLS still verifies the host's name."""

    def __init__(self, addresses: Sequence[str], inner: httpcore.AsyncNetworkBackend) -> None:
        self._addresses = addresses
        self._inner = inner

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.AsyncNetworkStream:
        failure: Exception | None = None
        for address in self._addresses[:_MAX_ADDRESSES]:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore.ConnectError(f"{host} has no address")

    async def connect_unix_socket(self, path: str, timeout: float | None = None, socket_options: Any = None) -> Any:
        raise httpcore.ConnectError("no URL leads to a unix socket")

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)
