"""As few GPUs as can be found: never overcommitted, within the bounds, no worse than best fit, the same each time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.gpu import fewest as module
from cotenant.gpu import solver
from cotenant.gpu.bounds import fewest_possible
from cotenant.gpu.fewest import Packing, fewest
from cotenant.gpu.packing import Demand, Gpus, pack
from cotenant.gpu.shares import GPU_TICKS, share_ticks

pytestmark = pytest.mark.unit

KIB = 22 * 2**20

#: Fractional pods of Alibaba's cluster-trace-gpu-v2023 ("openb", default list; Apache-2.0,
#: github.com/alibaba/clusterdata): thousandths of a GPU asked for, and how many pods ask for it.
OPENB = {
    50: 7, 110: 24, 140: 1, 160: 74, 220: 62, 230: 140, 270: 4, 290: 1, 320: 328, 330: 7, 350: 6, 370: 47, 440: 2,
    460: 128, 470: 750, 480: 19, 550: 72, 590: 75, 650: 253, 810: 1078,
}  # fmt: skip


def demand(name: str, kib: int, per_node: int | None = None) -> Demand:
    return Demand(name, share_ticks(kib, KIB), kib, per_node)


def lay(ticks: dict[str, tuple[int, int]], gpus_per_node: int = 1, per_node: int | None = None) -> Packing:
    """The packing of `name: (ticks, replicas)`."""
    demands = [Demand(name, size, size, per_node) for name, (size, _) in ticks.items()]
    return fewest(demands, {name: count for name, (_, count) in ticks.items()}, GPU_TICKS, gpus_per_node)


def assert_holds(gpus: Gpus, demands: Sequence[Demand], counts: dict[str, int]) -> None:
    by_name = {one.workload: one for one in demands}
    placed: Counter[str] = Counter()
    on_node: Counter[tuple[int, str]] = Counter()
    for index, held in enumerate(gpus.held):
        assert sum(by_name[name].ticks * number for name, number in held.items()) <= GPU_TICKS
        assert sum(by_name[name].kib * number for name, number in held.items()) <= gpus.kib
        assert gpus.free_ticks[index] == GPU_TICKS - sum(by_name[n].ticks * number for n, number in held.items())
        placed.update(held)
        on_node.update({(index // gpus.gpus_per_node, name): number for name, number in held.items()})
    assert placed == {name: count for name, count in counts.items() if count}
    for (_, name), number in on_node.items():
        assert number <= (by_name[name].per_node or number)


def optimum(sizes: Sequence[int]) -> int:
    """The fewest GPUs for so many ticks each, by trying everything."""
    best = len(sizes)

    def put(left: Sequence[int], free: list[int]) -> None:
        nonlocal best
        if len(free) >= best:
            return
        if not left:
            best = len(free)
            return
        for i in {room: i for i, room in enumerate(free) if room >= left[0]}.values():
            put(left[1:], [*free[:i], free[i] - left[0], *free[i + 1 :]])
        put(left[1:], [*free, GPU_TICKS - left[0]])

    put(sorted(sizes, reverse=True), [])
    return best


SIZES = st.one_of(st.integers(1, KIB), st.integers(1, 12).map(lambda n: KIB // n), st.just(KIB * 2 // 5))
DEMANDS = st.dictionaries(
    st.sampled_from([f"w{i}" for i in range(10)]),
    st.tuples(SIZES, st.integers(0, 8), st.one_of(st.none(), st.none(), st.integers(1, 3))),
    min_size=1,
)


@settings(max_examples=150, deadline=None)
@given(DEMANDS, st.integers(1, 4))
def test_a_packing_holds_everything_within_its_bounds(wanted: dict[str, tuple[int, int, int | None]], per: int) -> None:
    demands = [demand(name, kib, per_node) for name, (kib, _, per_node) in wanted.items()]
    counts = {name: count for name, (_, count, _) in wanted.items()}
    best_fit, left = pack(demands, counts, KIB, None, per)
    packing = fewest(demands, counts, KIB, per)
    assert not left
    assert_holds(best_fit, demands, counts)
    assert_holds(packing.gpus, demands, counts)
    assert fewest_possible(demands, counts, KIB) <= packing.bound <= packing.gpus.in_use <= best_fit.in_use
    assert packing.gpus.nodes_in_use <= best_fit.nodes_in_use
    again = fewest(list(reversed(demands)), counts, KIB, per)
    assert again.gpus.held == packing.gpus.held


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 20).map(lambda n: n * 500) | st.integers(500, GPU_TICKS), min_size=1, max_size=9))
def test_a_small_packing_is_the_best_there_is(sizes: list[int]) -> None:
    packing = lay({f"w{i}": (size, 1) for i, size in enumerate(sizes)})
    assert packing.bound <= optimum(sizes) == packing.gpus.in_use


def test_best_fit_is_improved_where_it_is_not_the_best() -> None:
    """5000 + 5000, 5000 + 3000 + 2000 and 4000 + 4000 + 2000 fill three; best fit puts 5000 beside 4000."""
    sizes = {"half": (5000, 3), "more": (4000, 2), "less": (3000, 1), "fifth": (2000, 2)}
    demands = [Demand(name, size, size) for name, (size, _) in sizes.items()]
    best_fit, _ = pack(demands, {name: count for name, (_, count) in sizes.items()}, GPU_TICKS, None)
    packing = lay(sizes)
    assert best_fit.in_use == 4
    assert packing.gpus.in_use == packing.bound == 3


def test_the_fractional_pods_of_a_real_cluster_need_the_fewest_gpus_there_can_be() -> None:
    demands = [Demand(f"m{milli}", milli * 10, milli) for milli in OPENB]
    counts = {f"m{milli}": count for milli, count in OPENB.items()}
    assert sum(counts.values()) == 3078
    best_fit, _ = pack(demands, counts, 1000, None)
    packing = fewest(demands, counts, 1000)
    assert_holds(packing.gpus, demands, counts)
    assert (best_fit.in_use, packing.bound) == (1975, 1965)
    assert packing.gpus.in_use <= 1.005 * 1965
    assert packing.gpus.in_use == 1965, "the linear program's bound is reached"


def test_with_many_sizes_neighbours_are_rounded_up_together() -> None:
    sizes = {f"w{i}": (2200 + 11 * i, 2) for i in range(200)}
    demands = [Demand(name, size, size, 1 if name == "w7" else None) for name, (size, _) in sizes.items()]
    counts = dict.fromkeys(sizes, 2)
    best_fit, _ = pack(demands, counts, GPU_TICKS, None)
    packing = fewest(demands, counts, GPU_TICKS)
    assert_holds(packing.gpus, demands, counts)
    assert packing.bound <= packing.gpus.in_use < best_fit.in_use


def test_too_many_sizes_near_the_bound_or_apart_by_node_are_left_to_best_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fewest_gpus", lambda *_: pytest.fail("not worth it"))
    near = lay({f"w{i}": (300 + 7 * i, 50) for i in range(200)})
    apart = lay({f"w{i}": (2200 + 11 * i, 2) for i in range(200)}, per_node=1)
    assert near.bound <= near.gpus.in_use <= 1.005 * near.bound
    assert apart.bound <= apart.gpus.in_use


def test_every_pattern_is_listed_where_there_are_few() -> None:
    sizes = [solver.Size(5000, 5, 3, 2), solver.Size(3000, 3, 2, 2)]
    assert solver._every_pattern(sizes, 10) == [((0, 2),), ((0, 1), (1, 1)), ((1, 2),)]
    assert solver._every_pattern([solver.Size(10 + i, 1, 99, 99) for i in range(9)], 10_000) is None


@pytest.mark.parametrize(
    "sizes",
    [
        [2650, 2350, 3550, 2500, 4500, 2600],
        [3850, 2300, 3500, 4600, 2600, 1700],
        [2800, 5800, 2400, 2800, 2400, 4850, 2600, 3550],
    ],
)
def test_where_the_patterns_that_prices_find_do_not_do_all_are_tried(sizes: list[int]) -> None:
    packing = lay({f"w{i}": (size, 1) for i, size in enumerate(sizes)})
    assert packing.gpus.in_use == packing.bound == optimum(sizes)


def test_nothing_takes_no_gpu() -> None:
    assert lay({"w": (5000, 0)}).gpus.in_use == 0


def test_what_is_larger_than_a_gpu_is_an_error() -> None:
    with pytest.raises(ValueError, match="larger than a GPU: w"):
        lay({"w": (GPU_TICKS + 1, 1)})


def test_of_equal_packings_the_one_with_most_room_in_one_piece_is_taken() -> None:
    # Best fit leaves 1000 and 1500 free; with 6000 + 4000 on one GPU, the other keeps 2500.
    sizes = {"a": (6000, 1), "b": (4000, 1), "c": (3000, 1), "d": (2500, 1), "e": (2000, 1)}
    packing = lay(sizes)
    free = sorted(free for free, held in zip(packing.gpus.free_ticks, packing.gpus.held, strict=True) if held)
    assert free == [0, 2500]


def test_replicas_too_many_are_dropped_where_most_comes_free_in_one_piece() -> None:
    solution = solver.Solution(used=((((0, 1), (1, 1)), 2), (((1, 3),), 1)), bound=3)
    sizes = [solver.Size(5000, 1, 2, 2), solver.Size(3000, 1, 3, 3)]
    assert module._without_surplus(solution, sizes) == [((0, 1), (1, 1)), ((0, 1), (1, 1)), ((1, 1),)]
    assert module._without_surplus(solver.Solution(((((1, 3),), 2),), 1), [sizes[0], sizes[1]]) == [((1, 3),)]


def test_only_a_few_replicas_to_a_node() -> None:
    packing = lay({"w": (1000, 5), "x": (1000, 4)}, gpus_per_node=2, per_node=2)
    assert packing.gpus.nodes_in_use == 3
    assert packing.bound == 3


def test_bytes_count_where_shares_were_rounded_down() -> None:
    """Three of 3333 ticks fit in shares with one of 1; in bytes they fill the GPU, so the last one needs another."""
    third = KIB // 3
    demands = [demand("third", third), Demand("crumb", 1, 100)]
    assert demands[0].ticks == 3333
    packing = fewest(demands, {"third": 3, "crumb": 1}, KIB)
    assert packing.gpus.in_use == packing.bound == 2


def test_the_solver_looks_at_bytes_too() -> None:
    sizes = [solver.Size(3333, 334, 3, 3), solver.Size(1, 1, 1, 1)]
    knapsack = solver._Knapsack(sizes, 1000, 10**6)
    pattern, most = knapsack.best([10, 1])
    assert most == 31
    assert sum(sizes[i].kib * number for i, number in pattern) <= 1000


def test_an_exhausted_solver_returns_what_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver, "_KNAPSACK_CELLS", 0)
    monkeypatch.setattr(solver, "_SMALL_GPUS", 0)
    start = solver.Solution(((((0, 2),), 5),), 4)
    found = solver.fewest_gpus([solver.Size(4000, 1, 10, 2)], 10, start)
    assert found.gpus <= 5
    assert found.bound == 4
