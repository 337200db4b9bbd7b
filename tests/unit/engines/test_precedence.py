"""Two classes of work on one thread: interactive work waits for one chunk, batch work for its turn, nobody for ever."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.calls import Call
from cotenant.engines.precedence import Kind, Standing, Threads, choose, priority_of
from cotenant.gpu.terms import Priority

pytestmark = pytest.mark.unit

INTERACTIVE, BATCH = Priority.INTERACTIVE, Priority.BATCH
I, B, F = Kind.INTERACTIVE, Kind.BATCH, Kind.FENCE  # noqa: E741
LONG_S = 20.0


def none() -> None:
    pass


class Bench:
    """Threads, and a log of what they did."""

    def __init__(self, threads: int = 1, *, for_batch: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self.threads = Threads("bench", threads, for_batch=for_batch, clock=clock)
        self.log: list[str] = []

    def note(self, word: str) -> Callable[[], None]:
        return lambda: self.log.append(word)

    def interactive(self, name: str) -> Future[None]:
        return self.threads.submit(self.note(name), INTERACTIVE)

    def batch(self, name: str, *chunks: Callable[[], None], stop: Callable[[], bool] = lambda: False) -> Future[None]:
        """A job that does `chunks`, with a pause point before each and one at the end."""

        def job() -> None:
            for number, chunk in enumerate((*chunks, none)):
                self.threads.give_way(stop)
                if stop():
                    self.log.append(f"{name} stops")
                    return
                if number < len(chunks):
                    self.log.append(f"{name}{number}")
                    chunk()

        return self.threads.submit(job, BATCH)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.threads.close()


@contextmanager
def held(threads: Threads, count: int = 1) -> Iterator[None]:
    """The threads are busy with interactive work, so what is asked meanwhile stands in the line."""
    free = threading.Event()
    for _ in range(count):
        threads.submit(lambda: free.wait(LONG_S), INTERACTIVE)
    until(lambda: threads.standing.interactive_running == count)
    try:
        yield
    finally:
        free.set()


def until(condition: Callable[[], bool]) -> None:
    ends_s = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < ends_s, "it never came true"
        time.sleep(0.0005)


def done(*futures: Future[Any]) -> None:
    for future in futures:
        future.result(LONG_S)


@pytest.mark.parametrize(
    ("line", "batch_running", "most", "chosen"),
    [
        pytest.param([], 0, 1, None, id="nothing"),
        pytest.param([B, B], 0, 1, 0, id="the oldest batch job"),
        pytest.param([B, I, I], 0, 1, 1, id="interactive first, oldest first"),
        pytest.param([B, B], 1, 1, None, id="no second batch job"),
        pytest.param([B, I], 1, 1, 1, id="interactive beside a batch job"),
        pytest.param([B], 1, 2, 0, id="room for a second batch job"),
        pytest.param([B], 0, 0, None, id="a pause point takes no batch job"),
        pytest.param([B, I, F], 0, 1, 1, id="interactive ahead of a fence"),
        pytest.param([B, F, I], 0, 1, 0, id="not past a fence, even interactive"),
        pytest.param([B, F, I], 1, 1, None, id="behind a fence it waits for the batch job"),
        pytest.param([F, I, B], 0, 1, 0, id="a fence whose turn has come"),
        pytest.param([F, I], 1, 1, None, id="a fence waits for what runs"),
        pytest.param([F, I], 0, 0, 0, id="a fence alone"),
    ],
)
def test_what_is_done_next(line: list[Kind], batch_running: int, most: int, chosen: int | None) -> None:
    assert choose(line, running=batch_running, batch_running=batch_running, batch_most=most) == chosen


def test_a_call_that_nobody_waits_for_is_batch_work() -> None:
    assert priority_of(Call("/v1/mockups")) is INTERACTIVE
    assert priority_of(Call("/v1/mockups", batch=True)) is BATCH


def test_interactive_work_overtakes_batch_work_that_waits_and_each_class_keeps_its_order(bench: Bench) -> None:
    with held(bench.threads):
        asked = [bench.batch("a", none), bench.interactive("x"), bench.batch("b", none), bench.interactive("y")]
    done(*asked)
    assert bench.log == ["x", "y", "a0", "b0"]


def test_interactive_work_waits_for_one_chunk_and_a_second_batch_job_for_the_first(bench: Bench) -> None:
    asked: list[Future[None]] = []

    def second_chunk() -> None:
        asked.append(bench.batch("b", none))
        asked.append(bench.interactive("x"))
        asked.append(bench.interactive("y"))

    done(bench.batch("a", none, second_chunk, none, none))
    done(*asked)
    assert bench.log == ["a0", "a1", "x", "y", "a2", "a3", "b0"]


def test_what_comes_while_interactive_work_is_done_within_a_job_is_done_there_too(bench: Bench) -> None:
    later: list[Future[None]] = []

    def chunk() -> None:
        bench.threads.submit(lambda: later.append(bench.interactive("y")), INTERACTIVE)

    done(bench.batch("a", chunk, none))
    done(*later)
    assert bench.log == ["a0", "y", "a1"]


def test_interactive_work_inside_a_job_is_done_on_the_jobs_own_thread(bench: Bench) -> None:
    names: list[str] = []

    def chunk() -> None:
        names.append(threading.current_thread().name)
        bench.threads.submit(lambda: names.append(threading.current_thread().name), INTERACTIVE)

    done(bench.batch("a", chunk))
    assert len(names) == 2
    assert len(set(names)) == 1


def test_only_batch_work_gives_way(bench: Bench) -> None:
    def interactive() -> None:
        inner.append(bench.interactive("x"))
        bench.threads.give_way()
        bench.log.append("after")

    inner: list[Future[None]] = []
    done(bench.threads.submit(interactive, INTERACTIVE))
    done(*inner)
    with held(bench.threads):
        waits = bench.interactive("y")
        bench.threads.give_way()  # from a thread that is none of theirs
        assert not waits.done()
    done(waits)
    assert bench.log == ["after", "x", "y"]


def test_a_job_goes_on_giving_way_after_interactive_work_was_done_within_it(bench: Bench) -> None:
    asked: list[Future[None]] = []
    numbers = itertools.count()
    done(bench.batch("a", *[lambda: asked.append(bench.interactive(f"x{next(numbers)}"))] * 3))
    done(*asked)
    assert bench.log == ["a0", "x0", "a1", "x1", "a2", "x2"]
    assert bench.threads.standing == Standing(gave_way=3, paused_s=bench.threads.standing.paused_s)


def test_what_interactive_work_raises_is_told_to_who_asked_and_not_to_the_job(bench: Bench) -> None:
    def fails() -> None:
        raise OSError("no")

    failed: list[Future[None]] = []
    job = bench.batch("a", lambda: failed.append(bench.threads.submit(fails, INTERACTIVE)), none)
    done(job)
    with pytest.raises(OSError, match="no"):
        failed[0].result(LONG_S)
    assert bench.log == ["a0", "a1"]


def test_a_job_that_fails_or_exits_leaves_the_thread_to_the_next(bench: Bench) -> None:
    def exits() -> None:
        raise SystemExit(3)

    left = bench.batch("a", exits)
    done(bench.batch("b", none))
    with pytest.raises(SystemExit):
        left.result(LONG_S)
    assert bench.threads.standing.batch_running == 0


def test_a_paused_job_whose_caller_has_gone_ends_between_two_pieces_of_interactive_work(bench: Bench) -> None:
    gone = threading.Event()
    asked: list[Future[None]] = []

    def chunk() -> None:
        asked.append(bench.threads.submit(gone.set, INTERACTIVE))
        asked.append(bench.interactive("y"))

    done(bench.batch("a", chunk, none, stop=gone.is_set))
    done(*asked)
    assert bench.log == ["a0", "a stops", "y"]


def test_a_job_that_has_been_given_up_does_no_interactive_work_of_its_own(bench: Bench) -> None:
    asked: list[Future[None]] = []
    gone = threading.Event()

    def chunk() -> None:
        asked.append(bench.interactive("x"))
        gone.set()

    done(bench.batch("a", chunk, none, stop=gone.is_set))
    done(*asked)
    assert bench.log == ["a0", "a stops", "x"]


def test_a_fence_waits_for_all_before_it_and_holds_up_all_behind_it(bench: Bench) -> None:
    later: list[Future[None]] = []

    def chunk() -> None:
        later.append(bench.interactive("x"))
        later.append(bench.threads.fence(bench.note("fence")))
        later.append(bench.interactive("y"))

    with held(bench.threads):
        asked = [bench.batch("a", chunk, none), bench.batch("b", none)]
    done(*asked)
    done(*later)
    assert bench.log == ["a0", "x", "a1", "b0", "fence", "y"]


def test_two_fences_keep_their_order(bench: Bench) -> None:
    with held(bench.threads):
        asked = [bench.threads.fence(bench.note("sleep")), bench.threads.fence(bench.note("wake"))]
        asked.append(bench.interactive("x"))
    done(*asked)
    assert bench.log == ["sleep", "wake", "x"]


def test_work_that_is_cancelled_before_its_turn_is_not_done_and_holds_up_nobody(bench: Bench) -> None:
    with held(bench.threads):
        asked = [bench.interactive("x"), bench.batch("a", none), bench.threads.fence(none), bench.interactive("y")]
        assert all(each.cancel() for each in asked[:3])
        assert bench.threads.standing.interactive_waiting == 1
        assert bench.threads.standing.batch_waiting == 0
    done(asked[3])
    assert bench.log == ["y"]


def test_a_cancelled_piece_of_interactive_work_does_not_pause_a_job(bench: Bench) -> None:
    done(bench.batch("a", lambda: bench.interactive("x").cancel(), none))
    assert bench.log == ["a0", "a1"]
    assert bench.threads.standing.gave_way == 0


def test_closing_drops_what_waits_and_takes_no_more() -> None:
    bench = Bench()
    with held(bench.threads):
        asked = [bench.interactive("x"), bench.batch("a", none), bench.threads.fence(none)]
        bench.threads.close(wait=False)
    for each in asked:
        with pytest.raises(CancelledError):
            each.result(LONG_S)
    with pytest.raises(RuntimeError, match="closed"):
        bench.interactive("y")
    assert bench.log == []


def test_how_things_stand_is_told_while_a_job_lies_paused() -> None:
    now = [0.0]
    bench = Bench(clock=lambda: now[0])
    seen: list[Standing] = []

    def interactive() -> None:
        now[0] += 2.0
        seen.append(bench.threads.standing)

    def chunk() -> None:
        later.append(bench.batch("b", none))
        later.append(bench.threads.submit(interactive, INTERACTIVE))
        later.append(bench.interactive("x"))
        seen.append(bench.threads.standing)

    later: list[Future[Any]] = []
    done(bench.batch("a", chunk, none))
    done(*later)
    assert seen == [
        Standing(interactive_waiting=2, batch_waiting=1, batch_running=1),
        Standing(
            interactive_waiting=1,
            interactive_running=1,
            batch_waiting=1,
            batch_running=1,
            batch_paused=1,
            gave_way=1,
            paused_s=2.0,
        ),
    ]
    until(lambda: bench.threads.standing == Standing(gave_way=1, paused_s=2.0))
    bench.threads.close()


def test_batch_work_never_takes_the_threads_that_are_kept_free_of_it() -> None:
    bench = Bench(3, for_batch=2)
    free, running, most = threading.Event(), [0], [0]
    change = threading.Lock()

    def job() -> None:
        with change:
            running[0] += 1
            most[0] = max(most[0], running[0])
        free.wait(LONG_S)
        with change:
            running[0] -= 1

    jobs = [bench.threads.submit(job, BATCH) for _ in range(6)]
    until(lambda: bench.threads.standing.batch_running == 2)
    done(bench.interactive("x"))
    assert bench.threads.standing.batch_waiting == 4
    free.set()
    done(*jobs)
    assert most == [2]
    bench.threads.close()


def test_a_batch_job_that_waited_for_room_gets_it_when_another_ends() -> None:
    """Whoever ends a job looks again: the looks that came with the jobs found no room, and have gone."""
    bench = Bench(2, for_batch=1)
    done(*[bench.threads.submit(lambda: time.sleep(0.0005), BATCH) for _ in range(40)])
    bench.threads.close()


def test_a_fence_needs_the_only_thread() -> None:
    threads = Threads("two", 2)
    with pytest.raises(ValueError, match="the only one"):
        threads.fence(none)
    threads.close()
    with pytest.raises(ValueError, match="1 to 2"):
        Threads("none", 2, for_batch=3)


class Program:
    """Work that asks for work at certain chunks, so that one thread's interleavings are the same each time.

    `script` says for every batch job what is asked for during each of its chunks: how many interactive pieces, how
    many batch jobs, and whether a fence.
    """

    def __init__(self, script: list[list[tuple[int, int, bool]]], *, gone: frozenset[tuple[int, int]]) -> None:
        self.bench = Bench()
        self.script = iter(enumerate(script))
        self.gone = gone
        self.log: list[tuple[str, int]] = []
        self.asked: list[tuple[str, int]] = []
        self.futures: list[Future[None]] = []
        self.numbers = itertools.count()

    def ask(self, kind: str) -> None:
        number = next(self.numbers)
        if kind == "batch":
            following = next(self.script, None)
            if following is None:
                return
            number = following[0]
            self.futures.append(self.bench.threads.submit(lambda: self.job(*following), BATCH))
        elif kind == "interactive":
            self.futures.append(self.bench.threads.submit(lambda: self.log.append((kind, number)), INTERACTIVE))
        else:
            self.futures.append(self.bench.threads.fence(lambda: self.log.append((kind, number))))
        self.asked.append((kind, number))
        self.log.append(("ask " + kind, number))

    def job(self, number: int, chunks: list[tuple[int, int, bool]]) -> None:
        gone = threading.Event()
        for index, (interactive, batch, fence) in enumerate(chunks):
            self.bench.threads.give_way(gone.is_set)
            if gone.is_set():
                return
            self.log.append(("chunk", number))
            for _ in range(batch):
                self.ask("batch")
            for _ in range(interactive):
                self.ask("interactive")
            if fence:
                self.ask("fence")
            if (number, index) in self.gone:
                gone.set()
        self.bench.threads.give_way()

    def run(self) -> None:
        with held(self.bench.threads):
            self.ask("batch")
            self.ask("interactive")
            self.ask("batch")
        for future in iter(lambda: next((f for f in self.futures if not f.done()), None), None):
            wait([future], LONG_S)
            assert future.done(), "somebody waits for ever"
        self.bench.threads.close()


during_a_chunk = st.tuples(st.integers(0, 2), st.integers(0, 1), st.booleans())
scripts = st.lists(st.lists(during_a_chunk, min_size=1, max_size=4), min_size=2, max_size=6)


@settings(max_examples=150, deadline=None)
@given(script=scripts, gone=st.frozensets(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=3))
def test_under_any_interleaving_everything_is_done_in_its_order(
    script: list[list[tuple[int, int, bool]]], gone: frozenset[tuple[int, int]]
) -> None:
    program = Program(script, gone=gone)
    program.run()
    done_of: dict[str, list[int]] = {"interactive": [], "fence": []}
    for kind, number in program.log:
        if kind in done_of:
            done_of[kind].append(number)
    for kind, numbers in done_of.items():
        assert numbers == [number for asked, number in program.asked if asked == kind], "oldest first, each once"
    chunks = [number for kind, number in program.log if kind == "chunk"]
    assert [number for number, _ in itertools.groupby(chunks)] == sorted(set(chunks)), "one job after the other"
    for kind, number in program.asked:
        if kind != "interactive":
            continue
        position = program.log.index(("ask interactive", number))
        since = program.log[position : program.log.index(("interactive", number))]
        asked_before = program.log[:position]
        fenced = sum(k == "ask fence" for k, _ in asked_before) > sum(k == "fence" for k, _ in asked_before)
        if not fenced:
            assert not any(k == "chunk" for k, _ in since), "it waited for another chunk"


def test_under_a_storm_of_threads_nobody_waits_for_ever_and_two_jobs_never_mix() -> None:
    chance = random.Random(3)
    threads = Threads("storm")
    inside: list[int] = []
    faults: list[str] = []

    def interactive() -> None:
        if chance.random() < 0.1:
            raise OSError("now and then")

    def job(number: int) -> None:
        if inside:
            faults.append("two batch jobs at once")
        inside.append(number)
        for _ in range(3):
            threads.give_way()
        inside.remove(number)

    futures: list[Future[None]] = []

    def caller(seed: int) -> None:
        mine = random.Random(seed)
        for number in range(150):
            work = interactive if mine.random() < 0.6 else (lambda n=number: job(n))
            kind = INTERACTIVE if work is interactive else BATCH
            future = threads.submit(work, kind)
            if mine.random() < 0.2:
                future.cancel()
            futures.append(future)
            if mine.random() < 0.05:
                futures.append(threads.fence(none))

    callers = [threading.Thread(target=caller, args=(seed,)) for seed in range(4)]
    for each in callers:
        each.start()
    for each in callers:
        each.join(LONG_S)
    assert not wait(futures, LONG_S).not_done
    assert faults == []
    standing = threads.standing
    assert (standing.interactive_running, standing.batch_running, standing.batch_paused) == (0, 0, 0)
    threads.close()
