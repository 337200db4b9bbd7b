"""The scaler as it runs: doors tell it, Serve's controller asks it, replicas come and go. Real Ray, Serve and ingress.

The workload is a small deployment that only sleeps; it books a GPU share and is scaled as the Serve config says.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from cotenant.calls import Call, Directory, Reply, Served
from cotenant.calls.counted import CountedBackend
from cotenant.config import Jobs, Platform
from cotenant.gpu.plan import plan
from cotenant.jobs.queue.source import Message
from cotenant.manifests.pools import node_resources
from cotenant.manifests.scaling import scaling_terms
from cotenant.manifests.serve import serve_config
from tests.contracts.jobs_house import render

# One loop for all: a Serve handle belongs to the one that it was first used in.
pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
#: `scripts/test` builds images beside it.
WAITS_FOR_RAY = True

PLATFORM = Platform.model_validate(
    {
        "environment": "test",
        "workloads": {
            "mockups": {
                "mockup": {"templates": ["mug"]},
                "gpu": {"vram_gib": 2},
                "cpus": 0.1,
                "target_wait_s": 1,
                "replicas": {"min": 0, "max": 4},
            }
        },
        "pools": {"shared": {"accelerator": "cpu", "vram_gib": 12}},
    }
)
DIRECTORY = Directory((Served("mockups", "mockup", templates=("mug",), slots=2, deadline_s=60, queue=64),))


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    import ray
    from ray import serve

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COTENANT_JOBS_SOURCE", "memory")
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(
            address="local",
            num_cpus=4,
            num_gpus=1,
            resources=node_resources(PLATFORM, "shared"),
            include_dashboard=False,
            log_to_driver=False,
        )
        serve.start(proxy_location="Disabled")
        serve.run(_workload(serve), name="mockups", route_prefix=None, blocking=False)
        yield serve
        serve.shutdown()
        ray.shutdown()


def terms() -> dict[str, Any]:
    """What the doors tell the scaler; replicas that only sleep start in seconds, and go soon."""
    told = scaling_terms(PLATFORM, plan(PLATFORM))
    return {**told, "workloads": [{**one, "share_s": 0.5, "node_s": 1.0} for one in told["workloads"]]}


def _workload(serve: Any) -> Any:
    class Replica:
        """Sleeps for as long as a body's `sleep_s` says."""

        async def call(self, call: Any) -> Any:
            await asyncio.sleep(json.loads(call.body).get("sleep_s", 0))
            return Reply(200, b"{}")

    config = serve_config(PLATFORM, plan(PLATFORM))
    (settings,) = next(app for app in config["applications"] if app["name"] == "mockups")["deployments"]
    return serve.deployment(
        Replica,
        name="Replica",
        max_ongoing_requests=settings["max_ongoing_requests"],
        ray_actor_options=settings["ray_actor_options"],
        autoscaling_config=settings["autoscaling_config"],
        graceful_shutdown_timeout_s=30,
        graceful_shutdown_wait_loop_s=0.1,
    ).bind()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(serve: Any) -> AsyncIterator[CountedBackend]:
    """What a gateway has of the platform."""
    from deployments.backend import ServeBackend
    from deployments.demand import DemandTeller
    from deployments.gate import Gate

    backend = ServeBackend(relay_host="127.0.0.1", gate=Gate(lambda: teller.heard, lambda name: 64))
    counted = CountedBackend(backend, has_room=lambda name, sent: sent < 2 * teller.running(name))
    teller = DemandTeller("gateway", counted.asked)
    teller.scale(terms())
    teller.start()
    await until(lambda: teller.heard)
    yield counted
    teller.stop()
    await backend.close()


async def until(condition: Callable[[], Any], within_s: float = 180) -> Any:
    loop = asyncio.get_running_loop()
    end = loop.time() + within_s
    while True:
        value = await asyncio.to_thread(condition)
        if value:
            return value
        assert loop.time() < end, "it did not come true in time"
        await asyncio.sleep(0.05)


def look() -> dict[str, Any]:
    """The scaler's last decision."""
    import ray

    from deployments.scaler import find_scaler

    decisions: dict[str, dict[str, Any]] = ray.get(find_scaler().look.remote(), timeout=10)
    return decisions.get("mockups", {})


def changes() -> list[dict[str, Any]]:
    """What the scaler has changed so far."""
    import ray

    from deployments.scaler import find_scaler

    told: list[dict[str, Any]] = ray.get(find_scaler().changes.remote(), timeout=10)
    return told


def running(serve: Any) -> int:
    states = serve.status().applications["mockups"].deployments["Replica"].replica_states
    return sum(count for state, count in states.items() if getattr(state, "value", state) == "RUNNING")


def call(sleep_s: float) -> Call:
    return Call("/v1/mockups", json.dumps({"sleep_s": sleep_s}).encode(), deadline_s=60.0)


async def test_from_zero_to_as_many_as_what_waits_needs_and_back_to_zero(serve: Any, door: CountedBackend) -> None:
    await until(lambda: look().get("replicas") == 0 and running(serve) == 0)
    known = len(changes())
    calls = [asyncio.create_task(door.call("mockups", call(2.0))) for _ in range(24)]
    # More than one is asked for before any runs: Serve by itself would start one and wait for it.
    first = (await until(lambda: changes()[known:]))[0]
    assert (first["before"], first["replicas"] > 1) == (0, True)
    replies = await asyncio.gather(*calls)
    assert {reply.status for reply in replies} == {200}
    assert look()["service_s"] == 0 or look()["service_s"] > 1.5
    await until(lambda: look()["replicas"] == 0 and running(serve) == 0)


