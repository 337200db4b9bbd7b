"""Pictures by URL, without letting a URL reach what only we can reach.

What always holds: a name is resolved once per hop, every address it resolves to must be public, and the connection
goes to an address out of that very list, so a name that changes its mind between check and use gains nothing. Each
redirect is a new hop with the same checks. No proxy from the environment is used: it would connect on our behalf,
past these checks. The answer must call itself an image and is cut off at the size cap while it arrives.

Hosts on the trusted list (`COTENANT_ARTWORK_TRUSTED_HOSTS`, empty by default) skip the address and port checks: it
is for a store inside one's own network, and for tests.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import httpcore
import httpx

from cotenant.engines.pictures.refusal import BadRequest
from cotenant.engines.pictures.source import MAX_PICTURE_BYTES, noun, too_large

TRUSTED_HOSTS = "COTENANT_ARTWORK_TRUSTED_HOSTS"
PORTS = {"http": 80, "https": 443}
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 10.0
TOTAL_TIMEOUT_S = 30.0
MAX_REDIRECTS = 3
#: Codes for programs; the field's name goes into the braces.
UNREACHABLE, INVALID_URL, URL_REFUSED, UNSUPPORTED = (
    "{}_unreachable",
    "invalid_{}_url",
    "{}_url_refused",
    "unsupported_{}",
)
_REDIRECTS = frozenset({301, 302, 303, 307, 308})

#: Globally routed by the book, yet not a plain host: relays, embedded IPv4, documentation, protocol assignments.
_REFUSED_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
_PUBLIC_IPV6 = ipaddress.IPv6Network("2000::/3")

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


def is_public(address: str) -> bool:
    """Whether an IP address is an ordinary public host, for all that its text can tell.

    IPv6 outside 2000::/3 never is: that leaves out loopback, link-local, unique-local, IPv4-mapped and -compatible
    addresses, both NAT64 prefixes and multicast; 6to4, Teredo and ISATAP, which carry an IPv4 inside, go with them.
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if any(ip in network for network in _REFUSED_NETWORKS if network.version == ip.version):
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        return ip in _PUBLIC_IPV6 and ip.is_global and (int(ip) >> 32) & 0xFDFFFFFF != 0x00005EFE
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, in the system's order of preference. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Fetcher:
    """Fetches pictures. `resolver` and `backend` are the two ways out, given only by tests."""

    def __init__(
        self,
        *,
        trusted_hosts: Iterable[str] = (),
        resolver: Resolve = resolve,
        backend: httpcore.AsyncNetworkBackend | None = None,
        total_timeout_s: float = TOTAL_TIMEOUT_S,
    ) -> None:
        self._trusted = frozenset(host.strip().lower() for host in trusted_hosts if host.strip())
        self._resolve = resolver
        self._backend = backend
        self._total_timeout_s = total_timeout_s
        self._tls: ssl.SSLContext | None = None

    @classmethod
    def from_environment(cls) -> Fetcher:
        """A fetcher that trusts the hosts (`host` or `host:port`, comma-separated) that the environment lists."""
        return cls(trusted_hosts=os.environ.get(TRUSTED_HOSTS, "").split(","))

    async def fetch(self, url: str, what: str = "artwork") -> bytes:
        """The bytes at `url`, at most `MAX_PICTURE_BYTES`; `what` is the request's field. Raises BadRequest."""
        try:
            return await asyncio.wait_for(self._follow(url, what), self._total_timeout_s)
        except (asyncio.TimeoutError, httpcore.TimeoutException):
            raise _refused(what, f"the {what}'s host took too long to answer", UNREACHABLE) from None
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
            raise _refused(
                what, f"the {what} can't be fetched ({type(error).__name__}); is the URL right?", UNREACHABLE
            ) from None

    async def _follow(self, url: str, what: str) -> bytes:
        try:
            target = httpx.URL(url)
            for _ in range(MAX_REDIRECTS + 1):
                addresses = await self._checked(target, what)
                answer = await self._get(target, addresses, what)
                if isinstance(answer, bytes):
                    return answer
                target = target.join(answer)
        except (httpx.InvalidURL, UnicodeError, ValueError):
            raise _refused(what, f"the {what}'s URL is not valid", INVALID_URL) from None
        raise _refused(what, f"the {what}'s URL redirects more than {MAX_REDIRECTS} times", UNREACHABLE)

    async def _checked(self, url: httpx.URL, what: str) -> Sequence[str]:
        """The addresses that may be connected to for this hop. Raises BadRequest."""
        if url.scheme not in PORTS or not url.host:
            raise _refused(what, f"{what} is fetched by http and https only", INVALID_URL)
        if url.userinfo:
            raise _refused(what, f"the {what}'s URL must not carry a user name or password", INVALID_URL)
        host, port = url.host.lower(), url.port or PORTS[url.scheme]
        trusted = bool(self._trusted & {host, f"{host}:{port}"})
        if port != PORTS[url.scheme] and not trusted:
            raise _refused(what, f"{what} is fetched from port {PORTS[url.scheme]} only", URL_REFUSED)
        try:
            addresses = await self._resolve(url.raw_host.decode("ascii"), port)
        except OSError:
            addresses = ()
        if not addresses:
            raise _refused(what, f"the {what}'s host {host!r} has no address", UNREACHABLE)
        if not trusted and not all(is_public(address) for address in addresses):
            raise _refused(what, f"the {what}'s host {host!r} is not on the public internet", URL_REFUSED)
        return addresses

    async def _get(self, url: httpx.URL, addresses: Sequence[str], what: str) -> bytes | str:
        """The body, or where a redirect leads."""
        headers: Mapping[bytes | str, bytes | str] = {
            "Host": url.netloc.decode("ascii"),
            "Accept": "image/png, image/jpeg, image/webp",
            "Accept-Encoding": "identity",
            "User-Agent": "cotenant",
        }
        timeouts = {"connect": CONNECT_TIMEOUT_S, "read": READ_TIMEOUT_S, "write": READ_TIMEOUT_S, "pool": 1.0}
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        pool = httpcore.AsyncConnectionPool(
            ssl_context=self._context() if url.scheme == "https" else None,
            network_backend=_Pinned(addresses, self._backend or httpcore.AnyIOBackend()),
        )
        async with pool, pool.stream("GET", target, headers=headers, extensions={"timeout": timeouts}) as response:
            fields = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
            if response.status in _REDIRECTS and "location" in fields:
                return fields["location"]
            _acceptable(response.status, fields, what)
            body = bytearray()
            async for chunk in response.aiter_stream():
                body += chunk
                if len(body) > MAX_PICTURE_BYTES:
                    raise too_large(what)
            return bytes(body)

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = httpcore.default_ssl_context()
        return self._tls


