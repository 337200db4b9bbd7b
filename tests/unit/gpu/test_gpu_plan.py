"""The plan: who fits where, in which pool, at minimum and at maximum, and what is refused in which words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.config import GpuBudget, MockupSpec, Platform
from cotenant.errors import PlanError
from cotenant.gpu.advice import Supposed
from cotenant.gpu.fewest import Packing, fewest
from cotenant.gpu.packing import Gpus
from cotenant.gpu.plan import GpuFill, PoolPlan, plan

pytestmark = pytest.mark.unit

L4_GIB = 22.0


def workload(vram_gib: float, low: int = 1, high: int | None = None, **more: Any) -> dict[str, Any]:
    return {"mockup": {}, "gpu": {"vram_gib": vram_gib}, "replicas": {"min": low, "max": high or max(low, 1)}, **more}


def pool(nodes_max: int = 1, **more: Any) -> dict[str, Any]:
    return {"accelerator": "nvidia-l4", "machine": "g2-standard-8", "nodes": {"min": 0, "max": nodes_max}, **more}


def a100(nodes_max: int = 1, **more: Any) -> dict[str, Any]:
    return pool(nodes_max, accelerator="nvidia-tesla-a100", machine="a2-highgpu-1g", **more)


def platform(workloads: dict[str, Any], **pools: Any) -> Platform:
    return Platform.model_validate(
        {"environment": "test", "workloads": workloads, "pools": pools or {"shared": pool()}}
    )


def test_two_renders_and_a_small_llm_share_one_card() -> None:
    renderer, writer = workload(4.9, low=2), {"llm": {"model": "m"}, "gpu": {"vram_gib": 12}}
    made = plan(platform({"mockups": renderer, "writer": writer}))
    assert made.gpus_needed == 1
    assert made.pools["shared"].gpus_at_max[0].replicas == {"writer": 1, "mockups": 2}
    assert made.workloads["writer"].num_gpus == 0.5455


def test_three_thirds_share_one_card() -> None:
    made = plan(platform({"third": workload(L4_GIB / 3, low=3)}))
    assert made.gpus_needed == 1
    assert made.workloads["third"].num_gpus == 0.3333


def test_large_budgets_are_placed_first_so_that_small_ones_fill_the_rest() -> None:
    made = plan(platform({"small": workload(9.9, low=2), "large": workload(12, low=2)}, shared=pool(2)))
    assert [gpu.replicas for gpu in made.pools["shared"].gpus_at_max] == [{"large": 1, "small": 1}] * 2


def test_each_workload_goes_to_the_pool_where_a_replica_costs_least() -> None:
    made = plan(
        platform(
            {"small": workload(4), "large": workload(30)},
            a100=pool(4, accelerator="nvidia-tesla-a100", machine="a2-highgpu-1g"),
            l4=pool(4),
        )
    )
    assert {name: booking.pool for name, booking in made.workloads.items()} == {"small": "l4", "large": "a100"}


def test_a_price_of_ones_own_changes_the_choice() -> None:
    made = plan(
        platform(
            {"small": workload(4)},
            a100=pool(4, accelerator="nvidia-tesla-a100", machine="a2-highgpu-1g", usd_per_h=0.1),
            l4=pool(4),
        )
    )
    assert made.workloads["small"].pool == "a100"


def test_a_workload_stays_in_the_pools_it_names() -> None:
    made = plan(platform({"w": workload(4, pools=["dear"])}, cheap=pool(), dear=pool(usd_per_h=9.0)))
    assert made.workloads["w"].pool == "dear"


def test_a_full_cheap_pool_sends_the_next_workload_to_the_other() -> None:
    made = plan(platform({"a": workload(20), "b": workload(15)}, cheap=pool(1), dear=pool(1, usd_per_h=9.0)))
    assert {name: booking.pool for name, booking in made.workloads.items()} == {"a": "cheap", "b": "dear"}


def test_nodes_with_several_gpus_are_counted_whole() -> None:
    made = plan(platform({"w": workload(20, low=3)}, shared=pool(2, machine="g2-standard-24", gpus_per_node=2)))
    assert made.gpus_needed == 3
    assert made.pools["shared"].nodes_at_max == 2


def test_zero_replicas_at_minimum_need_no_gpu() -> None:
    made = plan(platform({"w": workload(20, low=0, high=1)}))
    assert (made.gpus_needed_at_min, made.gpus_needed) == (0, 1)


def test_what_of_the_maximum_does_not_fit_is_a_warning_and_the_minimum_keeps_its_place() -> None:
    made = plan(platform({"greedy": workload(15, 1, 4), "modest": workload(14, 1, 1)}, shared=pool(2)))
    assert made.workloads["modest"].placed_max == 1
    assert made.workloads["greedy"].placed_max == 1
    assert made.warnings == (
        "pool shared grows to 2 nodes, but all replicas at their maximum need 5; with everything busy there is room "
        "for greedy 1 of 4; raise its nodes.max to 5 or lower replicas.max",
    )


@pytest.mark.parametrize(
    ("workloads", "pools", "message"),
    [
        pytest.param(
            {"captions": workload(30)},
            {"shared": pool()},
            "captions needs 30 GiB, but the largest GPU it may use, nvidia-l4 of pool shared, has 22 usable GiB; lower "
            "vram_gib of captions to 22, or give it a pool with a larger GPU (nvidia-tesla-a100 would do)",
            id="a replica fits no GPU",
        ),
        pytest.param(
            {"captions": workload(30), "writer": workload(12)},
            {"shared": pool()},
            "captions needs 30 GiB, but the largest GPU it may use, nvidia-l4 of pool shared, has 22 usable GiB; lower "
            "vram_gib of captions to 9.9, or give it a pool with a larger GPU (nvidia-tesla-a100 would do)",
            id="a replica fits no GPU, and another is there",
        ),
        pytest.param(
            {"captions": workload(300)},
            {"shared": pool()},
            "captions needs 300 GiB, but the largest GPU it may use, nvidia-l4 of pool shared, has 22 usable GiB; give "
            "it a pool with a larger GPU",
            id="a replica fits no GPU there is",
        ),
        pytest.param(
            {"writer": workload(12.8, low=2), "captions": workload(11.5)},
            {"shared": pool(2)},
            "captions needs 11.5 GiB at minimum, but the emptiest nvidia-l4 of pool shared has 9.2 of 22.0 GiB left; "
            "raise nodes.max of pool shared from 2 to 3, or lower vram_gib of captions to 9.1",
            id="the minimum does not fit the nodes",
        ),
        pytest.param(
            {"writer": workload(12), "captions": workload(10)},
            {"shared": pool()},
            "captions needs 10 GiB at minimum, but the emptiest nvidia-l4 of pool shared has 9.998 of 22.0 GiB left; "
            "raise nodes.max of pool shared from 1 to 2, lower vram_gib of captions to 9.9, or give captions "
            "residency: sleep (it then books 0.6 GiB, 9.4 less)",
            id="missed by the rounding of shares",
        ),
        pytest.param(
            {"writer": workload(12, low=3)},
            {"shared": pool(2)},
            "writer needs 3 x 12 GiB at minimum, but pool shared has room for 2; raise nodes.max of pool shared from 2 "
            "to 3, lower vram_gib of writer to 11, give writer residency: sleep (it then books 0.6 GiB, 11.4 less), or "
            "lower replicas.min of writer to 2",
            id="not all of the minimum fits",
        ),
        pytest.param(
            {"writer": {**workload(12), "replicas": {"min": 3, "per_node": 1}}},
            {"shared": pool(2)},
            "writer needs 3 x 12 GiB at minimum, no more than 1 to a node, but pool shared has room for 2; raise "
            "nodes.max of pool shared from 2 to 3, or lower replicas.min of writer to 2",
            id="too few nodes to keep replicas apart",
        ),
        pytest.param(
            {"painter": workload(20, residency="sleep"), "writer": workload(5)},
            {"shared": pool(9), "small": pool(vram_gib=4)},
            "writer needs 5 GiB at minimum, but pool shared keeps 19.4 of 22.0 GiB free so that painter can wake, and "
            "2.6 can be booked, and the nvidia-l4 of pool small has 4 GiB; drop residency of painter, lower vram_gib "
            "of painter to 17.6, lower vram_gib of writer to 4, or give writer residency: sleep (it then books 0.6 "
            "GiB, 4.4 less)",
            id="wake-up room takes what it would book",
        ),
        pytest.param(
            {"extra": workload(20, residency="sleep"), "mockups": workload(1.5), "writer": workload(12)},
            {"shared": pool(9)},
            "writer needs 12 GiB at minimum, but pool shared keeps 19.4 of 22.0 GiB free so that extra can wake, and "
            "2.6 can be booked; drop residency of extra, lower vram_gib of extra to 10.6, or give writer residency: "
            "sleep (it then books 0.6 GiB, 11.4 less)",
            id="wake-up room takes what it would book, and under a quarter of its budget is no advice",
        ),
        pytest.param(
            {"extra": workload(20, residency="sleep"), "painter": workload(8, residency="sleep"), "w": workload(12)},
            {"shared": pool(9)},
            "w needs 12 GiB at minimum, but pool shared keeps 19.4 of 22.0 GiB free so that extra can wake, and 2.6 "
            "can be booked; drop residency of extra and painter, lower vram_gib of extra to 10.6, or give w residency: "
            "sleep (it then books 0.6 GiB, 11.4 less)",
            id="two that sleep take what it would book",
        ),
        pytest.param(
            {"extra": workload(3, low=2), "mockups": workload(1.5), "writer": workload(5)},
            {"shared": pool(vram_gib=11)},
            "extra needs 2 x 3 GiB at minimum, but pool shared has room for 1; raise nodes.max of pool shared from 1 "
            "to 2, lower vram_gib of extra to 2.2, give extra residency: sleep (it then books 0.6 GiB, 2.4 less), or "
            "lower replicas.min of extra to 1",
            id="what is smaller needs its room too",
        ),
        pytest.param(
            {"painter": workload(20, residency="sleep"), "lazy": workload(18, low=9, residency="sleep")},
            {"shared": pool(1)},
            "lazy needs 9 x 0.6 GiB asleep and 17.4 GiB to wake, but pool shared has room for 3; raise nodes.max of "
            "pool shared from 1 to 3, or lower replicas.min of lazy to 3",
            id="too many that sleep",
        ),
        pytest.param(
            {"lazy": workload(20, low=9, residency="sleep")},
            {"shared": pool(1)},
            "lazy needs 9 x 0.6 GiB asleep and 19.4 GiB to wake, but pool shared has no room for so many; raise "
            "nodes.max of pool shared from 1 to 3, lower vram_gib of lazy to 17.2, or lower replicas.min of lazy to 4",
            id="too many that sleep, and nobody else",
        ),
        pytest.param(
            {"writer": workload(4)},
            {"shared": pool(mig="1g.5gb")},
            "pool shared asks for MIG slices 1g.5gb, but no MIG profile of nvidia-l4 is known; drop mig, or take one "
            "of nvidia-tesla-a100, nvidia-a100-80gb, nvidia-h100-80gb, nvidia-h100-mega-80gb, nvidia-h200-141gb, "
            "nvidia-b200, nvidia-rtx-pro-6000",
            id="no MIG on that GPU",
        ),
        pytest.param(
            {"writer": workload(4)},
            {"shared": a100(mig="1g.6gb")},
            "pool shared asks for MIG slices 1g.6gb, which nvidia-tesla-a100 can't be cut into; it has 1g.5gb (x7), "
            "1g.10gb (x4), 2g.10gb (x3), 3g.20gb (x2), 4g.20gb (x1), 7g.40gb (x1)",
            id="unknown MIG profile",
        ),
        pytest.param(
            {"writer": workload(4)},
            {"shared": a100(mig="1g.5gb", vram_gib=5)},
            "pool shared says vram_gib 5, but an nvidia-tesla-a100 1g.5gb has 4.75 GiB; leave vram_gib out (4.3 are "
            "usable) or lower it",
            id="more memory than the slice has",
        ),
        pytest.param(
            {"w": workload(1)},
            {"shared": {"accelerator": "nvidia-l5"}},
            "pool shared has the accelerator 'nvidia-l5'; did you mean nvidia-l4? Or give the pool vram_gib",
            id="unknown accelerator",
        ),
        pytest.param(
            {"w": workload(1)},
            {"shared": pool(machine="a2-highgpu-1g")},
            "pool shared says nvidia-l4, but a2-highgpu-1g has nvidia-tesla-a100; change accelerator or machine",
            id="machine with another GPU",
        ),
        pytest.param(
            {"w": workload(1)},
            {"shared": pool(machine="g2-standard-24")},
            "pool shared says gpus_per_node 1, but g2-standard-24 has 2; write gpus_per_node: 2",
            id="machine with more GPUs",
        ),
        pytest.param(
            {"w": workload(1)},
            {"shared": pool(vram_gib=24)},
            "pool shared says vram_gib 24, but an nvidia-l4 has 22.49 GiB; leave vram_gib out (22 are usable) or lower "
            "it",
            id="more memory than the GPU has",
        ),
    ],
)
def test_what_can_not_run_is_refused_with_the_number_to_change(
    workloads: dict[str, Any], pools: dict[str, Any], message: str
) -> None:
    with pytest.raises(PlanError) as refused:
        plan(platform(workloads, **pools))
    assert str(refused.value) == message
    assert refused.value.exit_code == 2


def test_every_workload_that_fits_nowhere_has_its_line() -> None:
    with pytest.raises(PlanError) as refused:
        plan(platform({"a": workload(30), "b": workload(40), "c": workload(1)}))
    assert [line.split()[0] for line in str(refused.value).splitlines()] == ["b", "a"]


def test_a_surge_replica_has_room_beside_everything_at_its_maximum() -> None:
    made = plan(platform({"large": workload(12), "small": workload(4)}))
    assert made.has_surge_room("small")
    assert not made.has_surge_room("large")
    assert plan(platform({"large": workload(12), "small": workload(4)}, shared=pool(2))).has_surge_room("large")


def test_more_cpus_than_a_node_has_are_a_warning() -> None:
    made = plan(platform({"w": workload(2, low=10)}))
    assert made.warnings == (
        "pool shared: the replicas of one GPU book up to 10 CPUs, but g2-standard-8 has 8 for each; take a machine "
        "type with more, or lower cpus of its workloads",
    )


def test_what_sleeps_books_what_it_holds_asleep_and_the_gpu_keeps_room_for_it_to_wake() -> None:
    made = plan(
        platform(
            {
                "painter": workload(12, low=3, residency="sleep", gpu={"vram_gib": 12, "asleep_gib": 2}),
                "writer": workload(6),
            }
        )
    )
    planned = made.pools["shared"]
    assert (planned.wake_gib, made.gpus_needed) == (10.0, 1)
    assert made.workloads["painter"].num_gpus == 0.1666, "2 of 22 - 10 GiB; six fit"
    assert made.workloads["writer"].num_gpus == 0.5
    assert made.workloads["painter"].terms.floor_gib == 2
    assert made.workloads["writer"].terms.floor_gib == 6
    assert (planned.at_home, planned.awake) == (4, 2), "the writer, and one painter at a time"
    assert planned.gpus_at_max[0].free_gib == pytest.approx(0)


def test_thirds_of_what_can_be_booked_share_a_card_too() -> None:
    made = plan(
        platform(
            {
                "painter": workload(8, low=0, residency="on-demand", gpu={"vram_gib": 8, "asleep_gib": 1}),
                "third": workload(5, low=3),
            }
        )
    )
    assert made.workloads["third"].num_gpus == 0.3333
    assert made.gpus_needed_at_min == 1


@pytest.mark.parametrize(
    ("kind", "accelerator", "floor_gib"),
    [
        ({"llm": {"model": "m"}}, "cpu", 2.3),
        ({"mockup": {}}, "cpu", 0.6),
        ({"image": {"model": "tiny-inpaint"}}, "cpu", 0.9),
        ({"llm": {"model": "m"}}, "nvidia-l4", 1.5),
        ({"mockup": {}}, "nvidia-l4", 0.6),
        ({"image": {"model": "tiny-inpaint"}}, "nvidia-l4", 0.8),
    ],
)
def test_the_default_floor_is_by_kind_and_accelerator(kind: dict[str, Any], accelerator: str, floor_gib: float) -> None:
    sleeper = {**kind, "gpu": {"vram_gib": 4}, "residency": "sleep"}
    made = plan(platform({"w": sleeper}, shared={"accelerator": accelerator, "vram_gib": 12}))
    assert made.workloads["w"].terms.floor_gib == floor_gib


def test_sleeping_with_as_much_as_awake_is_a_warning() -> None:
    made = plan(platform({"w": workload(0.5, residency="sleep")}))
    assert made.workloads["w"].terms.floor_gib == 0.5
    assert made.warnings == (
        "w holds 0.5 GiB asleep, all of its budget, so residency: sleep saves nothing; raise its vram_gib, lower its "
        "asleep_gib, or drop residency",
    )


def test_wake_up_room_that_costs_more_gpus_than_it_saves_is_a_warning() -> None:
    made = plan(platform({"w": workload(9, low=4), "painter": workload(12, residency="sleep")}, shared=pool(9)))
    assert made.gpus_needed == 4
    assert made.warnings == (
        "pool shared needs 4 GPUs, since each keeps 11.4 GiB free so that painter can wake; were nothing to sleep, 3 "
        "would do: drop residency of painter, or give what sleeps a pool of its own",
    )


def test_a_sleeper_goes_where_its_room_pushes_nobody_out() -> None:
    """The dear pool takes the sleeper, as the writer may only use the cheap one and books nearly all of it."""
    made = plan(
        platform(
            {"painter": workload(18, residency="sleep"), "writer": workload(20, pools=["cheap"])},
            cheap=pool(4),
            dear=pool(4, usd_per_h=9.0),
        )
    )
    assert {name: booking.pool for name, booking in made.workloads.items()} == {"painter": "dear", "writer": "cheap"}


def test_a_workload_with_few_pools_is_not_pushed_out_by_one_with_many() -> None:
    made = plan(
        platform({"any": workload(20), "bound": workload(15, pools=["cheap"])}, cheap=pool(), dear=pool(usd_per_h=9.0))
    )
    assert {name: booking.pool for name, booking in made.workloads.items()} == {"any": "dear", "bound": "cheap"}


def test_every_mig_slice_is_a_gpu_of_its_own() -> None:
    made = plan(platform({"w": workload(4, low=9)}, shared=a100(2, mig="1g.5gb")))
    planned = made.pools["shared"]
    assert (planned.accelerator, planned.mig, planned.usable_gib) == ("nvidia-tesla-a100", "1g.5gb", 4.3)
    assert (planned.gpus_per_node, planned.nodes_at_max, made.gpus_needed) == (7, 2, 9)
    assert made.workloads["w"].terms.accelerator == "nvidia-tesla-a100"


def test_a_pools_own_figure_is_that_of_a_slice() -> None:
    made = plan(platform({"w": workload(4)}, cut=a100(mig="1g.10gb", vram_gib=6)))
    assert made.pools["cut"].usable_gib == 6
    assert made.workloads["w"].num_gpus == 0.6667


def test_replicas_are_kept_apart_by_node() -> None:
    apart = {**workload(4), "replicas": {"min": 3, "max": 5, "per_node": 1}}
    made = plan(platform({"w": apart, "x": workload(3, low=6)}, shared=pool(4, machine="g2-standard-24",
                                                                            gpus_per_node=2)))  # fmt: skip
    planned = made.pools["shared"]
    for gpus in (planned.gpus_at_min, planned.gpus_at_max):
        on_node = Counter(gpu.node for gpu in gpus for _ in range(gpu.replicas.get("w", 0)))
        assert max(on_node.values()) == 1
    assert made.workloads["w"].placed_max == 4
    assert planned.nodes_at_max == 4
    assert not made.has_surge_room("w")
    assert made.has_surge_room("x")


def test_a_minimum_that_only_fits_packed_afresh_is_not_refused() -> None:
    """Best fit, in the order of the budgets, needs a fourth GPU."""
    sizes = {"half": workload(11, low=3), "more": workload(8.8, low=2), "less": workload(6.6),
             "fifth": workload(4.4, low=2)}  # fmt: skip
    made = plan(platform(sizes, shared=pool(3)))
    assert (made.gpus_needed, made.gpus_lower_bound, made.is_fewest) == (3, 3, True)


def loosely(most_gpus: int) -> Any:
    """A packer that is careless with up to `most_gpus` replicas: one GPU for each."""

    def pack_loosely(demands: Any, counts: Any, kib: int, gpus_per_node: int) -> Packing:
        if sum(counts.values()) > most_gpus:
            return fewest(demands, counts, kib, gpus_per_node)
        gpus = Gpus(kib, None, gpus_per_node)
        for demand in demands:
            for _ in range(counts[demand.workload]):
                gpus.add_filled([(demand, 1)])
        return Packing(gpus, 1)

    return pack_loosely


def test_the_minimum_never_takes_more_than_the_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cotenant.gpu.plan.fewest", loosely(4))
    made = plan(platform({"a": workload(5, 2, 3), "b": workload(4, 2, 3)}, shared=pool(9)))
    assert made.gpus_needed_at_min == made.gpus_needed == 2
    for gpu in made.pools["shared"].gpus_at_min:
        assert_holds(gpu, made.pools["shared"], made.workloads)
    placed = sum((Counter(gpu.replicas) for gpu in made.pools["shared"].gpus_at_min), Counter[str]())
    assert placed == {"a": 2, "b": 2}


def test_the_minimum_stays_where_it_was_placed_if_packing_it_again_takes_more_nodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cotenant.gpu.plan.fewest", loosely(4))
    made = plan(platform({"a": workload(5, 2), "b": workload(4, 2)}))
    assert [gpu.replicas for gpu in made.pools["shared"].gpus_at_min] == [{"a": 2, "b": 2}]
    assert made.workloads["a"].placed_max == 2


def test_changes_of_a_large_platform_are_tried_too() -> None:
    """Of those, only what fits without packing afresh is looked at; what is said still has a plan."""
    workloads = {f"w{i}": workload(1) for i in range(90)} | {"x": workload(10)}
    with pytest.raises(PlanError) as refused:
        plan(platform(workloads, shared=pool(3)))
    lines = str(refused.value).splitlines()
    nodes = int(lines[0].partition("raise nodes.max of pool shared from 3 to ")[2].split(",")[0])
    kept = {name: its for name, its in workloads.items() if name not in [line.split()[0] for line in lines[1:]]}
    assert plan(platform(kept, shared=pool(nodes)))


def test_cpus_are_said_in_three_digits() -> None:
    made = plan(platform({"w": workload(2, low=10, cpus=1.23456)}))
    assert "book up to 12.3 CPUs" in made.warnings[0]
    made = plan(platform({"w": workload(2, low=10, cpus=1000)}))
    assert "book up to 10000 CPUs" in made.warnings[0]


def test_only_the_first_refusals_are_explained_in_full() -> None:
    with pytest.raises(PlanError) as refused:
        plan(platform({f"w{i}": workload(20) for i in range(9)}))
    lines = str(refused.value).splitlines()
    assert len(lines) == 8
    assert "raise nodes.max" in lines[0]
    assert lines[-1].endswith("; let pool shared grow past 1 node, or lower vram_gib or replicas.min")


def test_what_stands_in_no_file_is_led_by_how_it_was_given_and_told_what_it_can_say() -> None:
    extra = Supposed(source="--add extra=12", mockup=MockupSpec(), gpu=GpuBudget(vram_gib=12))
    of_file = platform({"writer": workload(14)})
    with pytest.raises(PlanError) as refused:
        plan(of_file.model_copy(update={"workloads": {**of_file.workloads, "extra": extra}}))
    assert str(refused.value) == (
        "--add extra=12: extra needs 12 GiB at minimum, but the emptiest nvidia-l4 of pool shared has 8.0 of 22.0 GiB "
        "left; raise nodes.max of pool shared from 1 to 2, or lower vram_gib of extra to 7.9"
    )


def test_where_no_change_helps_what_stands_in_no_file_is_told_so_too() -> None:
    extra = Supposed(source="--add extra=2", mockup=MockupSpec(), gpu=GpuBudget(vram_gib=2))
    of_file = platform({f"w{i}": workload(21) for i in range(8)})
    with pytest.raises(PlanError) as refused:
        plan(of_file.model_copy(update={"workloads": {**of_file.workloads, "extra": extra}}))
    last = str(refused.value).splitlines()[-1]
    assert last.startswith("--add extra=2: extra needs 2 GiB at minimum")
    assert last.endswith("; let pool shared grow past 1 node, or lower its vram_gib")


BUDGETS = st.one_of(st.floats(0.1, 22), st.sampled_from([22 / 3, 11.0, 22 / 7, 5.5, 22.0]))
WORKLOADS = st.dictionaries(
    st.sampled_from([f"w{i}" for i in range(12)]),
    st.builds(
        lambda gib, low, more, asleep, per_node: {
            **workload(gib, low, max(1, low + more)),
            "gpu": {"vram_gib": gib, "asleep_gib": None if asleep is None else min(asleep, gib)},
            "residency": "always" if asleep is None else "sleep",
            "replicas": {"min": low, "max": max(1, low + more), "per_node": per_node},
        },
        BUDGETS,
        st.integers(0, 3),
        st.integers(0, 5),
        st.one_of(st.none(), st.floats(0.1, 8)),
        st.one_of(st.none(), st.none(), st.integers(1, 3)),
    ),
    min_size=1,
)


@settings(max_examples=200, deadline=None)
@given(WORKLOADS, st.integers(1, 12), st.integers(1, 2), st.integers(1, 2))
def test_a_plan_never_overcommits_and_places_all_it_says(
    workloads: dict[str, Any], nodes: int, pools: int, gpus_per_node: int
) -> None:
    given_pools = {
        f"p{i}": pool(nodes, machine=None, gpus_per_node=gpus_per_node, usd_per_h=1.0 + i) for i in range(pools)
    }
    made_for = platform(workloads, **given_pools)
    try:
        made = plan(made_for)
    except PlanError as refused:
        assert "at minimum" in str(refused) or "asleep" in str(refused)
        return
    assert made.gpus_lower_bound <= made.gpus_needed
    assert made.gpus_needed_at_min <= made.gpus_needed <= nodes * pools * gpus_per_node
    for planned in made.pools.values():
        assert planned.nodes_at_min <= planned.nodes_at_max <= nodes
        for gpus in (planned.gpus_at_min, planned.gpus_at_max):
            for gpu in gpus:
                assert_holds(gpu, planned, made.workloads)
            for name, wanted in workloads.items():
                on_node: Counter[int] = Counter()
                for gpu in gpus:
                    on_node[gpu.node] += gpu.replicas.get(name, 0)
                assert max(on_node.values(), default=0) <= (wanted["replicas"]["per_node"] or 99)
    for at, count in (("gpus_at_min", "replicas_min"), ("gpus_at_max", "placed_max")):
        placed: Counter[str] = Counter()
        for planned in made.pools.values():
            for gpu in getattr(planned, at):
                placed.update(gpu.replicas)
        for name, booking in made.workloads.items():
            assert placed[name] == getattr(booking, count)
    for booking in made.workloads.values():
        assert booking.replicas_min <= booking.placed_max <= booking.replicas_max
    assert bool(made.warnings) >= any(b.placed_max < b.replicas_max for b in made.workloads.values())
    assert plan(made_for) == made


ADVICE = {
    "nodes": re.compile(r"raise nodes.max of pool (\S+) from \d+ to (\d+)"),
    "gib": re.compile(r"lower vram_gib of (\S+) to ([\d.]+\d)"),
    "least": re.compile(r"lower replicas.min of (\S+) to (\d+)"),
    "sleep": re.compile(r"give (\S+) residency: sleep"),
    "awake": re.compile(r"drop residency of ([^\s,;]+(?: and [^\s,;]+)*)"),
}


def followed(made_for: dict[str, Any], line: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each advice of a refusal, and the platform that follows it."""
    for kind, pattern in ADVICE.items():
        for match in pattern.finditer(line):
            changed = deepcopy(made_for)
            if kind == "nodes":
                changed["pools"][match[1]]["nodes"]["max"] = int(match[2])
            elif kind == "gib":
                changed["workloads"][match[1]]["gpu"]["vram_gib"] = float(match[2])
            elif kind == "least":
                changed["workloads"][match[1]]["replicas"]["min"] = int(match[2])
            else:
                for name in match[1].split(" and "):
                    changed["workloads"][name]["residency"] = "sleep" if kind == "sleep" else "always"
            yield match[0], changed


