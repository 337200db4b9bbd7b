"""What lies between a pump and the world in the chaos tests: wires that are slow, that break, and that can be cut.

Each pump reaches the queue, the store and the workloads by wires of its own. A request takes time to get there, is
done there at once, and its answer takes time to come back; so a pump can die, or a wire break, on either side of what
was asked for. A pump that is cut off does nothing any more, while what it had asked for goes on without it: its pulls
lease messages to nobody, and its calls keep replicas busy.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cotenant.calls import Call, Reply, StreamedReply, Together, Trip, WorkloadStatus, error_reply
from cotenant.errors import (
    BudgetExceeded,
    CotenantError,
    DeadlineExceeded,
    Overloaded,
    ReplicaDied,
    SourceUnavailable,
    StoreUnavailable,
    UnknownWorkload,
    WorkloadUnavailable,
)
from cotenant.jobs.clock import EPOCH_S
from cotenant.jobs.queue.memory import MemoryLanes, MemorySource
from cotenant.jobs.queue.source import Delivery, Message
from cotenant.jobs.store.objects import Entry, MemoryObjects

PNG = b"\x89PNG"

_T = TypeVar("_T")

#: Which pump a task belongs to; inherited by the tasks that it starts. Empty: the world's own.
OWNER: contextvars.ContextVar[str] = contextvars.ContextVar("owner", default="")


class LoopClock:
    """The event loop's time, which in a virtual loop is a number."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def now(self) -> float:
        return self._loop.time()

    def unix_s(self) -> float:
        return EPOCH_S + self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))


class Tasks:
    """Tasks by owner, so that all of a pump's can be ended as SIGKILL does."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._of: dict[str, dict[asyncio.Task[Any], None]] = defaultdict(dict)
        loop.set_task_factory(self._make)

    def _make(self, loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **kwargs)
        mine = self._of[OWNER.get()]
        mine[task] = None
        task.add_done_callback(lambda done: mine.pop(done, None))
        return task

    async def kill(self, owner: str) -> None:
        """SIGKILL asks nobody: a task that a call's failure keeps from noticing is cancelled again."""
        while mine := [task for task in self._of[owner] if task is not asyncio.current_task()]:
            for task in mine:
                task.cancel()
            await asyncio.wait(mine, timeout=0.001)


