"""What every job source promises. Runs against the in-memory twin and against the real emulator.

A subclass gives `open_lanes(jobs)` and `wait(seconds)`; a promise gets `source`, the main lane of `self.lanes`, set up
and empty, with a lease of LEASE_S. A promise that needs other settings opens lanes of its own with `other_lanes`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import pytest

from cotenant.config import Jobs
from cotenant.errors import MalformedJob
from cotenant.jobs.queue.dead import FORWARDED_BY_QUEUE, DeadLetters, everything, with_ids
from cotenant.jobs.queue.lanes import CLERK, MAIN, lane_of, topic_of
from cotenant.jobs.queue.source import MAX_MESSAGE_BYTES, Delivery, JobSource, Message, backstop_attempts

LEASE_S = 10

_numbers = itertools.count(1)


def contract_jobs(suffix: str = "", **settings: Any) -> Jobs:
    names = {key: f"{key}{suffix}" for key in ("topic", "subscription", "results", "dead_letter")}
    return Jobs(**names, lease_s=LEASE_S, max_attempts=1, **settings)


class LanesWithDead(Protocol):
    def open(self, lane: str) -> JobSource: ...

    def dead_letters(self) -> JobSource: ...


class JobSourceContract:
    jobs: Jobs
    lanes: LanesWithDead
    keeps_order_after_nacks = True

    def open_lanes(self, jobs: Jobs) -> LanesWithDead:
        raise NotImplementedError

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def other_lanes(self, **settings: Any) -> tuple[Jobs, LanesWithDead, JobSource]:
        """Lanes over names of their own, the main one of them set up."""
        jobs = contract_jobs(f"-other{next(_numbers)}", **settings)
        lanes = self.open_lanes(jobs)
        source = lanes.open(MAIN)
        await source.setup()
        return jobs, lanes, source

    async def pull_all(self, source: JobSource, count: int, tries: int = 10) -> list[Delivery]:
        """Pulls until `count` messages came, or `tries` pulls brought none, each a moment after the last."""
        got: list[Delivery] = []
        while len(got) < count and tries > 0:
            some = await source.pull(count - len(got))
            got += some
            if not some:
                tries -= 1
                await self.wait(0.2)
        return got

    async def dead_letters(self) -> list[Message]:
        """What is in the dead-letter topic."""
        source = self.lanes.dead_letters()
        letters = await self.pull_all(source, 100, tries=2)
        await source.ack([letter.ack_id for letter in letters])
        await source.close()
        return [Message(letter.data, letter.attributes, letter.ordering_key) for letter in letters]

    # --- messages ---

    async def test_a_message_arrives_with_its_data_attributes_and_key(self, source: JobSource) -> None:
        attributes = {"tenant": "acme", "custom_id": "ä", "ключ 🗝": "значение 🎉"}
        ids = await source.publish(self.jobs.topic, [Message(b"one", attributes, "Schlüssel")])
        (delivery,) = await self.pull_all(source, 1)
        assert (delivery.data, dict(delivery.attributes)) == (b"one", attributes)
        assert delivery.ordering_key == "Schlüssel"
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

    async def test_many_messages_are_published_in_one_go_in_order(self, source: JobSource) -> None:
        messages = [Message(str(n).encode() * 1000, ordering_key=("", "a", "b")[n % 3]) for n in range(2500)]
        ids = await source.publish(self.jobs.topic, messages)
        assert len(set(ids)) == 2500
        got = await self.pull_all(source, 2500)
        by_id = {delivery.message_id: delivery.data for delivery in got}
        assert [by_id[message_id] for message_id in ids] == [message.data for message in messages]

    async def test_a_message_may_be_as_large_as_pubsub_takes_it(self, source: JobSource) -> None:
        attributes = {"tenant": "acme"}
        small = Message(b"small")
        large = Message(b"x" * (MAX_MESSAGE_BYTES - len("tenantacme")), attributes)
        await source.publish(self.jobs.topic, [small, large, small, large])
        got = await self.pull_all(source, 4)
        assert sorted(len(delivery.data) for delivery in got) == [5, 5, len(large.data), len(large.data)]
        await source.ack([delivery.ack_id for delivery in got])

    async def test_a_message_that_the_queue_can_never_take_is_refused_before_any_is_published(
        self, source: JobSource
    ) -> None:
        bad = {
            "at most 100 are taken": Message(b"x", {f"k{n}": "v" for n in range(101)}),
            "attribute name of 257 bytes": Message(b"x", {"k" * 257: "v"}),
            "attribute name of 0 bytes": Message(b"x", {"": "v"}),
            "1026 bytes in the attribute k": Message(b"x", {"k": "ä" * 513}),
            "ordering key of 1025 bytes": Message(b"x", {}, "o" * 1025),
            "is empty": Message(b""),
            "half a surrogate pair": Message(b"x", {"k": "\ud800"}),
            "10000001 bytes, Pub/Sub takes at most 10000000": Message(b"x" * (MAX_MESSAGE_BYTES + 1)),
        }
        for reason, message in bad.items():
            with pytest.raises(MalformedJob, match=f"message 2 of 2 .*{reason}"):
                await source.publish(self.jobs.topic, [Message(b"good"), message])
        assert list(await source.pull(10)) == []

    # --- leases ---

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

    async def test_a_message_that_is_given_back_for_a_while_comes_again_each_time(self, source: JobSource) -> None:
        await source.publish(self.jobs.topic, [Message(b"shaky")])
        for attempt in range(1, 6):
            (delivery,) = await self.pull_all(source, 1, tries=15)
            assert delivery.attempt == attempt
            await source.nack([delivery.ack_id], delay_s=2)
            await self.wait(2)

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
        await self.settle_late(source, self.jobs)

    async def test_settling_a_lost_lease_of_an_exactly_once_subscription_raises_nothing(
        self, source: JobSource
    ) -> None:
        jobs, _, exactly_once = await self.other_lanes(exactly_once=True)
        await self.settle_late(exactly_once, jobs)
        await exactly_once.close()

    async def settle_late(self, source: JobSource, jobs: Jobs) -> None:
        """One lease is lost and lent again; the ids of both are settled together with a good one."""
        await source.publish(jobs.topic, [Message(b"late")])
        (first,) = await self.pull_all(source, 1)
        await self.wait(LEASE_S + 1)
        (second,) = await self.pull_all(source, 1)
        await source.publish(jobs.topic, [Message(b"in time")])
        (good,) = await self.pull_all(source, 1)
        await source.nack([first.ack_id])
        await source.extend([first.ack_id, good.ack_id])
        await source.ack([first.ack_id, good.ack_id, second.ack_id])
        await source.ack([second.ack_id])
        await self.wait(LEASE_S + 1)
        again = await source.pull(10)
        assert good.message_id not in [delivery.message_id for delivery in again]

    async def test_an_ack_id_that_is_none_keeps_no_other_from_being_acked(self, source: JobSource) -> None:
        await source.publish(self.jobs.topic, [Message(str(n).encode()) for n in range(7)])
        got = await self.pull_all(source, 7)
        ids = [delivery.ack_id for delivery in got]
        await source.extend(["no ack id", *ids])
        await source.ack([*ids[:3], "no ack id", "none either", *ids[3:]])
        await self.wait(LEASE_S + 1)
        assert list(await source.pull(10)) == []

    async def test_a_message_that_never_ends_well_goes_to_the_dead_letter_topic(self, source: JobSource) -> None:
        await source.publish(self.jobs.topic, [Message(b"poison", {"tenant": "acme"}, "key")])
        attempts = 0
        while deliveries := await self.pull_all(source, 1, tries=15):
            assert deliveries[0].attempt == attempts + 1
            attempts += 1
            await source.nack([deliveries[0].ack_id])
            if attempts == backstop_attempts(self.jobs):
                break
        assert attempts == backstop_attempts(self.jobs)
        letters = (await self.tools(self.lanes, self.jobs).list()).letters
        for _ in range(10):  # the queue forwards in its own time
            if letters:
                break
            assert list(await source.pull(1)) == []
            await self.wait(1)
            letters = (await self.tools(self.lanes, self.jobs).list()).letters
        (letter,) = letters
        assert (letter.data, letter.attributes, letter.ordering_key) == (b"poison", {"tenant": "acme"}, "key")
        assert (letter.outcome, letter.attempts, letter.topic) == (FORWARDED_BY_QUEUE, attempts, self.jobs.topic)
        assert list(await source.pull(1)) == []

    async def test_setting_up_again_changes_nothing(self, source: JobSource) -> None:
        await source.publish(self.jobs.topic, [Message(b"kept")])
        await source.setup()
        (delivery,) = await self.pull_all(source, 1)
        assert delivery.data == b"kept"

    # --- order ---

    async def test_messages_of_a_key_come_in_their_order_and_the_next_ones_when_they_are_settled(
        self, source: JobSource
    ) -> None:
        jobs, _, ordered = await self.other_lanes(ordering=True)
        published = [Message(f"k{n}".encode(), {}, "k") for n in range(6)]
        await ordered.publish(jobs.topic, [*published, Message(b"free"), Message(b"j0", {}, "j")])
        came: list[bytes] = []
        out = list(await ordered.pull(2))
        for _ in range(30):
            more = await ordered.pull(10)
            busy = {delivery.ordering_key for delivery in out} - {""}
            assert not busy & {delivery.ordering_key for delivery in more}, "one of this key is out"
            out += more
            came += [delivery.data for delivery in out if delivery.ordering_key == "k"]
            await ordered.ack([delivery.ack_id for delivery in out])
            out.clear()
            if len(came) == len(published):
                break
        assert came == [message.data for message in published]
        await ordered.close()

    async def test_after_a_nack_no_message_of_the_key_is_lost_and_the_order_holds(self, source: JobSource) -> None:
        jobs, _, ordered = await self.other_lanes(ordering=True)
        await ordered.publish(jobs.topic, [Message(f"k{n}".encode(), {}, "k") for n in range(4)])
        out = list(await ordered.pull(2))
        assert out[0].data == b"k0"
        await ordered.nack([delivery.ack_id for delivery in out])
        came: list[bytes] = []
        for _ in range(30):
            batch = list(await ordered.pull(1))
            came += [delivery.data for delivery in batch]
            await ordered.ack([delivery.ack_id for delivery in batch])
            if len(set(came)) == 4:
                break
        assert (came if self.keeps_order_after_nacks else sorted(set(came))) == [b"k0", b"k1", b"k2", b"k3"]
        await ordered.close()

    # --- lanes ---

    async def test_what_is_published_to_a_lanes_topic_reaches_that_lane_alone(self, source: JobSource) -> None:
        writer, clerk = self.lanes.open(lane_of("writer")), self.lanes.open(CLERK)
        await asyncio.gather(writer.setup(), clerk.setup())
        await source.publish(topic_of(self.jobs, lane_of("writer")), [Message(b"for the writer")])
        await writer.publish(topic_of(self.jobs, CLERK), [Message(b"an errand")])
        (errand,) = await self.pull_all(clerk, 1)
        (job,) = await self.pull_all(writer, 1)
        assert (job.data, errand.data) == (b"for the writer", b"an errand")
        assert list(await source.pull(1)) == []
        await writer.ack([job.ack_id])
        await clerk.ack([errand.ack_id])

    async def test_closing_a_lane_closes_no_other(self, source: JobSource) -> None:
        writer = self.lanes.open(lane_of("writer"))
        await writer.setup()
        await writer.close()
        await source.publish(topic_of(self.jobs, lane_of("writer")), [Message(b"still there")])
        assert list(await source.pull(1)) == []
        (delivery,) = await self.pull_all(writer, 1)
        assert delivery.data == b"still there"
        await writer.close()

    # --- dead letters ---

    def tools(self, lanes: LanesWithDead, jobs: Jobs) -> DeadLetters:
        source = lanes.dead_letters()
        return DeadLetters(jobs, source, source.publish)

    async def bury(self, source: JobSource, *names: str) -> Sequence[str]:
        return await source.publish(
            self.jobs.dead_letter,
            [
                Message(
                    f"data of {name}".encode(),
                    {
                        "tenant": "acme",
                        "batch": "b1",
                        "custom_id": name,
                        "outcome": "malformed",
                        "reason": f"{name} is not JSON",
                        "attempts": "2",
                        "attempt_history": "[]",
                        "message_id": f"first-{name}",
                        "source_topic": topic_of(self.jobs, lane_of("writer")),
                    },
                    f"key of {name}",
                )
                for name in names
            ],
        )

    async def test_listing_dead_letters_consumes_none_and_shows_each_as_it_came(self, source: JobSource) -> None:
        ids = await self.bury(source, "a", "b", "c")
        tools = self.tools(self.lanes, self.jobs)
        for _ in range(2):
            listing = await tools.list()
            assert listing.complete
            assert {letter.id for letter in listing.letters} == set(ids)
        shown = await tools.show("first-b")
        assert shown is not None
        assert (shown.outcome, shown.reason, shown.attempts) == ("malformed", "b is not JSON", 2)
        assert (shown.tenant, shown.batch, shown.custom_id) == ("acme", "b1", "b")
        assert shown.message == Message(b"data of b", {"tenant": "acme", "batch": "b1", "custom_id": "b"}, "key of b")
        assert await tools.show("no such letter") is None
        some = await tools.list(limit=2)
        assert (len(some.letters), some.complete) == (2, False)

    async def test_a_retried_dead_letter_goes_back_to_its_lane_and_the_others_stay(self, source: JobSource) -> None:
        writer = self.lanes.open(lane_of("writer"))
        await writer.setup()
        ids = await self.bury(source, "a", "b", "c")
        tools = self.tools(self.lanes, self.jobs)
        forgotten: list[str] = []

        async def forget(letter: Any) -> None:
            forgotten.append(letter.custom_id)

        retried = await tools.retry(with_ids([ids[1]]), before=forget)
        assert [letter.custom_id for letter in retried] == forgotten == ["b"]
        (again,) = await self.pull_all(writer, 1)
        assert (again.data, again.ordering_key) == (b"data of b", "key of b")
        assert dict(again.attributes) == {"tenant": "acme", "batch": "b1", "custom_id": "b"}
        await writer.ack([again.ack_id])
        assert {letter.custom_id for letter in (await tools.list()).letters} == {"a", "c"}
        await writer.close()

    async def test_purged_dead_letters_are_gone_for_good(self, source: JobSource) -> None:
        await self.bury(source, "a", "b", "c")
        tools = self.tools(self.lanes, self.jobs)
        assert [letter.custom_id for letter in await tools.purge(with_ids(["first-c"]))] == ["c"]
        assert {letter.custom_id for letter in (await tools.list()).letters} == {"a", "b"}
        assert len(await tools.purge(everything)) == 2
        await self.wait(LEASE_S + 1)
        assert (await tools.list()).letters == ()