@settings(max_examples=150, deadline=None)
@given(WORKLOADS, st.integers(1, 3), st.integers(1, 2), st.sampled_from([4.3, 12.0, 22.0]))
def test_whoever_follows_an_advice_has_a_plan(
    workloads: dict[str, Any], nodes: int, pools: int, usable_gib: float
) -> None:
    given_pools = {f"p{i}": pool(nodes, machine=None, vram_gib=usable_gib, usd_per_h=1.0 + i) for i in range(pools)}
    made_for = {"environment": "test", "workloads": workloads, "pools": given_pools}
    try:
        plan(Platform.model_validate(made_for))
    except PlanError as refused:
        lines = str(refused).splitlines()
        left_out = [line.split()[0] for line in lines]
        for name, line in zip(left_out, lines, strict=True):
            kept = {n: w for n, w in workloads.items() if n == name or n not in left_out}
            for advice, changed in followed({**made_for, "workloads": kept}, line):
                assert plan(Platform.model_validate(changed)), advice


def assert_holds(gpu: GpuFill, planned: PoolPlan, bookings: Any) -> None:
    """Shares are within one GPU, and whoever sleeps anywhere in the pool would find its room to wake here."""
    shares = sum(round(bookings[name].num_gpus * 10_000) * count for name, count in gpu.replicas.items())
    floors_gib = sum(bookings[name].terms.floor_gib * count for name, count in gpu.replicas.items())
    wakes_gib = [b.vram_gib - b.terms.floor_gib for b in bookings.values() if b.pool == planned.name]
    assert shares <= 10_000
    assert shares == round((1 - gpu.free_share) * 10_000)
    assert planned.wake_gib == pytest.approx(max(wakes_gib), abs=1e-4)
    assert floors_gib + planned.wake_gib <= L4_GIB + 1e-4
    assert 1 <= gpu.awake <= sum(gpu.replicas.values())


