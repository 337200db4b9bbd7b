"""Ctrl-C during `cotenant submit`, at every step that it takes: all of it is submitted, or nothing is left of it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from PIL import Image

from cotenant.cli import designs, jobs_door, submitting
from cotenant.errors import StoreUnavailable
from cotenant.jobs.queue.source import Message
from cotenant.jobs.store.objects import MemoryObjects
from cotenant.jobs.store.results import ResultStore
from tests.contracts.command_house import House, cotenant

pytestmark = pytest.mark.unit

COMMAND = ("submit", "--template", "mug", "--designs", "art", "--color", "#f00", "--color", "#0f0", "--batch", "b")


class Steps:
    """Counts what a submission does, and presses Ctrl-C `times` times before or after step `at`."""

    def __init__(self, at: int, *, after: bool, times: int = 1, down: bool = False) -> None:
        self.at = at
        self.after = after
        self.times = times
        self.down = down
        self.taken: list[str] = []

    async def take(self, name: str) -> None:
        self.taken.append(name)
        if not self.after:
            await self._press()

    async def took(self) -> None:
        if self.after:
            await self._press()

    async def _press(self) -> None:
        if len(self.taken) != self.at:
            return
        if self.down:
            raise StoreUnavailable("the store is down")
        for _ in range(self.times):
            signal.raise_signal(signal.SIGINT)
            for _ in range(5):
                await asyncio.sleep(0)


class SteppedObjects(MemoryObjects):
    """Objects whose every use is a step."""

    steps = Steps(0, after=False)

    async def create(self, key: str, data: bytes) -> bool:
        await self.steps.take(f"create {key}")
        done = await super().create(key, data)
        await self.steps.took()
        return done

    async def put(self, key: str, data: bytes) -> None:
        await self.steps.take(f"put {key}")
        await super().put(key, data)
        await self.steps.took()

    async def get(self, key: str) -> bytes | None:
        await self.steps.take(f"get {key}")
        data = await super().get(key)
        await self.steps.took()
        return data

    async def write(self, key: str, chunks: AsyncIterator[bytes]) -> int:
        data = b""
        async for chunk in chunks:
            await self.steps.take(f"chunk {key}")
            data += chunk
            await self.steps.took()
        self.objects[key] = data
        return len(data)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    (tmp_path / "art").mkdir()
    for number in range(2):
        Image.effect_noise((100 + number, 100), 100).convert("RGB").save(tmp_path / f"art/{number}.png", "PNG")
    monkeypatch.setattr(submitting, "_CHUNK_BYTES", 400)
    monkeypatch.setattr(designs, "EMBEDDED_BYTES", 0)
    return House.build(tmp_path, monkeypatch)


class Attempt:
    """One submission that is interrupted, with what it left."""

    def __init__(self, house: House, patch: pytest.MonkeyPatch, steps: Steps) -> None:
        self.house = house
        self.objects = SteppedObjects()
        self.objects.steps = steps
        self.errands: list[str] = []
        self.steps = steps
        patch.setattr(jobs_door, "result_store", lambda *_: ResultStore(self.objects))
        patch.setattr(jobs_door, "publisher", self.publisher)
        self.result: Result = cotenant(*COMMAND)

    @asynccontextmanager
    async def publisher(self, _: Any) -> AsyncIterator[Any]:
        async def publish(topic: str, messages: Sequence[Message]) -> None:
            await self.steps.take(f"publish {topic}")
            self.errands += [topic for _ in messages]
            await self.steps.took()

        yield publish

    @property
    def kinds(self) -> set[str]:
        """What lies in the store: records, files, lists."""
        return {key.split("/")[1] for key in self.objects.objects}

    @property
    def is_submitted(self) -> bool:
        return "batches" in self.kinds and self.errands == ["jobs-clerk"]


def count(house: House, patch: pytest.MonkeyPatch) -> int:
    """Steps of a submission that nobody disturbs."""
    attempt = Attempt(house, patch, Steps(0, after=False))
    assert attempt.result.exit_code == 0, attempt.result.output
    assert sum(step.startswith("chunk") for step in attempt.steps.taken) > 2, "the file should take several chunks"
    return len(attempt.steps.taken)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_ctrl_c_at_any_step_leaves_all_of_it_or_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    ends = {"nothing": 0, "all": 0}
    for at in range(1, count(house, monkeypatch) + 1):
        attempt = Attempt(house, monkeypatch, Steps(at, after=after))
        where = f"{'after' if after else 'before'} {attempt.steps.taken[at - 1]}"
        assert len(attempt.steps.taken) >= at
        assert "Traceback" not in attempt.result.output, where
        said = " ".join(attempt.result.stderr.split())
        if attempt.result.exit_code == 0:
            assert attempt.is_submitted, where
            assert attempt.result.stdout.splitlines()[0] == "b", where
            assert "`cotenant jobs cancel b` takes it back" in said, where
            ends["all"] += 1
        else:
            assert attempt.objects.objects == {}, where
            assert attempt.errands == [], where
            assert attempt.result.stdout == "", where
            assert "nothing was submitted" in said, where
            ends["nothing"] += 1
    assert ends["nothing"] > 3 and ends["all"] > 3, ends


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_ctrl_c_twice_leaves_at_once_and_the_same_again_makes_it_whole(
    house: House, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    for at in range(1, count(house, monkeypatch) + 1):
        attempt = Attempt(house, monkeypatch, Steps(at, after=after, times=2))
        where = f"{'after' if after else 'before'} {attempt.steps.taken[at - 1]}"
        assert "Traceback" not in attempt.result.output, where
        if attempt.result.exit_code:
            said = " ".join(attempt.result.stderr.split())
            assert "it can't be told whether batch b was submitted" in said, where
        attempt.steps.at = 0
        again = cotenant(*COMMAND)
        assert again.exit_code == 0, (where, again.output)
        assert "batches" in attempt.kinds and attempt.errands, where


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_store_that_fails_at_any_step_leaves_what_the_same_again_makes_whole(
    house: House, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    for at in range(1, count(house, monkeypatch) + 1):
        attempt = Attempt(house, monkeypatch, Steps(at, after=after, down=True))
        where = f"{'after' if after else 'before'} {attempt.steps.taken[at - 1]}"
        assert attempt.result.exit_code == 1, where
        assert "the store is down" in attempt.result.stderr, where
        if "batches" not in attempt.kinds:
            left = [key for key in attempt.objects.objects if key.endswith(".json")]
            assert len(left) <= 1 and attempt.kinds <= {"files"}, "at most the batch's own file, which expires"
            assert attempt.errands == [], where
        else:
            assert "`cotenant submit --batch b`" in attempt.result.stderr, where
        attempt.steps.at = 0
        again = cotenant(*COMMAND)
        assert again.exit_code == 0, (where, again.output)
        assert "batches" in attempt.kinds and attempt.errands, where


def test_ctrl_c_while_designs_are_read_leaves_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: Any) -> Any:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("cotenant.cli.submit.read_designs", read)
    result = cotenant(*COMMAND)
    assert result.exit_code == 1
    assert "nothing was submitted" in result.stderr
    assert house.stored == [] and house.published == []
