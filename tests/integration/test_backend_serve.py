"""The backend over Serve: the contract that it shares with the in-memory one, with real replicas behind it.

Twice: with calls by Serve's gRPC, as in a cluster whose message limit is raised, and by Ray's actors, as elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from cotenant.agent.node import Obituary
from cotenant.calls import Backend, Call, Reply
from cotenant.errors import BudgetExceeded, Overloaded, WorkloadUnavailable
from tests.contracts.backend import SLOTS, BackendContract, Puppet, order, read_all

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def serve() -> Iterator[Any]:
    """A Ray of our own with a puppet, one that takes one call at a time and lets one wait, and a pair of them."""
    limit = "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv(limit, str(1 << 30))
        import ray
        from ray import serve
        from ray.serve._private.request_router import replica_wrapper

        patch.setattr(replica_wrapper, limit, 1 << 30)
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
        serve.start(proxy_location="Disabled")
        serve.run(_puppet(max_ongoing_requests=SLOTS), name="puppet", route_prefix=None)
        serve.run(_puppet(max_ongoing_requests=1, max_queued_requests=1), name="narrow", route_prefix=None)
        serve.run(_puppet(max_ongoing_requests=SLOTS, num_replicas=2), name="pair", route_prefix=None)
        serve.run(_door(), name="door", route_prefix=None)
        yield serve
        serve.shutdown()
        ray.shutdown()


def _puppet(**options: Any) -> Any:
    from ray import serve

    from deployments.replica import DEPLOYMENT, Answering

    class Replica(Answering):
        def __init__(self) -> None:
            super().__init__()
            self._puppet = Puppet()

        async def call(self, call: Call) -> Reply:
            if call.url == "/actor":
                import ray

                return Reply(200, ray.get_runtime_context().get_actor_id().encode())
            return await self._puppet.call(call)

    return serve.deployment(
        Replica, name="Replica", health_check_period_s=1, ray_actor_options={"num_cpus": 0.1}, **DEPLOYMENT, **options
    ).bind()


def _door() -> Any:
    from ray import serve

    from deployments.backend import ServeBackend

    class Door:
        """Makes all its calls inside of one Serve request."""

        async def ask(self, count: int) -> int:
            backend = ServeBackend()
            calls = (backend.call("pair", order(f"door{n}", sleep_s=0.05)) for n in range(count))
            return sum(reply.ok for reply in await asyncio.gather(*calls))

    return serve.deployment(Door, ray_actor_options={"num_cpus": 0.1}).bind()


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=["gRPC", "actors"])
async def backend(serve: Any, request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    from deployments import handles
    from deployments.backend import ServeBackend

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handles, "LIMIT_BYTES", 1 << 30 if request.param == "gRPC" else 4 << 20)
        backend = ServeBackend()
        yield backend
        await backend.close()


async def pid_of(backend: Backend) -> int:
    return int((await backend.call("puppet", order("pid", ask="pid"))).json())


async def test_calls_made_inside_of_one_serve_request_are_all_answered(serve: Any) -> None:
    door = serve.get_app_handle("door")
    assert await asyncio.wait_for(door.ask.remote(24), 30) == 24


class TestServeBackend(BackendContract):
    async def kill(self, backend: Backend) -> None:
        os.kill(await pid_of(backend), signal.SIGKILL)

    async def test_an_engines_crash_is_an_unavailable_workload(self, backend: Backend) -> None:
        with pytest.raises(WorkloadUnavailable, match="the puppet broke"):
            await backend.call("puppet", order("a3", fail="crash"))

    async def test_an_engines_own_timeout_is_not_taken_for_the_callers_deadline(self, backend: Backend) -> None:
        with pytest.raises(WorkloadUnavailable):
            await backend.call("puppet", order("a4", fail="timeout"))

    async def test_calls_and_trips_of_a_replica_stopped_past_its_budget_say_why(self, backend: Backend) -> None:
        from deployments import obituaries

        alone = asyncio.create_task(backend.call("puppet", order("b-alone", sleep_s=30)))
        trip = backend.call_many("puppet", [order("b0", sleep_s=30), order("b1", sleep_s=30)])
        await asyncio.sleep(0.5)
        actor_id = (await backend.call("puppet", Call("/actor"))).body.decode()
        pid = await pid_of(backend)
        obituary = Obituary(
            application="puppet",
            deployment="Replica",
            replica="r",
            actor_id=actor_id,
            node_id="n",
            pid=pid,
            workload="puppet",
            gpu="0",
            held_mib=9 << 10,
            may_mib=2 << 10,
            budget_mib=2 << 10,
            past_budget=True,
            at=time.time(),
            text="puppet held 9 of 2 GiB and was stopped",
        )
        await asyncio.to_thread(obituaries.write, obituary)
        os.kill(pid, signal.SIGKILL)
        answers = await read_all(trip)
        assert {index: type(answer) for index, answer in answers.items()} == {0: BudgetExceeded, 1: BudgetExceeded}
        assert "was stopped" in str(answers[0])
        with pytest.raises(BudgetExceeded, match="was stopped"):
            await alone

    async def test_a_trip_that_finds_the_queue_full_is_refused_call_by_call(self, backend: Backend) -> None:
        waiting = []
        for number in range(2):
            waiting.append(asyncio.create_task(backend.call("narrow", order(f"w{number}", sleep_s=2.0))))
            await asyncio.sleep(0.3)
        answers = await read_all(backend.call_many("narrow", [order("r0"), order("r1")]))
        assert [type(answers[n]) for n in range(2)] == [Overloaded, Overloaded]
        assert all(reply.ok for reply in await asyncio.gather(*waiting))

    async def test_calls_go_to_the_replica_with_less_work_however_it_is_packed(self, backend: Backend) -> None:
        whole = backend.call_many("pair", [order(f"p{n}", sleep_s=3.0) for n in range(SLOTS)])
        await asyncio.sleep(0.5)
        mixed = backend.call_many("pair", [order("q0", sleep_s=3.0), *(order(f"q{n}") for n in range(1, SLOTS))])
        quick = 0
        while quick < SLOTS - 1:
            quick += len(await mixed.__anext__())
        # One replica works on a full trip, the other on a single call: three more go to that one.
        asks = [await backend.call("pair", order(f"r{n}", ask="memory")) for n in range(3)]
        assert [{"q1", "q2", "q3"} <= set(ask.json()["ended"]) for ask in asks] == [True] * 3
        more = [asyncio.create_task(backend.call("pair", order(f"s{n}", sleep_s=2.0))) for n in range(3)]
        assert {n: a.ok for n, a in (await read_all(whole)).items() if isinstance(a, Reply)} == dict.fromkeys(
            range(SLOTS), True
        )
        assert list(await read_all(mixed)) == [0]
        assert all(reply.ok for reply in await asyncio.gather(*more))
        # Nothing is under way now, so both take their turn again.
        pids = [(await backend.call("pair", order(f"t{n}", ask="pid"))).json() for n in range(24)]
        assert len(set(pids)) == 2
