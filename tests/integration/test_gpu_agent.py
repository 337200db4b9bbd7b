"""The GPU agent with replicas that are real processes, really allocate, and really die.

GPUs are a CPU pool's, or made up by a fake NVML that shows the memory of the processes as if it were on them.
"""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import orjson
import pytest

from cotenant.agent import client, look
from cotenant.agent.client import AgentLink, Figures
from cotenant.agent.guard import Limits
from cotenant.agent.paths import socket_path
from cotenant.agent.protocol import MAX_REQUEST_BYTES, Granted, Identity, encode
from cotenant.agent.server import Agent
from cotenant.agent.snapshot import GpuView, ReplicaView, Snapshot
from cotenant.agent.turns import StartTurn
from cotenant.errors import EnvironmentFault
from cotenant.gpu.probe.fake import FakeProbe
from cotenant.gpu.probe.host import ProcessTable
from cotenant.gpu.terms import Priority, Terms, Tier
from tests.unit.agent.house import EIGHT, hello, terms
from tests.unit.agent.light_engine import L4, NODE, Machine, Running

pytestmark = pytest.mark.integration

BATCH, INTERACTIVE = Priority.BATCH, Priority.INTERACTIVE
MIB = 1 / 1024
"""In GiB."""
STARTS = 100


@pytest.fixture(autouse=True)
def agents_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COTENANT_AGENT_DIR", str(tmp_path / "agents"))
    return tmp_path / "agents"


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.close()


def light(workload: str, *, mib: int = 160, floor_mib: int = 64, usable_mib: int = 400, on: str = "cpu") -> Terms:
    """Terms of a light engine: of itself a process has some 30 MiB."""
    return terms(workload, gib=mib * MIB, floor_gib=floor_mib * MIB, usable_gib=usable_mib * MIB, accelerator=on)


def the_gpu(snapshot: Snapshot) -> GpuView:
    (gpu,) = snapshot.gpus
    return gpu


def of(snapshot: Snapshot, workload: str) -> ReplicaView:
    return next(view for view in the_gpu(snapshot).replicas if view.workload == workload)


def count(snapshot: Snapshot, what: str) -> int:
    return sum(getattr(tally, what) for tally in snapshot.tallies)


# Any start order works


def test_a_hundred_random_concurrent_starts_of_three_engines(machine: Machine) -> None:
    """Of three engines two fit awake at once. Each starts by its turn and lease, sized from its plan."""
    chance = random.Random(11)
    machine.agent("nvidia-l4")
    sizes: dict[str, set[int]] = {}
    most_mib = 0.0
    names = ("writer", "painter", "mockups")
    plans = [light(name, mib=110, floor_mib=50, usable_mib=280, on="nvidia-l4") for name in names]
    for number in range(STARTS):
        engines = [machine.engine(plan, number) for plan in chance.sample(plans, 3)]
        for engine in engines:
            engine.tell("start", chance.choice((0.0, 0.0, chance.uniform(0, 0.03))))
        for engine in chance.sample(engines, 3):
            sizes.setdefault(engine.process.name, set()).add(engine.answer())
            gpu = the_gpu(machine.snapshot())
            most_mib = max(most_mib, gpu.used_mib or 0.0)
            assert sum(view.lease_mib for view in gpu.replicas) <= 280
        for engine in engines:
            engine.kill()
    end = machine.wait(lambda snapshot: not the_gpu(snapshot).replicas)
    assert sizes == {name: {44 * 2**20} for name in names}, "the same size each time"
    assert count(end, "stops") == 0
    assert count(end, "wakes") >= 3 * STARTS
    assert 44 < most_mib <= 280
    assert the_gpu(end).usable_mib is None, "nothing is lent any more"


# Who holds too much


