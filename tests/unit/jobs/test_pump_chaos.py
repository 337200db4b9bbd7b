"""Several pumps, and everything going wrong that can: no job is lost, none is done twice, nothing is left behind.

In virtual time, on the in-memory twin. Courses come from seeds and from hypothesis, which shortens what fails; by the
thousand they are played by `benchmarks/chaos.py --twin`. What is checked at the end of each is in `ChaosHouse.heal`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from cotenant.jobs.model import Wishes
from tests.contracts.chaos_house import ChaosHouse
from tests.contracts.chaos_jobs import ACCEPTED, KINDS
from tests.contracts.chaos_plans import SOURCES, complain, play
from tests.contracts.virtual_time import VirtualTimeLoop, run

pytestmark = pytest.mark.unit

T = TypeVar("T")
WORKLOADS = st.sampled_from(["writer", "mockups"])
TENANTS = st.sampled_from(["acme", "globex"])
PAUSES_S = st.sampled_from([0.0, 0.0, 0.05, 0.5, 1.0, 3.0, 8.0])
OUTAGES_S = st.floats(0.5, 40)
WHICH = st.integers(0, 50)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Thousands of lines on things that are meant to go wrong."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("seed", range(60))
def test_whatever_a_seed_brings_every_job_ends_once(seed: int) -> None:
    tally = run(play(seed), collect=False)
    assert tally.jobs


def test_the_same_seed_brings_the_same_course() -> None:
    assert run(play(7), collect=False) == run(play(7), collect=False)


class Course(RuleBasedStateMachine):
    """What hypothesis may do to the house, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.loop.set_exception_handler(complain)

    @initialize(seed=st.integers(0, 1 << 16))
    def open(self, seed: int) -> None:
        async def open_house() -> ChaosHouse:
            return ChaosHouse(seed)

        self.house = self.run(open_house())

    @rule(
        kind=st.sampled_from(sorted(KINDS)),
        count=st.integers(1, 5),
        own_lane=st.booleans(),
        tenant=TENANTS,
        bare=st.booleans(),
        priority=st.integers(-2, 2),
        within_s=st.none() | st.floats(0.5, 60),
        key=st.sampled_from(["", "", "a"]),
        then_s=PAUSES_S,
    )
    def publish(
        self,
        *,
        kind: str,
        count: int,
        own_lane: bool,
        tenant: str,
        bare: bool,
        priority: int,
        within_s: float | None,
        key: str,
        then_s: float,
    ) -> None:
        deadline_at_s = None if within_s is None else self.house.clock.unix_s() + within_s
        wishes = Wishes(priority=priority, deadline_at_s=deadline_at_s)
        self.do(
            self.house.clients.publish(kind, count, own_lane=own_lane, tenant=tenant, bare=bare, wishes=wishes), then_s
        )

    @rule(kind=st.sampled_from(ACCEPTED), tenant=TENANTS, webhook=st.booleans(), then_s=PAUSES_S)
    def submit_single(self, kind: str, tenant: str, webhook: bool, then_s: float) -> None:
        self.do(self.house.clients.submit_single(kind, tenant, webhook=webhook), then_s)

    @rule(
        kinds=st.lists(st.sampled_from(ACCEPTED), min_size=1, max_size=20),
        tenant=TENANTS,
        webhook=st.booleans(),
        then_s=PAUSES_S,
    )
    def submit_batch(self, kinds: list[str], tenant: str, webhook: bool, then_s: float) -> None:
        self.do(self.house.clients.submit_batch(kinds, tenant, webhook=webhook), then_s)

    @rule(which=st.lists(WHICH, min_size=1, max_size=3), at_once=st.booleans(), then_s=PAUSES_S)
    def publish_again(self, which: list[int], at_once: bool, then_s: float) -> None:
        self.do(self.house.clients.publish_again(which, at_once=at_once), then_s)

    @rule(which=WHICH, then_s=PAUSES_S)
    def publish_another_body(self, which: int, then_s: float) -> None:
        self.do(self.house.clients.publish_another_body(which), then_s)

    @rule(which=WHICH, then_s=PAUSES_S)
    def cancel(self, which: int, then_s: float) -> None:
        self.do(self.house.clients.cancel(which), then_s)

    @rule(which=WHICH, then_s=PAUSES_S)
    def repeat_errand(self, which: int, then_s: float) -> None:
        self.do(self.house.clients.repeat_errand(which), then_s)

    @rule(which=WHICH, back_after_s=PAUSES_S, then_s=PAUSES_S)
    def kill_ingress(self, which: int, back_after_s: float, then_s: float) -> None:
        self.do(self.house.kill_ingress(which, back_after_s=back_after_s), then_s)

    @rule(which=WHICH, first_the_new=st.booleans(), drain_s=PAUSES_S, then_s=PAUSES_S)
    def redeploy_ingress(self, which: int, first_the_new: bool, drain_s: float, then_s: float) -> None:
        self.do(self.house.redeploy_ingress(which, first_the_new=first_the_new, drain_s=drain_s), then_s)

    @rule(workload=WORKLOADS, then_s=PAUSES_S)
    def kill_replica(self, workload: str, then_s: float) -> None:
        self.do(self.soon(lambda: self.house.kill_replica(workload)), then_s)

    @rule(workload=WORKLOADS, down_s=OUTAGES_S, hard=st.booleans(), then_s=PAUSES_S)
    def redeploy_workload(self, workload: str, down_s: float, hard: bool, then_s: float) -> None:
        self.do(self.soon(lambda: self.house.redeploy_workload(workload, down_s, hard=hard)), then_s)

    @rule(workload=WORKLOADS, for_s=OUTAGES_S, then_s=PAUSES_S)
    def remove_workload(self, workload: str, for_s: float, then_s: float) -> None:
        self.do(self.soon(lambda: self.house.remove_workload(workload, for_s)), then_s)

    @rule(down_s=OUTAGES_S, hangs=st.booleans(), then_s=PAUSES_S)
    def kill_controller(self, down_s: float, hangs: bool, then_s: float) -> None:
        self.do(self.soon(lambda: self.house.silence_controller(down_s, hangs=hangs)), then_s)

    @rule(down_s=OUTAGES_S, then_s=PAUSES_S)
    def break_store(self, down_s: float, then_s: float) -> None:
        self.do(self.soon(lambda: self.house.break_store(down_s)), then_s)

    @rule(what=st.sampled_from(SOURCES), down_s=OUTAGES_S, then_s=PAUSES_S)
    def break_source(self, what: str, down_s: float, then_s: float) -> None:
        self.do(self.soon(lambda: self.house.break_source(what, down_s)), then_s)

    @rule(for_s=OUTAGES_S, lost=st.sampled_from([0.0, 0.2, 0.6]), slow=st.sampled_from([0.0, 0.2]), then_s=PAUSES_S)
    def storm(self, for_s: float, lost: float, slow: float, then_s: float) -> None:
        self.do(self.soon(lambda: self.house.storm(for_s, source_lost=lost, store_lost=lost, slow=slow)), then_s)

    def teardown(self) -> None:
        try:
            if hasattr(self, "house"):
                self.run(self.house.heal())
            assert not self.loop.complaints, self.loop.complaints
        finally:
            asyncio.set_event_loop(None)
            self.loop.close()
            gc.collect(0)

    def do(self, step: Coroutine[Any, Any, None], then_s: float) -> None:
        self.run(step)
        self.run(self.house.pass_time(then_s))

    async def soon(self, step: Callable[[], None]) -> None:
        step()

    def run(self, step: Coroutine[Any, Any, T]) -> T:
        asyncio.set_event_loop(self.loop)
        return self.loop.run_until_complete(step)


TestEveryJobEndsOnceWhateverHypothesisDoes = Course.TestCase
TestEveryJobEndsOnceWhateverHypothesisDoes.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
