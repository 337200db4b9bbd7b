"""The ingress as Serve runs it: started from its config, fed through its handle, reconfigured, killed, drained.

The workloads behind it are small deployments that only answer; the engines have tests of their own.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from cotenant.calls import Directory, Reply
from cotenant.cli.machine.state import RunState
from cotenant.config import Jobs
from cotenant.jobs.collecting import collect
from cotenant.jobs.queue.source import Message
from cotenant.jobs.reading import read_jobs
from cotenant.jobs.store.results import open_store
from tests.contracts.jobs_house import DIRECTORY, chat, render
from tests.contracts.published_batch import publish_batch

pytestmark = pytest.mark.integration
#: `scripts/test` builds images beside it.
WAITS_FOR_RAY = True


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Ray of our own with the two workloads."""
    import ray
    from ray import serve

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COTENANT_JOBS_SOURCE", "memory")
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
        serve.start(proxy_location="Disabled")
        for name in ("writer", "mockups"):
            serve.run(_workload(serve), name=name, route_prefix=None)
        yield serve
        serve.shutdown()
        ray.shutdown()


def _workload(serve: Any) -> Any:
    class Replica:
        """Answers with its own pid; a body with `sleep_s` takes that long, one with `die_once` kills it once."""

        async def call(self, call: Any) -> Any:
            body = json.loads(call.body)
            if (marker := body.get("die_once")) and not os.path.exists(marker):  # noqa: PTH110
                open(marker, "w").close()  # noqa: ASYNC230, PTH123
                os.kill(os.getpid(), signal.SIGKILL)
            await asyncio.sleep(body.get("sleep_s", 0))
            return Reply(200, json.dumps({"pid": os.getpid()}).encode())

    return serve.deployment(
        Replica, name="Replica", max_ongoing_requests=4, health_check_period_s=1, ray_actor_options={"num_cpus": 0.1}
    ).bind()


def deploy(jobs: Jobs | None, directory: Any = DIRECTORY) -> None:
    """Deploy the ingress as `serve deploy` does, or with None delete it."""
    from ray.serve._private.api import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    config: dict[str, Any] = {"proxy_location": "Disabled", "applications": []}
    if jobs is not None:
        served = [
            {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(w).items()} for w in directory.workloads
        ]
        config["applications"] = [
            {
                "name": "ingress",
                "route_prefix": None,
                "import_path": "deployments.ingress:build",
                "args": {"jobs": jobs.model_dump(mode="json")},
                "deployments": [{"name": "Ingress", "user_config": {"workloads": served}}],
            }
        ]
    client = _get_global_client()
    client.deploy_apps(ServeDeploySchema.model_validate(config), _blocking=jobs is not None)


def wait_for(condition: Callable[[], Any], within_s: float = 60) -> Any:
    end = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.1)


def apps(serve: Any) -> dict[str, str]:
    return {name: app.status.value for name, app in serve.status().applications.items()}


