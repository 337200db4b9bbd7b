"""What every backend promises about calls, alone and on a trip. Runs in memory, against Serve, and by HTTP.

A subclass gives the fixture `backend`, with one replica of the workload `puppet` around a `Puppet`, and `kill`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from typing import Any

import pytest

from cotenant.calls import Backend, Call, Reply, Trip
from cotenant.errors import (
    CallError,
    CotenantError,
    DeadlineExceeded,
    Overloaded,
    ReplicaDied,
    UnknownWorkload,
    WorkloadUnavailable,
)

SLOTS = 4


class Puppet:
    """An engine that does what a call's body says, and remembers which calls it ended and which were cut short."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.cut: list[str] = []

    async def call(self, call: Call) -> Reply:
        wanted = {name: value for name, value in json.loads(call.body).items() if name not in ("template", "artwork")}
        try:
            reply = await self._do(call, **wanted)
        except asyncio.CancelledError:
            self.cut.append(call.request_id)
            raise
        self.ended.append(call.request_id)
        return reply

    async def _do(
        self,
        call: Call,
        *,
        sleep_s: float = 0.0,
        fail: str = "",
        reply_bytes: int = 0,
        ask: str = "",
        status: int = 200,
    ) -> Reply:
        await asyncio.sleep(sleep_s)
        if fail == "crash":
            raise ValueError("the puppet broke")
        if fail == "overload":
            raise Overloaded("the puppet is busy", retry_after_s=7.0)
        if fail == "timeout":
            raise asyncio.TimeoutError
        if fail == "cancelled":
            raise asyncio.CancelledError
        if ask == "pid":
            return Reply(200, json.dumps(os.getpid()).encode())
        if ask == "memory":
            return Reply(200, json.dumps({"ended": self.ended, "cut": self.cut}).encode())
        files = {name: base64.b64encode(data).decode() for name, data in call.files.items()}
        body = {"for": call.request_id, "tenant": call.tenant, "files": files}
        if reply_bytes:
            return Reply(status, call.request_id[:1].encode() * reply_bytes, "image/png", {"x-size": str(reply_bytes)})
        return Reply(status, json.dumps(body).encode(), headers={"x-request-id": call.request_id})


def order(name: str, deadline_s: float | None = 20.0, files: dict[str, bytes] | None = None, **body: Any) -> Call:
    """A call to the puppet."""
    body = {"template": "puppet", **{name: {"file": name} for name in files or {}}, **body}
    return Call("/v1/mockups", json.dumps(body).encode(), request_id=name, deadline_s=deadline_s, files=files or {})


async def read_all(trip: Trip) -> dict[int, Reply | CallError]:
    """Every answer of a trip. Fails if one comes twice."""
    answers: dict[int, Reply | CallError] = {}
    async for some in trip:
        assert some
        for index, answer in some:
            assert index not in answers
            answers[index] = answer
    return answers


