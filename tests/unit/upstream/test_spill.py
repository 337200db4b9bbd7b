"""What happens to a request at a door whose workload spills: here, elsewhere, and back again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from cotenant.calls import Call, InMemoryBackend, Reply, Served, StreamedReply
from cotenant.calls.counted import CountedBackend
from cotenant.errors import (
    CallError,
    DeadlineExceeded,
    EnvironmentFault,
    Overloaded,
    ReplicaDied,
    UnknownWorkload,
    WorkloadUnavailable,
)
from cotenant.upstream.outlet import Terms
from cotenant.upstream.spill import SpillingBackend

pytestmark = pytest.mark.unit

TERMS: dict[str, Any] = {
    "workload": "mockups",
    "kind": "mockup",
    "url": "https://away",
    "after_wait_s": 5.0,
    "max_concurrency": 4,
    "start_s": 60.0,
    "unheard_of": True,
}
SERVED = Served("mockups", "mockup", templates=("mug", "poster"), slots=2, queue=4, deadline_s=30)


class Away(InMemoryBackend):
    """Another server that has mugs only."""

    host = "away.example"

    def __init__(self, answer: Callable[[Call], Any]) -> None:
        super().__init__({"mockups": answer}, slots=100)
        self.asked: list[str] = []
        self.closed = False
        self.templates: Sequence[str] | CallError = ("mug",)

    async def ask(self, path: str, *, within_s: float) -> Any:
        self.asked.append(path)
        if isinstance(self.templates, CallError):
            raise self.templates
        return {"data": [{"id": name} for name in self.templates]}

    async def close(self) -> None:
        self.closed = True


class Door:
    """A door with a cluster that can be held up, another server, and a clock."""

    def __init__(self, *, batch: bool = False, **terms: Any) -> None:
        self.now = 0.0
        self.replicas = 1
        self.here: list[str] = []
        self.there: list[str] = []
        self.held = asyncio.Event()
        self.away = Away(self._there)
        self.answer_there: Callable[[Call], Any] = lambda call: Reply(200, b"there")
        self.cluster = InMemoryBackend({"mockups": self._here, "writer": self._here}, slots=2, queue=4)
        self.spilling = SpillingBackend(
            self.cluster,
            served=lambda name: SERVED,
            connect=lambda terms: self.away,
            running=self._running,
            batch=batch,
            clock=lambda: self.now,
        )
        self.spilling.spill([{**TERMS, **terms}])

    async def call(self, name: str = "c", template: str = "mug", **options: Any) -> Reply:
        return await self.spilling.call("mockups", order(name, template, **options))

    def count(self, name: str, **labels: str) -> float:
        return sum(r.value for r in self.spilling.rows() if r.name == name and labels.items() <= r.labels.items())

    async def _running(self, workload: str) -> int:
        return self.replicas

    async def _here(self, call: Call) -> Reply:
        self.here.append(call.request_id)
        if call.request_id.startswith("slow"):
            await self.held.wait()
        return Reply(200, b"here")

    def _there(self, call: Call) -> Any:
        self.there.append(call.request_id)
        return self.answer_there(call)


def order(name: str, template: str = "mug", **options: Any) -> Call:
    body = json.dumps({"template": template}).encode()
    return Call("/v1/mockups", body, request_id=name, **{"deadline_s": 20.0, **options})


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_with_a_free_slot_requests_stay_and_say_so() -> None:
    door = Door()
    reply = await door.call()
    assert (reply.body, reply.headers["x-cotenant-served-by"], door.there) == (b"here", "cluster", [])


async def test_what_does_not_spill_is_passed_on_untouched() -> None:
    door = Door()
    reply = await door.spilling.call("writer", order("w"))
    assert reply.headers == {}
    assert await door.spilling.call("mockups", Call("/v1/mockups/templates", method="GET")) == Reply(200, b"here")


async def test_without_a_replica_requests_go_elsewhere_and_the_first_ones_ask_what_is_served_there() -> None:
    door = Door()
    door.replicas = 0
    reply = await door.call()
    assert (reply.body, reply.headers["x-cotenant-served-by"], door.here) == (b"there", "away.example", [])
    assert door.count("cotenant_spilled_total", reason="no_replica") == 1
    assert door.away.asked == ["/v1/mockups/templates"]


async def test_a_template_that_is_not_there_is_rendered_here() -> None:
    door = Door()
    door.replicas = 0
    assert (await door.call(template="poster")).body == b"here"
    assert door.there == []


async def test_a_template_that_has_gone_from_there_is_asked_for_once() -> None:
    door = Door()
    door.replicas = 0
    door.answer_there = raising(UnknownWorkload("no mug any more"))
    assert [(await door.call(f"{n}")).body for n in range(3)] == [b"here"] * 3
    assert door.there == ["0"]
    assert door.count("cotenant_spill_failed_total", error="UnknownWorkload") == 1


async def test_what_another_platform_sent_on_stays_here() -> None:
    door = Door()
    door.replicas = 0
    assert (await door.call(spilled=True)).body == b"here"


@pytest.mark.parametrize(("jobs", "where"), [(False, b"here"), (True, b"there")])
async def test_a_job_goes_elsewhere_only_if_jobs_may(jobs: bool, where: bytes) -> None:
    door = Door(jobs=jobs)
    door.replicas = 0
    assert (await door.call(batch=True)).body == where


async def test_a_wait_is_expected_from_how_long_calls_took_and_a_full_house_spills() -> None:
    door = Door()
    slow = [asyncio.create_task(door.call(f"slow{n}")) for n in range(2)]
    await settle()
    door.now = 20.0
    spilled = await door.call()
    assert spilled.body == b"there"
    assert door.count("cotenant_spilled_total", reason="wait") == 1
    door.held.set()
    await asyncio.gather(*slow)
    assert (await door.call()).body == b"here"


async def test_quick_calls_wait_here() -> None:
    door = Door()
    slow = [asyncio.create_task(door.call(f"slow{n}")) for n in range(3)]
    await settle()
    assert len(door.here) == 2
    door.held.set()
    assert {reply.body for reply in await asyncio.gather(*slow)} == {b"here"}


async def test_a_queue_that_is_full_sends_on_what_would_be_refused() -> None:
    door = Door()
    slow = [asyncio.create_task(door.call(f"slow{n}")) for n in range(6)]
    await settle()
    reply = await door.call()
    assert reply.body == b"there"
    assert door.count("cotenant_spilled_total", reason="queue_full") == 1
    door.held.set()
    await asyncio.gather(*slow)


async def test_what_the_cluster_refuses_is_sent_on_though_nobody_saw_it_coming() -> None:
    door = Door()
    others = [asyncio.create_task(door.cluster.call("mockups", order(f"slow{n}"))) for n in range(6)]
    await settle()
    assert (await door.call()).body == b"there"
    door.held.set()
    await asyncio.gather(*others)


async def test_when_both_are_full_the_refusal_is_the_clusters() -> None:
    door = Door()
    door.answer_there = raising(Overloaded("full there", retry_after_s=30))
    others = [asyncio.create_task(door.cluster.call("mockups", order(f"slow{n}"))) for n in range(6)]
    await settle()
    with pytest.raises(Overloaded, match="4 requests waiting"):
        await door.call()
    door.held.set()
    await asyncio.gather(*others)


@pytest.mark.parametrize(
    "error",
    [
        Overloaded("full", retry_after_s=30),
        WorkloadUnavailable("does not let this platform in"),
        ReplicaDied("closed the connection"),
        DeadlineExceeded("its own"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_request_that_could_not_be_taken_there_is_served_here(error: CallError) -> None:
    door = Door()
    door.replicas = 0
    door.answer_there = raising(error)
    assert (await door.call("a")).body == b"here"
    assert (door.there, door.here) == (["a"], ["a"])
    assert door.count("cotenant_spilled_now") == 0


async def test_a_server_that_failed_is_left_alone_for_longer_each_time() -> None:
    door = Door()
    door.replicas = 0
    door.answer_there = raising(WorkloadUnavailable("down"))
    tried = []
    for second in range(40):
        door.now = float(second)
        before = len(door.there)
        await door.call()
        if len(door.there) > before:
            tried.append(second)
    assert tried == [0, 2, 6, 14, 30]
    door.answer_there, door.now = (lambda call: Reply(200, b"there")), 1000.0
    assert (await door.call()).body == b"there"


async def test_a_full_server_is_left_alone_as_long_as_it_said() -> None:
    door = Door()
    door.replicas = 0
    door.answer_there = raising(Overloaded("full", retry_after_s=7))
    await door.call("a")
    door.now = 6.9
    await door.call("b")
    door.now = 7.1
    await door.call("c")
    assert door.there == ["a", "c"]


async def test_time_lost_elsewhere_is_not_given_again() -> None:
    door = Door()
    door.replicas = 0
    seen: list[float | None] = []

    def late(call: Call) -> Any:
        door.now += 12.0
        raise ReplicaDied("after a while")

    async def here(call: Call) -> Reply:
        seen.append(call.deadline_s)
        return Reply(200, b"here")

    door.answer_there = late
    door.cluster._handlers["mockups"] = here
    assert (await door.call(deadline_s=20.0)).body == b"here"
    assert seen == [8.0]
    door.now = 100.0
    with pytest.raises(DeadlineExceeded, match="neither here nor elsewhere"):
        await door.call(deadline_s=10.0)


async def test_an_engines_own_error_elsewhere_is_the_answer() -> None:
    door = Door()
    door.replicas = 0
    door.answer_there = lambda call: Reply(400, b"no such size")
    assert (await door.call()).status == 400
    assert door.here == []


class Slow:
    """Answers when it is let."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.now = self.most = 0

    async def __call__(self, call: Call) -> Reply:
        self.now += 1
        self.most = max(self.most, self.now)
        await self.release.wait()
        self.now -= 1
        return Reply(200, b"there")