def test_an_offender_is_stopped_alone_and_its_neighbours_keep_their_leases(machine: Machine) -> None:
    agent = machine.agent()
    engines = {name: machine.engine(light(name, usable_mib=600)) for name in ("writer", "painter", "mockups")}
    for engine in engines.values():
        engine.do("start")
    offender = engines.pop("painter")
    child = offender.do("start_child")
    offender.tell("take", 240)
    obituary = agent.answer()
    assert (obituary.workload, obituary.pid, obituary.past_budget) == ("painter", offender.pid, True)
    assert obituary.held_mib > obituary.budget_mib == 160
    assert offender.ended() == -signal.SIGKILL
    after = machine.wait(lambda snapshot: len(the_gpu(snapshot).replicas) == 2)
    for name, engine in engines.items():
        assert of(after, name).lease_mib == 160
        assert of(after, name).connected
        assert engine.do("holds")
        assert engine.do("take", 1) is None
    assert count(after, "stops") == 1
    assert not ProcessTable().alive(child), "nothing of it is left"


def test_one_that_keeps_more_than_its_floor_without_a_lease_is_stopped(machine: Machine) -> None:
    agent = machine.agent(limits=Limits(grace_s=0.3, floor_slack_kib=1024))
    engine = machine.engine(light("painter"))
    engine.do("start")
    engine.do("drop")
    engine.do("take", 60)
    assert not agent.answer().past_budget
    assert engine.ended() == -signal.SIGKILL


# Deaths


def two_of_which_one_holds(machine: Machine) -> tuple[Running, Running]:
    """A writer that holds its budget, and a painter beside which there is no room for another's."""
    writer = machine.engine(light("writer", mib=200, usable_mib=300))
    writer.do("start")
    painter = machine.engine(light("painter", mib=200, usable_mib=300))
    assert painter.do("connected")
    return writer, painter


def test_a_replica_killed_asleep_leaves_nothing(machine: Machine) -> None:
    machine.agent()
    writer, painter = two_of_which_one_holds(machine)
    painter.kill()
    after = machine.wait(lambda snapshot: len(the_gpu(snapshot).replicas) == 1)
    assert the_gpu(after).free_mib == 100
    assert writer.do("holds")


def test_a_replica_killed_while_it_wakes_lets_the_next_one_wake(machine: Machine) -> None:
    machine.agent()
    writer = machine.engine(light("writer", mib=200, usable_mib=300))
    writer.do("ask", BATCH)
    painter = machine.engine(light("painter", mib=200, usable_mib=300))
    painter.tell("ask", INTERACTIVE)
    machine.wait(lambda snapshot: the_gpu(snapshot).waiting == ("painter#1",))
    writer.tell("take", 100)
    writer.kill()
    painter.answer()
    after = machine.wait(lambda snapshot: len(the_gpu(snapshot).replicas) == 1)
    assert of(after, "painter").lease_mib == 200


def test_a_replica_killed_in_its_turn_to_start_passes_the_turn_on(machine: Machine) -> None:
    machine.agent()
    writer, painter = machine.engine(light("writer")), machine.engine(light("painter"))
    writer.do("take_turn")
    painter.tell("start")
    assert not painter.pipe.poll(0.2)
    writer.kill()
    assert painter.answer() == 64 * 2**20
    machine.wait(lambda snapshot: [view.workload for view in the_gpu(snapshot).replicas] == ["painter"])


def test_what_a_dead_replica_left_running_is_ended_before_its_memory_is_lent(machine: Machine) -> None:
    machine.agent()
    writer, painter = (machine.engine(light(name, mib=200, usable_mib=300)) for name in ("writer", "painter"))
    writer.do("ask", INTERACTIVE)
    writer.do("take", 60)
    left = writer.do("fork_child")
    machine.wait(lambda snapshot: (of(snapshot, "writer").held_mib or 0) > 140)
    painter.tell("ask", INTERACTIVE)
    machine.wait(lambda snapshot: the_gpu(snapshot).waiting == ("painter#1",))
    writer.kill()
    painter.answer()
    assert not ProcessTable().alive(left), "a child that still had the connection"
    after = machine.snapshot()
    assert any("left 1 processes running" in event.text for event in after.events)
    assert count(after, "stops") == 0


