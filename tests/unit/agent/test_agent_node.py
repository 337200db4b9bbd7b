"""What an agent knows and decides, on fake edges and a clock that stands still."""

from __future__ import annotations

import pytest

from cotenant.agent.guard import Limits
from cotenant.agent.place import Refused, find_gpu
from cotenant.agent.protocol import Ask, Busy, Idle, Recalled, Slept, Welcome, Withdraw
from cotenant.agent.reading import Root, owners
from cotenant.errors import NoRoom
from cotenant.gpu.probe.fake import FakeProcesses
from cotenant.gpu.terms import Priority, Tier
from tests.unit.agent.house import CPU, EIGHT, GIB, L4, MIB, SLICES, House, hello, report

pytestmark = pytest.mark.unit

BATCH, INTERACTIVE = Ask(priority=Priority.BATCH), Ask(priority=Priority.INTERACTIVE)


# Which GPU


@pytest.mark.parametrize(
    ("said", "gpus", "expected"),
    [
        pytest.param(None, (L4,), "GPU-14-aaaa", id="the only one need not be named"),
        pytest.param(None, EIGHT, None, id="one of eight must be"),
        pytest.param("3", EIGHT, "GPU-3-hhhh", id="by index"),
        pytest.param("GPU-3-hhhh", EIGHT, "GPU-3-hhhh", id="by UUID"),
        pytest.param("GPU-3", EIGHT, "GPU-3-hhhh", id="by the start of it"),
        pytest.param("MIG-4", SLICES, "MIG-4", id="a slice by UUID"),
        pytest.param("0", (CPU,), "cpu:0", id="a virtual one by index"),
    ],
)
def test_a_replica_says_on_which_gpu_it_is(said: str | None, gpus: tuple[object, ...], expected: str | None) -> None:
    found = find_gpu(said, gpus)  # type: ignore[arg-type]
    assert (found.key if found else None) == expected