def unowned(work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
    """A task of the world's own, whoever asks for it."""
    context = contextvars.copy_context()
    context.run(OWNER.set, "")
    task: asyncio.Task[_T] = context.run(asyncio.ensure_future, work)
    # Who asked may be dead when it ends.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


@dataclass
class Weather:
    """How bad it is: parts of requests that get lost before, or whose answers get lost after, they were served."""

    rng: random.Random
    source_lost: float = 0.0
    store_lost: float = 0.0
    slow: float = 0.0

    def delay_s(self) -> float:
        if self.slow and self.rng.random() < self.slow:
            return self.rng.uniform(0.5, 4.0)
        return self.rng.choice((0.0, 0.001, 0.004, 0.02))

    def lost(self, part: float) -> bool:
        return part > 0 and self.rng.random() < part


@dataclass
class Wire:
    """One pump's way to the world."""

    weather: Weather
    cut: bool = False
    pulled: set[tuple[str, str]] = field(default_factory=set)
    """Lane and ack id of what reached the pump."""
    looked: set[str] = field(default_factory=set)
    """Keys of results that the pump looked for and did not find, and has not begun to work on since."""

    async def ask(self, serve: Callable[[], Awaitable[_T]], part: str, error: type[CotenantError]) -> _T:
        """What `serve` returns, which is done unless the request gets lost, and told unless the answer does."""
        weather = self.weather
        await self.travel()
        lost = getattr(weather, f"{part}_lost")
        if weather.lost(lost / 2):
            raise error(f"the request to the {part} got lost")
        answer = await serve()
        await self.travel()
        if weather.lost(lost / 2):
            raise error(f"the answer of the {part} got lost")
        return answer

    async def travel(self) -> None:
        if self.cut:
            await asyncio.Event().wait()
        if delay_s := self.weather.delay_s():
            await asyncio.sleep(delay_s)


class WiredSource:
    """A lane's source at the end of a wire."""

    def __init__(self, lane: str, source: MemorySource, wire: Wire) -> None:
        self._lane = lane
        self._source = source
        self._wire = wire

    async def setup(self) -> None:
        await self._ask(self._source.setup)

    async def pull(self, limit: int) -> Sequence[Delivery]:
        deliveries = await self._ask(lambda: asyncio.shield(unowned(self._source.pull(limit))))
        self._wire.pulled |= {(self._lane, delivery.ack_id) for delivery in deliveries}
        return deliveries

    async def extend(self, ack_ids: Sequence[str]) -> None:
        await self._ask(lambda: self._source.extend(ack_ids))

    async def ack(self, ack_ids: Sequence[str]) -> None:
        await self._ask(lambda: self._source.ack(ack_ids))

    async def nack(self, ack_ids: Sequence[str], delay_s: float = 0.0) -> None:
        await self._ask(lambda: self._source.nack(ack_ids, delay_s))

    async def publish(self, topic: str, messages: Sequence[Message]) -> Sequence[str]:
        return await self._ask(lambda: self._source.publish(topic, messages))

    async def close(self) -> None:
        return None

    async def _ask(self, serve: Callable[[], Awaitable[_T]]) -> _T:
        return await self._wire.ask(serve, "source", SourceUnavailable)


class WiredLanes:
    def __init__(self, lanes: MemoryLanes, wire: Wire) -> None:
        self._lanes = lanes
        self._wire = wire

    def open(self, lane: str) -> WiredSource:
        return WiredSource(lane, self._lanes.open(lane), self._wire)


class Books(MemoryObjects):
    """The store, which watches over what must never change."""

    def __init__(self, clock: LoopClock) -> None:
        super().__init__()
        self.visible_at_s: dict[str, float] = {}
        """Since when a job, by its id, has a result."""
        self._clock = clock

    async def create(self, key: str, data: bytes) -> bool:
        done = await super().create(key, data)
        if done and "/results/" in key:
            self.visible_at_s[json.loads(data)["line"]["id"]] = self._clock.now()
        return done

    async def put(self, key: str, data: bytes) -> None:
        assert "/results/" not in key, f"{key} was written over"
        await super().put(key, data)

    async def delete(self, keys: Iterable[str]) -> None:
        keys = list(keys)
        assert not [key for key in keys if "/results/" in key], f"a result was deleted: {keys}"
        await super().delete(keys)


class WiredObjects:
    """The store at the end of a wire."""

    def __init__(self, objects: MemoryObjects, wire: Wire) -> None:
        self._objects = objects
        self._wire = wire
        self.url = objects.url

    async def create(self, key: str, data: bytes) -> bool:
        return await self._ask(lambda: self._objects.create(key, data))

    async def put(self, key: str, data: bytes) -> None:
        await self._ask(lambda: self._objects.put(key, data))

    async def get(self, key: str) -> bytes | None:
        data = await self._ask(lambda: self._objects.get(key))
        if data is None and "/results/" in key:
            self._wire.looked.add(key)
        return data

    async def part(self, key: str, start: int, length: int) -> bytes | None:
        return await self._ask(lambda: self._objects.part(key, start, length))

    async def read(self, key: str) -> AsyncIterator[bytes]:
        for chunk in await self._ask(lambda: _all(self._objects.read(key))):
            yield chunk

    async def write(self, key: str, chunks: AsyncIterator[bytes]) -> int:
        data = b"".join([chunk async for chunk in chunks])
        await self.put(key, data)
        return len(data)

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[Entry]:
        for entry in await self._ask(lambda: _all(self._objects.list(prefix, after=after))):
            yield entry

    async def delete(self, keys: Iterable[str]) -> None:
        await self._ask(lambda: self._objects.delete(keys))

    async def sign(self, key: str, expires_s: float) -> str | None:
        return await self._objects.sign(key, expires_s)

    async def _ask(self, serve: Callable[[], Awaitable[_T]]) -> _T:
        return await self._wire.ask(serve, "store", StoreUnavailable)


async def _all(items: AsyncIterator[_T]) -> list[_T]:
    return [item async for item in items]


@dataclass
class Floor:
    """A workload's replicas."""

    name: str
    replicas: int = 1
    ready: bool = True
    runs: list[asyncio.Task[Reply]] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """One run of a job by an engine. `reply` is its status; None where it was cut short or raised; `orphan`: whether
    who had asked for it was dead at its end."""

    job_id: str
    workload: str
    pump: str
    began_s: float
    ended_s: float
    reply: int | None
    orphan: bool


class Workshop:
    """The workloads. An engine does what the body says: takes `seconds`, and ends as `endings` says for each run.

    An ending is a status, or one of die, crash, over, full, endless; the last one counts for all further runs.
    """

    def __init__(self, slots: Mapping[str, int], rng: random.Random, key_of: Mapping[str, str]) -> None:
        """`slots` of each pump; `key_of` a job's result by the job's id, as far as it is known."""
        self.slots = dict(slots)
        self._key_of = key_of
        self.floors = {name: Floor(name) for name in slots}
        self.begun: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        """Failures that a pump was told of, by job; to be overloaded is none."""
        self.runs: list[Run] = []
        self.busy: Counter[tuple[str, str]] = Counter()
        """Calls that a pump has running at a workload."""
        self.calling: set[tuple[str, str]] = set()
        """Pumps and the jobs, and ordering keys, that they have running."""
        self.wrongs: list[str] = []
        self.told_down_until_s = 0.0
        self.hangs = False
        self._rng = rng

    async def call(self, pump: str, wire: Wire, workload: str, call: Call) -> Reply:
        floor = self.floors.get(workload)
        if floor is None or not floor.ready:
            if self._rng.random() < 0.5:
                raise UnknownWorkload(f"no {workload} here yet")
            raise WorkloadUnavailable(f"{workload} starts")
        job = (pump, call.request_id)
        if job in self.calling:
            self.wrongs.append(f"{pump} runs {call.request_id} twice at once")
        key = self._key_of.get(call.request_id)
        if key is not None and key not in wire.looked:
            self.wrongs.append(f"{pump} runs {call.request_id} without looking for its result")
        wire.looked.discard(key or "")
        self.calling.add(job)
        ordering_key = json.loads(call.body).get("key")
        if ordering_key is not None and (pump, ordering_key) in self.calling:
            self.wrongs.append(f"{pump} runs two jobs of {ordering_key} at once")
        if ordering_key is not None:
            self.calling.add((pump, ordering_key))
        self.busy[pump, workload] += 1
        if self.busy[pump, workload] > self.slots[workload] + self.slots[workload] // 2:
            self.wrongs.append(f"{pump} sends {self.busy[pump, workload]} jobs of {workload} at once")
        run = unowned(self._run(pump, wire, floor, call))
        floor.runs.append(run)
        run.add_done_callback(floor.runs.remove)
        try:
            return await asyncio.wait_for(asyncio.shield(run), call.deadline_s)
        except asyncio.TimeoutError:
            run.cancel()
            raise DeadlineExceeded("too slow") from None
        except asyncio.CancelledError:
            if not wire.cut and run.cancelled():
                raise ReplicaDied("its replica was killed") from None
            if not wire.cut:
                run.cancel()
            raise
        finally:
            self.calling -= {job, (pump, ordering_key or "")}
            self.busy[pump, workload] -= 1

    async def _run(self, pump: str, wire: Wire, floor: Floor, call: Call) -> Reply:
        body = json.loads(call.body)
        endings = body.get("endings", [])
        nth = self.begun[call.request_id]
        self.begun[call.request_id] += 1
        ending = endings[min(nth, len(endings) - 1)] if endings else 200
        began_s = asyncio.get_running_loop().time()
        status = None
        try:
            await asyncio.sleep(1e9 if ending == "endless" else body.get("seconds", 0))
            if ending == "die":
                self.kill_replica(floor.name)
            reply = self._end(ending, call, {**body, "run": nth})
            status = reply.status
            return reply
        finally:
            ended_s = asyncio.get_running_loop().time()
            self.runs.append(Run(call.request_id, floor.name, pump, began_s, ended_s, status, wire.cut))

    def _end(self, ending: Any, call: Call, body: Mapping[str, Any]) -> Reply:
        match ending:
            case 200:
                said = {"nonce": body["nonce"], "run": body["run"], "pad": "x" * body.get("pad", 0)}
                if call.accept == "image/*":
                    return Reply(200, PNG + json.dumps(said).encode(), "image/png")
                return Reply(200, json.dumps(said).encode())
            case int():
                return error_reply(ending, "as told")
            case "crash":
                raise ValueError("a bug")
            case "over":
                raise BudgetExceeded("held too much")
            case "full":
                raise Overloaded("full")
        raise ReplicaDied(f"it ended with {ending}")

    def kill_replica(self, workload: str) -> None:
        for run in list(self.floors[workload].runs):
            run.cancel()

    async def status(self) -> Mapping[str, WorkloadStatus]:
        now = asyncio.get_running_loop().time()
        if now < self.told_down_until_s:
            if self.hangs:
                await asyncio.sleep(self.told_down_until_s - now)
            else:
                raise WorkloadUnavailable("Serve does not tell how its applications are")
        return {
            name: WorkloadStatus(floor.ready, floor.replicas if floor.ready else 0, "" if floor.ready else "starts")
            for name, floor in self.floors.items()
        }


class WiredBackend:
    """The workshop at the end of a wire."""

    def __init__(self, shop: Workshop, pump: str, wire: Wire) -> None:
        self._shop = shop
        self._pump = pump
        self._wire = wire

    async def call(self, workload: str, call: Call) -> Reply:
        await self._wire.travel()
        try:
            reply = await self._shop.call(self._pump, self._wire, workload, call)
        except Overloaded:
            raise
        except Exception:
            self._shop.failed[call.request_id] += 1
            raise
        self._shop.failed[call.request_id] += reply.status >= 500
        return reply

    def call_many(self, workload: str, calls: Sequence[Call]) -> Trip:
        return Together([self.call(workload, call) for call in calls])

    async def stream(self, workload: str, call: Call) -> StreamedReply:
        raise NotImplementedError

    async def status(self) -> Mapping[str, WorkloadStatus]:
        await self._wire.travel()
        return await self._shop.status()
