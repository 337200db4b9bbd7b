"""The table by which every message ends."""

from __future__ import annotations

import pytest

from cotenant import errors
from cotenant.calls import Reply, error_reply
from cotenant.jobs.ingress.settlement import MAX_DELAY_S, TABLE, Action, Outcome, of_error, of_reply, settle

pytestmark = pytest.mark.unit


def test_every_outcome_has_its_row() -> None:
    assert set(TABLE) == set(Outcome)


@pytest.mark.parametrize(
    ("outcome", "action"),
    [
        (Outcome.DONE, Action.ACK),
        (Outcome.REFUSED, Action.ACK),
        (Outcome.ALREADY_DONE, Action.ACK),
        (Outcome.BURIED, Action.ACK),
        (Outcome.MALFORMED, Action.DEAD_LETTER),
        (Outcome.CONFLICT, Action.DEAD_LETTER),
        (Outcome.UNKNOWN_WORKLOAD, Action.DEAD_LETTER),
        (Outcome.OVERLOAD, Action.HOLD),
        (Outcome.NOT_READY, Action.HOLD),
        (Outcome.STORE_DOWN, Action.HOLD),
        (Outcome.SOURCE_DOWN, Action.HOLD),
        (Outcome.IN_PROGRESS, Action.HOLD),
        (Outcome.ENGINE_ERROR, Action.RETRY),
        (Outcome.REPLICA_DIED, Action.HOLD),
        (Outcome.WATCHING, Action.HOLD),
        (Outcome.CANCELLED, Action.ACK),
        (Outcome.EXPIRED, Action.ACK),
        (Outcome.FORWARDED, Action.ACK),
        (Outcome.OVER_BUDGET, Action.RETRY),
        (Outcome.DEADLINE, Action.RETRY),
        (Outcome.CRASHED, Action.RETRY),
        (Outcome.HANDED_BACK, Action.RETRY),
    ],
)
def test_a_first_delivery_ends_by_the_table(outcome: Outcome, action: Action) -> None:
    assert settle(outcome, attempts=1, max_attempts=5).action is action


@pytest.mark.parametrize("outcome", [o for o in Outcome if TABLE[o].attempt])
def test_what_keeps_failing_is_given_up_at_the_last_attempt(outcome: Outcome) -> None:
    most = TABLE[outcome].most_attempts or 5
    assert settle(outcome, attempts=most - 1, max_attempts=5).action is TABLE[outcome].action
    last = settle(outcome, attempts=most, max_attempts=5)
    assert (last.outcome, last.action) == (Outcome.EXHAUSTED, Action.DEAD_LETTER)


@pytest.mark.parametrize("outcome", [o for o in Outcome if TABLE[o].action in (Action.HOLD, Action.RETRY)])
def test_what_is_not_the_jobs_fault_never_exhausts_it(outcome: Outcome) -> None:
    if not TABLE[outcome].attempt:
        assert settle(outcome, attempts=1000, max_attempts=5, holds=1000).action is TABLE[outcome].action


def test_a_dead_replica_is_retried_at_once_and_an_engine_error_ever_later() -> None:
    assert settle(Outcome.REPLICA_DIED, attempts=3, max_attempts=9).delay_s == 0
    delays = [settle(Outcome.ENGINE_ERROR, attempts=n, max_attempts=99).delay_s for n in range(1, 14)]
    assert delays[:4] == [1, 2, 4, 8]
    assert delays[-1] == MAX_DELAY_S[Action.RETRY]
    holds = [settle(Outcome.STORE_DOWN, attempts=1, max_attempts=5, holds=n).delay_s for n in range(9)]
    assert holds == sorted(holds)
    assert holds[-1] == MAX_DELAY_S[Action.HOLD]


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, Outcome.DONE),
        (204, Outcome.DONE),
        (400, Outcome.REFUSED),
        (404, Outcome.REFUSED),
        (422, Outcome.REFUSED),
        (408, Outcome.DEADLINE),
        (504, Outcome.DEADLINE),
        (429, Outcome.OVERLOAD),
        (500, Outcome.ENGINE_ERROR),
        (507, Outcome.REFUSED),
        (503, Outcome.ENGINE_ERROR),
        (302, Outcome.ENGINE_ERROR),
    ],
)
def test_a_reply_is_judged_by_its_status(status: int, outcome: Outcome) -> None:
    reply = Reply(status, b"{}") if status < 400 else error_reply(status, "x")
    assert of_reply(reply) is outcome


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (errors.MalformedJob("x"), Outcome.MALFORMED),
        (errors.IdentityConflict("x"), Outcome.CONFLICT),
        (errors.UnknownWorkload("x"), Outcome.UNKNOWN_WORKLOAD),
        (errors.Overloaded("x"), Outcome.OVERLOAD),
        (errors.DeadlineExceeded("x"), Outcome.DEADLINE),
        (errors.ReplicaDied("x"), Outcome.REPLICA_DIED),
        (errors.BudgetExceeded("x"), Outcome.OVER_BUDGET),
        (errors.WorkloadUnavailable("x"), Outcome.ENGINE_ERROR),
        (errors.StoreUnavailable("x"), Outcome.STORE_DOWN),
        (errors.SourceUnavailable("x"), Outcome.SOURCE_DOWN),
        (ValueError("a bug in a renderer"), Outcome.CRASHED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_an_error_is_judged_by_its_type(error: Exception, outcome: Outcome) -> None:
    assert of_error(error) is outcome


def test_a_job_whose_replica_went_past_its_budget_gets_one_more_chance_and_no_third() -> None:
    assert settle(Outcome.OVER_BUDGET, attempts=1, max_attempts=5).action is Action.RETRY
    assert settle(Outcome.OVER_BUDGET, attempts=2, max_attempts=5).outcome is Outcome.EXHAUSTED
    assert settle(Outcome.OVER_BUDGET, attempts=1, max_attempts=1).outcome is Outcome.EXHAUSTED


def test_where_others_wait_behind_a_message_its_failures_are_tried_again_in_place() -> None:
    held = settle(Outcome.ENGINE_ERROR, attempts=2, max_attempts=5, in_place=True)
    assert (held.action, held.delay_s) == (Action.HOLD, 2)
    assert settle(Outcome.HANDED_BACK, attempts=0, max_attempts=5, in_place=True).action is Action.RETRY
