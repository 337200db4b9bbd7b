"""What is behind what a door sees, and what fits on the nodes that are there."""

from __future__ import annotations

import pytest

from cotenant.scaling.depth import Depth
from cotenant.scaling.rooms import free_shares

pytestmark = pytest.mark.unit


def test_what_is_seen_is_all_where_a_pull_had_to_wait() -> None:
    depth = Depth()
    assert depth.saw(30, 5.0, None, 0.0) == 1
    assert depth.saw(0, 0.0, 3, 1.0) == 1


def test_while_it_gets_older_the_guess_doubles_and_where_it_gets_younger_it_halves() -> None:
    depth = Depth()
    seen = [depth.saw(8, second, round(9 * second), second) for second in (0.0, 0.5, 1.0, 2.0, 3.0)]
    assert seen == [1, 1, 2, 4, 8]
    # As old as before: it keeps up.
    assert depth.saw(8, 3.0, 40, 4.0) == 8
    assert depth.saw(8, 1.0, 50, 5.0) == 4
    assert depth.saw(8, 1.0, None, 6.0) == 1


def test_without_another_full_pull_it_goes_no_further_than_four_times() -> None:
    depth = Depth()
    assert max(depth.saw(8, second, 1, second) for second in map(float, range(20))) == 4


def test_the_guess_has_an_end() -> None:
    depth = Depth()
    assert max(depth.saw(1, second, round(second), second) for second in map(float, range(100))) == 1024


POOL = "cotenant-pool-shared"


def test_replicas_fit_where_the_pool_has_gpu_and_cpus_left() -> None:
    nodes = [
        {"GPU": 1.0, "CPU": 8.0, POOL: 1000.0},
        {"GPU": 0.3, "CPU": 8.0, POOL: 999.0},
        {"GPU": 1.0, "CPU": 2.0, POOL: 1000.0},
        {"GPU": 1.0, "CPU": 8.0, "cotenant-pool-other": 1000.0},
        {"CPU": 8.0, POOL: 1000.0},
    ]
    assert free_shares(nodes, POOL, num_gpus=0.3, cpus=2.0) == 3 + 1 + 1
    assert free_shares(nodes, POOL, num_gpus=1 / 3, cpus=1.0) == 3 + 2
    spread = [{**node, "spread": 1.0} for node in nodes]
    assert free_shares(spread, POOL, 0.3, 2.0, "spread") == 1 + 1 + 1
    assert free_shares(nodes, POOL, 0.3, 2.0, "spread") == 0
    assert free_shares([], POOL, 0.5, 1.0) == 0
