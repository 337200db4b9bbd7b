"""Processes by /proc: trees that outlive a link in them, memory, identity, and ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cotenant.gpu.probe.host import ProcessTable, VirtualGpus

pytestmark = pytest.mark.unit


def process(proc: Path, pid: int, parent: int, *, name: str = "python", started: int = 7, state: str = "S") -> None:
    folder = proc / str(pid)
    (folder / "task" / str(pid)).mkdir(parents=True, exist_ok=True)
    rest = " ".join(["0"] * 17)
    (folder / "stat").write_text(f"{pid} ({name}) {state} {parent} {rest} {started} 0 0")
    (folder / "statm").write_text("9000 500 100 0 0 0 0")


def end(proc: Path, pid: int) -> None:
    for path in sorted((proc / str(pid)).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (proc / str(pid)).rmdir()


def test_a_tree_holds_a_process_and_what_it_started(tmp_path: Path) -> None:
    for pid, parent in ((10, 1), (11, 10), (12, 11), (13, 12), (20, 1)):
        process(tmp_path, pid, parent, name="a) b (c")
    (tmp_path / "self").mkdir()
    table = ProcessTable(tmp_path)
    assert table.tree(10) == frozenset(), "nothing is known before the first refresh"
    table.refresh()
    assert table.tree(10) == {10, 11, 12, 13}
    assert table.tree(10, frozenset({12})) == {10, 11}, "without the tree of another replica"
    assert table.tree(20) == {20}
    assert table.known(13)
    assert not table.known(99)


def test_what_a_dead_process_had_started_stays_in_the_tree(tmp_path: Path) -> None:
    for pid, parent in ((10, 1), (11, 10), (12, 11)):
        process(tmp_path, pid, parent)
    table = ProcessTable(tmp_path)
    table.refresh()
    end(tmp_path, 11)
    process(tmp_path, 12, 1)
    process(tmp_path, 13, 12)
    table.refresh()
    assert table.tree(10) == {10, 12, 13}
    assert table.tree(11) == frozenset()


def test_memory_is_what_is_private_and_resident(tmp_path: Path) -> None:
    process(tmp_path, 10, 1)
    table = ProcessTable(tmp_path)
    assert table.private_kib(10) == 400 * os.sysconf("SC_PAGE_SIZE") // 1024
    assert table.private_kib(99) == 0


def test_memory_that_is_shared_with_a_child_can_be_divided(tmp_path: Path) -> None:
    process(tmp_path, 10, 1)
    table = ProcessTable(tmp_path)
    assert table.divided_kib(10) == table.private_kib(10), "where the kernel does not tell"
    (tmp_path / "10" / "smaps_rollup").write_text("Rss: 9 kB\nPss_Anon:             123 kB\nPss_File: 4 kB\n")
    assert table.divided_kib(10) == 123


def test_one_that_has_ended_is_not_alive_even_before_it_was_waited_for(tmp_path: Path) -> None:
    process(tmp_path, 10, 1)
    process(tmp_path, 11, 1, state="Z")
    process(tmp_path, 12, 1, state="Z")
    (tmp_path / "12" / "task" / "14").mkdir()
    process(tmp_path, 13, 1, state="Z")
    (tmp_path / "13" / "task" / "13").rmdir()
    (tmp_path / "13" / "task").rmdir()
    table = ProcessTable(tmp_path)
    assert [table.alive(pid) for pid in (10, 11, 12, 13, 99)] == [True, False, True, False, False], (
        "a first thread that has ended does not free what the others hold"
    )
    assert table.started(10) == 7
    assert table.started(99) is None


def wait_for(what: Callable[[], bool]) -> None:
    for _ in range(500):
        if what():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come about within 5 s")


def test_a_real_process_is_measured_and_only_killed_as_itself() -> None:
    code = "import sys; held = bytearray(b'x' * (48 * 2**20)); print('ready', flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        table = ProcessTable()
        table.refresh()
        assert child.pid in table.tree(os.getpid())
        assert 48 * 1024 <= table.private_kib(child.pid) <= 96 * 1024
        started = table.started(child.pid)
        assert started is not None
        assert not table.kill(child.pid, started + 1), "that would be another process of the same pid"
        assert table.alive(child.pid)
        assert table.kill(child.pid, started)
        wait_for(lambda: not table.alive(child.pid))
        assert child.wait() == -9
        assert not table.kill(child.pid, started)
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()


def test_neither_itself_nor_the_first_process_is_ever_killed() -> None:
    table = ProcessTable()
    assert not table.kill(os.getpid(), table.started(os.getpid()) or 0)
    assert not table.kill(1, table.started(1) or 0)


def test_a_cpu_pool_has_virtual_gpus() -> None:
    gpus = VirtualGpus(12 * 2**20, count=2)
    assert [(gpu.key, gpu.index, gpu.total_kib, gpu.virtual) for gpu in gpus.gpus()] == [
        ("cpu:0", 0, 12 * 2**20, True),
        ("cpu:1", 1, 12 * 2**20, True),
    ]
    assert [sample.gpu.key for sample in gpus.sample()] == ["cpu:0", "cpu:1"]
    gpus.close()
