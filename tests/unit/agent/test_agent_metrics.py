"""A snapshot's metrics: every name is declared, labels are bounded, and unknowns have no row."""

from __future__ import annotations

import pytest

from cotenant.agent.metrics import METRICS, START, rows, start_rows
from cotenant.gpu.terms import Tier
from tests.unit.agent.house import GIB, L4, House, report
from tests.unit.agent.test_agent_node import INTERACTIVE
from tests.unit.telemetry.test_start_records import COLD

pytestmark = pytest.mark.unit


@pytest.fixture
def house() -> House:
    house = House(L4)
    for number, pid in ((1, 10), (2, 11)):
        writer = house.come("writer", pid, number, gib=3)
        house.node.said(writer, INTERACTIVE, house.now)
        house.node.report(writer, report(running=number, waiting=1), house.now)
        house.probe.hold(L4.key, pid, number * GIB)
    house.come("painter", 20)
    house.processes.spawn(77)
    house.probe.hold(L4.key, 77, GIB)
    house.probe.busy[L4.key] = 0.4
    house.look()
    house.look()
    return house


def test_replicas_of_a_workload_are_added_up(house: House) -> None:
    found = {
        (row.name, row.labels.get("workload", ""), row.labels.get("tier", "")): row.value
        for row in rows(house.node.snapshot())
    }
    assert found[("cotenant_gpu_memory_mib", "writer", "")] == 3 * 1024
    assert found[("cotenant_gpu_memory_peak_mib", "writer", "")] == 2 * 1024
    assert found[("cotenant_gpu_memory_budget_mib", "writer", "")] == 6 * 1024
    assert found[("cotenant_gpu_memory_lease_mib", "writer", "")] == 6 * 1024
    assert found[("cotenant_gpu_requests_running", "writer", "")] == 3
    assert found[("cotenant_gpu_requests_waiting", "writer", "")] == 2
    assert found[("cotenant_gpu_replicas", "writer", "resident")] == 2
    assert found[("cotenant_gpu_replicas", "painter", "cold")] == 1
    assert found[("cotenant_gpu_wakes_total", "writer", "")] == 2
    assert found[("cotenant_gpu_seconds_total", "writer", "")] == 0.6
    assert found[("cotenant_gpu_unknown_mib", "", "")] == 1024
    assert found[("cotenant_gpu_used_mib", "", "")] == 4 * 1024
    assert found[("cotenant_gpu_sm_utilisation", "", "")] == 0.4


def test_every_row_is_of_a_declared_metric_and_has_its_labels(house: House) -> None:
    declared = {metric.name: metric for metric in METRICS}
    found = rows(house.node.snapshot())
    assert {row.name for row in found} == set(declared)
    assert all(tuple(row.labels) == declared[row.name].labels for row in found)
    assert len({(row.name, *row.labels.values()) for row in found}) == len(found), "no series twice"
    assert all(metric.kind == "counter" for metric in METRICS if metric.name.endswith("_total"))


def test_what_is_not_known_has_no_row() -> None:
    house = House(L4)
    house.probe.faults[L4.key] = "gone"
    writer = house.come("writer", 10, tier=Tier.ASLEEP)
    house.look()
    names = {row.name for row in rows(house.node.snapshot()) if row.labels.get("workload", "writer") == "writer"}
    assert house.node.replicas[writer].held_kib is None
    assert not names & {"cotenant_gpu_memory_mib", "cotenant_gpu_used_mib", "cotenant_gpu_sm_utilisation"}


def test_a_start_is_observed_by_stage_and_only_its_news() -> None:
    found = start_rows(COLD, COLD.spans[3:])
    assert [(row.labels["stage"], row.value) for row in found] == [("weights", 4), ("warm_up", 1)]
    assert {row.labels["workload"] for row in found} == {"writer"}
    assert all(tuple(row.labels) == START.labels and row.name == START.name for row in found)
