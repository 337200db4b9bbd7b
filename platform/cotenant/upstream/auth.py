"""How a call says whose it is: a key of ours, and on Google Cloud an identity token of the machine's service account.

The key goes where every OpenAI-compatible server looks for it. The token goes beside it, in the header that Cloud Run
checks instead of `Authorization` and passes on without its signature, so both can be asked for at once.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import httpx

from cotenant.errors import EnvironmentFault, WorkloadUnavailable

#: What Google's own client libraries let one set, and where the metadata server is otherwise.
HOST_ENV, HOST = "GCE_METADATA_HOST", "metadata.google.internal"
_PATH = "/computeMetadata/v1/instance/service-accounts/default/identity"
_ANSWER_S = 5.0
#: A token is taken anew so long before it ends.
_EARLY_S = 300.0
#: A token that does not say when it ends is kept so long.
_KEPT_S = 600.0


class Auth(Protocol):
    """Headers that let a call in. Raises WorkloadUnavailable if there are none to be had."""

    async def headers(self) -> Mapping[str, str]: ...


class KeyAuth:
    """A bearer key, or nothing."""

    def __init__(self, key: str | None = None) -> None:
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    async def headers(self) -> Mapping[str, str]:
        return self._headers


class GoogleAuth:
    """An identity token for `audience`, and what another one adds."""

    def __init__(
        self,
        audience: str,
        *,
        beside: Auth,
        metadata_url: str = f"http://{HOST}",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._audience = audience
        self._beside = beside
        self._metadata_url = metadata_url
        self._clock = clock
        self._token = ""
        self._good_until = float("-inf")
        self._asking = asyncio.Lock()

    async def headers(self) -> Mapping[str, str]:
        async with self._asking:
            now = self._clock()
            if now >= self._good_until:
                self._token = await self._ask()
                self._good_until = max(now, ends_at(self._token, now + _KEPT_S + _EARLY_S) - _EARLY_S)
        return {**await self._beside.headers(), "x-serverless-authorization": f"Bearer {self._token}"}

    async def _ask(self) -> str:
        # The metadata server is never behind a proxy.
        async with httpx.AsyncClient(
            base_url=self._metadata_url, headers={"Metadata-Flavor": "Google"}, trust_env=False
        ) as client:
            try:
                reply = await client.get(_PATH, params={"audience": self._audience}, timeout=_ANSWER_S)
            except httpx.HTTPError as error:
                raise WorkloadUnavailable(
                    f"no identity token: the metadata server does not answer ({type(error).__name__}); `auth: google` "
                    "works on Google Cloud, with a service account"
                ) from error
        if reply.status_code != 200:
            raise WorkloadUnavailable(
                f"no identity token: the metadata server answers {reply.status_code}; does this machine, or pod, "
                "have a service account?"
            )
        return reply.text.strip()


def ends_at(token: str, otherwise: float) -> float:
    """When a JSON Web Token ends, in Unix seconds, as it says itself. Nothing is verified: its reader does that."""
    try:
        claims = token.split(".")[1]
        end = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["exp"]
    except (IndexError, KeyError, TypeError, ValueError, binascii.Error):
        return otherwise
    return float(end) if isinstance(end, int | float) else otherwise


def auth_of(environ: Mapping[str, str], *, url: str, key_env: str | None, google: bool) -> Auth:
    """What calls to `url` carry.

    Raises:
        EnvironmentFault: the variable with the key is not set.
    """
    key = environ.get(key_env, "").strip() if key_env else ""
    if key_env and not key:
        raise EnvironmentFault(f"calls to {url} need the key in {key_env}, which is not set; set it, or drop key_env")
    auth: Auth = KeyAuth(key)
    if google:
        scheme, _, rest = url.partition("://")
        origin = f"{scheme}://{rest.partition('/')[0]}"
        auth = GoogleAuth(origin, beside=auth, metadata_url=f"http://{environ.get(HOST_ENV) or HOST}")
    return auth