async def test_no_more_are_elsewhere_at_once_than_may_be_and_the_next_ones_wait_here_where_something_serves() -> None:
    door = Door(max_concurrency=1, after_wait_s=0.0)
    door.answer_there = slow = Slow()
    here = [asyncio.create_task(door.call(f"slow{n}")) for n in range(2)]
    await settle()
    door.now = 1.0
    there = asyncio.create_task(door.call("a"))
    await settle()
    queued = asyncio.create_task(door.call("b"))
    await settle()
    assert (slow.most, door.there) == (1, ["a"])
    door.held.set()
    assert (await queued).body == b"here"
    slow.release.set()
    assert (await there).body == b"there"
    await asyncio.gather(*here)


async def test_where_nothing_serves_they_wait_for_a_place_elsewhere_in_their_order() -> None:
    door = Door(max_concurrency=1)
    door.replicas = 0
    door.answer_there = slow = Slow()
    calls = [asyncio.create_task(door.call(name)) for name in "abc"]
    await settle()
    assert door.there == ["a"]
    slow.release.set()
    assert {reply.body for reply in await asyncio.gather(*calls)} == {b"there"}
    assert (slow.most, door.there, door.here) == (1, ["a", "b", "c"], [])


async def test_who_waits_for_a_place_elsewhere_has_a_replica_that_comes_up_here() -> None:
    door = Door(max_concurrency=1)
    door.replicas = 0
    door.answer_there = slow = Slow()
    calls = [asyncio.create_task(door.call(name)) for name in "ab"]
    await settle()
    door.replicas = 1
    assert (await calls[1]).body == b"here"
    slow.release.set()
    await calls[0]


