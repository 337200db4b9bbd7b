"""What every job source promises. Runs against the in-memory twin and against the real emulator.

A subclass gives the fixture `source` (set up, empty, with a lease of LEASE_S) and `wait(seconds)`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cotenant.config import Jobs
from cotenant.jobs.source import Delivery, JobSource, Message, backstop_attempts

LEASE_S = 10


def contract_jobs(suffix: str = "") -> Jobs:
    names = {key: f"{key}{suffix}" for key in ("topic", "subscription", "results", "dead_letter")}
    return Jobs(**names, lease_s=LEASE_S, max_attempts=1)


class JobSourceContract:
    jobs: Jobs

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def pull_all(self, source: JobSource, count: int, tries: int = 10) -> list[Delivery]:
        """Pulls until `count` messages came, or `tries` pulls are over."""
        got: list[Delivery] = []
        for _ in range(tries):
            got += await source.pull(count - len(got))
            if len(got) >= count:
                break
        return got

    async def test_a_message_arrives_with_its_data_and_attributes(self, source: JobSource) -> None:
        ids = await source.publish(self.jobs.topic, [Message(b"one", {"tenant": "acme", "custom_id": "ä"})])
        (delivery,) = await self.pull_all(source, 1)
        assert (delivery.data, dict(delivery.attributes)) == (b"one", {"tenant": "acme", "custom_id": "ä"})
        assert delivery.attempt == 1
        assert [delivery.message_id] == list(ids)
        assert delivery.published_at_s > 0

    async def test_a_pull_brings_no_more_than_was_asked_for(self, source: JobSource) -> None:
        await source.publish(self.jobs.topic, [Message(str(n).encode()) for n in range(10)])
        first = await source.pull(3)
        assert 1 <= len(first) <= 3
        rest = await self.pull_all(source, 10 - len(first))
        assert {d.data for d in [*first, *rest]} == {str(n).encode() for n in range(10)}

    async def test_an_empty_pull_ends_by_itself_with_nothing(self, source: JobSource) -> None:
        assert list(await source.pull(5)) == []

    async def test_an_acked_message_never_comes_again(self, source: JobSource) -> None:
        await source.publish(self.jobs.topic, [Message(b"once")])
        (delivery,) = await self.pull_all(source, 1)
        await source.ack([delivery.ack_id])
        await self.wait(LEASE_S + 2)
        assert list(await source.pull(1)) == []

    async def test_a_nacked_message_comes_again_and_counts_as_another_attempt(self, source: JobSource) -> None:
        await source.publish(self.jobs.topic, [Message(b"again")])
        (first,) = await self.pull_all(source, 1)
        await source.nack([first.ack_id])
        (second,) = await self.pull_all(source, 1)
        assert (second.message_id, second.data, second.attempt) == (first.message_id, b"again", 2)

    async def test_a_nack_with_a_delay_keeps_the_message_away_that_long(self, source: JobSource) -> None:
        await source.publish(self.jobs.topic, [Message(b"later")])
        (first,) = await self.pull_all(source, 1)
        await source.nack([first.ack_id], delay_s=4)
        assert list(await source.pull(1)) == []
        await self.wait(4)
        (second,) = await self.pull_all(source, 1)
        assert second.message_id == first.message_id

    async def test_a_message_whose_lease_ran_out_comes_again(self, source: JobSource) -> None:
        await source.publish(self.jobs.topic, [Message(b"abandoned")])
        (first,) = await self.pull_all(source, 1)
        await self.wait(LEASE_S + 1)
        (second,) = await self.pull_all(source, 1)
        assert second.message_id == first.message_id
        assert second.attempt == 2

    async def test_an_extended_lease_keeps_the_message_here(self, source: JobSource) -> None:
        await source.publish(self.jobs.topic, [Message(b"long work")])
        (delivery,) = await self.pull_all(source, 1)
        for _ in range(3):
            await self.wait(LEASE_S / 2)
            await source.extend([delivery.ack_id])
        assert list(await source.pull(1)) == []
        await source.ack([delivery.ack_id])

    async def test_settling_a_lost_lease_raises_nothing(self, source: JobSource) -> None:
        await source.publish(self.jobs.topic, [Message(b"late")])
        (first,) = await self.pull_all(source, 1)
        await self.wait(LEASE_S + 1)
        (second,) = await self.pull_all(source, 1)
        await source.nack([first.ack_id])
        await source.extend([first.ack_id])
        await source.ack([second.ack_id])
        await source.ack([second.ack_id])

    async def test_a_message_that_never_ends_well_goes_to_the_dead_letter_topic(self, source: JobSource) -> None:
        await source.publish(self.jobs.topic, [Message(b"poison", {"tenant": "acme"})])
        attempts = 0
        for _ in range(3 * backstop_attempts(self.jobs)):
            for delivery in await source.pull(1):
                attempts = max(attempts, delivery.attempt)
                await source.nack([delivery.ack_id])
            dead = await self.dead_letters(source)
            if dead:
                break
        assert [message.data for message in dead] == [b"poison"]
        assert dead[0].attributes["tenant"] == "acme"
        assert attempts == backstop_attempts(self.jobs)
        assert list(await source.pull(1)) == []

    async def test_setting_up_again_changes_nothing(self, source: JobSource) -> None:
        await source.publish(self.jobs.topic, [Message(b"kept")])
        await source.setup()
        (delivery,) = await self.pull_all(source, 1)
        assert delivery.data == b"kept"

    async def test_many_messages_are_published_in_one_go_in_order(self, source: JobSource) -> None:
        messages = [Message(str(n).encode() * 1000) for n in range(2500)]
        ids = await source.publish(self.jobs.topic, messages)
        assert len(set(ids)) == 2500
        got = await self.pull_all(source, 2500, tries=200)
        by_id = {delivery.message_id: delivery.data for delivery in got}
        assert [by_id[message_id] for message_id in ids] == [message.data for message in messages]

    async def dead_letters(self, source: JobSource) -> Sequence[Message]:
        """What is in the dead-letter topic."""
        raise NotImplementedError
