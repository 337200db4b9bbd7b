"""The simulated platform: calls are conserved, time is bounded, the same seed gives the same day, scalers compare."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cotenant.scaling.terms import Bounds, Target
from cotenant.sim.model import Request, Scaler, Scene, SimPool, SimWorkload, View
from cotenant.sim.run import Outcome, simulate
from cotenant.sim.scalers import Cotenant, FixedPeak, HpaOnMetric, Keda, ServeDefault
from cotenant.sim.stages import DEFAULTS, Image, Span, Spot, Stages, overridden, spot_of
from cotenant.sim.tally import Waits

pytestmark = pytest.mark.unit

BOUNDS = Bounds(slots=2, min=0, max=8, target_wait_s=5)
MOCKUPS = SimWorkload("mockups", BOUNDS, share=0.5)
EXACT = Stages(**{name: Span(s, s, s) for name, s in {
    "node": 60.0, "driver": 20.0, "pull": 100.0, "stream": 10.0, "baked": 2.0, "process": 10.0, "weights": 20.0,
    "warm_up": 10.0, "wake": 2.0}.items()})  # fmt: skip


def poisson(per_s: float, until_s: float, *, seed: int = 1, service_s: float = 1.0) -> list[Request]:
    rng, now, found = random.Random(seed), 0.0, []
    while (now := now + rng.expovariate(per_s)) < until_s:
        found.append(Request(now, 0, rng.expovariate(1 / service_s)))
    return found


def scene(requests: list[Request], workload: SimWorkload = MOCKUPS, pool: SimPool = SimPool(), **more: int) -> Scene:  # noqa: B008
    return Scene((pool,), (workload,), requests, max((r.at_s for r in requests), default=0.0) + 1, **more)


class Told:
    """Scales as it is told: replicas from a time on."""

    name, every_s = "told", 1.0

    def __init__(self, *told: tuple[float, Target]) -> None:
        self._told = told

    def target(self, workload: int, view: View, now: float) -> Target:
        return [target for at_s, target in self._told if at_s <= now][-1]


# --- one start at a time ------------------------------------------------------------------------------------


def first_wait(told: Told, workload: SimWorkload, pool: SimPool, at_s: float = 0.0) -> float:
    return simulate(scene([Request(at_s, 0, 1.0)], workload, pool), told).waits[0].longest_s


@pytest.mark.parametrize(("image", "seconds"), [(Image.PULL, 220), (Image.STREAM, 130), (Image.BAKED, 122)])
def test_a_first_call_waits_for_node_image_process_weights_and_warm_up(image: Image, seconds: float) -> None:
    workload = replace(MOCKUPS, stages=EXACT)
    assert first_wait(Told((0, Target(1))), workload, SimPool(image=image)) == pytest.approx(seconds)


def test_on_a_spare_node_only_the_replicas_own_start_is_waited_for() -> None:
    pool = SimPool(min_nodes=1, spare_nodes=1)
    told = Told((0, Target(0)), (300, Target(1)))
    assert first_wait(told, replace(MOCKUPS, stages=EXACT), pool, at_s=300) == pytest.approx(40, abs=1)


def test_a_sleeper_wakes_in_its_time() -> None:
    workload = replace(MOCKUPS, bounds=replace(BOUNDS, min=1, can_sleep=True), stages=EXACT)
    told = Told((0, Target(0, 1)), (50, Target(1)))
    assert first_wait(told, workload, SimPool(), at_s=50) == pytest.approx(2)


def test_replicas_share_a_node_and_the_last_to_go_takes_it_along() -> None:
    told = Told((0, Target(2)), (1000, Target(0)))
    outcome = simulate(scene([Request(1500, 0, 1.0)], replace(MOCKUPS, stages=EXACT), SimPool(idle_s=60)), told)
    assert [max(s.nodes[0] for s in outcome.samples), outcome.spent.nodes_made] == [1, 1]
    assert outcome.spent.node_s[0] == pytest.approx(1060, abs=5)
    assert outcome.undone == 1


def test_what_a_lost_node_worked_on_is_done_elsewhere() -> None:
    pool = SimPool(losses_per_h=6)
    outcome = simulate(scene(poisson(0.5, 1800, service_s=20), pool=pool), Cotenant())
    assert outcome.spent.nodes_lost > 0
    assert outcome.undone == 0


def test_while_spot_nodes_are_not_to_be_had_nodes_come_from_the_fallback_and_are_paid_as_its() -> None:
    spot = SimPool("spot", usd_per_h=0.3, losses_per_h=2, dry_s=1200, fallback=1)
    pools = (spot, SimPool("on-demand"))
    requests = poisson(0.5, 6 * 3600, service_s=1)
    alone, helped = (
        simulate(Scene(some, (MOCKUPS,), requests, 6 * 3600.0), Cotenant())
        for some in ((replace(spot, fallback=None),), pools)
    )
    assert alone.spent.nodes_lost and helped.spent.nodes_lost
    assert all(seconds > 0 for seconds in helped.spent.node_s)
    assert helped.waits[0].quantile(0.95) < alone.waits[0].quantile(0.95)
    assert helped.cost_usd((0.3, 1.0)) == pytest.approx(
        0.3 * helped.spent.node_s[0] / 3600 + helped.spent.node_s[1] / 3600
    )


def test_a_share_that_comes_free_is_taken_before_the_node_that_is_on_its_way() -> None:
    whole = SimWorkload("other", Bounds(1, 0, 1, 5.0), 1.0, stages=EXACT)
    mine = SimWorkload("mine", Bounds(1, 0, 1, 5.0), 1.0, stages=EXACT)

    class Swap(Told):
        def target(self, workload: int, view: View, now: float) -> Target:
            return Target(int(now < 320) if workload == 0 else int(now >= 300))

    pool = SimPool(min_nodes=1)
    outcome = simulate(Scene((pool,), (whole, mine), [Request(300.0, 1, 1.0)], 301.0), Swap())
    # 20 s until the other has gone, then its own 40 s; the node that was asked for would have taken 90 s and those.
    assert outcome.waits[1].longest_s == pytest.approx(60, abs=1)
    assert outcome.spent.nodes_made == 2


def test_calls_that_may_wait_do_not_ask_for_nodes_until_they_must() -> None:
    """A hundred calls that may wait two hours are done by one replica, where prompt ones get all eight."""

    def played(within_s: float) -> Outcome:
        calls = [Request(600.0 + n, 0, 30.0, within_s) for n in range(100)]
        return simulate(scene(calls, replace(MOCKUPS, share=1.0), SimPool()), Cotenant())

    prompt, patient = played(0.0), played(7200.0)
    assert max(sample.nodes[0] for sample in prompt.samples) == 8
    assert max(sample.nodes[0] for sample in patient.samples) == 1
    assert (patient.dated[0].count, patient.overdue, patient.waits[0].count) == (100, [0], 0)


def test_a_deadline_that_one_replica_would_miss_brings_more() -> None:
    calls = [Request(600.0, 0, 30.0, 900.0)] * 200
    outcome = simulate(scene(calls, replace(MOCKUPS, share=1.0), SimPool()), Cotenant())
    assert 2 < max(sample.nodes[0] for sample in outcome.samples) <= 8
    assert outcome.overdue[0] < 0.1 * 200


def test_the_nth_start_takes_as_long_whatever_else_happens() -> None:
    short, long = (simulate(scene(poisson(rate, 600)), Cotenant()) for rate in (0.02, 0.5))
    waits = [outcome.waits[0].longest_s for outcome in (short, long)]
    assert min(waits) > 60  # both wait for the first node
    first = [next(s.at_s for s in one.samples if s.resident[0]) for one in (short, long)]
    assert abs(first[0] - first[1]) <= 60


def test_samples_tell_what_was_begun_between_them_and_what_was_paid_for() -> None:
    calls = [Request(at_s, 0, 0.5) for at_s in (10.0, 20.0, 130.0)]
    outcome = simulate(scene(calls, replace(MOCKUPS, bounds=replace(BOUNDS, min=1))), FixedPeak(1))
    assert [one.waits_s[0] is not None for one in outcome.samples[:4]] == [False, True, False, True]
    assert [one.node_s[0] for one in outcome.samples[:3]] == [0.0, 60.0, 120.0]
    assert outcome.samples[-1].node_s == outcome.spent.node_s
    assert outcome.waits[0].count == 3


# --- what always holds --------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.floats(0, 2000), st.integers(0, 1), st.floats(0, 100)), max_size=60),
    st.sampled_from([Cotenant, FixedPeak, HpaOnMetric, Keda, ServeDefault]),
    st.booleans(),
    st.integers(0, 2),
    st.sampled_from([0.0, 20.0]),
)
@settings(max_examples=60, deadline=None)
@example(  # what a lost node worked on goes to a slot that is free elsewhere, with nothing else to open one
    [*[(0.0, 0, 0.0), (0.0, 1, 0.0)] * 2, *[(1.0, 0, 0.0)] * 3, (61.0, 0, 0.0), (118.73857937774247, 1, 100.0),
     (121.0, 0, 0.0), (560.0, 1, 61.0), (560.0, 1, 100.0), (641.0, 1, 27.0), (1110.0, 1, 16.0), (0.0, 1, 0.0)],
    Keda, False, 1, 20.0,
)  # fmt: skip
def test_every_call_is_done_once_and_no_gpu_holds_more_than_it_has(
    calls: list[tuple[float, int, float]], kind: type[Scaler], sleeps: bool, spare: int, losses: float
) -> None:
    requests = sorted(Request(*call) for call in calls)
    pool = SimPool(max_nodes=6, spare_nodes=spare, losses_per_h=losses)
    workloads = (
        SimWorkload("a", Bounds(2, 0, 5, 5.0, sleeps), 0.4),
        SimWorkload("b", Bounds(1, 1, 3, 1.0, sleeps), 0.6),
    )
    outcome = simulate(Scene((pool,), workloads, requests, 2001.0, seed=len(calls)), kind())
    assert outcome.undone == 0
    assert sum(outcome.busy_s) == pytest.approx(sum(call[2] for call in calls))
    begun = sum(waits.count for waits in outcome.waits)
    assert begun == len(calls) if not losses else begun >= len(calls)
    for sample in outcome.samples:
        assert sample.nodes[0] <= 6
        booked = sum(
            (sample.resident[n] + sample.asleep[n] + sample.starting[n]) * workload.share
            for n, workload in enumerate(workloads)
        )
        assert booked <= sample.nodes[0] + 1e-6
    assert all(seconds >= 0 for seconds in (*outcome.spent.node_s, *outcome.spent.replica_s))


def test_the_same_seed_gives_the_same_day_and_another_gives_another() -> None:
    def played(seed: int) -> Outcome:
        return simulate(scene(poisson(0.2, 3000), seed=seed), Cotenant())

    assert played(1) == played(1)
    assert played(1).waits != played(2).waits


def test_a_day_of_requests_needs_no_list_of_them() -> None:
    def coming() -> Iterator[Request]:
        yield from (Request(second * 0.5, 0, 0.2) for second in range(4000))

    outcome = simulate(Scene((SimPool(),), (MOCKUPS,), coming(), 2000.0), Cotenant())
    assert (outcome.waits[0].count, outcome.undone) == (4000, 0)


def test_the_policy_is_never_at_zero_before_a_backlog() -> None:
    outcome = simulate(scene(poisson(0.01, 20_000)), Cotenant())
    for sample in outcome.samples:
        assert not sample.waiting[0] or sample.resident[0] + sample.starting[0] > 0


# --- compared -----------------------------------------------------------------------------------------------


def test_the_queue_itself_is_faster_than_its_metric_and_cheaper_than_the_peak() -> None:
    bursts = sorted(Request(at + i * 0.1, 0, 2.0) for at in (600, 4200, 7800) for i in range(100))
    workload = replace(MOCKUPS, bounds=replace(BOUNDS, min=1))
    ours, peak, metric = (simulate(scene(bursts, workload), one) for one in (Cotenant(), FixedPeak(), HpaOnMetric()))
    assert ours.waits[0].quantile(0.95) < metric.waits[0].quantile(0.95)
    assert ours.spent.node_s[0] < 0.6 * peak.spent.node_s[0]
    assert ours.spent.node_s[0] < metric.spent.node_s[0]


def test_keda_goes_to_zero_and_comes_back_when_the_metric_shows_it() -> None:
    calls = [Request(100, 0, 1.0), Request(4000, 0, 1.0)]
    outcome = simulate(scene(calls, replace(MOCKUPS, stages=EXACT)), Keda())
    there = [(sample.at_s, sample.resident[0] + sample.starting[0]) for sample in outcome.samples]
    assert [count for at_s, count in there if 1200 < at_s < 3900] == [0] * 44
    # The metric is 150 s old, then node, image, process, weights and warm-up take 130 s.
    assert 280 <= outcome.waits[0].longest_s < 280 + 60 + 15


# --- parts --------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1e4), max_size=50), st.lists(st.floats(0, 1e4), max_size=50))
def test_waits_counted_apart_add_up(some: list[float], more: list[float]) -> None:
    together, apart, rest = Waits(), Waits(), Waits()
    for seconds in some:
        together.add(seconds)
        apart.add(seconds)
    for seconds in more:
        together.add(seconds)
        rest.add(seconds)
    apart.merge(rest)
    assert apart.total_s == pytest.approx(together.total_s)
    assert replace(apart, total_s=0.0) == replace(together, total_s=0.0)


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=300), st.floats(0.01, 1))
def test_quantiles_are_right_to_a_hundredth(seconds: list[float], part: float) -> None:
    waits = Waits()
    for one in seconds:
        waits.add(one)
    at_least = sorted(seconds)[max(0, int(part * len(seconds) - 1e-9) - 1)]
    at_most = sorted(seconds)[min(len(seconds) - 1, int(part * len(seconds)))]
    assert at_least * 0.98 - 0.002 <= waits.quantile(part) <= at_most * 1.02 + 0.002
    assert waits.longest_s == pytest.approx(max(s if s >= 0.001 else 0 for s in seconds))


def test_the_part_that_waited_longer() -> None:
    waits = Waits()
    for one in (0.0, 1.0, 2.0, 30.0):
        waits.add(one)
    assert (waits.longer_than(0), waits.longer_than(5), waits.longer_than(31)) == (0.75, 0.25, 0.0)


def test_stages_can_be_given_and_are_drawn_from_their_ranges() -> None:
    stages = overridden({"pull": [60, 90, 150], "wake": 1.5})
    rng = random.Random(1)
    assert stages.wake_s(rng) == 1.5
    assert all(60 <= stages.pull.draw(rng) <= 150 for _ in range(100))
    assert stages.node == DEFAULTS.node
    assert all(span.source for span in vars(DEFAULTS).values())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"pul": 1}, "there is no stage 'pul'; stages are baked, driver"),
        ({"pull": [3, 2, 1]}, "give seconds, or"),
        ({"pull": "fast"}, "give seconds"),
        ({"pull": -1}, "give seconds"),
        ({"pull": [1, 2]}, "give seconds"),
        ({"pull": True}, "give seconds"),
    ],
)
def test_stages_that_make_no_sense_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        overridden(given)


def test_how_spot_nodes_come_and_go_can_be_given() -> None:
    assert spot_of({"losses_per_h": 0.2}) == Spot(0.2, Spot().dry_s)
    for wrong in ([1], {"losses": 1}, {"dry_s": -1}, {"dry_s": "long"}):
        with pytest.raises(ValueError, match="give dry_s and losses_per_h, each a number of 0 or more"):
            spot_of(wrong)