@pytest.mark.parametrize(
    ("said", "gpus", "reason"),
    [
        pytest.param("9", EIGHT, "no GPU '9' here; this node has GPU-0-hhhh, GPU-1", id="no such index"),
        pytest.param("GPU", EIGHT, "can be any of", id="a start that several have"),
        pytest.param("0", SLICES, "give the whole UUID", id="the index of a GPU that is cut"),
        pytest.param("0", (), "has none", id="no GPU at all"),
    ],
)
def test_a_gpu_that_is_not_here_is_refused(said: str, gpus: tuple[object, ...], reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        find_gpu(said, gpus)  # type: ignore[arg-type]


def test_a_replica_that_does_not_know_its_gpu_is_found_by_its_processes() -> None:
    house = House(*EIGHT)
    writer = house.come("writer", 10, tier=Tier.RESIDENT, pids=(30,))
    house.processes.spawn(30)
    with pytest.raises(Refused, match="let it say its GPU in hello"):
        house.node.said(writer, INTERACTIVE, house.now)
    house.node.said(writer, Busy(), house.now)
    house.look()
    assert [view.replica for view in house.node.snapshot().unplaced] == [writer]
    house.node.take_outbox()
    house.probe.hold(EIGHT[5].key, 30, 3 * GIB)
    house.look()
    assert house.answers(writer) == [Welcome(node_id="node-1", gpu=EIGHT[5].key, interval_s=1.0)]
    (view,) = house.node.snapshot().gpus[5].replicas
    assert (view.held_mib, view.lease_mib) == (3 * 1024, 4 * 1024)


def test_pids_of_another_namespace_place_nobody() -> None:
    house = House(*EIGHT)
    writer = house.come("writer", 10)
    house.probe.hold(EIGHT[5].key, 10, 3 * GIB)
    house.probe.hold(EIGHT[5].key, 4_000_000, 3 * GIB)
    house.look()
    assert house.node.replicas[writer].gpu is None
    house.node.report(writer, report(gpu="2"), house.now)
    assert house.node.replicas[writer].gpu == EIGHT[2].key


def test_one_found_where_it_has_no_room_is_reported() -> None:
    house = House(*EIGHT)
    house.come("writer", 10, gpu="5", residency="always", gib=8)
    house.come("painter", 20, residency="always", gib=4)
    house.probe.hold(EIGHT[5].key, 20, GIB)
    house.look()
    assert len(house.events("refused")) == 1
    assert "painter#1 needs 4.0 GiB" in house.events("refused")[0]


# Leases


def test_memory_goes_to_who_asks_and_is_recalled_for_who_waits() -> None:
    house = House(L4)
    writer, painter = house.come("writer", 10, gib=6), house.come("painter", 20, gib=6)
    house.node.take_outbox()
    house.node.said(writer, BATCH, house.now)
    assert house.told(writer) == ["granted"]
    house.node.said(writer, Idle(), house.now)
    house.node.said(painter, INTERACTIVE, house.now)
    assert house.answers(writer) == [Recalled(wanted_by=painter)]
    assert house.node.snapshot().gpus[0].waiting == (painter,)
    house.node.said(writer, Slept(), house.now)
    assert house.told(painter) == ["granted"]
    assert house.events("recalled") == ["writer is to sleep: painter waits"]
    assert house.events("slept") == ["writer gave back 5.50 GiB"]
    tallies = {tally.workload: (tally.wakes, tally.sleeps) for tally in house.node.snapshot().tallies}
    assert tallies == {"writer": (1, 1), "painter": (1, 0)}


def test_interactive_goes_before_batch() -> None:
    house = House(L4)
    names = ("holder", "batch", "chat")
    holder, batch, chat = (house.come(name, 10 + i, gib=6) for i, name in enumerate(names))
    house.node.said(holder, INTERACTIVE, house.now)
    house.node.said(batch, BATCH, house.now)
    house.node.said(chat, INTERACTIVE, house.now)
    assert house.node.snapshot().gpus[0].waiting == (chat, batch)
    house.node.said(chat, Withdraw(), house.now)
    assert house.node.snapshot().gpus[0].waiting == (batch,)


def test_time_alone_brings_a_recall_when_a_hold_is_over() -> None:
    house = House(L4)
    writer, painter = house.come("writer", 10, gib=6), house.come("painter", 20, gib=6)
    house.node.said(writer, INTERACTIVE, house.now)
    house.node.said(writer, Busy(), house.now)
    house.node.said(painter, INTERACTIVE, house.now)
    house.node.take_outbox()
    house.now = house.node.due_at
    house.node.tick(house.now)
    assert house.told(writer) == ["recall"]


def test_who_leaves_frees_what_it_held() -> None:
    house = House(L4)
    writer, painter = house.come("writer", 10, gib=6), house.come("painter", 20, gib=6)
    house.node.said(writer, INTERACTIVE, house.now)
    house.node.said(painter, INTERACTIVE, house.now)
    house.node.take_outbox()
    house.node.leave(writer, house.now)
    assert house.told(painter) == ["granted"]
    house.node.leave(writer, house.now)
    house.node.leave(painter, house.now)
    assert house.node.snapshot().gpus[0].usable_mib is None, "with the last replica the GPU's terms go too"


def test_a_replica_that_could_never_wake_is_refused_and_leaves_no_trace() -> None:
    house = House(L4)
    with pytest.raises(NoRoom):
        house.come("giant", 10, gib=11)
    assert house.node.replicas == {}
    house.come("writer", 20, usable_gib=20)
    assert house.node.snapshot().gpus[0].usable_mib == 20 * 1024


def test_a_second_process_of_one_name_is_refused_while_the_first_is_there() -> None:
    house = House(L4)
    writer = house.come("writer", 10)
    with pytest.raises(Refused, match="already here with pid 10; have pid 11"):
        house.come("writer", 11)
    house.node.disconnected(writer)
    house.come("writer", 11)
    assert house.node.replicas[writer].pid == 11


def test_the_least_usable_memory_that_any_terms_say_counts() -> None:
    house = House(L4)
    writer = house.come("writer", 10, usable_gib=20)
    house.come("painter", 20, usable_gib=12)
    gpu = house.node.snapshot().gpus[0]
    assert (gpu.usable_mib, gpu.free_mib) == (12 * 1024, 11 * 1024)
    assert house.events("unknown") == [
        f"painter says that 12.00 GiB of {L4.key} are usable, the others say 20.00 GiB; 12.00 GiB it is"
    ]
    house.come("mockups", 30, usable_gib=20)
    house.node.leave(writer, house.now)
    house.look()
    assert house.node.snapshot().gpus[0].usable_mib == 12 * 1024


def test_no_terms_make_a_gpu_greater_than_it_is() -> None:
    house = House(L4)
    house.come("writer", 10, usable_gib=40)
    assert house.node.snapshot().gpus[0].usable_mib == 23 * 1024


# Connections that break, agents that come anew


def test_a_lost_connection_loses_no_lease_and_no_place() -> None:
    house = House(L4)
    writer, painter = house.come("writer", 10, gib=6), house.come("painter", 20, gib=6)
    house.node.said(writer, INTERACTIVE, house.now)
    house.node.disconnected(writer)
    assert not house.node.snapshot().gpus[0].replicas[0].connected
    house.node.said(painter, INTERACTIVE, house.now)
    house.now += 10
    house.node.tick(house.now)
    assert house.node.snapshot().gpus[0].waiting == (painter,), "what the lost one holds is not given away"
    house.node.take_outbox()
    house.node.hello(hello("writer", gib=6, tier=Tier.RESIDENT, holds_full=True), 10, house.now)
    assert house.told(writer) == ["welcome", "recall"], "it hears again what it may have missed"


def test_one_that_slept_while_its_connection_was_lost_gives_back_what_it_held() -> None:
    house = House(L4)
    writer, painter = house.come("writer", 10, gib=6), house.come("painter", 20, gib=6)
    house.node.said(writer, INTERACTIVE, house.now)
    house.node.disconnected(writer)
    house.node.said(painter, INTERACTIVE, house.now)
    house.node.take_outbox()
    house.node.hello(hello("writer", gib=6, tier=Tier.ASLEEP), 10, house.now)
    assert house.told(painter) == ["granted"]


def test_a_residents_grant_that_was_not_heard_is_said_again() -> None:
    house = House(L4)
    writer = house.come("writer", 10, residency="always")
    assert house.told(writer) == ["granted", "welcome"]
    house.node.disconnected(writer)
    house.node.hello(hello("writer", residency="always"), 10, house.now)
    assert house.told(writer) == ["welcome", "granted"]


def test_one_whose_gpu_is_not_known_may_come_back_too() -> None:
    house = House(*EIGHT)
    writer = house.come("writer", 10)
    house.node.disconnected(writer)
    house.node.hello(hello("writer"), 10, house.now)
    assert house.told(writer) == ["welcome", "welcome"]


def test_a_new_agent_lends_nothing_until_the_old_ones_replicas_are_back() -> None:
    house = House(L4, opens_at=102.0)
    eager = house.come("painter", 20, gib=6)
    house.node.said(eager, INTERACTIVE, house.now)
    assert house.told(eager) == ["welcome"]
    house.now = 101.0
    holder = house.come("writer", 10, gib=6, tier=Tier.RESIDENT, holds_full=True)
    house.now = house.node.due_at
    house.node.tick(house.now)
    assert house.told(eager) == []
    leases = {view.workload: view.lease_mib for view in house.node.snapshot().gpus[0].replicas}
    assert leases == {"painter": 512.0, "writer": 6 * 1024.0}
    house.node.leave(holder, house.now)
    assert house.told(eager) == ["granted"]


# What is measured


def test_processes_become_what_replicas_hold_and_peaks_and_gpu_seconds() -> None:
    house = House(CPU)
    writer = house.come("writer", 10, accelerator="cpu", usable_gib=8)
    house.processes.spawn(11, parent=10, private_kib=1_024 * MIB)
    house.node.said(writer, INTERACTIVE, house.now)
    house.look()
    house.processes.use(11, 512 * MIB)
    house.look(2.0)
    (view,) = house.node.snapshot().gpus[0].replicas
    assert (view.held_mib, view.peak_mib, view.lease_mib) == (512, 1_024, 4_096)
    assert view.gpu_seconds == 1.0, "two seconds of half the GPU"
    house.node.leave(writer, house.now)
    (tally,) = house.node.snapshot().tallies
    assert (tally.gpu_seconds, tally.peak_mib) == (1.0, 1_024)


def test_a_replica_near_its_budget_is_warned_and_past_it_stopped_once_and_alone() -> None:
    house = House(L4, reserve_kib=450 * MIB)
    writer, painter = house.come("writer", 10), house.come("painter", 20)
    for replica in (writer, painter):
        house.node.said(replica, INTERACTIVE, house.now)
    house.probe.hold(L4.key, 10, 3_800 * MIB)
    house.probe.hold(L4.key, 20, 2_000 * MIB)
    assert house.look() == []
    assert house.events("warned") == ["writer holds 3.71 GiB of 4.00 GiB"]
    house.probe.hold(L4.key, 10, 6_000 * MIB)
    ((stopped, obituary),) = house.look()
    assert stopped == writer
    assert obituary.past_budget
    assert (obituary.workload, obituary.pid, obituary.held_mib, obituary.budget_mib) == ("writer", 10, 6_000, 4_096)
    assert "past its budget of 4.00 GiB" in obituary.text
    assert house.look() == [], "it is being stopped"
    house.node.stop_failed(writer)
    assert [replica for replica, _ in house.look()] == [writer]
    tallies = {tally.workload: (tally.warnings, tally.stops) for tally in house.node.snapshot().tallies}
    assert tallies == {"writer": (1, 2), "painter": (0, 0)}
    house.node.stop_failed("nobody")


def test_one_that_keeps_its_memory_after_it_slept_is_stopped_when_the_grace_is_over() -> None:
    house = House(L4, limits=Limits(grace_s=3.0))
    writer = house.come("writer", 10)
    house.node.said(writer, INTERACTIVE, house.now)
    house.probe.hold(L4.key, 10, 3_000 * MIB)
    house.look()
    house.node.said(writer, Slept(), house.now)
    assert [house.look() for _ in range(4)] == [[]] * 4
    ((_, obituary),) = house.look()
    assert not obituary.past_budget
    assert "without a lease, past its floor of 512 MiB" in obituary.text


def test_unknown_processes_are_reported_once_and_their_memory_is_not_lent() -> None:
    house = House(L4)
    writer = house.come("writer", 10, gib=6)
    house.processes.spawn(77)
    house.probe.hold(L4.key, 77, 5 * GIB)
    house.look()
    assert house.events("unknown") == [], "it may be a replica about to say hello"
    house.look()
    house.look()
    gpu = house.node.snapshot().gpus[0]
    assert [(stranger.pid, stranger.held_mib) for stranger in gpu.unknown] == [(77, 5 * 1024)]
    assert house.events("unknown") == [f"process 77 holds 5.00 GiB of {L4.key} and is no replica"]
    house.node.said(writer, INTERACTIVE, house.now)
    assert house.told(writer) == ["welcome"], "6 GiB don't fit beside 5 of 10"
    house.probe.hold(L4.key, 77, 0)
    house.look()
    assert house.told(writer) == ["granted"]


def test_memory_in_use_that_no_lease_covers_counts_when_it_is_seen_twice() -> None:
    house = House(L4)
    house.probe.tells_processes = False
    house.come("writer", 10)
    house.probe.hold(L4.key, 4_000_000, 15 * GIB)
    free = []
    for _ in range(2):
        house.look()
        free.append(house.node.snapshot().gpus[0].free_mib)
    gpu = house.node.snapshot().gpus[0]
    assert free == [9.5 * 1024, 9.5 * 1024 - 1.5 * 1024], "15 used, less the 13 left unused on purpose and the floor"
    assert (gpu.measured_by, gpu.unattributed_mib) == ("reported", 15 * 1024)


def test_a_replicas_own_figure_stands_where_nvml_tells_no_processes() -> None:
    house = House(L4)
    house.probe.tells_processes = False
    writer = house.come("writer", 10)
    house.node.said(writer, INTERACTIVE, house.now)
    house.node.report(writer, report(allocated_bytes=5 * 2**30, running=2, waiting=1), house.now)
    house.probe.hold(L4.key, 10, 6 * GIB)
    ((stopped, obituary),) = house.look()
    assert (stopped, obituary.held_mib) == (writer, 5 * 1024)
    (view,) = house.node.snapshot().gpus[0].replicas
    assert (view.running, view.waiting, view.tier) == (2, 1, Tier.RESIDENT)


def test_faults_are_reported_once_and_nobody_is_judged_meanwhile() -> None:
    house = House(L4)
    writer = house.come("writer", 10)
    house.processes.spawn(77)
    house.probe.hold(L4.key, 77, 5 * GIB)
    house.look()
    house.look()
    free_mib = house.node.snapshot().gpus[0].free_mib
    house.probe.hold(L4.key, 10, 9 * GIB)
    house.probe.faults[L4.key] = "fell off the bus"
    assert [house.look(), house.look()] == [[], []]
    gpu = house.node.snapshot().gpus[0]
    assert (gpu.fault, gpu.free_mib) == ("fell off the bus", free_mib)
    assert gpu.replicas[0].held_mib is None
    house.probe.faults.clear()
    house.probe.lost = "the driver is gone"
    assert [house.look(), house.look()] == [[], []]
    house.probe.lost = None
    assert [replica for replica, _ in house.look()] == [writer]
    assert house.events("fault") == [
        f"{L4.key}: fell off the bus",
        "the driver is gone",
        "the driver answers again",
    ]


def test_pages_that_a_forked_child_shares_count_once() -> None:
    house = House(CPU)
    writer = house.come("writer", 10, accelerator="cpu", usable_gib=8)
    house.node.said(writer, INTERACTIVE, house.now)
    house.processes.use(10, 3 * GIB, divided_kib=3 * GIB // 2)
    house.processes.spawn(11, parent=10)
    house.processes.use(11, 3 * GIB, divided_kib=3 * GIB // 2)
    assert house.look() == []
    assert house.node.snapshot().gpus[0].replicas[0].held_mib == 3 * 1024
    house.processes.use(11, 3 * GIB)
    assert [replica for replica, _ in house.look()] == [writer]


# Whose process is whose


def test_a_process_has_one_owner() -> None:
    processes = FakeProcesses()
    for pid, parent in ((10, 1), (11, 10), (20, 11), (21, 20), (30, 1), (31, 30), (40, 1)):
        processes.spawn(pid, parent=parent)
    roots = {
        "outer": Root(10, further=(30, 21)),
        "inner": Root(20, further=(30, 40, 1, 99)),
        "unseen": Root(0),
    }
    assert owners(processes, roots) == {
        "outer": frozenset({10, 11, 30, 31}),
        "inner": frozenset({20, 21, 40}),
        "unseen": frozenset(),
    }


def test_what_the_agent_itself_descends_from_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = FakeProcesses()
    for pid, parent in ((10, 1), (50, 1), (51, 50)):
        processes.spawn(pid, parent=parent)
    monkeypatch.setattr("os.getpid", lambda: 51)
    assert owners(processes, {"writer": Root(10, further=(50,))}) == {"writer": frozenset({10})}
