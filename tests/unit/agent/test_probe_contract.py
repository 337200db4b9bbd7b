"""What every probe and every process table does, the twins as well as the real ones."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator

import pytest

from cotenant.errors import EnvironmentFault
from cotenant.gpu.probe import GpuProbe, GpuProcess, Processes
from cotenant.gpu.probe.fake import FakeProbe, FakeProcesses
from cotenant.gpu.probe.host import ProcessTable, VirtualGpus
from cotenant.gpu.probe.nvml import NvmlProbe
from tests.unit.agent.fake_nvml import GIB, FakeNvml, a100, l4
from tests.unit.agent.house import CPU, EIGHT, L4, MIB

pytestmark = pytest.mark.unit


def nvml() -> NvmlProbe:
    busy = l4()
    busy.used, busy.compute = 3 * GIB, [(10, 2 * GIB), (11, None)]
    return NvmlProbe(FakeNvml([busy, a100(["3g.20gb", "1g.5gb"])]))


def twin() -> FakeProbe:
    probe = FakeProbe((*EIGHT, CPU), reserve_kib=450 * MIB, measure=lambda key: {12: 2 * MIB})
    probe.hold(EIGHT[0].key, 12, MIB)
    probe.hold(EIGHT[1].key, 10, MIB)
    probe.hold(EIGHT[1].key, 10, 0)
    return probe


@pytest.mark.parametrize("make", [nvml, twin, lambda: VirtualGpus(12 * MIB, count=2)], ids=["nvml", "twin", "cpu"])
class TestProbe:
    def test_there_is_a_sample_of_each_gpu_in_order(self, make: Callable[[], GpuProbe]) -> None:
        probe = make()
        gpus = probe.gpus()
        assert len({gpu.key for gpu in gpus}) == len(gpus) > 1
        assert [sample.gpu for sample in probe.sample()] == list(gpus) == list(probe.gpus())
        probe.close()

    def test_figures_make_sense_or_are_not_given(self, make: Callable[[], GpuProbe]) -> None:
        for sample in make().sample():
            assert sample.gpu.total_kib > 0
            assert sample.used_kib is None or 0 <= sample.used_kib <= sample.gpu.total_kib
            assert sample.sm_util is None or 0 <= sample.sm_util <= 1
            assert sample.gpu.virtual == (sample.used_kib is None)
            named = [process.pid for process in sample.processes or ()]
            assert named == sorted(set(named))
            assert all(process.held_kib is None or process.held_kib > 0 for process in sample.processes or ())


def test_the_twin_shows_what_was_said_and_what_is_measured() -> None:
    samples = twin().sample()
    assert samples[0].processes == (GpuProcess(12, 3 * MIB),)
    assert samples[1].processes == (GpuProcess(12, 2 * MIB),)
    assert samples[0].used_kib == 453 * MIB


def test_the_twin_can_be_lost() -> None:
    probe = FakeProbe([L4])
    probe.lost = "gone"
    with pytest.raises(EnvironmentFault, match="gone"):
        probe.sample()


@pytest.fixture(params=["machine", "twin"])
def family(request: pytest.FixtureRequest) -> Iterator[tuple[Processes, int, int]]:
    """A table, a process in it, and its child."""
    if request.param == "twin":
        processes = FakeProcesses()
        processes.spawn(10, private_kib=500)
        processes.spawn(11, parent=10, private_kib=100)
        yield processes, 10, 11
        return
    child = subprocess.Popen(["sleep", "60"])
    yield ProcessTable(), os.getpid(), child.pid
    child.kill()
    child.wait()


def test_a_process_and_its_child_are_a_tree(family: tuple[Processes, int, int]) -> None:
    table, parent, child = family
    table.refresh()
    assert table.tree(parent) >= {parent, child}
    assert child not in table.tree(parent, frozenset({child}))
    assert table.tree(child) == {child}
    assert table.known(child)
    assert table.alive(child)
    assert table.private_kib(parent) > 0
    assert table.divided_kib(parent) > 0


def test_a_process_that_never_was_is_nothing(family: tuple[Processes, int, int]) -> None:
    table, never = family[0], 2**22 + 1
    table.refresh()
    assert table.tree(never) == frozenset()
    assert not table.known(never)
    assert not table.alive(never)
    assert (table.private_kib(never), table.divided_kib(never), table.started(never)) == (0, 0, None)
    assert not table.kill(never, 1)


def test_a_process_is_killed_as_itself_alone(family: tuple[Processes, int, int]) -> None:
    table, _, child = family
    started = table.started(child)
    assert started is not None
    assert not table.kill(child, started + 1)
    assert table.alive(child)
    assert table.kill(child, started)
