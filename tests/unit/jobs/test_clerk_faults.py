"""A clerk that dies, at any point, loses nothing and repeats nothing that anybody can see."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from cotenant.calls.desk import Json, Page
from cotenant.errors import SourceUnavailable, StoreUnavailable
from cotenant.jobs.clerk import windows
from cotenant.jobs.errand import Errand
from cotenant.jobs.model import Result, result_line
from cotenant.jobs.store.keys import CANCELLED, active_prefix, cancelled_batch_key
from cotenant.jobs.store.objects import keys
from tests.contracts.desk_house import HOOK, START_S, FaultyObjects, House, chunks, worked
from tests.contracts.jobs_house import chat, render

pytestmark = pytest.mark.unit

LINES = [chat("a"), chat("bad-b"), render("c"), chat("d"), render("bad-e"), chat("f"), render("g"), chat("h")]
NAMES = [str(line["custom_id"]) for line in LINES]


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows so narrow that eight lines take several."""
    monkeypatch.setattr(windows, "BASE_WINDOW", 3)
    monkeypatch.setattr(windows, "MIN_WINDOW", 2)


class Scene:
    """One batch, seen through while the `fail_at`-th call to store or queue fails."""

    def __init__(self, fail_at: int | None, *, after: bool, dies: bool) -> None:
        self.objects = FaultyObjects()
        self.house = House(self.objects)
        self.fail_at = fail_at
        self.after = after
        self.dies = dies
        self.failed = False

    async def run(self, meanwhile: Callable[[House, int], Awaitable[None]]) -> Json:
        house, objects = self.house, self.objects
        data = b"".join(json.dumps(line).encode() + b"\n" for line in LINES)
        await house.batches.submit(
            "acme", chunks(data), filename="x.jsonl", input_sha256="1", batch_id="b", webhook=HOOK
        )
        errand = Errand("batch", "acme", "b")
        objects.calls = 0
        for turn in range(60):
            objects.fail_at, objects.after = self.fail_at if not self.failed else None, self.after
            try:
                again_s = await house.clerk.advance(errand)
            except (StoreUnavailable, SourceUnavailable):
                self.failed, again_s = True, 1.0
                if self.dies:
                    house.clerk = house.new_clerk()
            calls, objects.fail_at = objects.calls, None
            await meanwhile(house, turn)
            objects.calls = calls
            if again_s is None:
                return await house.shown("b")
            house.now_s += 20
        raise AssertionError(await house.shown("b"))


async def work(house: House, turn: int) -> None:
    await house.work()


async def cancel(house: House, turn: int) -> None:
    """Ingresses that do two jobs, and then a user who wants no more."""
    await house.work(max(0, 2 - house.worked))
    if house.worked == 2 and turn < 50 and (await house.shown("b"))["status"] == "in_progress":
        await house.desk.cancel_batch("acme", "b")


async def wait(house: House, turn: int) -> None:
    """Ingresses that do three jobs and no more; then the day is over."""
    await house.work(max(0, 3 - house.worked))
    if turn == 4:
        house.now_s = START_S + 86_400


SCENES = {"completed": work, "cancelled": cancel, "expired": wait}


async def calls_of(name: str) -> int:
    scene = Scene(None, after=False, dies=False)
    await scene.run(SCENES[name])
    return scene.objects.calls


async def check(house: House, shown: Json, expected: str) -> None:
    """Every line is in one file, once, in order; nothing else was left."""
    assert shown["status"] == expected
    output, errors = await house.lines(shown["output_file_id"]), await house.lines(shown["error_file_id"])
    succeeded, failed = [line["custom_id"] for line in output], [line["custom_id"] for line in errors]
    assert sorted(succeeded + failed) == sorted(NAMES)
    assert succeeded == [name for name in NAMES if name in succeeded]
    assert failed == [name for name in NAMES if name in failed]
    counts = shown["request_counts"]
    own = [line for line in errors if line["response"] is not None]
    assert (counts["total"], counts["completed"], counts["failed"]) == (len(NAMES), len(succeeded), len(own))
    if expected == "completed":
        assert failed == [name for name in NAMES if name.startswith("bad")]
    else:
        undone = {line["error"]["code"] for line in errors if line["response"] is None}
        assert undone == {f"batch_{expected}"}
    for job in house.sent:
        # What still ran when the batch closed ends now, and is not seen.
        await house.store.create_result(Result(job.identity, job.sha256, result_line(job, worked(job))))
    for line in output + errors:
        sent = next((job for job in house.sent if job.identity.job_id == line["id"]), None)
        result = await house.store.result(sent.identity) if sent is not None else None
        assert result is None or json.loads(result.line) == line, "the file says what the visible result says"
    files = (await house.desk.files("acme", Page()))["data"]
    assert len(files) == 1 + bool(output) + bool(errors)
    assert [one["id"] for one in (await house.desk.batches("acme", Page()))["data"]] == ["b"]
    assert await keys(house.objects, CANCELLED) == []
    assert await keys(house.objects, active_prefix("acme")) == []
    webhooks = {errand.id for errand in house.errands if errand.kind == "webhook"}
    assert len(webhooks) == 1