@settings(max_examples=100, deadline=None)
@given(WORKLOADS, st.randoms(use_true_random=False))
def test_any_placement_that_rays_shares_allow_leaves_room_to_wake(workloads: dict[str, Any], chance: Any) -> None:
    """Ray puts replicas where their shares fit, whatever the plan says: laid at random, they still can wake."""
    try:
        made = plan(platform(workloads, shared=pool(200)))
    except PlanError:
        return
    replicas = [booking for booking in made.workloads.values() for _ in range(booking.replicas_max)]
    chance.shuffle(replicas)
    gpus: list[list[Any]] = []
    for booking in replicas:
        ticks = round(booking.num_gpus * 10_000)
        fitting = [gpu for gpu in gpus if ticks + sum(round(b.num_gpus * 10_000) for b in gpu) <= 10_000]
        if fitting:
            chance.choice(fitting).append(booking)
        else:
            gpus.append([booking])
    for gpu in gpus:
        held_gib = sum(booking.terms.floor_gib for booking in gpu)
        waking_gib = max(booking.vram_gib - booking.terms.floor_gib for booking in gpu)
        # A share is rounded down by less than a tick (2.3 MiB) where that lets one more in; the reserve covers it.
        assert held_gib + waking_gib <= L4_GIB + len(gpu) * L4_GIB / 10_000


@settings(max_examples=100, deadline=None)
@given(WORKLOADS)
def test_packing_stays_near_what_no_packing_can_beat(workloads: dict[str, Any]) -> None:
    """No packing beats the sum of shares, nor one GPU for each replica over a half."""
    try:
        made = plan(platform(workloads, shared=pool(200)))
    except PlanError:
        return
    replicas = [booking for booking in made.workloads.values() for _ in range(booking.replicas_max)]
    over_half = sum(1 for booking in replicas if booking.num_gpus > 0.5)
    bound = max(sum(booking.num_gpus for booking in replicas), over_half)
    apart = max(-(-w["replicas"]["max"] // (w["replicas"]["per_node"] or 99)) for w in workloads.values())
    assert bound - 1e-6 <= made.gpus_lower_bound <= made.gpus_needed <= 1.5 * bound + 1 + apart


def test_more_nodes_never_place_fewer_replicas() -> None:
    workloads = {f"w{i}": workload(3 + i, 1, 4) for i in range(8)}
    placed = [
        sum(b.placed_max for b in plan(platform(workloads, shared=pool(nodes))).workloads.values())
        for nodes in range(4, 20)
    ]
    assert all(fewer <= more for fewer, more in pairwise(placed))
    assert placed[-1] == 32
