"""How a message ends: one table, from what happened to what is done about it. Pure.

Always true: every `Outcome` has exactly one row, so no path can leave a message unsettled. What the *user* got
wrong in a well-formed job (the engine's 4xx) is a result like any other, as in OpenAI's batches; a dead letter is
for what can have no result. HOLD spends none of the job's attempts: the ingress keeps the message lease and goes
on from where it stood, so a store that is down for an hour costs an hour, not a job.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from cotenant.calls import Reply
from cotenant.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    IdentityConflict,
    MalformedJob,
    Overloaded,
    ReplicaDied,
    SourceUnavailable,
    StoreUnavailable,
    UnknownWorkload,
    WorkloadUnavailable,
)


class Outcome(str, enum.Enum):
    """What became of one delivery, or of one step of it.

    REFUSED is the engine's 4xx; OVER_BUDGET a job whose replica was stopped for holding too much memory: it may have
    died of another's call, so it gets one more chance, and no third; IN_PROGRESS another delivery of the same job at
    work here; FORWARDED a job moved to its workload's lane; EXPIRED one whose deadline passed before it began; CRASHED
    an error nobody foresaw; BURIED a message whose dead letter is published; WATCHING an errand that goes on.
    """

    DONE = "done"
    REFUSED = "refused"
    ALREADY_DONE = "already_done"
    IN_PROGRESS = "in_progress"
    MALFORMED = "malformed"
    CONFLICT = "conflict"
    UNKNOWN_WORKLOAD = "unknown_workload"
    ENGINE_ERROR = "engine_error"
    REPLICA_DIED = "replica_died"
    OVER_BUDGET = "over_budget"
    DEADLINE = "deadline"
    CRASHED = "crashed"
    OVERLOAD = "overload"
    NOT_READY = "not_ready"
    STORE_DOWN = "store_down"
    SOURCE_DOWN = "source_down"
    HANDED_BACK = "handed_back"
    EXHAUSTED = "attempts_exhausted"
    BURIED = "buried"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    FORWARDED = "forwarded"
    WATCHING = "watching"


class Action(str, enum.Enum):
    """What is done with the message."""

    ACK = "ack"
    """It ended well: the result is in the store and was announced."""
    HOLD = "hold"
    """Keep the message lease, wait, go on from the same step."""
    RETRY = "retry"
    """Give it back to the subscription, which delivers it again."""
    DEAD_LETTER = "dead_letter"
    """Publish it to the dead-letter topic with the reason, then ack."""


@dataclass(frozen=True)
class Rule:
    """One row: the action, and whether it counts as one of the job's attempts."""

    action: Action
    attempt: bool = False
    delay_s: float = 0.0
    """First delay of HOLD and RETRY; doubled at each further try up to the action's `MAX_DELAY_S`."""
    most_attempts: int | None = None
    """Attempts at the most, where fewer than the platform allows."""


MAX_DELAY_S: Mapping[Action, float] = {Action.HOLD: 15.0, Action.RETRY: 300.0}

TABLE: Mapping[Outcome, Rule] = {
    Outcome.DONE: Rule(Action.ACK),
    Outcome.REFUSED: Rule(Action.ACK),
    Outcome.ALREADY_DONE: Rule(Action.ACK),
    Outcome.IN_PROGRESS: Rule(Action.HOLD, delay_s=0.25),
    Outcome.OVERLOAD: Rule(Action.HOLD, delay_s=0.5),
    Outcome.NOT_READY: Rule(Action.HOLD, delay_s=0.5),
    Outcome.STORE_DOWN: Rule(Action.HOLD, delay_s=0.5),
    Outcome.SOURCE_DOWN: Rule(Action.HOLD, delay_s=0.5),
    Outcome.REPLICA_DIED: Rule(Action.HOLD, attempt=True),
    Outcome.OVER_BUDGET: Rule(Action.RETRY, attempt=True, delay_s=1.0, most_attempts=2),
    Outcome.ENGINE_ERROR: Rule(Action.RETRY, attempt=True, delay_s=1.0),
    Outcome.DEADLINE: Rule(Action.RETRY, attempt=True, delay_s=1.0),
    Outcome.CRASHED: Rule(Action.RETRY, attempt=True, delay_s=1.0),
    Outcome.HANDED_BACK: Rule(Action.RETRY),
    Outcome.MALFORMED: Rule(Action.DEAD_LETTER),
    Outcome.CONFLICT: Rule(Action.DEAD_LETTER),
    Outcome.UNKNOWN_WORKLOAD: Rule(Action.DEAD_LETTER),
    Outcome.EXHAUSTED: Rule(Action.DEAD_LETTER),
    Outcome.BURIED: Rule(Action.ACK),
    Outcome.CANCELLED: Rule(Action.ACK),
    Outcome.EXPIRED: Rule(Action.ACK),
    Outcome.FORWARDED: Rule(Action.ACK),
    Outcome.WATCHING: Rule(Action.HOLD),
}


@dataclass(frozen=True)
class Settlement:
    """What to do now: the outcome (EXHAUSTED where the attempts ran out), the action, and after how long."""

    outcome: Outcome
    action: Action
    delay_s: float = 0.0


def settle(outcome: Outcome, *, attempts: int, max_attempts: int, holds: int = 0, in_place: bool = False) -> Settlement:
    """The settlement of one outcome.

    Args:
        attempts: how often the job has failed by now, this time included.
        max_attempts: failures after which a job is given up.
        holds: how often in a row this delivery was already held.
        in_place: the message may not be given back for another try (others wait behind it): it is held instead.
    """
    rule = TABLE[outcome]
    if rule.attempt and attempts >= min(max_attempts, rule.most_attempts or max_attempts):
        return Settlement(Outcome.EXHAUSTED, Action.DEAD_LETTER)
    tries = max(0, attempts - 1) if rule.attempt else holds
    delay_s = min(rule.delay_s * 2 ** min(tries, 16), MAX_DELAY_S.get(rule.action, 0.0))
    action = Action.HOLD if in_place and rule.action is Action.RETRY and rule.attempt else rule.action
    return Settlement(outcome, action, delay_s)


def of_reply(reply: Reply) -> Outcome:
    """What a workload's reply means for the job."""
    if reply.ok:
        return Outcome.DONE
    if reply.status == 429:
        return Outcome.OVERLOAD
    if reply.status in (408, 504):
        return Outcome.DEADLINE
    if 400 <= reply.status < 500 or reply.status == 507:  # 507: the engine's own refusal of what is too large for it
        return Outcome.REFUSED
    return Outcome.ENGINE_ERROR


_OF_ERROR: tuple[tuple[type[Exception], Outcome], ...] = (
    (MalformedJob, Outcome.MALFORMED),
    (IdentityConflict, Outcome.CONFLICT),
    (UnknownWorkload, Outcome.UNKNOWN_WORKLOAD),
    (Overloaded, Outcome.OVERLOAD),
    (DeadlineExceeded, Outcome.DEADLINE),
    (ReplicaDied, Outcome.REPLICA_DIED),
    (BudgetExceeded, Outcome.OVER_BUDGET),
    (WorkloadUnavailable, Outcome.ENGINE_ERROR),
    (StoreUnavailable, Outcome.STORE_DOWN),
    (SourceUnavailable, Outcome.SOURCE_DOWN),
)


def of_error(error: Exception) -> Outcome:
    """What an exception means for the job. One that nobody raises on purpose is a crash, never a malformed job."""
    return next((outcome for kind, outcome in _OF_ERROR if isinstance(error, kind)), Outcome.CRASHED)
