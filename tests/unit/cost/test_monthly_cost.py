"""Monthly cost: nodes are paid for, sharing is compared with a GPU per replica, unknown prices are named."""

from __future__ import annotations

from typing import Any

import pytest

from cotenant.config import Platform, Pool
from cotenant.cost import HOURS_PER_MONTH, Cost, monthly_cost
from cotenant.gpu.accelerators import ACCELERATORS
from cotenant.gpu.machines import ATTACHED, MACHINES, node_usd_per_h
from cotenant.gpu.plan import plan

pytestmark = pytest.mark.unit


def cost(workloads: dict[str, Any], **pools: Any) -> Cost:
    platform = Platform.model_validate({"environment": "test", "workloads": workloads, "pools": pools})
    return monthly_cost(platform, plan(platform))


def workload(vram_gib: float, low: int, high: int) -> dict[str, Any]:
    return {"mockup": {}, "gpu": {"vram_gib": vram_gib}, "replicas": {"min": low, "max": high}}


L4 = {"accelerator": "nvidia-l4", "machine": "g2-standard-8", "usd_per_h": 1.0, "nodes": {"min": 0, "max": 10}}


def test_shared_gpus_cost_what_their_nodes_cost() -> None:
    found = cost({"w": workload(5, 1, 8)}, shared=L4)
    assert found.gpu_usd_at_min == HOURS_PER_MONTH
    assert found.gpu_usd_at_max == 2 * HOURS_PER_MONTH
    assert found.whole_gpus_usd_at_min == HOURS_PER_MONTH
    assert found.whole_gpus_usd_at_max == 8 * HOURS_PER_MONTH


def test_nodes_that_always_run_are_paid_even_if_idle() -> None:
    found = cost({"w": workload(5, 0, 1)}, shared={**L4, "nodes": {"min": 3, "max": 5}})
    assert found.gpu_usd_at_min == found.gpu_usd_at_max == 3 * HOURS_PER_MONTH


def test_front_pools_are_counted_apart() -> None:
    front = {"machine": "e2-standard-4", "usd_per_h": 0.1, "nodes": {"min": 1, "max": 4}}
    found = cost({"w": workload(5, 1, 1)}, front=front, shared=L4)
    assert found.front_usd_at_min == pytest.approx(73)
    assert found.front_usd_at_max == pytest.approx(292)
    assert found.gpu_usd_at_max == HOURS_PER_MONTH


def test_an_hour_is_that_of_all_nodes() -> None:
    front = {"machine": "e2-standard-4", "usd_per_h": 0.1, "nodes": {"min": 1, "max": 4}}
    found = cost({"w": workload(5, 1, 8)}, front=front, shared=L4)
    assert found.usd_per_h_at_min == pytest.approx(1.1)
    assert found.usd_per_h_at_max == pytest.approx(2.4)


def test_a_pool_without_a_known_price_is_named_and_counts_for_nothing() -> None:
    found = cost({"w": workload(5, 1, 1)}, shared={"accelerator": "nvidia-l4", "machine": "moon-1"})
    assert found.unpriced == ("shared",)
    assert found.gpu_usd_at_max == 0


@pytest.mark.parametrize(
    ("pool", "usd_per_h"),
    [
        pytest.param({"accelerator": "nvidia-l4", "machine": "g2-standard-8"}, 0.8536, id="list"),
        pytest.param({"accelerator": "nvidia-l4", "machine": "g2-standard-8", "spot": True}, 0.3414, id="spot"),
        pytest.param({"accelerator": "nvidia-l4", "machine": "g2-standard-8", "usd_per_h": 0.5}, 0.5, id="own price"),
        pytest.param({"accelerator": "nvidia-tesla-t4", "machine": "n1-standard-8"}, 0.73, id="attached GPU"),
        pytest.param(
            {"accelerator": "nvidia-tesla-t4", "machine": "n1-standard-8", "gpus_per_node": 2}, 1.08, id="two attached"
        ),
        pytest.param({"machine": "e2-standard-4"}, 0.134, id="front"),
        pytest.param({"accelerator": "cpu", "vram_gib": 12.0}, 0.0, id="this machine"),
        pytest.param({"accelerator": "nvidia-l4"}, None, id="GPU on an unnamed machine"),
    ],
)
def test_the_price_of_a_node(pool: dict[str, Any], usd_per_h: float | None) -> None:
    assert node_usd_per_h(Pool.model_validate(pool)) == pytest.approx(usd_per_h)


def test_the_machine_table_agrees_with_the_accelerator_catalogue() -> None:
    named = {machine.accelerator for machine in MACHINES.values() if machine.accelerator} | set(ATTACHED)
    assert named <= set(ACCELERATORS)
    for machine in MACHINES.values():
        assert bool(machine.gpus) == bool(machine.accelerator)
        assert 0 < machine.usd_per_h(spot=True) < machine.usd_per_h(spot=False)