def _acceptable(status: int, fields: Mapping[str, str], what: str) -> None:
    if status != 200:
        raise _refused(what, f"the {what}'s host answered {status}", UNREACHABLE)
    kind = fields.get("content-type", "").partition(";")[0].strip().lower()
    # Object stores call what they were given without a type an octet stream; the decoder has the last word.
    if kind and not kind.startswith("image/") and kind not in ("application/octet-stream", "binary/octet-stream"):
        raise _refused(what, f"the {what}'s URL leads to {kind}, not to an image", UNSUPPORTED)
    if fields.get("content-encoding", "identity").lower() != "identity":
        raise _refused(what, f"the {what}'s host sends it compressed; serve the plain file", UNSUPPORTED)
    if fields.get("content-length", "0").isdecimal() and int(fields.get("content-length", "0")) > MAX_PICTURE_BYTES:
        raise too_large(what)


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
        for address in self._addresses[:4]:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore.ConnectError(f"{host} has no address")

    async def connect_unix_socket(self, path: str, timeout: float | None = None, socket_options: Any = None) -> Any:
        raise httpcore.ConnectError("pictures are never fetched from a unix socket")

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


def _refused(what: str, message: str, code: str) -> BadRequest:
    return BadRequest(message, param=what, code=code.format(noun(what)))