async def test_no_more_wait_for_a_place_elsewhere_than_may_wait() -> None:
    door = Door(max_concurrency=1)
    door.replicas = 0
    door.answer_there = slow = Slow()
    calls = [asyncio.create_task(door.call(f"{n}")) for n in range(1 + SERVED.queue)]
    await settle()
    with pytest.raises(Overloaded, match="no replica yet and 4 requests waiting"):
        await door.call("one too many")
    calls[-1].cancel()
    slow.release.set()
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert [getattr(one, "body", None) for one in ended] == [b"there"] * SERVED.queue + [None]


async def test_who_waits_for_a_place_elsewhere_waits_no_longer_than_its_deadline() -> None:
    door = Door(max_concurrency=1)
    door.replicas = 0
    door.answer_there = slow = Slow()
    first = asyncio.create_task(door.call("a"))
    await settle()
    second = asyncio.create_task(door.call("b", deadline_s=5.0))
    await settle()
    door.now = 6.0
    with pytest.raises(DeadlineExceeded, match="within 5 s"):
        await second
    slow.release.set()
    await first


async def test_a_request_that_is_cancelled_elsewhere_leaves_its_place() -> None:
    door = Door(max_concurrency=1)
    door.replicas = 0
    cut: list[str] = []

    async def forever(call: Call) -> Reply:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            cut.append(call.request_id)
            raise
        return Reply(200, b"")

    door.answer_there = forever
    call = asyncio.create_task(door.call("a"))
    await settle()
    assert door.count("cotenant_spilled_now") == 1
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (cut, door.count("cotenant_spilled_now")) == (["a"], 0)


