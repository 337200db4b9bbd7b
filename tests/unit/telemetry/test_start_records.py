"""Starts as they are recorded: stages without gap or overlap, traced back to the wish, added up by workload."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cotenant.telemetry.starts import (
    MOST_SPANS,
    STAGES,
    Kept,
    Kind,
    Recorder,
    Span,
    Stage,
    Start,
    figures,
    traced_back,
)

pytestmark = pytest.mark.unit


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def recorder(clock: Clock) -> tuple[Recorder, list[Start]]:
    told: list[Start] = []
    return Recorder("writer", "writer#1", "node-1", tell=told.append, clock=clock), told


def start(kind: Kind, *stages: tuple[Stage, float], began_at: float = 1_000.0, **rest: Any) -> Start:
    """Stages by their seconds, one after the other."""
    spans, at = [], began_at
    for stage, seconds in stages:
        spans.append(Span(stage=stage, began_at=at, ended_at=at + seconds))
        at += seconds
    return Start(kind=kind, spans=tuple(spans), **{"workload": "writer", "replica": "writer#1", **rest})


COLD = start("cold", ("process", 3.0), ("imports", 2.0), ("turn", 0.5), ("weights", 4.0), ("warm_up", 1.0))


def test_a_cold_start_is_recorded_without_gaps() -> None:
    clock = Clock()
    record, told = recorder(clock)
    record.begin("cold", "process", at=990.0)
    record.enter("imports")
    clock.now = 1_002.0
    record.enter("turn")
    clock.now = 1_003.0
    record.begin("load", "turn")
    record.enter("weights")
    clock.now = 1_007.0
    record.enter("warm_up")
    clock.now = 1_008.0
    record.ready()
    (made,) = told
    assert made.kind == "cold", "what loads within a cold start is part of it"
    assert made.seconds() == {"process": 10, "imports": 2, "turn": 1, "weights": 4, "warm_up": 1}
    assert made.ready_s == 18
    assert list(made.seconds()) == [stage for stage in STAGES if stage in made.seconds()]


def test_the_first_result_counts_from_its_call_and_is_told_once() -> None:
    clock = Clock()
    record, told = recorder(clock)
    record.begin("wake", "turn")
    clock.now += 0.5
    record.enter("wake")
    clock.now += 0.5
    assert not record.awaits_result
    record.ready()
    assert record.awaits_result
    clock.now += 60
    record.answered(came_at=clock.now - 2)
    record.answered(came_at=clock.now - 1)
    assert len(told) == 2
    assert told[1].seconds() == {"turn": 0.5, "wake": 0.5, "first_result": 2}
    assert told[1].ready_s == 1, "nobody waited between readiness and the call"
    assert told[1].id == told[0].id


def test_who_waited_for_the_wake_has_its_first_result_from_then_on() -> None:
    clock = Clock()
    record, told = recorder(clock)
    record.begin("wake", "wake")
    clock.now += 1
    record.ready()
    clock.now += 2
    record.answered(came_at=1_000.0)
    assert told[1].first_result == Span(stage="first_result", began_at=1_001, ended_at=1_003)


def test_an_engine_that_tells_stages_of_a_load_while_it_wakes_is_not_heard() -> None:
    clock = Clock()
    record, told = recorder(clock)
    record.begin("wake", "wake")
    for stage in ("imports", "weights", "warm_up"):
        clock.now += 1
        record.enter(stage)
    record.ready()
    assert told[0].seconds() == {"wake": 3}


def test_nothing_is_recorded_where_no_start_is_under_way() -> None:
    record, told = recorder(Clock())
    record.enter("weights")
    record.ready()
    record.answered(0.0)
    record.begin("load", "turn")
    record.drop()
    record.ready()
    assert not told


@given(marks=st.lists(st.tuples(st.sampled_from(sorted(STAGES)), st.floats(0, 2_000)), max_size=60))
def test_whatever_is_told_and_when_the_stages_add_up_to_the_whole(marks: list[tuple[Stage, float]]) -> None:
    clock = Clock()
    record, told = recorder(clock)
    record.begin("cold", "process", at=500.0)
    for stage, at in marks:
        clock.now += 0.25
        record.enter(stage, at if at < 1_500 else None)
    clock.now += 1
    record.ready()
    (made,) = told
    assert len(made.spans) <= MOST_SPANS
    total = sum(seconds for stage, seconds in made.seconds().items() if stage != "first_result")
    assert math.isclose(total, made.ready_s, abs_tol=1e-6)
    assert Start.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize(
    ("spans", "says"),
    [
        ([("process", 1, 2), ("imports", 3, 4)], "imports does not begin where process ends"),
        ([("process", 2, 1)], "process ends 1.000 s before it begins"),
        ([("wake", 1, 2)], "a start of kind cold has no stage wake"),
        ([("first_result", 1, 2)], "not the only one"),
        ([("process", 1, 2), ("first_result", 1, 2)], "begins before it was ready"),
        ([], "at least 1 item"),
    ],
    ids=["gap", "backwards", "foreign", "result alone", "result early", "empty"],
)
def test_what_can_not_be_a_start_is_refused(spans: list[tuple[str, float, float]], says: str) -> None:
    plain = [{"stage": stage, "began_at": began, "ended_at": ended} for stage, began, ended in spans]
    with pytest.raises(ValidationError, match=says):
        Start.model_validate({"kind": "cold", "workload": "w", "spans": plain})


def test_a_process_that_was_made_after_the_wish_was_queued_for() -> None:
    back = traced_back(COLD, asked_at=998.0, node_began_at=10.0)
    assert back.seconds() == {"queued": 2, "process": 3, "imports": 2, "turn": 0.5, "weights": 4, "warm_up": 1}
    assert back.began_at == 998.0
    assert back.id == COLD.id
    Start.model_validate(back.model_dump())


def test_a_process_that_idled_before_the_wish_counts_from_the_wish() -> None:
    back = traced_back(COLD, asked_at=1_002.5)
    assert back.seconds()["process"] == 0.5
    assert "queued" not in back.seconds()


def test_a_node_that_came_after_the_wish_was_waited_for() -> None:
    back = traced_back(COLD, asked_at=900.0, node_began_at=990.0)
    assert {stage: back.seconds()[stage] for stage in ("node", "queued", "process")} == {
        "node": 90,
        "queued": 10,
        "process": 3,
    }
    Start.model_validate(back.model_dump())


def test_where_nobody_knows_of_the_wish_the_process_is_left_out() -> None:
    assert list(traced_back(COLD, asked_at=None).seconds()) == ["imports", "turn", "weights", "warm_up"]


def test_a_wish_later_than_the_process_began_to_work_is_not_believed_past_it() -> None:
    back = traced_back(COLD, asked_at=5_000.0)
    assert "process" not in back.seconds()
    Start.model_validate(back.model_dump())


def test_a_wake_is_not_traced_back() -> None:
    woke = start("wake", ("wake", 1.0))
    assert traced_back(woke, asked_at=1.0) is woke


def test_wakes_do_not_push_out_cold_starts_and_the_list_is_bounded() -> None:
    kept = Kept(of_each=3, at_most=5)
    assert kept.add(COLD) == COLD.spans
    for number in range(10):
        kept.add(start("wake", ("wake", 1.0), began_at=2_000.0 + number))
    assert [one.kind for one in kept.all()] == ["cold", "wake", "wake", "wake"]
    for number in range(10):
        kept.add(start("wake", ("wake", 1.0), workload=f"w{number}"))
    assert len(kept.all()) == 5


def test_a_start_that_is_told_again_is_kept_once_and_only_its_news_count() -> None:
    kept = Kept()
    kept.add(COLD)
    result = Span(stage="first_result", began_at=COLD.ready_at, ended_at=COLD.ready_at + 1)
    answered = COLD.model_copy(update={"spans": (*COLD.spans, result)})
    assert kept.add(answered) == (result,)
    assert kept.add(answered) == ()
    assert kept.add(COLD) == (), "what was known before is not news"
    assert kept.all() == (answered,)


def test_figures_by_workload_kind_and_stage() -> None:
    found = figures(
        [
            start("cold", ("process", 2.0), ("weights", 4.0)),
            start("cold", ("process", 4.0), ("weights", 5.0)),
            start("cold", ("queued", 3.0), ("process", 6.0), ("weights", 9.0)),
            start("wake", ("wake", 0.5)),
        ]
    )
    by = {(one.kind, one.stage): one for one in found}
    assert [(one.kind, one.stage) for one in found] == [
        ("cold", "queued"),
        ("cold", "process"),
        ("cold", "weights"),
        ("cold", None),
        ("wake", "wake"),
        ("wake", None),
    ]
    weights = by["cold", "weights"]
    assert (weights.starts, weights.least_s, weights.p50_s, weights.mean_s, weights.most_s) == (3, 4, 5, 6, 9)
    assert by["cold", "queued"].mean_s == 1, "who did not wait for it waited 0 s"
    assert by["cold", None].p50_s == 9
