"""The in-memory twin keeps the promises of a job source, under a clock that the test owns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from cotenant.errors import SourceUnavailable
from cotenant.jobs.clock import ManualClock
from cotenant.jobs.memory import MemorySource
from cotenant.jobs.source import JobSource, Message
from tests.contracts.job_source import JobSourceContract, contract_jobs

pytestmark = pytest.mark.unit


class TestMemorySource(JobSourceContract):
    jobs = contract_jobs()

    @pytest.fixture
    async def source(self) -> AsyncIterator[MemorySource]:
        self.clock = ManualClock()
        source = MemorySource(self.jobs, clock=self.clock, pull_wait_s=1.0)
        await source.setup()

        async def tick() -> None:
            while True:
                await self.clock.advance(0.25)

        time_passes = asyncio.create_task(tick())
        yield source
        time_passes.cancel()

    async def wait(self, seconds: float) -> None:
        await self.clock.sleep(seconds)

    async def dead_letters(self, source: JobSource) -> Sequence[Message]:
        assert isinstance(source, MemorySource)
        return list(source.topics[self.jobs.dead_letter])

    async def test_a_source_that_is_down_says_so(self, source: MemorySource) -> None:
        source.down.add(self.jobs.topic)
        with pytest.raises(SourceUnavailable):
            await source.publish(self.jobs.topic, [Message(b"x")])

    async def test_a_waiting_pull_gets_what_is_published_meanwhile(self, source: MemorySource) -> None:
        pull = asyncio.create_task(source.pull(1))
        await asyncio.sleep(0)
        await source.publish(self.jobs.topic, [Message(b"news")])
        assert [delivery.data for delivery in await pull] == [b"news"]
