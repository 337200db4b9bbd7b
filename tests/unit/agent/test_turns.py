"""Starts on one GPU, one at a time, and never held up by the dead."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from cotenant.agent.turns import StartTurn

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("agents_folder")]

GPU = "GPU-1"


def hold(told: Connection) -> None:
    """A process that takes its turn and keeps it."""
    with StartTurn(GPU, "writer"):
        told.send("has it")
        signal.pause()


@pytest.fixture
def holder() -> multiprocessing.process.BaseProcess:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(there,), daemon=True)
    process.start()
    assert here.recv() == "has it"
    return process


def in_thread(do: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    return thread


def test_who_waits_is_told_for_whom_and_goes_on_when_that_one_dies(
    holder: multiprocessing.process.BaseProcess,
) -> None:
    said: list[str] = []
    waits, entered = threading.Event(), threading.Event()

    def note(text: str) -> None:
        said.append(text)
        waits.set()

    def start() -> None:
        with StartTurn(GPU, "painter", note):
            entered.set()

    in_thread(start)
    assert waits.wait(5)
    assert not entered.is_set()
    os.kill(holder.pid or 0, signal.SIGKILL)
    assert entered.wait(5)
    assert said == [f"painter waits for writer (pid {holder.pid}) to finish starting on GPU-1"]
    holder.join()


def test_another_gpu_has_a_turn_of_its_own(holder: multiprocessing.process.BaseProcess) -> None:
    with StartTurn("GPU-2", "painter"):
        assert holder.is_alive()
    holder.kill()
    holder.join()


async def test_two_in_one_process_take_turns_too() -> None:
    order: list[str] = []

    async def start(who: str) -> None:
        async with StartTurn(GPU, who, order.append):
            order.append(f"{who} in")
            await asyncio.sleep(0.1)
            order.append(f"{who} out")

    await asyncio.gather(start("a"), start("b"))
    pid = os.getpid()
    waits = f"b waits for another in this process (pid {pid}) to finish starting on GPU-1"
    assert order == ["a in", waits, "a out", "b in", "b out"]


def test_a_child_does_not_have_its_parents_turn(agents_folder: Path) -> None:
    with StartTurn(GPU, "writer"):
        here, there = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(target=hold, args=(there,), daemon=True)
        child.start()
        assert not here.poll(0.3), "it waits although it inherited all that the parent knows"
    assert here.poll(5)
    child.kill()
    child.join()


def test_leaving_by_an_error_gives_the_turn_back() -> None:
    with pytest.raises(ZeroDivisionError), StartTurn(GPU, "writer"):
        raise ZeroDivisionError
    with StartTurn(GPU, "painter"):
        pass