# --- streams ---


def streaming(*chunks: bytes, fails_at: int | None = None, ended: list[str] | None = None) -> Callable[[Call], Any]:
    async def events() -> AsyncIterator[bytes]:
        try:
            for number, chunk in enumerate(chunks):
                if number == fails_at:
                    raise ReplicaDied("broke off")
                yield chunk
        finally:
            if ended is not None:
                ended.append("over")

    return lambda call: StreamedReply(200, "text/event-stream", events())


async def test_a_stream_from_elsewhere_has_all_its_chunks_and_counts_until_its_end() -> None:
    door = Door()
    door.replicas = 0
    door.answer_there = streaming(b"1", b"2", b"3")
    reply = await door.spilling.stream("mockups", order("s"))
    assert reply.headers["x-cotenant-served-by"] == "away.example"
    assert door.count("cotenant_spilled_now") == 1
    assert [chunk async for chunk in reply.chunks] == [b"1", b"2", b"3"]
    assert door.count("cotenant_spilled_now") == 0


async def test_a_stream_that_breaks_before_its_first_chunk_is_served_here() -> None:
    door = Door()
    door.replicas = 0
    ended: list[str] = []
    door.answer_there = streaming(b"1", fails_at=0, ended=ended)
    reply = await door.spilling.stream("mockups", order("s"))
    assert [chunk async for chunk in reply.chunks] == [b"here"]
    assert ended == ["over"]
    assert door.count("cotenant_spilled_now") == 0


async def test_a_stream_that_breaks_later_is_not_begun_again() -> None:
    door = Door()
    door.replicas = 0
    door.answer_there = streaming(b"1", b"2", fails_at=1)
    reply = await door.spilling.stream("mockups", order("s"))
    with pytest.raises(ReplicaDied, match="broke off"):
        _ = [chunk async for chunk in reply.chunks]
    assert door.here == []
    assert door.count("cotenant_spilled_now") == 0


async def test_a_stream_that_is_closed_leaves_its_place() -> None:
    door = Door()
    door.replicas = 0
    ended: list[str] = []
    door.answer_there = streaming(b"1", b"2", ended=ended)
    chunks: Any = (await door.spilling.stream("mockups", order("s"))).chunks
    await chunks.aclose()
    assert (ended, door.count("cotenant_spilled_now")) == (["over"], 0)


async def test_an_empty_stream_is_one() -> None:
    door = Door()
    door.replicas = 0
    door.answer_there = streaming()
    reply = await door.spilling.stream("mockups", order("s"))
    assert [chunk async for chunk in reply.chunks] == []


# --- what is told of it ---