async def test_where_no_scaler_is_heard_serve_brings_a_replica_by_itself(serve: Any) -> None:
    from deployments.backend import ServeBackend
    from deployments.gate import Gate

    await until(lambda: running(serve) == 0)
    backend = ServeBackend(relay_host="127.0.0.1", gate=Gate(lambda: False, lambda name: 64))
    assert (await backend.call("mockups", call(0.0))).status == 200
    await backend.close()


async def test_a_scaler_that_dies_comes_back_and_nothing_goes_meanwhile(serve: Any, door: CountedBackend) -> None:
    import ray

    from deployments.scaler import find_scaler

    first = asyncio.create_task(door.call("mockups", call(1.0)))
    await until(lambda: running(serve) >= 1)
    pid = ray.get(find_scaler().pid.remote())
    long = asyncio.create_task(door.call("mockups", call(8.0)))
    await asyncio.sleep(0.5)
    ray.kill(find_scaler(), no_restart=False)

    def another() -> bool:
        try:
            return bool(ray.get(find_scaler().pid.remote(), timeout=10) != pid)
        except (ray.exceptions.RayError, ValueError):
            return False

    await until(another)
    await until(lambda: look().get("running") == 1)
    assert running(serve) >= 1
    assert {(await first).status, (await long).status} == {200}


async def test_jobs_in_the_queue_bring_replicas_and_none_is_lost(serve: Any, tmp_path: Path) -> None:
    from ray.serve._private.api import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    jobs = Jobs(store=str(tmp_path / "results"), lease_s=10)
    user_config = {"workloads": DIRECTORY.to_plain(), "scaling": terms()}
    config = {
        "proxy_location": "Disabled",
        "applications": [
            {
                "name": "ingress",
                "route_prefix": None,
                "import_path": "deployments.ingress:build",
                "args": {"jobs": jobs.model_dump(mode="json")},
                "deployments": [{"name": "Ingress", "user_config": user_config}],
            }
        ],
    }
    client = _get_global_client()
    await asyncio.to_thread(client.deploy_apps, ServeDeploySchema.model_validate(config), _blocking=True)
    ingress = serve.get_app_handle("ingress")
    await until(lambda: running(serve) == 0)
    messages = [Message(json.dumps(render(f"r{n}", sleep_s=1.0)).encode()) for n in range(40)]
    await asyncio.to_thread(lambda: ingress.submit.remote(jobs.topic, messages).result(timeout_s=30))
    most = 0

    def all_done() -> bool:
        nonlocal most
        most = max(most, running(serve))
        return bool(ingress.stats.remote().result(timeout_s=30)["settled"].get("done") == 40)

    await until(all_done)
    assert most > 1
    await asyncio.to_thread(client.deploy_apps, ServeDeploySchema.model_validate({**config, "applications": []}))


# --- what needs no cluster ----------------------------------------------------------------------------------


class _Context:
    def __init__(self, current: int, target: int, requests: int = 0) -> None:
        self.current_num_replicas, self.target_num_replicas, self.total_num_requests = current, target, requests


def test_the_policy_says_what_is_known_keeps_what_is_there_else_and_never_zero_while_requests_wait(
    caplog: pytest.LogCaptureFixture,
) -> None:
    from deployments.policy import Policy

    policy, told = object.__new__(Policy), list[Any]()
    policy._name, policy._failed = "w", False

    class Link:
        answer: Any = 3

        def exchange(self, name: str, running: int, target: int) -> int | None:
            told.append((name, running, target))
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer  # type: ignore[no-any-return]

    policy._link = link = Link()  # type: ignore[assignment]
    assert policy(_Context(1, 2)) == (3, {})
    assert told == [("w", 1, 2)]
    link.answer = None
    assert policy(_Context(1, 2)) == (2, {})
    link.answer = 0
    assert policy(_Context(1, 1)) == (0, {})
    assert policy(_Context(0, 0, requests=1)) == (1, {})
    link.answer = RuntimeError("broken")
    assert [policy(_Context(1, 2)), policy(_Context(1, 2))] == [(2, {}), (2, {})]
    assert [record.message for record in caplog.records] == ["the policy of w failed; its replicas stay as they are"]


async def test_at_the_gate_calls_wait_for_a_replica_no_more_than_may_and_no_longer_than_somebody_hears() -> None:
    from cotenant.errors import Overloaded
    from deployments.gate import Gate

    serves, heard = False, True
    gate = Gate(lambda: heard, lambda name: 2)
    waiting = [asyncio.create_task(gate.passed("w", lambda: serves)) for _ in range(2)]
    await asyncio.sleep(0.1)
    assert not any(task.done() for task in waiting)
    with pytest.raises(Overloaded, match="w has no replica yet and 2 requests waiting"):
        await gate.passed("w", lambda: serves)
    waiting[0].cancel()
    await asyncio.wait([waiting[0]])
    third = asyncio.create_task(gate.passed("w", lambda: serves))
    await asyncio.sleep(0.1)
    serves = True
    await asyncio.gather(waiting[1], third)
    serves = False
    forth = asyncio.create_task(gate.passed("w", lambda: serves))
    await asyncio.sleep(0.1)
    heard = False
    await forth