async def test_jobs_go_through_the_ingress_and_survive_its_workload(serve: Any, tmp_path: Path) -> None:
    jobs = Jobs(store=str(tmp_path / "results"), lease_s=10)
    await asyncio.to_thread(deploy, jobs)
    await asyncio.to_thread(wait_for, lambda: apps(serve).get("ingress") == "RUNNING")
    ingress = serve.get_app_handle("ingress")
    store = open_store(jobs.store)

    async def publish(messages: Any) -> None:
        await asyncio.to_thread(lambda: ingress.submit.remote(jobs.topic, list(messages)).result(timeout_s=30))

    marker = str(tmp_path / "died")
    lines = [json.dumps(chat(f"c{n}") if n % 2 else render(f"r{n}")).encode() for n in range(20)]
    lines.append(json.dumps(chat("deadly", die_once=marker)).encode())
    batch = read_jobs(lines, "jobs.jsonl", tenant="acme", batch="b1")
    await publish_batch(batch, store, publish)
    output: list[bytes] = []
    collected = await collect(store, output.append, tenant="acme", batch="b1", timeout_s=60)
    assert (collected.written, collected.failed, collected.missing) == (21, 0, ())
    assert Path(marker).exists()

    # A result is there before its message is acknowledged and counted.
    def settled() -> Any:
        counts = ingress.stats.remote().result(timeout_s=30)["settled"]
        return counts if counts.get("done", 0) >= 21 else None

    counts = await asyncio.to_thread(wait_for, settled)
    assert counts["done"] == 21
    assert counts["replica_died"] >= 1

    # Another workload list: in place, the same process goes on.
    def slots(count: int) -> Any:
        stats = ingress.stats.remote().result(timeout_s=30)
        return stats if stats["slots"] == count else None

    before = await asyncio.to_thread(wait_for, lambda: slots(6))
    await asyncio.to_thread(deploy, jobs, Directory(DIRECTORY.workloads[:1]))
    after = await asyncio.to_thread(wait_for, lambda: slots(4))
    assert after["settled"] == before["settled"]

    # A drain lets what runs finish.
    slow = read_jobs([json.dumps(chat("slow", sleep_s=4)).encode()], "jobs.jsonl", tenant="acme", batch="b2")
    await publish_batch(slow, store, publish)
    await asyncio.to_thread(
        wait_for, lambda: ingress.stats.remote().result(timeout_s=30)["running_by_workload"].get("writer") == 1
    )
    await asyncio.to_thread(deploy, None)
    await asyncio.to_thread(wait_for, lambda: "ingress" not in apps(serve))
    assert await store.result(slow[0].identity) is not None


PLATFORM = """
workloads:
  mockups: {mockup: {templates: [mug]}, gpu: {vram_gib: 1}}
  writer: {llm: {model: tiny}, gpu: {vram_gib: 2}}
environments: {local: {pools: {shared: {accelerator: cpu, vram_gib: 12}}}}
"""


def test_the_commands_reach_an_ingress_that_holds_jobs_in_memory(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("COTENANT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    (tmp_path / "platform.yaml").write_text(PLATFORM)
    token = Path.home() / ".ray" / "auth_token"
    store = str(tmp_path / "results")
    RunState(
        platform="cotenant",
        environment="local",
        dashboard="",
        token_file=str(token) if token.exists() else None,
        ray=None,
        ray_dir=None,
        ray_address=ray.get_runtime_context().gcs_address,
        emulator=None,
        pubsub_emulator_host=None,
        store=store,
        gateway_url="",
    ).save()
    deploy(Jobs(store=store, lease_s=10))
    wait_for(lambda: apps(serve).get("ingress") == "RUNNING")

    def cotenant(*arguments: str) -> str:
        command = [sys.executable, "-c", "from cotenant.cli import main; main()", *arguments]
        done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    (tmp_path / "jobs.jsonl").write_text("\n".join(json.dumps(chat(f"c{n}")) for n in range(5)))
    batch, *ids = cotenant("submit", "-f", "platform.yaml", "jobs.jsonl").splitlines()
    assert len(ids) == 5
    lines = cotenant("results", "-f", "platform.yaml", batch, "--timeout", "60").splitlines()
    assert [json.loads(line)["response"]["status_code"] for line in lines] == [200] * 5
    deploy(None)
    wait_for(lambda: "ingress" not in apps(serve))


async def test_a_job_for_nobody_is_a_dead_letter_while_others_are_served(serve: Any, tmp_path: Path) -> None:
    jobs = Jobs(store=str(tmp_path / "results"), lease_s=10)
    await asyncio.to_thread(deploy, jobs)
    await asyncio.to_thread(wait_for, lambda: apps(serve).get("ingress") == "RUNNING")
    ingress = serve.get_app_handle("ingress")
    messages = [Message(json.dumps(chat("x", model="nobody")).encode()), Message(b"{")]
    await asyncio.to_thread(lambda: ingress.submit.remote(jobs.topic, messages).result(timeout_s=30))
    settled = await asyncio.to_thread(
        wait_for, lambda: len(s := ingress.stats.remote().result(timeout_s=30)["settled"]) == 2 and s
    )
    assert settled == {"unknown_workload": 1, "malformed": 1}
    await asyncio.to_thread(deploy, None)
    await asyncio.to_thread(wait_for, lambda: "ingress" not in apps(serve))