@pytest.mark.parametrize("dies", [True, False], ids=["another clerk goes on", "the same clerk goes on"])
@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
@pytest.mark.parametrize("name", SCENES)
async def test_a_fault_at_any_call_changes_nothing_that_can_be_seen(name: str, after: bool, dies: bool) -> None:
    calls = await calls_of(name)
    assert calls > 60
    for fail_at in range(1, calls + 1):
        scene = Scene(fail_at, after=after, dies=dies)
        shown = await scene.run(SCENES[name])
        await check(scene.house, shown, name)
        if name == "completed":
            assert max(scene.house.runs.values()) == 1, "no job ran twice"
            assert len(scene.house.sent) <= len(NAMES) + 6, "only what was in two windows was published again"


async def test_two_clerks_at_one_batch_make_one_of_it() -> None:
    house = House()
    one, other = house.new_clerk(), house.new_clerk()
    batch = await house.batch(*[chat(f"c{n}") for n in range(12)])
    errand = Errand("batch", "acme", batch)
    for _ in range(40):
        again = await asyncio.gather(one.advance(errand), other.advance(errand))
        await house.work()
        house.now_s += 1
        if again == [None, None]:
            break
    shown = await house.shown(batch)
    assert [line["custom_id"] for line in await house.lines(shown["output_file_id"])] == [f"c{n}" for n in range(12)]
    assert len((await house.desk.files("acme", Page(), purpose="batch_output"))["data"]) == 1
    assert max(house.runs.values()) == 1


class Stalling(FaultyObjects):
    """A store that lets whoever writes under `stalls` wait until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.stalls = ""
        self.stalled = asyncio.Event()
        self.go = asyncio.Event()

    async def _stall(self, key: str) -> None:
        if self.stalls and key.endswith(self.stalls):
            self.stalls = ""
            self.stalled.set()
            await self.go.wait()

    async def create(self, key: str, data: bytes) -> bool:
        await self._stall(key)
        return await super().create(key, data)

    async def put(self, key: str, data: bytes) -> None:
        await self._stall(key)
        await super().put(key, data)


@pytest.mark.parametrize("stalls", ["progress.json", "closing.json", "ended.json", ".json"])
@pytest.mark.parametrize("cancels", [False, True])
async def test_a_clerk_that_was_thought_dead_and_comes_back_undoes_nothing(stalls: str, cancels: bool) -> None:
    objects = Stalling()
    house = House(objects)
    batch = await house.batch(chat("a"), chat("b"))
    errand = Errand("batch", "acme", batch)
    await house.clerk.advance(errand)
    house.now_s += 1
    await house.work()
    objects.stalls = stalls
    ghost = asyncio.create_task(house.clerk.advance(errand))
    await objects.stalled.wait()
    if cancels:
        await objects.create(cancelled_batch_key("acme", batch), b"")
    heir = house.new_clerk()
    while await heir.advance(errand) is not None:
        house.now_s += 60
    before = dict(objects.objects)
    objects.go.set()
    await ghost
    assert await house.clerk.advance(errand) is None
    changed = {key for key in objects.objects.keys() | before.keys() if objects.objects.get(key) != before.get(key)}
    assert not any("/files/" in key or key.endswith(("closing.json", "ended.json")) for key in changed)
    assert (await house.shown(batch))["status"] == ("cancelled" if cancels and stalls != "ended.json" else "completed")