async def test_what_is_elsewhere_is_demand_and_its_time_teaches_nothing() -> None:
    door = Door()
    door.replicas = 0
    counted = CountedBackend(door.spilling, clock=lambda: door.now)
    release = asyncio.Event()

    async def slow(call: Call) -> Reply:
        await release.wait()
        return Reply(200, b"there")

    door.answer_there = slow
    call = asyncio.create_task(counted.call("mockups", order("a")))
    await settle()
    assert counted.asked()["mockups"].sent == 1
    release.set()
    await call
    door.replicas = 1
    await counted.call("mockups", order("b"))
    asked = counted.asked()["mockups"]
    assert (asked.sent, asked.arrived, len(asked.ended)) == (0, 2, 1)


async def test_an_ingress_pulls_for_the_room_elsewhere_too() -> None:
    door = Door(batch=True, jobs=True, ingresses=2)
    assert (await door.spilling.status())["mockups"].replicas == 1 + 2 * 2
    assert door.spilling.with_room({"mockups": 3, "writer": 1}) == {"mockups": 3 + 2 * 2, "writer": 1}
    assert (await Door(jobs=True).spilling.status())["mockups"].replicas == 1


async def test_an_ingress_whose_jobs_may_not_spill_has_no_way_out() -> None:
    door = Door(batch=True)
    door.replicas = 0
    assert (await door.call(batch=True)).headers == {}
    assert door.away.asked == []


async def test_calls_of_one_trip_go_where_each_belongs() -> None:
    door = Door(batch=True, jobs=True)
    door.replicas = 0
    trip = door.spilling.call_many("mockups", [order("a", batch=True), order("b", "poster", batch=True)])
    answers = {index: answer async for some in trip for index, answer in some}
    assert {n: a.body for n, a in answers.items() if isinstance(a, Reply)} == {0: b"there", 1: b"here"}


# --- what is told to it ---


async def test_a_changed_url_is_used_at_once_and_the_old_one_is_closed_when_it_is_idle() -> None:
    door = Door()
    door.replicas = 0
    old, release = door.away, asyncio.Event()

    async def slow(call: Call) -> Reply:
        await release.wait()
        return Reply(200, b"old")

    door.answer_there = slow
    first = asyncio.create_task(door.call("a"))
    await settle()
    door.away = Away(lambda call: Reply(200, b"new"))
    door.spilling.spill([{**TERMS, "url": "https://new"}])
    assert (await door.call("b")).body == b"new"
    assert not old.closed
    release.set()
    assert (await first).body == b"old"
    await asyncio.sleep(0.3)
    assert old.closed


async def test_the_same_terms_change_nothing() -> None:
    door = Door()
    await settle()
    door.spilling.spill([TERMS])
    await settle()
    assert door.away.asked == ["/v1/mockups/templates"]
    door.spilling.spill([])
    door.replicas = 0
    assert (await door.call()).headers == {}


async def test_a_key_that_is_not_set_switches_spilling_off_and_nothing_else() -> None:
    def no_key(terms: Terms) -> Any:
        raise EnvironmentFault("calls need the key in K, which is not set")

    backend = InMemoryBackend({"mockups": lambda call: Reply(200, b"here")})
    spilling = SpillingBackend(backend, served=lambda name: SERVED, connect=no_key)
    spilling.spill([TERMS])
    assert (await spilling.call("mockups", order("a"))).body == b"here"


async def test_a_server_that_can_not_say_what_it_serves_gets_nothing() -> None:
    door = Door()
    door.away.templates = WorkloadUnavailable("down")
    door.replicas = 0
    assert (await door.call()).body == b"here"
    door.away.templates, door.now = ("mug",), 3.0
    assert (await door.call()).body == b"there"


async def test_what_was_said_is_asked_again_only_when_there_is_something_to_send() -> None:
    door = Door()
    door.replicas = 0
    await door.call()
    door.now = 10_000.0
    await settle()
    assert len(door.away.asked) == 1
    assert (await door.call()).body == b"there"
    await settle()
    assert len(door.away.asked) == 2


async def test_closing_closes_the_ways_out() -> None:
    door = Door()
    await door.spilling.close()
    assert door.away.closed


def raising(error: Exception) -> Callable[[Call], Any]:
    def answer(call: Call) -> Any:
        raise error

    return answer
