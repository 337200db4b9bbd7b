"""Frames: what was said is what is heard, and what can't be understood is refused politely."""

from __future__ import annotations

import orjson
import pytest

from cotenant.agent import protocol
from cotenant.agent.snapshot import Snapshot
from cotenant.gpu.terms import Priority, Tier
from tests.unit.agent.house import hello

pytestmark = pytest.mark.unit

REQUESTS: list[protocol.Request] = [
    hello("writer", pid=7, gpu="GPU-1", tier=Tier.ASLEEP, holds_full=True, pids=(8, 9)),
    protocol.Report(tier=Tier.RESIDENT, allocated_bytes=5, running=1, waiting=2, pids=(3,)),
    protocol.Ask(priority=Priority.BATCH),
    protocol.Withdraw(),
    protocol.Busy(priority=Priority.INTERACTIVE),
    protocol.Idle(),
    protocol.Slept(),
    protocol.SnapshotRequest(),
    protocol.Bye(),
]
ANSWERS: list[protocol.Answer] = [
    protocol.Welcome(node_id="n", gpu=None, interval_s=1.0),
    protocol.Granted(),
    protocol.Recalled(wanted_by="painter#1"),
    protocol.Error(message="no", about="ask", final=True),
    protocol.SnapshotAnswer(snapshot=Snapshot(node_id="n", at=1.0, interval_s=1.0, gpus=())),
]


@pytest.mark.parametrize("message", REQUESTS, ids=lambda message: message.type)
def test_a_request_arrives_as_it_was_said(message: protocol.Request) -> None:
    frame = protocol.encode(message)
    assert frame.count(b"\n") == 1
    assert frame.endswith(b"\n")
    assert protocol.decode_request(frame) == message


@pytest.mark.parametrize("message", ANSWERS, ids=lambda message: message.type)
def test_an_answer_arrives_as_it_was_said(message: protocol.Answer) -> None:
    assert protocol.decode_answer(protocol.encode(message)) == message


@pytest.mark.parametrize(
    ("frame", "reason", "about"),
    [
        pytest.param(b"\n", "EOF", "", id="nothing"),
        pytest.param(b"[1]\n", "object", "", id="no object"),
        pytest.param(b'{"type": 3}\n', "type", "", id="a type that is no word"),
        pytest.param(b'{"type": "dance"}\n', "dance", "dance", id="an unknown type"),
        pytest.param(b'{"type": "ask", "priority": 9}\n', "priority", "ask", id="an unknown priority"),
        pytest.param(b'{"type": "hello"}\n', "terms", "hello", id="a hello without terms"),
        pytest.param(
            b'{"type": "report", "tier": "cold", "running": -1}\n', "running", "report", id="a negative count"
        ),
    ],
)
def test_what_cannot_be_understood_is_named(frame: bytes, reason: str, about: str) -> None:
    with pytest.raises(protocol.ProtocolError, match=reason):
        protocol.decode_request(frame)
    assert protocol.type_of(frame) == about


def test_a_field_that_a_newer_version_added_is_ignored() -> None:
    frame = orjson.dumps({"type": "ask", "priority": 0, "mood": "urgent"})
    assert protocol.decode_request(frame) == protocol.Ask(priority=Priority.BATCH)


def test_a_newer_agents_answer_of_an_unknown_type_is_an_error_too() -> None:
    with pytest.raises(protocol.ProtocolError):
        protocol.decode_answer(b'{"type": "dance"}')
