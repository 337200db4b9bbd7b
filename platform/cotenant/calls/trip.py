"""Several calls on one trip to one replica: each answer as soon as it is there.

A call costs its caller the same whether it is small or large, so small ones share a trip. They share nothing else:
each has its own answer, error, deadline and end. What always holds of a trip: an index is answered once, or it was
abandoned; answers of one moment are read together; closing the trip ends what is not answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from copy import copy
from functools import partial
from typing import Any, Protocol

from cotenant.calls.reply import Reply
from cotenant.errors import CallError, ReplicaDied, WorkloadUnavailable

Answer = tuple[int, Reply | CallError]
"""Which of the calls it is for, by its place among them, and the reply or what there is instead of one."""


class Trip(Protocol):
    """Calls that are under way together. Read it to its end, or close it."""

    def __aiter__(self) -> Trip: ...

    async def __anext__(self) -> Sequence[Answer]:
        """Answers that nobody has read yet, at least one. Raises nothing but StopAsyncIteration and cancellation."""
        ...

    def abandon(self, index: int) -> None:
        """Nobody waits for this one any more: its work is cancelled, the others go on. Its answer may still come."""
        ...

    async def aclose(self) -> None:
        """End the trip: what is not answered is cancelled."""
        ...


class Answers:
    """The answers of one trip on their way to its one reader."""

    def __init__(self, count: int) -> None:
        self.open = set(range(count))
        """What is neither answered nor abandoned."""
        self._ready: list[Answer] = []
        self._waiter: asyncio.Future[None] | None = None

    def put(self, index: int, answer: Reply | CallError) -> None:
        """Answer one that is open; a second answer is dropped."""
        if index in self.open:
            self.open.discard(index)
            self._ready.append((index, answer))
            self._wake()

    def put_rest(self, error: CallError) -> None:
        """Answer everything that is open with this error, each with one of its own."""
        for index in sorted(self.open):
            self.put(index, copy(error))

    def drop(self, index: int) -> None:
        """Expect no answer for this one."""
        self.open.discard(index)
        if not self.open:
            self._wake()

    async def get(self) -> list[Answer]:
        """What is ready, at least one; none when everything was read."""
        while not self._ready and self.open:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self.open:
            # One turn of the loop, for those that become ready in the same moment.
            await asyncio.sleep(0)
        ready, self._ready = self._ready, []
        return ready

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Together:
    """A `Trip` where the work is: it runs the calls side by side. Belongs to the running loop."""

    def __init__(
        self,
        works: Sequence[Coroutine[Any, Any, Reply]],
        *,
        on_error: Callable[[BaseException], object] = lambda _: None,
    ) -> None:
        """Begin. `on_error` is told of exceptions that nobody raised on purpose; the caller gets a CallError."""
        self._answers = Answers(len(works))
        self._on_error = on_error
        self._tasks = [asyncio.ensure_future(work) for work in works]
        for index, task in enumerate(self._tasks):
            task.add_done_callback(partial(self._ended, index))

    def __aiter__(self) -> Together:
        return self

    async def __anext__(self) -> Sequence[Answer]:
        answers = await self._answers.get()
        if not answers:
            raise StopAsyncIteration
        return answers

    def abandon(self, index: int) -> None:
        self._answers.drop(index)
        self._tasks[index].cancel()

    async def aclose(self) -> None:
        for index, task in enumerate(self._tasks):
            self._answers.drop(index)
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _ended(self, index: int, task: asyncio.Future[Reply]) -> None:
        if task.cancelled():
            self._answers.put(index, ReplicaDied("the call was cancelled where it was worked on; send it again"))
        elif (error := task.exception()) is None:
            self._answers.put(index, task.result())
        elif isinstance(error, CallError):
            self._answers.put(index, error)
        else:
            self._on_error(error)
            self._answers.put(index, WorkloadUnavailable(f"{type(error).__name__}: {error}"))
