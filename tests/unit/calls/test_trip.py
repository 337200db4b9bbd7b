"""Answers of one moment are read together, each once; what nobody waits for is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from cotenant.calls import Answers, Reply, Together
from cotenant.errors import Overloaded, ReplicaDied, WorkloadUnavailable
from tests.contracts.virtual_time import in_virtual_time

pytestmark = pytest.mark.unit


async def work(sleep_s: float, body: bytes = b"") -> Reply:
    await asyncio.sleep(sleep_s)
    return Reply(200, body)


@in_virtual_time
async def test_answers_of_one_moment_are_read_together() -> None:
    trip = Together([work(1), work(2), work(1), work(3), work(2)])
    assert [sorted(index for index, _ in answers) async for answers in trip] == [[0, 2], [1, 4], [3]]


@in_virtual_time
async def test_the_first_answer_of_an_index_counts() -> None:
    answers = Answers(2)
    answers.put(0, Reply(200, b"first"))
    answers.put(0, Reply(500, b"second"))
    answers.put_rest(ReplicaDied("gone"))
    (zero, reply), (one, error) = await answers.get()
    assert (zero, one) == (0, 1)
    assert isinstance(reply, Reply)
    assert reply.body == b"first"
    assert isinstance(error, ReplicaDied)
    assert await answers.get() == []


@in_virtual_time
async def test_errors_are_answers_and_foreign_ones_are_reported_where_they_happened() -> None:
    async def fail(error: Exception) -> Reply:
        raise error

    seen: list[BaseException] = []
    trip = Together(
        [fail(Overloaded("busy", retry_after_s=3.0)), fail(KeyError("a bug")), work(0)], on_error=seen.append
    )
    (_, busy), (_, bug), (_, fine) = [answer async for answers in trip for answer in answers]
    assert isinstance(busy, Overloaded)
    assert busy.retry_after_s == 3.0
    assert isinstance(bug, WorkloadUnavailable)
    assert str(bug) == "KeyError: 'a bug'"
    assert isinstance(fine, Reply)
    assert [type(error) for error in seen] == [KeyError]


@in_virtual_time
async def test_a_trip_whose_last_open_call_is_abandoned_ends() -> None:
    trip = Together([work(1), work(1000)])
    reading = asyncio.create_task(trip.__anext__())
    assert [index for index, _ in await reading] == [0]
    reading = asyncio.create_task(trip.__anext__())
    await asyncio.sleep(5)
    trip.abandon(1)
    with pytest.raises(StopAsyncIteration):
        await reading
    await trip.aclose()


@in_virtual_time
async def test_a_closed_trip_has_ended_its_work_when_close_returns() -> None:
    ended: list[str] = []

    async def careful() -> Reply:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(1)
            ended.append("tidied up")
        raise AssertionError

    trip = Together([careful(), careful()])
    await asyncio.sleep(1)
    await trip.aclose()
    assert ended == ["tidied up", "tidied up"]
