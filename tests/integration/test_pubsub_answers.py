"""What the Pub/Sub edge makes of answers that real Pub/Sub gives and the emulator does not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import DefaultCredentialsError

from cotenant.config import Jobs
from cotenant.errors import SourceUnavailable
from cotenant.jobs.queue import pubsub, pubsub_client
from cotenant.jobs.queue.pubsub import PubSubSource
from cotenant.jobs.queue.pubsub_admin import PubSubAdmin
from cotenant.jobs.queue.source import Message
from tests.contracts.scripted_pubsub import Refusal, ScriptedPubSub, scripted_pubsub

pytestmark = pytest.mark.integration
#: `scripts/test` runs it beside another.
WAITS_MORE_THAN_IT_COMPUTES = True

LOST, LATER = "PERMANENT_FAILURE_INVALID_ACK_ID", "TRANSIENT_FAILURE_UNORDERED_ACK_ID"
BAD = grpc.StatusCode.INVALID_ARGUMENT


@pytest_asyncio.fixture
async def pubsub_server() -> AsyncIterator[ScriptedPubSub]:
    async with scripted_pubsub() as script:
        yield script


@pytest_asyncio.fixture
async def source(pubsub_server: ScriptedPubSub) -> AsyncIterator[PubSubSource]:
    source = PubSubSource(Jobs(project="shop", exactly_once=True), emulator_host=pubsub_server.host, pull_wait_s=0.5)
    yield source
    await source.close()


async def test_ids_that_an_exactly_once_subscription_calls_lost_are_let_go_and_the_rest_is_acked(
    pubsub_server: ScriptedPubSub, source: PubSubSource
) -> None:
    ids = [f"id{n}" for n in range(10)]
    pubsub_server.tell("Acknowledge", Refusal(BAD, "some failed", {"id3": LOST, "id7": LOST}))
    await source.ack(ids)
    requests = [list(request.ack_ids) for request in pubsub_server.of("Acknowledge")]
    assert requests == [ids, [one for one in ids if one not in ("id3", "id7")]]


async def test_ids_that_will_do_later_are_acked_later(pubsub_server: ScriptedPubSub, source: PubSubSource) -> None:
    failures = {"a": LATER, "b": LOST}
    pubsub_server.tell("Acknowledge", Refusal(BAD, "", failures), None, Refusal(BAD, "", {"a": LATER}), None)
    await source.ack(["a", "b", "c"])
    acked = [sorted(request.ack_ids) for request in pubsub_server.of("Acknowledge")]
    assert acked[0] == ["a", "b", "c"]
    assert sorted(acked[1:]) == [["a"], ["a"], ["c"]]


async def test_ids_that_never_do_are_the_queues_trouble(
    pubsub_server: ScriptedPubSub, source: PubSubSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pubsub, "CALL_TIMEOUT_S", 0.5)

    def judge(method: str, request: Any) -> Exception | None:
        return Refusal(BAD, "", {"a": LATER}) if "a" in request.ack_ids else None

    pubsub_server.judge = judge
    with pytest.raises(SourceUnavailable, match="did not modify leases"):
        await source.extend(["a", "b"])
    assert ["b"] in [list(request.ack_ids) for request in pubsub_server.of("ModifyAckDeadline")]


async def test_a_request_that_is_refused_for_ids_it_does_not_name_is_halved_until_they_are_found(
    pubsub_server: ScriptedPubSub, source: PubSubSource
) -> None:
    accepted: list[str] = []

    def judge(method: str, request: Any) -> Exception | None:
        if {"id13", "id700"} & set(request.ack_ids):
            return Refusal(BAD, "Some acknowledgement ids in the request were invalid.")
        accepted.extend(request.ack_ids)
        return None

    pubsub_server.judge = judge
    ids = [f"id{n}" for n in range(1500)]
    await source.ack(ids)
    assert sorted(accepted) == sorted(set(ids) - {"id13", "id700"})
    assert len(pubsub_server.of("Acknowledge")) < 50


async def test_acks_are_sent_in_requests_that_pubsub_takes(pubsub_server: ScriptedPubSub, source: PubSubSource) -> None:
    await source.ack([f"{n:0200d}" for n in range(2500)])
    await source.ack(["x" * 1000] * 900)
    sizes = [(len(request.ack_ids), sum(map(len, request.ack_ids))) for request in pubsub_server.of("Acknowledge")]
    assert sum(count for count, _ in sizes) == 3400
    assert all(count <= 1000 and size <= 400_000 for count, size in sizes)


async def test_a_publish_never_mixes_ordering_keys_and_splits_what_is_too_large_for_one_request(
    pubsub_server: ScriptedPubSub, source: PubSubSource
) -> None:
    messages = [Message(f"{n}".encode() + b"x" * 1_000_000, {}, ("", "a", "b")[n % 3]) for n in range(30)]
    ids = await source.publish("jobs", messages)
    assert len(set(ids)) == 30
    by_key: dict[str, list[bytes]] = {}
    for request in pubsub_server.of("Publish"):
        assert request.topic == "projects/shop/topics/jobs"
        (key,) = {message.ordering_key for message in request.messages}
        assert sum(len(message.data) for message in request.messages) <= 8_000_000
        by_key.setdefault(key, []).extend(message.data for message in request.messages)
    assert by_key == {key: [m.data for m in messages if m.ordering_key == key] for key in ("", "a", "b")}


async def test_what_fails_in_passing_is_done_again_and_what_fails_for_good_is_said(
    pubsub_server: ScriptedPubSub, source: PubSubSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = Refusal(grpc.StatusCode.UNAVAILABLE, "try again")
    pubsub_server.tell("Publish", gone, gone)
    assert await source.publish("jobs", [Message(b"x")]) == ["2"]
    pubsub_server.tell("Publish", Refusal(grpc.StatusCode.PERMISSION_DENIED, "User not authorized."))
    with pytest.raises(SourceUnavailable, match=r"did not publish to jobs: 403 User not authorized.; docs/pubsub.md"):
        await source.publish("jobs", [Message(b"x")])
    monkeypatch.setattr(pubsub_client, "CALL_TIMEOUT_S", 1.0)
    pubsub_server.judge = lambda method, request: gone
    with pytest.raises(SourceUnavailable, match="try again"):
        await source.publish("jobs", [Message(b"x")])


async def test_who_may_only_use_what_is_there_sets_nothing_up_and_goes_on(
    pubsub_server: ScriptedPubSub, source: PubSubSource
) -> None:
    denied = Refusal(grpc.StatusCode.PERMISSION_DENIED, "User not authorized.")
    pubsub_server.judge = lambda method, request: denied if method.startswith("Create") else None
    await source.setup()
    assert list(await source.pull(3)) == []
    assert {request.max_messages for request in pubsub_server.of("Pull")} == {3}


async def test_a_queue_that_says_at_once_that_it_is_empty_is_not_asked_as_fast_as_it_can_answer(
    pubsub_server: ScriptedPubSub, source: PubSubSource
) -> None:
    assert list(await source.pull(1)) == []
    assert 2 <= len(pubsub_server.of("Pull")) <= 6


async def test_who_may_not_even_look_is_told_where_the_roles_are_listed(pubsub_server: ScriptedPubSub) -> None:
    pubsub_server.judge = lambda method, request: Refusal(grpc.StatusCode.PERMISSION_DENIED, "no")
    admin = PubSubAdmin("shop", pubsub_server.host)
    with pytest.raises(SourceUnavailable, match=r"did not look up the topic jobs: 403 no; docs/pubsub.md lists"):
        await admin.topic("jobs")
    await admin.close()


async def test_without_an_emulator_the_clients_are_googles_with_our_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(pubsub_client.EMULATOR_ENV, raising=False)
    monkeypatch.setattr(pubsub_client.google.auth, "default", lambda scopes: (AnonymousCredentials(), "shop"))
    options: list[dict[str, Any]] = []
    create = grpc.aio.secure_channel

    def seen(target: str, credentials: Any, options_: Any = None, **named: Any) -> Any:
        options.append({"target": target, **dict(named["options"])})
        return create(target, credentials, **named)

    monkeypatch.setattr(grpc.aio, "secure_channel", seen)
    connection = pubsub_client.Connection("shop")
    await connection.hold(None)
    assert [one["target"] for one in options] == ["pubsub.googleapis.com:443"] * 2
    for one in options:
        assert one["grpc.keepalive_time_ms"] == 30_000
        assert one["grpc.max_reconnect_backoff_ms"] == 3000
        assert one["grpc.max_receive_message_length"] == -1
    await connection.release(None)


async def test_without_credentials_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(scopes: Any) -> Any:
        raise DefaultCredentialsError("Your default credentials were not found.")

    monkeypatch.delenv(pubsub_client.EMULATOR_ENV, raising=False)
    monkeypatch.setattr(pubsub_client.google.auth, "default", none)
    with pytest.raises(
        SourceUnavailable, match=r"Pub/Sub project cotenant did not connect: .*COTENANT_JOBS_SOURCE=memory"
    ):
        await PubSubSource(Jobs()).pull(1)
