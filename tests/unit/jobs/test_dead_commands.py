"""`cotenant dead list | show | retry | purge`: over the kept subscription, and over the store where there is none."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cotenant.calls import Reply
from cotenant.cli import jobs_door
from cotenant.cli.machine.state import RunState
from cotenant.config import Jobs
from cotenant.errors import SourceUnavailable
from cotenant.jobs.model import Identity, Result, error_line, parse_job, result_line
from cotenant.jobs.queue.memory import MemorySource
from cotenant.jobs.queue.source import Message
from cotenant.jobs.queue.topology import kept_jobs
from cotenant.jobs.store.results import Attempt
from tests.contracts.command_house import House, cotenant, file_of
from tests.contracts.jobs_house import chat

pytestmark = pytest.mark.unit


class Graveyard(House):
    """A house whose dead letters wait in a list between two commands."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.dead: list[Message] = []
        self.down = False

    @asynccontextmanager
    async def letters(self, door: Any) -> AsyncIterator[MemorySource]:
        del door
        source = MemorySource(kept_jobs(Jobs()), pull_wait_s=0.01)
        await source.publish("dead", self.dead)
        yield source
        left = await source.pull(1000)
        self.dead = [Message(one.data, one.attributes, one.ordering_key) for one in left]

    @asynccontextmanager
    async def publisher(self, door: Any) -> AsyncIterator[Any]:
        del door

        async def publish(topic: str, messages: Sequence[Message]) -> None:
            if self.down:
                raise SourceUnavailable("the queue is down")
            self.published += [(topic, message) for message in messages]

        yield publish

    def bury(
        self, custom_id: str, *, outcome: str = "attempts_exhausted", tenant: str = "acme", **ours: str
    ) -> Identity:
        """A dead letter as the pump makes it, and what it leaves in the store."""
        identity = Identity(tenant, "b1", custom_id)
        ours = {
            "outcome": outcome,
            "reason": f"{custom_id} broke",
            "attempts": "3",
            "message_id": f"m-{custom_id}",
            **ours,
        }
        attributes = {**identity.attributes, "priority": "3", "source_topic": "jobs.writer", **ours}
        self.dead.append(Message(json.dumps(chat(custom_id)).encode(), attributes))

        async def leave() -> None:
            await self.store.put_attempts(identity, [Attempt(time.time(), "engine_error", "broke")])
            await self.store.bury(identity, error_line(identity, outcome, "broke"))

        asyncio.run(leave())
        return identity


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Graveyard:
    house = Graveyard.build(tmp_path, monkeypatch)
    assert isinstance(house, Graveyard)
    monkeypatch.setattr(jobs_door, "dead_letters", house.letters)
    return house


def data(*arguments: str) -> Any:
    result = cotenant(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def word(house: House, identity: Identity) -> tuple[bytes | None, tuple[Attempt, ...]]:
    async def read() -> tuple[bytes | None, tuple[Attempt, ...]]:
        return await house.store.buried(identity), await house.store.attempts(identity)

    return asyncio.run(read())


def test_list_tells_what_was_given_up_and_why_and_consumes_nothing(house: Graveyard) -> None:
    house.bury("a")
    house.bury("b", outcome="malformed", tenant="other")
    for _ in range(2):
        result = cotenant("dead", "list")
        assert result.exit_code == 0, result.output
        assert "attempts_exhausted" in result.stdout and "a broke" in result.stdout
        assert "malformed" in result.stdout
    assert len(house.dead) == 2
    assert house.published == []
    mine = data("dead", "list", "--tenant", "acme")
    assert [letter["attributes"]["custom_id"] for letter in mine["data"]] == ["a"]
    assert mine["complete"]


def test_an_empty_list_says_so_and_a_cut_one_says_that_there_are_more(house: Graveyard) -> None:
    (house.folder / "results").mkdir()
    assert "nothing was given up" in cotenant("dead", "list").stderr
    for n in range(4):
        house.bury(f"c{n}")
    assert "there are more" in cotenant("dead", "list", "--limit", "2").stderr


def test_show_finds_a_letter_by_its_id_its_messages_or_its_jobs(house: Graveyard) -> None:
    identity = house.bury("a", attempt_history=json.dumps([{"at_s": 1.0, "outcome": "engine_error", "reason": "x"}]))
    for name in ("1", "m-a", identity.job_id):
        shown = data("dead", "show", name)
        assert (shown["job_id"], shown["topic"], shown["attempts"]) == (identity.job_id, "jobs.writer", 3)
        assert json.loads(shown["data"]) == chat("a")
        assert shown["attributes"] == {**identity.attributes, "priority": "3"}
    told = cotenant("dead", "show", "1").stdout
    assert "a broke" in told and "engine_error: x" in told
    missing = cotenant("dead", "show", "nothing")
    assert (missing.exit_code, "no dead letter is called nothing" in missing.stderr) == (1, True)


def test_retry_publishes_what_the_publisher_sent_and_the_job_starts_anew(house: Graveyard) -> None:
    a, b = house.bury("a"), house.bury("b")
    result = cotenant("dead", "retry", a.job_id)
    assert result.exit_code == 0, result.output
    ((topic, message),) = house.published
    assert topic == "jobs.writer"
    assert message.attributes == {**a.attributes, "priority": "3"}
    assert parse_job(message.data, message.attributes, "9").identity == a
    assert word(house, a) == (None, ())
    assert word(house, b)[0] is not None
    assert [letter.attributes["custom_id"] for letter in house.dead] == ["b"]


def test_retry_of_all_and_of_the_old_ones_only(house: Graveyard) -> None:
    house.bury("a")
    house.bury("b", tenant="other")
    assert cotenant("dead", "retry", "--older-than", "7d").exit_code == 0
    assert house.published == []
    assert cotenant("dead", "retry", "--all", "--tenant", "other").exit_code == 0
    assert [message.attributes["custom_id"] for _, message in house.published] == ["b"]
    assert cotenant("dead", "retry", "--all").exit_code == 0
    assert house.dead == []


def test_a_retry_that_can_not_publish_loses_neither_the_letter_nor_the_word(house: Graveyard) -> None:
    a = house.bury("a")
    before = word(house, a)
    house.down = True
    result = cotenant("dead", "retry", "--all")
    assert result.exit_code == 1
    assert "the queue is down" in result.stderr
    assert len(house.dead) == 1
    assert word(house, a) == before
    house.down = False
    assert cotenant("dead", "retry", "--all").exit_code == 0
    assert (house.dead, word(house, a)) == ([], (None, ()))


def test_a_letter_with_anothers_identity_leaves_the_others_attempts_alone(house: Graveyard) -> None:
    other = house.bury("a")
    house.bury("a", outcome="conflict")
    del house.dead[0]
    assert cotenant("dead", "retry", "--all").exit_code == 0
    assert word(house, other)[0] is not None


def test_purge_asks_first_and_throws_away_what_was_meant(house: Graveyard) -> None:
    house.bury("a")
    house.bury("b")
    refused = cotenant("dead", "purge", "--all", stdin=b"n\n")
    assert refused.exit_code == 1
    assert "throw 2 dead letters away, for good?" in refused.stderr
    assert len(house.dead) == 2
    assert cotenant("dead", "purge", "1", "--yes").exit_code == 0
    assert [letter.attributes["custom_id"] for letter in house.dead] == ["b"]
    assert cotenant("dead", "purge", "--all", stdin=b"y\n").exit_code == 0
    assert house.dead == [] and house.published == []


def test_ids_that_name_nothing_are_told_and_the_others_are_done(house: Graveyard) -> None:
    a = house.bury("a")
    result = cotenant("dead", "retry", a.job_id, "nothing")
    assert result.exit_code == 1
    assert "no dead letter is called nothing" in result.stderr
    assert len(house.published) == 1
    assert cotenant("dead", "purge", "nothing").exit_code == 1


@pytest.mark.parametrize("command", ["retry", "purge"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "name dead letters by their ids, or give --all"),
        (("1", "--all"), "name dead letters by their ids, or give --all"),
        (("--older-than", "soon"), "takes a duration such as 12h or 7d"),
    ],
    ids=str,
)
def test_a_choice_that_is_none_is_refused(house: Graveyard, command: str, options: tuple[str, ...], said: str) -> None:
    result = cotenant("dead", command, *options)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


