"""Jobs that ran become a trace that the simulator plays."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cotenant.calls import Call, Reply
from cotenant.cli import main
from cotenant.jobs.clock import EPOCH_S, ManualClock
from cotenant.jobs.desk.batches import BatchRecord
from cotenant.jobs.store import keys
from cotenant.jobs.store.objects import MemoryObjects
from cotenant.jobs.store.runs import LINGER_S, Ran, RunLog, recorded
from tests.contracts.command_house import House, cotenant
from tests.contracts.jobs_house import chat, echo, render
from tests.contracts.pump_house import World, wish

pytestmark = pytest.mark.unit

SUBMITTED = 100
DEPLOYED = str(Path(__file__).parents[3] / "deployments/platform.yaml")


async def ran_jobs() -> World:
    """Four chats of 3 s of one batch, a render of half a second with a deadline, a chat that is refused at once."""
    world = World()

    async def slow(call: Call) -> Reply:
        await world.clock.sleep(3.0)
        return echo(call)

    async def quick(call: Call) -> Reply:
        del call
        await world.clock.sleep(0.5)
        return Reply(200, b"{}")

    world.backend._handlers.update({"writer": slow, "mockups": quick})
    await world.clock.advance(SUBMITTED + 60)
    record = BatchRecord("b1", "acme", "/v1/chat/completions", "file", int(EPOCH_S) + SUBMITTED, int(EPOCH_S) + 86_400)
    await world.store.objects.put(keys.batch_key("acme", "b1"), record.dump())
    await world.publish(*(chat(f"chat-{n}") for n in range(4)), chat("wrong", stream=True))
    due = EPOCH_S + SUBMITTED + 60 + 600
    await world.source.publish(world.jobs.topic, [wish(render("mug"), batch="alone", deadline=f"{due:.3f}")])
    world.pump.start()
    await world.settled()
    await world.clock.advance(2 * LINGER_S)
    return world


def stored(house: House, world: World) -> None:
    """The world's objects, in the house's store."""

    async def copy() -> None:
        objects = house.store.objects
        for key, data in world.store.objects.objects.items():
            await objects.put(key, data)

    asyncio.run(copy())


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    return House.build(tmp_path, monkeypatch)


def test_jobs_that_ran_are_recorded_and_played(house: House) -> None:
    stored(house, asyncio.run(ran_jobs()))
    result = cotenant("record", "-o", "trace.jsonl")
    assert (result.exit_code, result.stderr) == (0, "5 jobs\n")
    rows = [json.loads(line) for line in Path("trace.jsonl").read_text().splitlines()]
    chats, mug = rows[:4], rows[4]
    # The batch's jobs came when it was submitted, whenever its lines were published.
    assert {row["at_s"] for row in chats} == {EPOCH_S + SUBMITTED}
    assert [row["service_s"] for row in chats] == pytest.approx([3.0] * 4, abs=0.3)
    assert mug["workload"] == "mockups"
    assert mug["at_s"] == EPOCH_S + SUBMITTED + 60
    assert mug["within_s"] == pytest.approx(600)
    assert not {"tenant", "batch"} & {name for row in rows for name in row}
    played = CliRunner().invoke(main, ["simulate", "-f", DEPLOYED, "-e", "local", "--trace", "trace.jsonl", "--json"])
    assert played.exit_code == 0, played.stderr
    ours = json.loads(played.stdout)["runs"][0]
    assert ours["workloads"]["writer"]["calls"] == 4
    assert ours["workloads"]["writer"]["busy_slot_hours"] == pytest.approx(12 / 3600, abs=0.001)
    assert ours["workloads"]["mockups"]["dated"]["calls"] == 1


def test_without_runs_it_says_so(house: House) -> None:
    assert "there are no jobs at" in cotenant("record").stderr.replace("\n", " ")
    stored(house, asyncio.run(_untouched()))
    result = cotenant("record")
    assert result.exit_code == 1
    assert "no run of a job is recorded in" in result.stderr.replace("\n", " ")
    assert "takes a duration such as 12h" in cotenant("record", "--since", "soon").stderr


async def _untouched() -> World:
    return World()


def test_only_what_was_written_since_is_given(house: House) -> None:
    stored(house, asyncio.run(ran_jobs()))
    assert len(cotenant("record", "--since", "99999d").stdout.splitlines()) == 5
    assert "since then" in cotenant("record", "--since", "1s").stderr


async def test_lines_wait_for_others_and_for_a_store_that_is_down() -> None:
    objects, clock = MemoryObjects(), ManualClock()
    log = RunLog(objects, clock)
    log.ran(Ran("writer", "acme", "b", 1.0, 2.0))
    log.ran(Ran("writer", "acme", "b", 1.5, 2.0, 9.0))
    objects.down = True
    await clock.advance(LINGER_S)
    assert not objects.objects
    objects.down = False
    log.ran(Ran("mockups", "acme", "c", 3.0, 0.5))
    await clock.advance(LINGER_S)
    assert len(objects.objects) == 1
    assert [(run.workload, run.came_s, run.deadline_at_s) async for run in recorded(objects)] == [
        ("writer", 1.0, None),
        ("writer", 1.5, 9.0),
        ("mockups", 3.0, None),
    ]
    assert [run async for run in recorded(objects, EPOCH_S + 60)] == []


async def test_what_a_job_says_is_nowhere_in_the_log() -> None:
    world = World()
    await world.source.publish(world.jobs.topic, [wish(chat("secret-id", note="secret-body"))])
    world.pump.start()
    await world.settled()
    await world.clock.advance(2 * LINGER_S)
    logs = [data for key, data in world.store.objects.objects.items() if key.startswith(keys.RUNS)]
    assert logs and not any(b"secret" in data for data in logs)