class BackendContract:
    async def kill(self, backend: Backend) -> None:
        """Kill the replica of `puppet` as it works."""
        raise NotImplementedError

    async def memory(self, backend: Backend) -> dict[str, list[str]]:
        memory: dict[str, list[str]] = (await backend.call("puppet", order("ask", ask="memory"))).json()
        return memory

    async def cut_short(self, backend: Backend, *names: str) -> bool:
        """Whether these calls, and none else of this test, are cut short within a moment."""
        end = time.monotonic() + 10
        while time.monotonic() < end:
            cut = set((await self.memory(backend))["cut"])
            if set(names) <= cut:
                return True
            await asyncio.sleep(0.05)
        return False

    # --- one call ---

    async def test_a_reply_arrives_as_it_was_made(self, backend: Backend) -> None:
        reply = await backend.call("puppet", order("a1", status=404, files={"artwork": b"\x89\x00\xff"}))
        assert (reply.status, reply.content_type) == (404, "application/json")
        assert reply.headers == {"x-request-id": "a1"}
        assert reply.json() == {"for": "a1", "tenant": "", "files": {"artwork": "iQD/"}}

    async def test_a_reply_of_several_mebibytes_arrives_whole(self, backend: Backend) -> None:
        reply = await backend.call("puppet", order("big", reply_bytes=9 << 20))
        assert (reply.body, reply.headers["x-size"]) == (b"b" * (9 << 20), str(9 << 20))

    async def test_an_engines_refusal_arrives_as_it_was_raised(self, backend: Backend) -> None:
        with pytest.raises(Overloaded, match="the puppet is busy") as caught:
            await backend.call("puppet", order("a2", fail="overload"))
        assert caught.value.retry_after_s == 7.0

    async def test_a_call_that_ends_as_cancelled_in_the_replica_does_not_cancel_its_caller(
        self, backend: Backend
    ) -> None:
        with pytest.raises(ReplicaDied):
            await backend.call("puppet", order("a5", fail="cancelled"))

    async def test_a_call_past_its_deadline_is_cancelled_in_the_replica(self, backend: Backend) -> None:
        with pytest.raises(DeadlineExceeded, match=r"within 0\.3 s"):
            await backend.call("puppet", order("late", deadline_s=0.3, sleep_s=30))
        assert await self.cut_short(backend, "late")

    async def test_cancelling_the_caller_cancels_the_call_in_the_replica(self, backend: Backend) -> None:
        calling = asyncio.create_task(backend.call("puppet", order("left", sleep_s=30)))
        await asyncio.sleep(0.3)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert await self.cut_short(backend, "left")

    async def test_calls_cancelled_at_any_moment_leave_no_work_behind(self, backend: Backend) -> None:
        names = [f"any{n}" for n in range(40)]
        for turns, name in enumerate(names):
            calling = asyncio.create_task(backend.call("puppet", order(name, sleep_s=30)))
            for _ in range(turns):
                await asyncio.sleep(0)
            await asyncio.sleep(0.0005 * (turns % 7))
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
        # Were one of them still at work, it would hold a slot.
        replies = await asyncio.gather(*(backend.call("puppet", order("after", deadline_s=10)) for _ in range(SLOTS)))
        assert len(replies) == SLOTS
        slow = [backend.call("puppet", order("after", deadline_s=10, sleep_s=1)) for _ in range(SLOTS)]
        began = time.monotonic()
        await asyncio.gather(*slow)
        assert time.monotonic() - began < 8

    async def test_a_call_to_nobody_is_an_unknown_workload(self, backend: Backend) -> None:
        with pytest.raises(UnknownWorkload, match="nobody"):
            await backend.call("nobody", order("a6"))

    # --- several on one trip ---

    async def test_every_call_of_a_trip_is_answered_once_with_its_own_reply(self, backend: Backend) -> None:
        answers = await read_all(backend.call_many("puppet", [order(f"t{n}", status=200 + n) for n in range(SLOTS)]))
        assert {index: (a.status, a.json()["for"]) for index, a in answers.items() if isinstance(a, Reply)} == {
            n: (200 + n, f"t{n}") for n in range(SLOTS)
        }

    async def test_a_trip_of_more_calls_than_slots_is_answered_in_full(self, backend: Backend) -> None:
        answers = await read_all(backend.call_many("puppet", [order(f"m{n}") for n in range(5 * SLOTS)]))
        assert all(isinstance(answers[n], Reply) for n in range(5 * SLOTS))

    async def test_an_empty_trip_ends_at_once(self, backend: Backend) -> None:
        assert await read_all(backend.call_many("puppet", [])) == {}

    async def test_a_quick_call_does_not_wait_for_a_slow_one_on_the_same_trip(self, backend: Backend) -> None:
        trip = backend.call_many("puppet", [order("slow", sleep_s=2.0), order("quick")])
        began = time.monotonic()
        first = await trip.__anext__()
        assert [index for index, _ in first] == [1]
        assert time.monotonic() - began < 1.5
        assert [index for some in [await trip.__anext__()] for index, _ in some] == [0]
        with pytest.raises(StopAsyncIteration):
            await trip.__anext__()

    async def test_an_error_on_a_trip_is_the_answer_of_its_call_alone(self, backend: Backend) -> None:
        kinds = ("overload", "crash", "timeout", "cancelled", "")
        answers = await read_all(backend.call_many("puppet", [order(f"e-{kind}", fail=kind) for kind in kinds]))
        overload, crash, timeout, cancelled, fine = (answers[n] for n in range(5))
        assert isinstance(overload, Overloaded)
        assert (str(overload), overload.retry_after_s) == ("the puppet is busy", 7.0)
        assert isinstance(crash, WorkloadUnavailable)
        assert "the puppet broke" in str(crash)
        assert isinstance(timeout, WorkloadUnavailable)
        assert isinstance(cancelled, ReplicaDied)
        assert isinstance(fine, Reply)

    async def test_each_call_of_a_trip_has_its_own_deadline(self, backend: Backend) -> None:
        calls = [order("d-late", deadline_s=0.4, sleep_s=30), order("d-slow", sleep_s=1.0), order("d-quick")]
        answers = await read_all(backend.call_many("puppet", calls))
        assert isinstance(answers[0], DeadlineExceeded)
        assert isinstance(answers[1], Reply)
        assert isinstance(answers[2], Reply)
        assert await self.cut_short(backend, "d-late")

    async def test_a_trip_whose_deadlines_have_all_passed_ends(self, backend: Backend) -> None:
        calls = [order(f"dd{n}", deadline_s=0.3, sleep_s=30) for n in range(3)]
        answers = await read_all(backend.call_many("puppet", calls))
        assert [type(answers[n]) for n in range(3)] == [DeadlineExceeded] * 3
        assert await self.cut_short(backend, "dd0", "dd1", "dd2")

    async def test_an_abandoned_call_is_cancelled_and_the_others_go_on(self, backend: Backend) -> None:
        trip = backend.call_many("puppet", [order("left-alone", sleep_s=30), order("stays", sleep_s=1.0)])
        await asyncio.sleep(0.4)
        trip.abandon(0)
        answers = await read_all(trip)
        assert list(answers) == [1]
        assert isinstance(answers[1], Reply)
        assert await self.cut_short(backend, "left-alone")

    async def test_a_call_can_be_abandoned_before_its_trip_has_arrived(self, backend: Backend) -> None:
        trip = backend.call_many("puppet", [order("never", sleep_s=30), order("still")])
        trip.abandon(0)
        assert list(await read_all(trip)) == [1]
        assert "never" not in (await self.memory(backend))["ended"]

    async def test_closing_a_trip_cancels_what_is_not_answered(self, backend: Backend) -> None:
        trip = backend.call_many("puppet", [order("c0"), order("c1", sleep_s=30), order("c2", sleep_s=30)])
        assert [index for index, _ in await trip.__anext__()] == [0]
        await trip.aclose()
        assert await self.cut_short(backend, "c1", "c2")

    async def test_a_trip_closed_at_any_moment_leaves_no_work_behind(self, backend: Backend) -> None:
        for turns in range(40):
            trip = backend.call_many("puppet", [order(f"x{turns}", sleep_s=30), order(f"y{turns}", sleep_s=30)])
            for _ in range(turns):
                await asyncio.sleep(0)
            await asyncio.sleep(0.0005 * (turns % 7))
            await trip.aclose()
        slow = [order("after", deadline_s=10, sleep_s=1) for _ in range(SLOTS)]
        answers = await read_all(backend.call_many("puppet", slow))
        assert all(isinstance(answers[n], Reply) for n in range(SLOTS))

    async def test_large_replies_come_back_from_a_trip_whole(self, backend: Backend) -> None:
        calls = [order(f"{letter}-large", reply_bytes=5 << 20) for letter in "abc"]
        answers = await read_all(backend.call_many("puppet", calls))
        bodies = [answer.body for _, answer in sorted(answers.items()) if isinstance(answer, Reply)]
        assert bodies == [letter * (5 << 20) for letter in (b"a", b"b", b"c")]

    async def test_a_trip_to_nobody_answers_each_with_an_unknown_workload(self, backend: Backend) -> None:
        answers = await read_all(backend.call_many("nobody", [order("n0"), order("n1")]))
        assert [type(answers[n]) for n in range(2)] == [UnknownWorkload] * 2

    async def test_many_trips_and_calls_at_once_mix_nothing_up(self, backend: Backend) -> None:
        async def trip(number: int) -> None:
            calls = [order(f"{number}.{n}", sleep_s=0.01 * (n % 3)) for n in range(3)]
            answers = await read_all(backend.call_many("puppet", calls))
            assert [a.json()["for"] for _, a in sorted(answers.items()) if isinstance(a, Reply)] == [
                f"{number}.{n}" for n in range(3)
            ]

        async def call(number: int) -> None:
            assert (await backend.call("puppet", order(f"alone.{number}"))).json()["for"] == f"alone.{number}"

        await asyncio.gather(*(trip(n) for n in range(30)), *(call(n) for n in range(30)))

    # --- a replica's end ---

    async def test_a_killed_replica_takes_its_calls_along_and_says_so(self, backend: Backend) -> None:
        alone = asyncio.create_task(backend.call("puppet", order("k-alone", sleep_s=30)))
        trip = backend.call_many("puppet", [order("k0"), order("k1", sleep_s=30), order("k2", sleep_s=30)])
        assert [index for index, _ in await trip.__anext__()] == [0]
        await asyncio.sleep(0.3)
        await self.kill(backend)
        answers = await read_all(trip)
        assert {index: type(answer) for index, answer in answers.items()} == {1: ReplicaDied, 2: ReplicaDied}
        with pytest.raises(ReplicaDied):
            await alone
        end = time.monotonic() + 60
        while True:
            try:
                assert (await backend.call("puppet", order("again"))).ok
                break
            except CotenantError:
                assert time.monotonic() < end
                await asyncio.sleep(0.2)
