"""Starts on one GPU, one at a time, and never held up by the dead."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from cotenant.agent.turns import StartTurn

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("agents_folder")]

GPU = "GPU-1"


HOLD = """
import signal
from cotenant.agent.turns import StartTurn
with StartTurn("GPU-1", "writer"):
    print("has it", flush=True)
    signal.pause()
"""

FORK = """
import os, select, signal
from cotenant.agent.turns import StartTurn
read, write = os.pipe()
with StartTurn("GPU-1", "writer"):
    child = os.fork()
    if not child:
        with StartTurn("GPU-1", "painter"):
            os.write(write, b"x")
        os._exit(0)
    print("early" if select.select([read], [], [], 0.3)[0] else "waits", flush=True)
print("then" if select.select([read], [], [], 5)[0] else "never", flush=True)
os.waitpid(child, 0)
"""


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    """A process that has the turn. A fresh one: a fork of this one would inherit its threads' locks."""
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "has it\n"
        yield process
        process.kill()


def in_thread(do: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    return thread


def test_who_waits_is_told_for_whom_and_goes_on_when_that_one_dies(
    holder: subprocess.Popen[str],
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
    holder.kill()
    assert entered.wait(5)
    assert said == [f"painter waits for writer (pid {holder.pid}) to finish starting on GPU-1"]


def test_another_gpu_has_a_turn_of_its_own(holder: subprocess.Popen[str]) -> None:
    with StartTurn("GPU-2", "painter"):
        assert holder.poll() is None


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


def test_a_child_does_not_have_its_parents_turn() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.split() == ["waits", "then"], done.stderr


def test_leaving_by_an_error_gives_the_turn_back() -> None:
    with pytest.raises(ZeroDivisionError), StartTurn(GPU, "writer"):
        raise ZeroDivisionError
    with StartTurn(GPU, "painter"):
        pass