def test_an_agent_killed_and_started_again_knows_what_was_lent_and_who_waits(machine: Machine) -> None:
    agent = machine.agent()
    writer, painter = two_of_which_one_holds(machine)
    painter.tell("ask", INTERACTIVE)
    machine.wait(
        lambda snapshot: the_gpu(snapshot).waiting == ("painter#1",) or of(snapshot, "writer").tier is Tier.ASLEEP
    )
    painter.answer()
    assert (writer.do("holds"), painter.do("holds")) == (False, True)
    mockups = machine.engine(light("mockups", mib=160, floor_mib=36, usable_mib=300))
    assert mockups.do("connected")
    agent.kill()
    mockups.tell("ask", BATCH)
    machine.agent()
    leases = {"writer": 64, "painter": 200, "mockups": 36}
    machine.wait(lambda snapshot: {one.workload: one.lease_mib for one in the_gpu(snapshot).replicas} == leases)
    machine.wait(lambda snapshot: the_gpu(snapshot).waiting == ("mockups#1",))
    assert painter.do("holds"), "nobody lost anything"
    painter.do("drop")
    mockups.answer()


def test_interactive_work_wakes_before_batch_work_that_asked_first(machine: Machine) -> None:
    machine.agent()
    holder = machine.engine(light("holder", mib=200, floor_mib=48, usable_mib=350))
    holder.do("ask", INTERACTIVE)
    batch = machine.engine(light("batch", mib=200, floor_mib=48, usable_mib=350))
    batch.tell("ask", BATCH)
    machine.wait(lambda snapshot: the_gpu(snapshot).waiting == ("batch#1",))
    chat = machine.engine(light("chat", mib=200, floor_mib=48, usable_mib=350))
    chat.tell("ask", INTERACTIVE)
    machine.wait(lambda snapshot: the_gpu(snapshot).waiting == ("chat#1", "batch#1"))
    holder.do("drop")
    chat.answer()
    assert not batch.pipe.poll(0.1)
    chat.do("drop")
    batch.answer()


# The line between a replica and its agent, in one process


@pytest.fixture
async def agent() -> AsyncIterator[Agent]:
    agent = Agent(FakeProbe([L4]), ProcessTable(), node_id=NODE, interval_s=0.05)
    await agent.start()
    yield agent
    await agent.close()


class Replica:
    """A link in this process, and what it was told."""

    def __init__(self, workload: str, *, number: int = 1, tier: Tier = Tier.RESIDENT, **options: object) -> None:
        self.recalls: list[str] = []
        self.figures = Figures(tier=tier)
        identity = Identity(application=workload, deployment="Replica", replica=f"{workload}#{number}")
        self.link = AgentLink(
            socket_path(NODE),
            identity,
            terms(workload, **{"gib": 6.0, **options}),  # type: ignore[arg-type]
            wake_s=0.0,
            figures=lambda: self.figures,
            on_recall=self.recalls.append,
            loop=asyncio.get_running_loop(),
        )
        self.link.start()

    async def close(self) -> None:
        await asyncio.to_thread(self.link.close)


async def until(what: Callable[[], bool]) -> None:
    for _ in range(1000):
        if what():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come about within 10 s")


async def waiting(agent: Agent, *replicas: str) -> None:
    """Until exactly these wait for memory."""
    await until(lambda: the_gpu(agent.snapshot()).waiting == replicas)


async def test_a_lease_is_asked_for_recalled_and_given_back(agent: Agent) -> None:
    writer, painter = Replica("writer"), Replica("painter")
    await asyncio.gather(writer.link.ask(BATCH), writer.link.ask(INTERACTIVE))
    await writer.link.ask(BATCH)
    assert writer.link.holds
    assert writer.link.gpu == L4.key
    writer.link.busy(INTERACTIVE)
    asked = asyncio.create_task(painter.link.ask(INTERACTIVE))
    await waiting(agent, "painter#1")
    assert writer.recalls == []
    writer.link.idle()
    await until(lambda: bool(writer.recalls))
    assert writer.recalls == ["painter#1"]
    again = asyncio.create_task(writer.link.ask(INTERACTIVE))
    await waiting(agent, "painter#1", "writer#1")
    writer.link.slept()
    await asked
    assert not again.done(), "a recalled lease is no lease for new work"
    painter.link.slept()
    await again
    await writer.close()
    await painter.close()
    await until(lambda: not the_gpu(agent.snapshot()).replicas)


