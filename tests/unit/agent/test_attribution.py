"""Whose memory is it, for all that NVML may say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.agent.attribution import Attribution, Claim, attribute
from cotenant.gpu.probe import Gpu, GpuProcess, GpuSample

pytestmark = pytest.mark.unit

GPU = Gpu("GPU-1", 0, "NVIDIA L4", 23_000)
CPU = Gpu("cpu:0", 0, "CPU", 12_000, virtual=True)
WRITER, PAINTER = "writer", "painter"


def look(
    processes: dict[int, int | None] | None,
    *claims: Claim,
    used: int | None = 10_000,
    known: set[int] | None = None,
) -> Attribution:
    told = None if processes is None else tuple(GpuProcess(pid, kib) for pid, kib in processes.items())
    here = set(processes or ()) if known is None else known
    return attribute(
        GpuSample(GPU, used_kib=used, processes=told), claims, known=here.__contains__, private_kib=lambda pid: 0
    )


def claim(replica: str, *pids: int, reported: int | None = None) -> Claim:
    return Claim(replica, frozenset(pids), reported)


def test_nvml_names_processes_and_each_replica_holds_what_its_own_do() -> None:
    found = look({10: 5_000, 11: 500, 20: 2_000}, claim(WRITER, 9, 10, 11, reported=1), claim(PAINTER, 20))
    assert found.held == {WRITER: 5_500, PAINTER: 2_000}
    assert found.by == "nvml"
    assert found.unattributed_kib == 2_500
    assert found.unknown == ()


def test_a_process_of_nobodys_is_reported() -> None:
    found = look({10: 5_000, 77: 3_000, 78: None}, claim(WRITER, 10))
    assert found.unknown == (GpuProcess(77, 3_000), GpuProcess(78, None))
    assert found.held == {WRITER: 5_000}
    assert found.unattributed_kib == 2_000


@pytest.mark.parametrize(
    ("processes", "known"),
    [
        pytest.param({4_000_123: 5_000, 10: 2_000}, {10}, id="pids of the host, one of which exists here too"),
        pytest.param({}, set(), id="an empty list"),
        pytest.param(None, set(), id="no list"),
        pytest.param({10: None, 20: None}, {10, 20}, id="ours, with 0 MiB"),
    ],
)
def test_in_a_container_replicas_own_figures_stand_and_the_rest_is_unattributed(
    processes: dict[int, int | None] | None, known: set[int]
) -> None:
    found = look(processes, claim(WRITER, 10, reported=6_000), claim(PAINTER, 20, reported=1_000), known=known)
    assert found.held == {WRITER: 6_000, PAINTER: 1_000}
    assert found.by == "reported"
    assert found.unattributed_kib == 3_000
    assert found.unknown == ()


@pytest.mark.parametrize(
    ("processes", "reported", "held"),
    [
        pytest.param({20: 5}, None, 0, id="others are named with memory, so it has none"),
        pytest.param({20: 5}, 300, 300, id="it says so itself, NVML not yet"),
        pytest.param({}, None, None, id="nothing tells"),
        pytest.param({20: None}, None, None, id="names without memory tell nothing"),
        pytest.param({10: 700, 11: None}, 300, 700, id="one of two is known, and is more than it says"),
        pytest.param({10: 700, 11: None}, 900, 900, id="one of two is known, and is less"),
        pytest.param({10: 700, 11: None}, None, 700, id="one of two is known, and it says nothing"),
        pytest.param({10: None}, None, None, id="known to be there, and no more"),
        pytest.param({10: 700}, 900, 700, id="NVML's own figure is believed"),
    ],
)
def test_a_replica_holds_what_is_known_of_it(
    processes: dict[int, int | None], reported: int | None, held: int | None
) -> None:
    assert look(processes, claim(WRITER, 10, 11, reported=reported)).held == {WRITER: held}


def test_a_gpu_that_fails_tells_nothing() -> None:
    found = attribute(
        GpuSample(GPU, fault="lost"), [claim(WRITER, 10, reported=5)], known=lambda _: True, private_kib=lambda _: 0
    )
    assert (found.held, found.by, found.used_kib) == ({WRITER: None}, "none", None)


def test_on_a_cpu_pool_it_is_the_memory_of_the_processes() -> None:
    memory = {10: 300, 11: 200, 20: 50}
    found = attribute(
        GpuSample(CPU),
        [claim(WRITER, 10, 11, reported=9_999), claim(PAINTER, 20), claim("gone")],
        known=memory.__contains__,
        private_kib=memory.__getitem__,
    )
    assert found.held == {WRITER: 500, PAINTER: 50, "gone": 0}
    assert (found.by, found.used_kib, found.unattributed_kib) == ("processes", 550, 0)


amounts = st.none() | st.integers(0, 10_000)


@given(
    st.dictionaries(st.integers(2, 12), amounts), st.sets(st.integers(2, 12)), st.lists(amounts, max_size=3), amounts
)
def test_nothing_is_counted_twice(
    processes: dict[int, int | None], known: set[int], reports: list[int | None], used: int | None
) -> None:
    claims = [claim(f"r{i}", *range(2 + 3 * i, 5 + 3 * i), reported=report) for i, report in enumerate(reports)]
    found = look(processes, *claims, used=used, known=known)
    assert set(found.held) == {one.replica for one in claims}
    assert not {stranger.pid for stranger in found.unknown} & {pid for one in claims for pid in one.pids}
    assert found.unattributed_kib >= 0
    told = sum(kib or 0 for kib in found.held.values()) + sum(stranger.held_kib or 0 for stranger in found.unknown)
    if used is not None and told <= used:
        assert told + found.unattributed_kib == used
