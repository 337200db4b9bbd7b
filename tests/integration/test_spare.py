"""A spare process that becomes multiprocessing's child: what it is handed, how it ends, and what happens without it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from deployments.spare import Spare

pytestmark = pytest.mark.integration

SPAWN = multiprocessing.get_context("spawn")


def tell(file: str, code: int = 0) -> None:
    facts = [str(os.getpid()), str("fractions" in sys.modules), os.environ.get("HANDED", "")]
    Path(file).write_text("\n".join(facts))
    sys.exit(code)


def answer(line: Connection) -> None:
    line.send(os.getpid())


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_spare_becomes_the_process_that_was_to_be_spawned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spare = Spare(("fractions", "no_such_module"))
    pid = spare.pid
    monkeypatch.setenv("HANDED", "after it was made")
    process = SPAWN.Process(target=tell, args=(str(tmp_path / "told"), 3), name="Engine_0")
    with spare.standing_in_for("Engine"):
        process.start()
    process.join()
    assert process.pid == pid
    assert process.exitcode == 3
    assert (tmp_path / "told").read_text().splitlines() == [str(pid), "True", "after it was made"]
    spare.close()


def test_another_process_and_a_second_one_are_spawned_as_ever(tmp_path: Path) -> None:
    spare = Spare(())
    pid = spare.pid
    processes = [SPAWN.Process(target=tell, args=(str(tmp_path / name),), name=name) for name in ("a", "E1", "E2")]
    with spare.standing_in_for("E"):
        for process in processes:
            process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [process.pid == pid for process in processes] == [False, True, False]


def test_what_needs_a_descriptor_is_spawned_and_the_spare_ends() -> None:
    spare = Spare(())
    pid = spare.pid
    assert pid is not None
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=answer, args=(theirs,), name="E")
    with spare.standing_in_for("E"):
        process.start()
    assert ours.recv() == process.pid != pid
    process.join()
    assert gone(pid)


def test_a_spare_that_died_is_done_without(tmp_path: Path) -> None:
    spare = Spare(())
    assert spare.pid is not None
    os.kill(spare.pid, signal.SIGKILL)
    while spare.waits:
        time.sleep(0.01)
    process = SPAWN.Process(target=tell, args=(str(tmp_path / "told"),), name="E")
    with spare.standing_in_for("E"):
        process.start()
    process.join()
    assert process.exitcode == 0


def test_a_spare_ends_when_it_is_closed() -> None:
    spare = Spare(())
    pid = spare.pid
    assert pid is not None
    spare.close()
    spare.close()
    assert gone(pid)
    assert not spare.waits


def test_a_spare_whose_parent_died_ends() -> None:
    ours, theirs = SPAWN.Pipe()
    parent = SPAWN.Process(target=_parent, args=(theirs,))
    parent.start()
    pid = ours.recv()
    parent.kill()
    parent.join()
    while not gone(pid):
        time.sleep(0.02)


def _parent(line: Connection) -> None:
    spare = Spare(())
    line.send(spare.pid)
    time.sleep(600)
