"""Webhooks on their way: which URLs are taken, and the edge that posts to them, with its in-memory twin.

What always holds: https alone, on its own port, to public addresses, without following redirects; hosts on the trusted
list (`COTENANT_WEBHOOK_TRUSTED_HOSTS`, empty by default) may be inside, on any port, by plain http. What `check_url`
lets through is checked again at each delivery, then with the addresses that its host resolves to. Of an answer only
the status counts: nothing of its body is kept, so no URL can be used to read what lies behind it.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import httpcore

from cotenant.errors import OutboundError, TimedOut, Unreachable, UrlInvalid
from cotenant.outbound.addresses import Resolve, parse_hosts, resolve
from cotenant.outbound.client import GuardedHttp, Policy, checked, refuse_inside
from cotenant.outbound.webhooks import Answered, Failed, Failure, Outcome, retry_after_s

TRUSTED_HOSTS = "COTENANT_WEBHOOK_TRUSTED_HOSTS"
TIMEOUT_S = 15.0
MAX_URL_CHARS = 2048
_WHAT = "webhook"


def load_trusted_hosts(environ: Mapping[str, str]) -> frozenset[str]:
    """The hosts (`host` or `host:port`, comma-separated) that the environment trusts with webhooks."""
    return parse_hosts(environ.get(TRUSTED_HOSTS, ""))


def check_url(url: str, trusted: frozenset[str] = frozenset()) -> None:
    """Refuses a webhook's URL when it is handed in, as far as its text tells; nothing is resolved.

    Raises:
        UrlInvalid: it is too long or no URL, has no host, is not https, or carries a user name.
        UrlRefused: it names another port than 443, an address that is not public, or a name of the inside.
    """
    if len(url) > MAX_URL_CHARS:
        raise UrlInvalid(f"the {_WHAT}'s URL has {len(url)} characters; {MAX_URL_CHARS} are taken")
    refuse_inside(checked(url, _policy(TIMEOUT_S), trusted, _WHAT), _WHAT)


class Deliver(Protocol):
    """Posts a webhook. Never raises for what the receiver or the network does."""

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Outcome:
        """One attempt: the receiver's status, whatever it is, or why there is none."""
        ...


class HttpDeliver:
    """The `Deliver` over the network. `resolver` and `backend` are the two ways out, given only by tests."""

    def __init__(
        self,
        *,
        trusted: frozenset[str] = frozenset(),
        resolver: Resolve = resolve,
        backend: httpcore.AsyncNetworkBackend | None = None,
        timeout_s: float = TIMEOUT_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._http = GuardedHttp(_policy(timeout_s), trusted=trusted, resolver=resolver, backend=backend)
        self._clock = clock

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Outcome:
        try:
            answer = await self._http.call("POST", url, _WHAT, headers=headers, body=body)
        except OutboundError as error:
            return _failed(error)
        return Answered(answer.status, retry_after_s(answer.fields.get("retry-after", ""), self._clock()))


Receiver = Callable[[Mapping[str, str], bytes], Outcome | Awaitable[Outcome]]


@dataclass(frozen=True)
class Posted:
    """One attempt that the in-memory twin was asked for."""

    url: str
    headers: Mapping[str, str]
    body: bytes


class InMemoryDeliver:
    """A `Deliver` to plain functions by URL; where there is none, nobody is reachable. The URL rules are the same."""

    def __init__(self, receivers: Mapping[str, Receiver], *, trusted: frozenset[str] = frozenset()) -> None:
        self.receivers = dict(receivers)
        self.posted: list[Posted] = []
        self._trusted = trusted

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Outcome:
        self.posted.append(Posted(url, dict(headers), body))
        try:
            check_url(url, self._trusted)
        except OutboundError as error:
            return _failed(error)
        if url not in self.receivers:
            return Failed(Failure.UNREACHABLE, f"the {_WHAT} can't be delivered (nobody listens); is the URL right?")
        outcome = self.receivers[url](headers, body)
        return await outcome if inspect.isawaitable(outcome) else outcome


def _policy(timeout_s: float) -> Policy:
    return Policy("delivered", schemes=("https",), read_timeout_s=timeout_s, total_timeout_s=timeout_s)


def _failed(error: OutboundError) -> Failed:
    if isinstance(error, TimedOut):
        return Failed(Failure.TIMED_OUT, str(error))
    return Failed(Failure.UNREACHABLE if isinstance(error, Unreachable) else Failure.REFUSED, str(error))
