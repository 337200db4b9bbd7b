"""Dead letters beyond what the contract says of them: what they are read as, and walks that go wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence

import pytest

from cotenant.config import Jobs
from cotenant.errors import SourceUnavailable
from cotenant.jobs.clock import ManualClock
from cotenant.jobs.model import ORIGIN, QUEUE_COUNT, QUEUE_SUBSCRIPTION, Identity
from cotenant.jobs.queue.dead import FORWARDED_BY_QUEUE, DeadLetter, DeadLetters, everything, older_than, read, with_ids
from cotenant.jobs.queue.lanes import MAIN
from cotenant.jobs.queue.memory import MemoryLanes
from cotenant.jobs.queue.source import (
    MAX_ATTRIBUTE_BYTES,
    MAX_ATTRIBUTES,
    MAX_MESSAGE_BYTES,
    Delivery,
    Message,
    check_messages,
    fitting,
)
from tests.contracts.jobs_house import chat, message

pytestmark = pytest.mark.unit

JOBS = Jobs(lease_s=10)
LINE = message(chat("c1")).data


def letter(data: bytes = LINE, key: str = "", **attributes: str) -> DeadLetter:
    return read(Delivery("ack", "9", data, attributes, 1, 100.0, key), JOBS)


# --- what it is read as -------------------------------------------------------------------------------------


def test_our_attributes_come_off_and_the_publishers_stay() -> None:
    read_as = letter(
        tenant="acme",
        batch="b1",
        priority="5",
        outcome="attempts_exhausted",
        reason="gave up",
        attempts="5",
        attempt_history='[{"at_s": 1}]',
        message_id="7",
        source_topic="projects/p/topics/jobs.writer",
        retried="1",
    )
    assert read_as.message == Message(LINE, {"tenant": "acme", "batch": "b1", "priority": "5"})
    assert (read_as.outcome, read_as.attempts, read_as.attempt_history) == ("attempts_exhausted", 5, '[{"at_s": 1}]')
    assert (read_as.id, read_as.message_id, read_as.topic, read_as.buried_at_s) == ("9", "7", "jobs.writer", 100.0)
    assert read_as.identity == Identity("acme", "b1", "c1")


def test_a_job_without_a_batch_stays_the_job_that_it_was() -> None:
    read_as = letter(tenant="acme", outcome="engine_error", message_id="7")
    assert read_as.message.attributes == {"tenant": "acme", ORIGIN: "7"}
    assert read_as.identity == Identity("acme", "7", "c1")


@pytest.mark.parametrize(
    ("subscription", "topic"),
    [
        ("jobs-cotenant", "jobs"),
        ("jobs-cotenant.writer", "jobs.writer"),
        ("projects/p/subscriptions/jobs-cotenant-clerk", "jobs-clerk"),
        ("somebody-elses", "jobs"),
    ],
)
def test_what_the_queue_gave_up_goes_back_to_the_lane_of_its_subscription(subscription: str, topic: str) -> None:
    forged = {"source_topic": "somebody-elses-topic", "reason": "forged"}
    read_as = letter(**{QUEUE_SUBSCRIPTION: subscription, QUEUE_COUNT: "50", "tenant": "acme"}, **forged)
    assert (read_as.topic, read_as.outcome, read_as.attempts) == (topic, FORWARDED_BY_QUEUE, 50)
    assert read_as.message.attributes == {"tenant": "acme"}
    assert read_as.reason != "forged"


@pytest.mark.parametrize("topic", ["", "results", "jobs-other", "dead"])
def test_nothing_is_published_to_a_topic_that_is_no_lane(topic: str) -> None:
    assert letter(outcome="malformed", source_topic=topic).topic == "jobs"


def test_what_is_no_job_has_no_identity() -> None:
    assert letter(b"{not json", outcome="malformed", message_id="7").identity is None


def test_letters_are_chosen_by_their_id_their_messages_or_their_jobs() -> None:
    one = letter(tenant="acme", batch="b1", outcome="malformed", message_id="7")
    assert one.identity is not None
    assert [with_ids([name])(one) for name in ("9", "7", one.identity.job_id, "8")] == [True, True, True, False]
    assert [older_than(age_s, 160.0)(one) for age_s in (59.0, 61.0)] == [True, False]


# --- walks --------------------------------------------------------------------------------------------------


class World:
    """Dead letters in memory, and time that passes by itself."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.lanes = MemoryLanes(JOBS, clock=self.clock)
        self.main = self.lanes.open(MAIN)
        self.source = self.lanes.dead_letters()
        self.published: list[str] = []
        self.dead = DeadLetters(JOBS, self.source, self.publish, clock=self.clock)

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        self.published += [f"{topic} {json.loads(one.data)['custom_id']}" for one in messages]

    async def bury(self, *custom_ids: str) -> None:
        lines = [message(chat(custom_id)) for custom_id in custom_ids]
        letters = [Message(line.data, {**line.attributes, "outcome": "malformed"}) for line in lines]
        await self.main.publish(JOBS.dead_letter, letters)

    async def left(self) -> list[str]:
        """What is there, by custom_id; nothing of it is leased."""
        deliveries = await self.source.pull(1000)
        await self.source.nack([delivery.ack_id for delivery in deliveries])
        return sorted(json.loads(delivery.data)["custom_id"] for delivery in deliveries)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()

    async def pass_time() -> None:
        while True:
            await world.clock.advance(0.25)

    passing = asyncio.create_task(pass_time())
    yield world
    passing.cancel()


