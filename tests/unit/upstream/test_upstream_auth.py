"""Keys and identity tokens: what calls carry, and when a token is asked for again."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest

from cotenant.errors import EnvironmentFault, WorkloadUnavailable
from cotenant.upstream.auth import GoogleAuth, KeyAuth, auth_of, ends_at

pytestmark = pytest.mark.unit


def token(**claims: object) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{body}.sig"


class Metadata(GoogleAuth):
    """Asks nobody: each token is the next one, and lasts an hour."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.asked = 0
        super().__init__("https://x.a.run.app", beside=KeyAuth("sk"), clock=lambda: self.now)

    async def _ask(self) -> str:
        self.asked += 1
        await asyncio.sleep(0)
        return token(exp=self.now + 3600, n=self.asked)


async def test_a_token_is_kept_until_shortly_before_it_ends_and_asked_for_once_at_a_time() -> None:
    auth = Metadata()
    first = await asyncio.gather(*(auth.headers() for _ in range(20)))
    auth.now += 3299
    kept = await auth.headers()
    auth.now += 2
    new = await auth.headers()
    assert auth.asked == 2
    assert all(one == kept for one in first)
    assert new != kept
    assert kept["authorization"] == "Bearer sk"
    assert kept["x-serverless-authorization"].startswith("Bearer e30.")


@pytest.mark.parametrize("text", ["", "a.b", "a.!!.c", "a.e30.c", f"a.{base64.b64encode(b'[]').decode()}.c"])
def test_a_token_that_says_nothing_of_its_end_ends_as_told(text: str) -> None:
    assert ends_at(text, 7.0) == 7.0


def test_a_tokens_end_is_read_from_it() -> None:
    assert ends_at(token(exp=1234, aud="ä"), 7.0) == 1234


async def test_a_key_is_read_from_its_variable_and_its_absence_is_told() -> None:
    auth = auth_of({"K": " sk-1 "}, url="https://x", key_env="K", google=False)
    assert await auth.headers() == {"authorization": "Bearer sk-1"}
    assert await auth_of({}, url="https://x", key_env=None, google=False).headers() == {}
    with pytest.raises(EnvironmentFault, match="the key in K, which is not set"):
        auth_of({"K": " "}, url="https://x", key_env="K", google=False)


async def test_without_a_metadata_server_there_is_no_token_and_it_says_so() -> None:
    auth = auth_of({"GCE_METADATA_HOST": "127.0.0.1:9"}, url="https://x", key_env=None, google=True)
    with pytest.raises(WorkloadUnavailable, match="no identity token"):
        await auth.headers()
