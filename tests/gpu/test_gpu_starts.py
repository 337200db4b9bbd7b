"""Starts on one GPU, in any order: one at a time, each sized the same, and no turn kept by the dead."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest
from conftest import Start
from gpukit.machine import on_cuda, pick, require_room
from gpukit.records import Record, percentile, record

_STARTERS = 3
_STARTS = 100
_KEY = "suite"
#: torch takes blocks of 2 MiB.
_BLOCK_MIB = 2.0


@pytest.fixture
def agent_dir() -> Iterator[dict[str, str]]:
    """A folder of its own for the turns' locks, as environment for processes."""
    pytest.importorskip("typing_extensions")
    folder = tempfile.mkdtemp(prefix="cotenant-gs-")
    yield {"COTENANT_AGENT_DIR": folder}
    shutil.rmtree(folder, ignore_errors=True)


def test_a_hundred_starts_of_three_processes_in_random_order(start: Start, agent_dir: dict[str, str]) -> None:
    sizes = [pick(512, 16) * (index + 1) for index in range(_STARTERS)]
    require_room(sum(sizes))
    starters = [start(f"starter-{index}", env=agent_dir, wait=False) for index in range(_STARTERS)]
    for starter in starters:
        starter.ready()
    share = [_STARTS // _STARTERS + (index < _STARTS % _STARTERS) for index in range(_STARTERS)]
    seeds = random.Random(0).sample(range(10_000), _STARTERS)
    for starter, size, count, seed in zip(starters, sizes, share, seeds, strict=True):
        starter.tell("starts", gpu=_KEY, who=starter.name, count=count, mib=size, seed=seed)
    answers = [starter.answer("starts", 240) for starter in starters]
    assert not [answer["error"] for answer in answers if "error" in answer]
    turns = sorted(
        (turn["entered"], turn["left"], size, turn["took_mib"], turn["entered"] - turn["asked"])
        for answer, size in zip(answers, sizes, strict=True)
        for turn in answer["turns"]
    )
    overlaps = sum(left > entered for (_, left, *_), (entered, *_) in pairwise(turns))
    wrong = [(size, took) for _, _, size, took, _ in turns if took is not None and abs(took - size) > _BLOCK_MIB]
    waits = [wait * 1e3 for *_, wait in turns]
    record(
        Record(
            title="Starts in turn",
            source="tests/gpu/test_gpu_starts.py",
            columns=("starts", "processes", "overlapping", "sized wrong", "wait p50 ms", "wait p99 ms"),
            rows=(
                (
                    str(len(turns)),
                    str(_STARTERS),
                    str(overlaps),
                    str(len(wrong)) if on_cuda() else "not measured",
                    f"{percentile(waits, 50):.0f}",
                    f"{percentile(waits, 99):.0f}",
                ),
            ),
            notes=(
                "A start is sized wrong if the whole device's free memory, as the starting process sees it, falls by "
                "another amount than what it allocates.",
            ),
        )
    )
    assert len(turns) == _STARTS
    assert overlaps == 0
    assert not wrong


def test_a_turn_is_not_kept_by_the_dead(start: Start, agent_dir: dict[str, str]) -> None:
    dying, waiting = start("dying", env=agent_dir), start("waiting", env=agent_dir)
    dying.ask("start_and_keep", gpu=_KEY, who="dying", mib=pick(512, 16))
    waiting.tell("starts", gpu=_KEY, who="waiting", count=1, mib=pick(512, 16), seed=1)
    time.sleep(1.0)
    killed = time.monotonic()
    dying.kill()
    (turn,) = waiting.answer("starts", 60)["turns"]
    assert turn["entered"] >= killed


def test_three_processes_start_together_from_nothing(start: Start, agent_dir: dict[str, str]) -> None:
    """Their CUDA contexts are made at the same time; only what they allocate goes in turn."""
    starters = [start(f"fresh-{index}", env=agent_dir, wait=False) for index in range(_STARTERS)]
    for starter in starters:
        starter.tell("starts", gpu=_KEY, who=starter.name, count=1, mib=pick(512, 16), seed=0)
    turns = sorted(
        (turn["entered"], turn["left"]) for starter in starters for turn in starter.answer("starts", 240)["turns"]
    )
    assert len(turns) == _STARTERS
    assert all(left <= entered for (_, left), (entered, _) in pairwise(turns))
