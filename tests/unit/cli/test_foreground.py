"""`up --foreground`: how it ends, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from typing import Any

import psutil
import pytest

from cotenant.cli import foreground
from cotenant.cli.foreground import run
from cotenant.cli.machine.state import ProcessRef, RunState
from cotenant.errors import DeployFailed, EnvironmentFault

pytestmark = pytest.mark.unit

STATE = RunState(
    platform="acme",
    environment="local",
    dashboard="http://127.0.0.1:1",
    token_file=None,
    ray=None,
    ray_dir="/tmp/ray",
    ray_address=None,
    emulator=None,
    pubsub_emulator_host=None,
    store=None,
    gateway_url="http://127.0.0.1:8000",
)


class Machine:
    """What is on record as running, and what was taken down."""

    def __init__(self, before: RunState | None = None) -> None:
        self.record = before
        self.down: list[RunState] = []

    def take_down(self, state: RunState) -> None:
        self.down.append(state)
        self.record = None

    def run(self, bring_up: Any) -> int:
        return run(bring_up, find=lambda: self.record, down=self.take_down)

    def start(self) -> RunState:
        self.record = STATE
        return STATE


def tell(number: int, after_s: float = 0.0) -> None:
    threading.Timer(after_s, os.kill, (os.getpid(), number)).start()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_takes_down_what_it_started_and_that_is_a_success(number: int) -> None:
    machine = Machine()
    tell(number, 0.3)
    assert machine.run(machine.start) == 0
    assert machine.down == [STATE]


def test_told_to_end_while_it_starts_it_stops_there_and_says_by_what() -> None:
    machine = Machine()

    def bring_up() -> RunState:
        machine.start()
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")

    assert machine.run(bring_up) == 128 + signal.SIGTERM
    assert machine.down == [STATE]


def test_what_did_not_start_is_taken_down_and_the_reason_is_told() -> None:
    machine = Machine()

    def bring_up() -> RunState:
        machine.start()
        raise DeployFailed("mockups: no such template")

    with pytest.raises(DeployFailed, match="no such template"):
        machine.run(bring_up)
    assert machine.down == [STATE]


def test_what_was_there_before_and_was_not_joined_goes_on() -> None:
    machine = Machine(replace(STATE, environment="other"))

    def bring_up() -> RunState:
        raise EnvironmentFault("acme runs here as environment other")

    with pytest.raises(EnvironmentFault):
        machine.run(bring_up)
    assert machine.down == []


def test_what_was_there_before_and_was_joined_is_taken_down_with_it() -> None:
    machine = Machine(STATE)
    tell(signal.SIGTERM, 0.3)
    assert machine.run(lambda: STATE) == 0
    assert machine.down == [STATE]


def test_a_ray_that_ends_by_itself_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreground, "_LOOK_EVERY_S", 0.01)
    machine = Machine()
    gone = replace(STATE, ray=ProcessRef(psutil.Process().pid, 1.0))

    def bring_up() -> RunState:
        machine.record = gone
        return gone

    with pytest.raises(EnvironmentFault, match="Ray ended by itself; its logs are in /tmp/ray"):
        machine.run(bring_up)
    assert machine.down == [gone]


def test_a_second_signal_does_not_cut_the_drain_short() -> None:
    machine = Machine()
    drained = []

    def slowly(state: RunState) -> None:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        drained.append(state)

    tell(signal.SIGTERM, 0.2)
    assert run(machine.start, find=lambda: machine.record, down=slowly) == 0
    assert drained == [STATE]


def test_signals_are_as_they_were_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    tell(signal.SIGTERM, 0.2)
    machine = Machine()
    machine.run(machine.start)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