# --- where the ingress holds jobs in memory ---


@pytest.fixture
def in_memory(house: Graveyard, monkeypatch: pytest.MonkeyPatch) -> Graveyard:
    """A platform that runs without Pub/Sub, with a batch of which one job was given up."""
    assert cotenant("submit", "-", "--batch", "mine", stdin=file_of(chat("a"), chat("b"))).exit_code == 0
    house.ingress(lambda job: Reply(200, b"{}") if job.identity.custom_id == "a" else None)
    house.published.clear()
    identity = Identity("default", "mine", "b")

    async def leave() -> None:
        await house.store.put_attempts(identity, [Attempt(time.time(), "engine_error", "broke")])
        await house.store.bury(identity, error_line(identity, "attempts_exhausted", "gave up: broke"))

    asyncio.run(leave())
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST")
    state = RunState("cotenant", "local", "", None, None, None, None, None, None, str(house.folder / "results"), "")
    monkeypatch.setattr(jobs_door, "running", lambda platform: state)
    return house


def test_in_memory_the_stores_words_are_listed_and_shown(in_memory: Graveyard) -> None:
    (letter,) = data("dead", "list")["data"]
    identity = Identity("default", "mine", "b")
    assert (letter["id"], letter["outcome"], letter["attempts"]) == (identity.job_id, "attempts_exhausted", 1)
    assert json.loads(data("dead", "show", identity.job_id)["data"]) == chat("b")


def test_in_memory_a_batchs_job_can_be_tried_again(in_memory: Graveyard) -> None:
    identity = Identity("default", "mine", "b")
    result = cotenant("dead", "retry", identity.job_id)
    assert result.exit_code == 0, result.output
    ((topic, message),) = in_memory.published
    assert (topic, parse_job(message.data, message.attributes, "1").identity) == ("jobs.writer", identity)
    assert word(in_memory, identity) == (None, ())
    in_memory.ingress()
    assert cotenant("results", "mine", "--timeout", "1").exit_code == 0


def test_in_memory_there_is_nothing_to_purge(in_memory: Graveyard) -> None:
    result = cotenant("dead", "purge", "--all", "--yes")
    assert result.exit_code == 1
    assert "has no Pub/Sub (the ingress holds the jobs in memory)" in result.stderr


def test_what_was_done_after_all_is_not_dead(in_memory: Graveyard) -> None:
    identity = Identity("default", "mine", "b")

    async def do() -> None:
        job = parse_job(json.dumps(chat("b")).encode(), identity.attributes, "1")
        await in_memory.store.create_result(Result(identity, job.sha256, result_line(job, Reply(200, b"{}"))))

    asyncio.run(do())
    assert data("dead", "list")["data"] == []