async def test_who_asked_in_vain_withdraws_by_cancelling(agent: Agent) -> None:
    writer, painter = Replica("writer"), Replica("painter")
    await writer.link.ask(INTERACTIVE)
    asks = [asyncio.create_task(painter.link.ask(priority)) for priority in (BATCH, INTERACTIVE)]
    await waiting(agent, "painter#1")
    asks[1].cancel()
    await asyncio.sleep(0.05)
    assert the_gpu(agent.snapshot()).waiting == ("painter#1",), "another still waits"
    asks[0].cancel()
    await waiting(agent)
    await asyncio.gather(*asks, return_exceptions=True)
    await writer.close()
    await painter.close()


async def test_a_grant_that_meets_nobody_is_given_back(agent: Agent) -> None:
    painter = Replica("painter")
    for _ in range(30):
        ask = asyncio.create_task(painter.link.ask(INTERACTIVE))
        await asyncio.sleep(random.Random(_).uniform(0, 0.004))
        ask.cancel()
        claimed = not isinstance((await asyncio.gather(ask, return_exceptions=True))[0], asyncio.CancelledError)
        if claimed:
            painter.link.slept()
    await until(lambda: the_gpu(agent.snapshot()).free_mib == 9.5 * 1024)
    assert not painter.link.holds
    await painter.close()


async def test_a_resident_is_let_in_once_and_stays(agent: Agent) -> None:
    writer = Replica("writer", residency="always")
    await writer.link.ask(INTERACTIVE)
    writer.link.slept()
    await writer.link.ask(BATCH)
    assert the_gpu(agent.snapshot()).replicas[0].lease_mib == 6 * 1024
    await writer.close()


