"""Pictures by URL, by the guarded client (`cotenant.outbound.client`): no URL reaches what only we can reach.

What always holds beside that client's promises: the answer must call itself an image and is cut off at the size cap
while it arrives; whatever goes wrong is the caller's to read, as a `BadRequest` with a code for programs.

Hosts on the trusted list (`COTENANT_ARTWORK_TRUSTED_HOSTS`, empty by default) may be inside and on any port.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping

import httpcore

from cotenant.engines.pictures.refusal import BadRequest
from cotenant.engines.pictures.source import MAX_PICTURE_BYTES, noun, too_large
from cotenant.errors import OutboundError, UrlInvalid, UrlRefused
from cotenant.outbound.addresses import Resolve, parse_hosts, resolve
from cotenant.outbound.client import GuardedHttp, Policy

TRUSTED_HOSTS = "COTENANT_ARTWORK_TRUSTED_HOSTS"
TOTAL_TIMEOUT_S = 30.0
MAX_REDIRECTS = 3
#: Codes for programs; the field's name goes into the braces.
UNREACHABLE, INVALID_URL, URL_REFUSED, UNSUPPORTED = (
    "{}_unreachable",
    "invalid_{}_url",
    "{}_url_refused",
    "unsupported_{}",
)
_HEADERS = {"Accept": "image/png, image/jpeg, image/webp"}


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
        policy = Policy(
            done="fetched",
            max_redirects=MAX_REDIRECTS,
            max_answer_bytes=MAX_PICTURE_BYTES,
            total_timeout_s=total_timeout_s,
        )
        self._trusted = parse_hosts(trusted_hosts)
        self._http = GuardedHttp(policy, trusted=self._trusted, resolver=resolver, backend=backend)

    @classmethod
    def from_environment(cls) -> Fetcher:
        """A fetcher that trusts the hosts (`host` or `host:port`, comma-separated) that the environment lists."""
        return cls(trusted_hosts=os.environ.get(TRUSTED_HOSTS, "").split(","))

    async def fetch(self, url: str, what: str = "artwork") -> bytes:
        """The bytes at `url`, at most `MAX_PICTURE_BYTES`; `what` is the request's field. Raises BadRequest."""
        accept = functools.partial(_acceptable, what)
        try:
            answer = await self._http.call("GET", url, what, headers=_HEADERS, accept=accept)
        except OutboundError as error:
            raise _refused(what, str(error), _code(error)) from None
        if not answer.whole:
            raise too_large(what)
        return answer.body


def _acceptable(what: str, status: int, fields: Mapping[str, str]) -> None:
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


def _code(error: OutboundError) -> str:
    if isinstance(error, UrlInvalid):
        return INVALID_URL
    return URL_REFUSED if isinstance(error, UrlRefused) else UNREACHABLE


def _refused(what: str, message: str, code: str) -> BadRequest:
    return BadRequest(message, param=what, code=code.format(noun(what)))
