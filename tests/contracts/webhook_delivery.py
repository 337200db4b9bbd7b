"""What every `Deliver` promises. Runs against the in-memory twin and against real HTTP.

A subclass gives the fixture `house`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import pytest

from cotenant.outbound.delivery import Deliver
from cotenant.outbound.webhooks import Answered, Failed, Failure, Secret, signed_headers, verify

SECRET = Secret(b"a secret of this contract's own")
NOW_S = 1_700_000_000


class House(Protocol):
    """A deliverer, and a receiver at `url` that answers as it is told, in order."""

    deliver: Deliver
    url: str
    nobody_url: str
    inside_url: str
    received: list[tuple[Mapping[str, str], bytes]]

    def will_answer(self, status: int, headers: Mapping[str, str]) -> None: ...


class DeliverContract:
    async def test_what_arrives_is_what_was_signed(self, house: House) -> None:
        body = '{"type":"job.succeeded","data":{"id":"Tässchen ☕"}}'.encode()
        house.will_answer(204, {})
        headers = signed_headers([SECRET], "msg_1", NOW_S, body)
        assert await house.deliver.post(house.url, headers, body) == Answered(204)
        ((received, data),) = house.received
        assert data == body
        assert verify(received, data, [SECRET], NOW_S + 1) == "msg_1"

    @pytest.mark.parametrize("status", [200, 400, 404, 410, 500, 503])
    async def test_every_status_is_an_answer(self, house: House, status: int) -> None:
        house.will_answer(status, {})
        assert await house.deliver.post(house.url, {}, b"{}") == Answered(status)

    async def test_a_redirect_is_an_answer_and_is_not_followed(self, house: House) -> None:
        house.will_answer(307, {"location": house.url})
        assert await house.deliver.post(house.url, {}, b"{}") == Answered(307)
        assert len(house.received) == 1

    async def test_retry_after_comes_with_the_answer(self, house: House) -> None:
        house.will_answer(429, {"retry-after": "120"})
        assert await house.deliver.post(house.url, {}, b"{}") == Answered(429, 120.0)

    async def test_where_nobody_listens_it_is_unreachable(self, house: House) -> None:
        outcome = await house.deliver.post(house.nobody_url, {}, b"{}")
        assert isinstance(outcome, Failed)
        assert outcome.failure is Failure.UNREACHABLE

    async def test_an_inside_address_is_refused_and_gets_nothing(self, house: House) -> None:
        outcome = await house.deliver.post(house.inside_url, {}, b"{}")
        assert isinstance(outcome, Failed)
        assert outcome.failure is Failure.REFUSED
        assert house.received == []
