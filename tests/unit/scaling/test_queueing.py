"""Erlang's formulas against published tables, a direct sum, and a simulated queue."""

from __future__ import annotations

import heapq
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.scaling.queueing import servers_for, waits_longer

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("servers", "load", "waits"),
    [
        # M/M/1: the part that waits is the load.
        pytest.param(1, 0.5, 0.5, id="one server"),
        # Gross, Shortle, Thompson, Harris, Fundamentals of Queueing Theory, C(c, r) = r^c/c!(1-rho) p0, by hand.
        pytest.param(2, 1.0, 1 / 3, id="two servers"),
        pytest.param(10, 8.0, 0.4092, id="ten servers"),
        pytest.param(100, 90.0, 0.2170, id="a hundred servers"),
    ],
)
def test_the_part_that_waits_is_as_published(servers: int, load: float, waits: float) -> None:
    assert waits_longer(servers, load, 0.0) == pytest.approx(waits, abs=1e-3)


@given(st.integers(1, 60), st.floats(0.01, 0.99))
def test_the_recursion_gives_what_the_sum_gives(servers: int, part: float) -> None:
    load = servers * part
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    whole = sum(load**count / math.factorial(count) for count in range(servers)) + last
    assert waits_longer(servers, load, 0.0) == pytest.approx(last / whole, rel=1e-9)


def test_a_simulated_queue_waits_as_told() -> None:
    rng = random.Random(7)
    servers, load, wait = 6, 4.8, 0.4
    free = [0.0] * servers
    now, late, calls = 0.0, 0, 200_000
    for _ in range(calls):
        now += rng.expovariate(load)
        begins = max(now, heapq.heappop(free))
        late += begins - now > wait
        heapq.heappush(free, begins + rng.expovariate(1.0))
    assert late / calls == pytest.approx(waits_longer(servers, load, wait), rel=0.05)


@given(st.floats(0, 400), st.floats(0, 20), st.floats(0.001, 0.5), st.integers(1, 8))
def test_so_many_servers_suffice_and_a_step_fewer_do_not(load: float, wait: float, late: float, step: int) -> None:
    servers = servers_for(load, wait, late=late, step=step)
    assert servers % step == 0
    assert waits_longer(servers, load, wait) <= late
    assert servers == 0 or waits_longer(servers - step, load, wait) > late or servers - step <= load


def test_a_load_for_thousands_is_no_long_sum_and_no_jump() -> None:
    assert servers_for(1e6, 1.0, late=0.05) == pytest.approx(1e6, rel=0.01)
    assert abs(servers_for(2001, 0.0, late=0.05) - servers_for(1999, 0.0, late=0.05)) < 40


def test_what_can_not_be_met_gives_the_most() -> None:
    assert servers_for(50, 1.0, late=0.05, step=4, most=20) == 20
