"""Threads that do interactive work before batch work, and the points at which batch work gives way.

An engine's own thread has one line. Interactive work goes first; batch work is done when none waits, oldest first. A
batch job is made of chunks (a band of a render, a denoising step) and calls `give_way` between two of them: whatever
interactive work waits is then done at once, on the same thread, inside the batch job's own call. So state that
belongs to a thread stays on it, and always:

- interactive work waits for one chunk of a batch job at the most, and never for a second batch job;
- nobody sleeps at a pause point, so nothing has to be woken: a job that gave way goes on when the last interactive
  work is done, on the thread that it never left;
- interactive work gives way to nothing, so at most one batch job lies paused beneath one piece of interactive work;
- a paused job whose caller has gone learns of it between two pieces of interactive work;
- a fence (sleep, wake) runs when all that was asked before it is done, and before anything that was asked later.

Where several threads share a line, some can be kept free of batch work.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cotenant.calls import Call
from cotenant.gpu.terms import Priority

T = TypeVar("T")


def priority_of(call: Call) -> Priority:
    """The class of work that a call is."""
    return Priority.BATCH if call.batch else Priority.INTERACTIVE


class Kind(enum.Enum):
    """What stands in the line."""

    INTERACTIVE = "interactive"
    BATCH = "batch"
    FENCE = "fence"


def choose(line: Sequence[Kind], *, running: int, batch_running: int, batch_most: int) -> int | None:
    """Index of what is to be done next; None if that has to wait for something that runs, or there is nothing."""
    ahead = line.index(Kind.FENCE) if Kind.FENCE in line else len(line)
    for kind in (Kind.INTERACTIVE, Kind.BATCH):
        if kind in line[:ahead] and (kind is Kind.INTERACTIVE or batch_running < batch_most):
            return line.index(kind)
    return 0 if line and ahead == 0 and not running else None


@dataclass(frozen=True)
class Standing:
    """How many wait and run now, and what batch work gave since the start: how often, and for how many seconds."""

    interactive_waiting: int = 0
    interactive_running: int = 0
    batch_waiting: int = 0
    batch_running: int = 0
    #: Of the running ones.
    batch_paused: int = 0
    gave_way: int = 0
    paused_s: float = 0.0


@dataclass(eq=False)
class _Entry:
    work: Callable[[], Any]
    kind: Kind
    done: Future[Any] = field(default_factory=Future)


class Threads:
    """A few threads with one line of two classes. Every method may be called from any thread."""

    def __init__(
        self, name: str, threads: int = 1, *, for_batch: int = 1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """At most `for_batch` of the threads work on batch jobs at any time."""
        if not 1 <= for_batch <= threads:
            raise ValueError(f"of {threads} threads 1 to {threads} can work on batch jobs, not {for_batch}")
        self._pool = ThreadPoolExecutor(threads, name)
        self._threads = threads
        self._batch_most = for_batch
        self._clock = clock
        self._change = threading.Lock()
        self._line: list[_Entry] = []
        self._running = dict.fromkeys(Kind, 0)
        self._paused_at_s: list[float] = []
        self._gave_way = 0
        self._paused_s = 0.0
        self._closed = False
        self._here = threading.local()

    def submit(self, work: Callable[[], T], priority: Priority) -> Future[T]:
        """What `work` will have returned or raised. Cancelling it before its turn takes it out of the line."""
        return self._add(work, Kind.BATCH if priority is Priority.BATCH else Kind.INTERACTIVE)

    def fence(self, work: Callable[[], T]) -> Future[T]:
        """As `submit`, for work that keeps its place: after all that came before, before all that comes later.

        Raises ValueError where there are several threads.
        """
        if self._threads > 1:
            raise ValueError("a fence needs a thread that is the only one")
        return self._add(work, Kind.FENCE)

    def give_way(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Do the interactive work that waits, now and here. To be called by batch work between two chunks.

        Comes back when none waits any more, or after a piece of it once `stop` says that the job need not go on.
        Does nothing if it is not batch work that calls. What interactive work raises is told to who asked for it.
        """
        if getattr(self._here, "kind", None) is not Kind.BATCH or stop():
            return
        entry = self._take(batch_most=0)
        if entry is None:
            return
        began_s = self._clock()
        with self._change:
            self._paused_at_s.append(began_s)
            self._gave_way += 1
        try:
            while entry is not None:
                self._run(entry)
                entry = None if stop() else self._take(batch_most=0)
        finally:
            with self._change:
                self._paused_at_s.remove(began_s)
                self._paused_s += self._clock() - began_s

    @property
    def standing(self) -> Standing:
        """How things are at this moment."""
        now_s = self._clock()
        with self._change:
            waits = [entry.kind for entry in self._line if not entry.done.cancelled()]
            return Standing(
                interactive_waiting=waits.count(Kind.INTERACTIVE),
                interactive_running=self._running[Kind.INTERACTIVE],
                batch_waiting=waits.count(Kind.BATCH),
                batch_running=self._running[Kind.BATCH],
                batch_paused=len(self._paused_at_s),
                gave_way=self._gave_way,
                paused_s=self._paused_s + sum(max(0.0, now_s - began_s) for began_s in self._paused_at_s),
            )

    def close(self, *, wait: bool = True) -> None:
        """Drop what waits; what runs may end, and with `wait` has ended."""
        with self._change:
            self._closed = True
            line, self._line = self._line, []
        for entry in line:
            entry.done.cancel()
        self._pool.shutdown(wait=wait, cancel_futures=True)

    def _add(self, work: Callable[[], T], kind: Kind) -> Future[T]:
        entry = _Entry(work, kind)
        with self._change:
            if self._closed:
                raise RuntimeError("these threads are closed")
            self._line.append(entry)
            # One look a piece of work: who finds nothing to do can leave, since whoever ends something looks again.
            self._pool.submit(self._work)
        return entry.done

    def _work(self) -> None:
        while (entry := self._take(self._batch_most)) is not None:
            self._run(entry)
            del entry

    def _take(self, batch_most: int) -> _Entry | None:
        with self._change:
            while True:
                index = choose(
                    [entry.kind for entry in self._line],
                    running=sum(self._running.values()),
                    batch_running=self._running[Kind.BATCH],
                    batch_most=batch_most,
                )
                if index is None:
                    return None
                entry = self._line.pop(index)
                if entry.done.set_running_or_notify_cancel():
                    self._running[entry.kind] += 1
                    return entry

    def _run(self, entry: _Entry) -> None:
        outer = getattr(self._here, "kind", None)
        self._here.kind = entry.kind
        result: Any = None
        error: BaseException | None = None
        try:
            result = entry.work()
        except BaseException as raised:  # the thread has to go on, and who asked is told
            error = raised
        finally:
            self._here.kind = outer
            with self._change:
                self._running[entry.kind] -= 1
        if error is None:
            entry.done.set_result(result)
        else:
            entry.done.set_exception(error)
        # An error holds this frame: it must not hold the error, nor what the work has made.
        del entry, result, error
