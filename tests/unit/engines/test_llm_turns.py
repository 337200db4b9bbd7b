"""Whose turn it is in an LLM engine's next step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.engines.llm.turns import FIRST, INTERACTIVE, LAST, Begun, Limits, Turn, rank, turn

pytestmark = pytest.mark.unit

CPU = Limits(slots=4, beside=0, prompt_tokens=128, prompt_tokens_beside=0)
GPU = Limits(slots=4, beside=2, prompt_tokens=512, prompt_tokens_beside=64)
SEATS = Limits(slots=4, beside=2, prompt_tokens=512, prompt_tokens_beside=64, seats=4)


def chats(count: int, **facts: bool) -> list[Begun]:
    return [Begun(INTERACTIVE, 100.0 + number, **facts) for number in range(count)]


def jobs(count: int, **facts: bool) -> list[Begun]:
    return [Begun(rank(batch=True), float(number), **facts) for number in range(count)]


def test_on_a_cpu_no_job_runs_beside_and_a_chunk_holds_a_block() -> None:
    assert Limits.of(8, on_cpu=True, block_tokens=128) == Limits(8, 0, 128, 0)
    on_gpu = Limits.of(8, on_cpu=False, block_tokens=784, seats=8)
    assert 0 < on_gpu.beside < 8
    assert on_gpu.prompt_tokens == 784
    assert on_gpu.seats == 8


def test_an_interactive_request_goes_before_every_job_and_jobs_go_by_their_priority() -> None:
    assert rank(batch=False) == rank(batch=False, priority=LAST) == INTERACTIVE
    ranks = [rank(batch=True, priority=priority) for priority in range(LAST, FIRST + 1)]
    assert ranks == sorted(set(ranks), reverse=True)
    assert min(ranks) > INTERACTIVE
    assert rank(batch=True) == ranks[-LAST]


@pytest.mark.parametrize(("priority", "like"), [(LAST - 1, LAST), (FIRST + 1, FIRST)])
def test_a_priority_beyond_the_ends_is_the_end(priority: int, like: int) -> None:
    assert rank(batch=True, priority=priority) == rank(batch=True, priority=like)


@pytest.mark.parametrize(
    ("begun", "waiting", "limits", "expected"),
    [
        pytest.param([], 0, CPU, Turn((), 4, True, 128), id="nobody is there: jobs may begin, in chunks"),
        pytest.param(jobs(3), 0, CPU, Turn((0, 1, 2), 1, True, 128), id="jobs alone have all places"),
        pytest.param(jobs(4), 1, CPU, Turn((), 1, False, None), id="an interactive request waits: no job takes part"),
        pytest.param([*jobs(4), *chats(1)], 0, CPU, Turn((4,), 0, False, None), id="nor while it is answered"),
        pytest.param(chats(4), 3, CPU, Turn((0, 1, 2, 3), 0, False, None), id="never more than there are slots"),
        pytest.param([*chats(1), *jobs(4)], 9, CPU, Turn((0,), 3, False, None), id="but as many as that past the jobs"),
        pytest.param(
            [*jobs(4), *chats(1)], 0, GPU, Turn((4, 0, 1), 0, False, 64), id="some jobs run beside, the first ones"
        ),
        pytest.param([*chats(1), *jobs(1)], 0, GPU, Turn((0, 1), 1, True, 64), id="and begin beside, in small chunks"),
        pytest.param([*chats(3), *jobs(4)], 0, GPU, Turn((0, 1, 2, 3), 0, False, 64), id="only in slots that are free"),
        pytest.param(
            [*chats(1, in_prompt=True), *jobs(4)],
            0,
            GPU,
            Turn((0,), 0, False, None),
            id="not while an interactive prompt is computed",
        ),
        pytest.param([*jobs(2), *chats(1)], 1, GPU, Turn((2,), 1, False, None), id="nor while one waits"),
        pytest.param(jobs(4), 2, SEATS, Turn((), 0, False, None, (3, 2)), id="the last jobs give up their seats"),
        pytest.param(jobs(2), 3, SEATS, Turn((), 2, False, None, (1,)), id="no more of them than is needed"),
        pytest.param([*chats(4)], 3, SEATS, Turn((0, 1, 2, 3), 0, False, None), id="interactive ones keep theirs"),
        pytest.param(
            [*jobs(1, in_prompt=True), *jobs(2)],
            0,
            CPU,
            Turn((1, 2, 0), 1, True, 128),
            id="a prompt gets its tokens after those who decode",
        ),
        pytest.param(
            [*jobs(4), Begun(rank(batch=True, priority=FIRST), 9.0), *chats(1)],
            0,
            GPU,
            Turn((5, 4, 0), 0, False, 64),
            id="a job of higher priority is among those beside",
        ),
    ],
)
def test_a_turn(begun: list[Begun], waiting: int, limits: Limits, expected: Turn) -> None:
    assert turn(begun, waiting, limits) == expected


@st.composite
def states(draw: st.DrawFn) -> tuple[list[Begun], int, Limits]:
    slots = draw(st.integers(1, 6))
    seats = draw(st.one_of(st.none(), st.just(slots)))
    limits = Limits(slots, draw(st.integers(0, 3)), 128, 64, seats)
    many = draw(st.integers(0, slots))
    flags = st.booleans()
    begun = [Begun(INTERACTIVE, draw(st.floats(0, 9)), draw(flags)) for _ in range(many)]
    most = slots if seats is None else slots - many
    ranks = st.integers(rank(batch=True, priority=FIRST), rank(batch=True, priority=LAST))
    begun += [Begun(draw(ranks), draw(st.floats(0, 9)), draw(flags)) for _ in range(draw(st.integers(0, most)))]
    return draw(st.permutations(begun)), draw(st.integers(0, 8)), limits


@given(states())
def test_whoever_is_there_the_turn_keeps_its_promises(state: tuple[list[Begun], int, Limits]) -> None:
    begun, waiting, limits = state
    decided = turn(begun, waiting, limits)
    runs = [begun[index] for index in decided.runs]
    interactive = [request for request in begun if request.interactive]
    jobs_in_step = len(runs) - len(interactive)
    assert len(set(decided.runs)) == len(decided.runs)
    assert [request for request in runs if request.interactive] == interactive, "none of them sits out"
    assert len(runs) + decided.starts <= limits.slots
    if interactive or waiting:
        assert jobs_in_step + (decided.starts if decided.jobs_start else 0) <= limits.beside
    if waiting or any(request.in_prompt for request in interactive):
        assert not jobs_in_step
        assert not decided.jobs_start
    if not interactive and not waiting:
        assert len(runs) == len(begun), "all jobs go on"
    assert not set(decided.gives_up) & set(decided.runs)
    if limits.seats is not None:
        assert len(begun) + decided.starts <= limits.seats
        assert len(begun) - len(decided.gives_up) + decided.starts >= 0
        wanted = min(waiting, limits.slots - len(interactive))
        assert decided.starts + len(decided.gives_up) >= wanted, "whoever waits has a seat in the step after"
    else:
        assert not decided.gives_up