async def test_a_replica_that_is_refused_hears_why(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    # A refusal for lack of room may pass when who holds it goes; not here.
    monkeypatch.setattr(client, "_PASSING_S", 3.0)
    giant = Replica("giant", gib=11.0)
    with pytest.raises(EnvironmentFault, match=r"giant#1 needs 11\.0 GiB"):
        await giant.link.ask(INTERACTIVE)
    with pytest.raises(EnvironmentFault, match="giant#1 needs"):
        await giant.link.ask(INTERACTIVE)
    await giant.close()
    with pytest.raises(EnvironmentFault, match="closed"):
        await giant.link.ask(INTERACTIVE)


async def test_figures_are_reported_when_they_change_and_to_a_new_agent(agent: Agent) -> None:
    writer = Replica("writer")
    writer.figures = Figures(tier=Tier.ASLEEP, allocated_bytes=5, running=3, waiting=4)
    writer.link.report()
    await until(lambda: [view.running for view in the_gpu(agent.snapshot()).replicas] == [3])
    (view,) = the_gpu(agent.snapshot()).replicas
    assert (view.tier, view.waiting) == (Tier.ASLEEP, 4)
    await writer.link.ask(INTERACTIVE)
    writer.link.busy(BATCH)
    await writer.close()


async def test_a_holder_keeps_its_lease_through_an_agents_end(agents_folder: Path) -> None:
    first = Agent(FakeProbe([L4]), ProcessTable(), node_id=NODE, interval_s=0.05)
    await first.start()
    writer, painter = Replica("writer"), Replica("painter")
    await writer.link.ask(INTERACTIVE)
    writer.link.busy(INTERACTIVE)
    writer.figures = Figures(tier=Tier.RESIDENT, running=2)
    ask = asyncio.create_task(painter.link.ask(INTERACTIVE))
    await waiting(first, "painter#1")
    await first.close()
    assert writer.link.holds
    assert not ask.done()
    second = Agent(FakeProbe([L4]), ProcessTable(), node_id=NODE, interval_s=0.05)
    await second.start()
    await waiting(second, "painter#1")
    await until(lambda: len(the_gpu(second.snapshot()).replicas) == 2)
    await until(lambda: of(second.snapshot(), "writer").running == 2)
    assert of(second.snapshot(), "writer").lease_mib == 6 * 1024
    writer.link.slept()
    await ask
    for replica in (writer, painter):
        await replica.close()
    await until(lambda: not the_gpu(second.snapshot()).replicas)
    await second.close()
    assert not second.path.exists(), "nobody is left who would come back"


async def test_one_that_must_say_its_gpu_and_does_not_hears_so(agents_folder: Path) -> None:
    agent = Agent(FakeProbe(EIGHT), ProcessTable(), node_id=NODE, interval_s=0.05)
    await agent.start()
    writer = Replica("writer")
    with pytest.raises(EnvironmentFault, match="let it say its GPU"):
        await writer.link.ask(INTERACTIVE)
    writer.figures = Figures(tier=Tier.COLD, gpu="3")
    writer.link.report()
    await until(lambda: writer.link.gpu is not None)
    assert writer.link.gpu == EIGHT[3].key
    await writer.link.ask(INTERACTIVE)
    await writer.close()
    await agent.close()


async def test_a_node_has_one_agent(agent: Agent) -> None:
    with pytest.raises(EnvironmentFault, match="already runs here"):
        await Agent(FakeProbe([L4]), ProcessTable(), node_id=NODE).start()


async def test_frames_that_cannot_be_understood_are_answered_and_the_line_goes_on(agent: Agent) -> None:
    reader, writer = await asyncio.open_unix_connection(agent.path, limit=2**22)

    async def say(frame: bytes) -> dict[str, object]:
        writer.write(frame)
        answer: dict[str, object] = orjson.loads(await asyncio.wait_for(reader.readline(), 5))
        return answer

    assert (await say(b"nonsense\n"))["type"] == "error"
    assert (await say(b'{"type": "dance"}\n'))["about"] == "dance"
    assert (await say(b'{"type": "ask"}\n'))["message"] == "say hello first"
    assert (await say(b'{"type": "hello"}\n'))["final"] is True
    assert (await say(b'{"type": "snapshot"}\n'))["type"] == "snapshot"
    assert (await say(encode(hello("writer"))))["type"] == "welcome"
    assert (await say(encode(hello("painter"))))["message"] == "this connection is writer#1's"
    too_long = await say(b'{"type": "' + b"x" * MAX_REQUEST_BYTES + b'"}\n')
    assert "at most" in str(too_long["message"])
    assert await reader.read() == b""
    writer.close()


async def test_another_connection_of_the_same_process_takes_a_replicas_over(agent: Agent) -> None:
    lines = [await asyncio.open_unix_connection(agent.path) for _ in range(2)]
    for reader, writer in lines:
        writer.write(encode(hello("writer")))
        assert b"welcome" in await asyncio.wait_for(reader.readline(), 5)
    assert await lines[0][0].read() == b"", "the older one is cut"
    assert len(the_gpu(agent.snapshot()).replicas) == 1
    for _, writer in lines:
        writer.close()


# What `cotenant top` asks


def answering(answer: bytes, folder: Path) -> Path:
    """A socket that gives one answer."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / "one.sock"))
    listening.listen()

    def serve() -> None:
        line, _ = listening.accept()
        with listening, line:
            line.recv(1000)
            line.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return folder / "one.sock"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b'{"type": "snap', id="half a frame"),
        pytest.param(encode(Granted()), id="something else"),
    ],
)
def test_an_agent_that_does_not_answer_is_passed_over(answer: bytes, tmp_path: Path) -> None:
    assert look.ask(answering(answer, tmp_path)) is None


def test_an_agent_of_another_version_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="run the same version"):
        look.ask(answering(b'{"type": "dance"}\n', tmp_path))


def test_agents_that_answer_are_found_and_dead_ones_passed_over(machine: Machine, agents_folder: Path) -> None:
    machine.agent()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(agents_folder / "dead.sock"))
    assert [snapshot.node_id for snapshot in look.snapshots()] == [NODE]
    with StartTurn("GPU", "nobody"):
        assert len(look.snapshots()) == 1