async def test_a_retry_that_can_not_publish_gives_all_letters_back(world: World) -> None:
    async def refuse(topic: str, messages: Sequence[Message]) -> None:
        raise SourceUnavailable("down")

    await world.bury("a", "b")
    with pytest.raises(SourceUnavailable):
        await DeadLetters(JOBS, world.source, refuse, clock=world.clock).retry(everything)
    assert await world.left() == ["a", "b"]


async def test_a_letter_goes_only_after_its_message_is_published(world: World) -> None:
    async def publish_and_fail_to_ack(topic: str, messages: Sequence[Message]) -> None:
        await world.publish(topic, messages)
        world.lanes.down.add("dead-kept")

    await world.bury("a")
    with pytest.raises(SourceUnavailable):
        await DeadLetters(JOBS, world.source, publish_and_fail_to_ack, clock=world.clock).retry(everything)
    world.lanes.down.clear()
    await world.clock.sleep(JOBS.lease_s + 1)
    assert world.published == ["jobs a"]
    assert await world.left() == ["a"]


async def test_a_job_that_dies_again_at_once_is_not_retried_again_by_the_same_command(world: World) -> None:
    async def publish_and_bury(topic: str, messages: Sequence[Message]) -> None:
        await world.publish(topic, messages)
        await world.bury(*(json.loads(one.data)["custom_id"] for one in messages))

    await world.bury("a", "b")
    retried = await DeadLetters(JOBS, world.source, publish_and_bury, clock=world.clock).retry(everything)
    assert len(retried) == 2
    assert sorted(world.published) == ["jobs a", "jobs b"]
    assert await world.left() == ["a", "b"]


async def test_a_walk_that_takes_longer_than_a_lease_keeps_what_it_holds(world: World) -> None:
    async def slowly(letter: DeadLetter) -> None:
        await world.clock.sleep(5 * JOBS.lease_s)

    await world.bury("a", "b", "c")
    retried = await world.dead.retry(lambda letter: b'"c"' not in letter.data, before=slowly)
    assert len(retried) == 2
    assert sorted(world.published) == ["jobs a", "jobs b"]
    assert await world.left() == ["c"]


async def test_a_walk_that_is_broken_off_gives_back_what_it_held_and_what_its_pull_brought(world: World) -> None:
    await world.bury("a")
    walk = asyncio.create_task(world.dead.list())
    await world.clock.sleep(0.5)  # it holds one letter and waits for more
    walk.cancel()
    await world.bury("b")
    with pytest.raises(asyncio.CancelledError):
        await walk
    assert await world.left() == ["a", "b"]


async def test_a_choice_by_age_takes_the_old_ones(world: World) -> None:
    await world.bury("old")
    await world.clock.sleep(3600)
    await world.bury("new")
    assert len(await world.dead.purge(older_than(1800, world.clock.unix_s()))) == 1
    assert await world.left() == ["new"]


async def test_no_more_are_taken_than_enough(world: World) -> None:
    await world.bury("a", "b", "c")
    assert len(await world.dead.purge(everything, enough=1)) == 1
    assert len(await world.dead.retry(everything, enough=1)) == 1
    assert len(await world.left()) == 1


async def test_many_letters_are_walked_through_in_pages(world: World) -> None:
    await world.bury(*(f"c{n}" for n in range(1200)))
    listing = await world.dead.list(limit=2000)
    assert (len(listing.letters), listing.complete) == (1200, True)
    assert len(await world.dead.purge(everything)) == 1200
    assert await world.left() == []


# --- what a message is cut to -------------------------------------------------------------------------------


def test_a_message_that_came_by_the_queue_can_always_go_on_by_it() -> None:
    theirs = {f"k{n}": "v" for n in range(100)} | {"long": "ä" * 1000, "n" * 300: "v", "reason": "theirs"}
    ours = {"outcome": "malformed", "reason": "r" * 5000, "attempt_history": "h"}
    fitted = fitting(Message(b"x", theirs, "key"), ours)
    check_messages([fitted])
    assert len(fitted.attributes) == MAX_ATTRIBUTES
    assert fitted.attributes["reason"] == "r" * MAX_ATTRIBUTE_BYTES
    assert ours.keys() | {"k0", "k96"} <= fitted.attributes.keys()
    assert fitted.ordering_key == "key"
    check_messages([fitting(Message(b"x", theirs))])


def test_a_message_without_room_for_our_attributes_goes_on_without_those_that_are_needed_less() -> None:
    full = Message(b"x" * (MAX_MESSAGE_BYTES - 1000), {"tenant": "acme"})
    fitted = fitting(full, {"outcome": "m", "reason": "r" * 900, "attempt_history": "h" * 900})
    check_messages([fitted])
    assert fitted.attributes == {"tenant": "acme", "outcome": "m", "reason": "r" * 900}
