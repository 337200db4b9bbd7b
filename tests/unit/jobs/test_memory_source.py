"""The in-memory twin keeps the promises of a job source, under a clock that the test owns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cotenant.config import Jobs
from cotenant.errors import SourceUnavailable
from cotenant.jobs.clock import ManualClock
from cotenant.jobs.queue.lanes import CLERK, MAIN, lane_of, topic_of
from cotenant.jobs.queue.memory import MemoryLanes, MemorySource
from cotenant.jobs.queue.source import Message, backstop_attempts
from tests.contracts.job_source import JobSourceContract, contract_jobs

pytestmark = pytest.mark.unit


class TestMemorySource(JobSourceContract):
    jobs = contract_jobs()

    @pytest.fixture
    async def source(self) -> AsyncIterator[MemorySource]:
        self.clock = ManualClock()
        self.lanes = self.open_lanes(self.jobs)
        source = self.lanes.open(MAIN)
        await source.setup()

        async def tick() -> None:
            while True:
                await self.clock.advance(0.25)

        time_passes = asyncio.create_task(tick())
        yield source
        time_passes.cancel()

    def open_lanes(self, jobs: Jobs) -> MemoryLanes:
        return MemoryLanes(jobs, clock=self.clock, pull_wait_s=1.0)

    async def wait(self, seconds: float) -> None:
        await self.clock.sleep(seconds)

    async def test_a_source_that_is_down_says_so(self, source: MemorySource) -> None:
        source.down.add(self.jobs.topic)
        with pytest.raises(SourceUnavailable):
            await source.publish(self.jobs.topic, [Message(b"x")])
        source.down.add(self.jobs.subscription)
        with pytest.raises(SourceUnavailable):
            await source.pull(1)

    async def test_a_waiting_pull_gets_what_is_published_meanwhile(self, source: MemorySource) -> None:
        pull = asyncio.create_task(source.pull(1))
        await asyncio.sleep(0)
        await source.publish(self.jobs.topic, [Message(b"news")])
        assert [delivery.data for delivery in await pull] == [b"news"]

    async def test_a_waiting_pull_gets_the_next_of_a_key_when_the_one_before_is_acked(
        self, source: MemorySource
    ) -> None:
        jobs, _, ordered = await self.other_lanes(ordering=True)
        await ordered.publish(jobs.topic, [Message(b"1", {}, "k"), Message(b"2", {}, "k")])
        (first,) = await ordered.pull(1)
        pull = asyncio.create_task(ordered.pull(1))
        await asyncio.sleep(0)
        await ordered.ack([first.ack_id])
        assert [delivery.data for delivery in await pull] == [b"2"]

    async def test_errands_come_again_however_often_they_are_given_back(self, source: MemorySource) -> None:
        clerk = self.lanes.open(CLERK)
        await source.publish(topic_of(self.jobs, CLERK), [Message(b"an errand")])
        for _ in range(3 * backstop_attempts(self.jobs)):
            (errand,) = await clerk.pull(1)
            assert errand.attempt == 1
            await clerk.nack([errand.ack_id])
        assert await self.dead_letters() == []

    async def test_two_pullers_of_one_subscription_share_what_is_in_it(self, source: MemorySource) -> None:
        lanes = self.lanes
        assert isinstance(lanes, MemoryLanes)
        await source.publish(self.jobs.topic, [Message(str(n).encode()) for n in range(4)])
        both = await asyncio.gather(source.pull(2), lanes.open(MAIN).pull(2))
        assert {delivery.data for some in both for delivery in some} == {b"0", b"1", b"2", b"3"}

    async def test_unsettled_counts_lanes_and_no_dead_letters(self, source: MemorySource) -> None:
        lanes = self.lanes
        assert isinstance(lanes, MemoryLanes)
        lanes.open(lane_of("writer"))
        await source.publish(topic_of(self.jobs, lane_of("writer")), [Message(b"a job")])
        await source.publish(self.jobs.dead_letter, [Message(b"a letter")])
        assert (lanes.unsettled, source.unsettled) == (1, 0)
