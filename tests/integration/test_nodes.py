"""Nodes that come and go: Ray's own autoscaler makes them on this machine, the Serve config is the platform's own."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cotenant.config import Platform, load_platform
from cotenant.gpu.plan import plan
from cotenant.jobs.collecting import collect
from cotenant.jobs.reading import read_jobs
from cotenant.jobs.store.results import open_store
from cotenant.manifests.nodes import headroom_terms
from cotenant.manifests.pools import POOL_RESOURCE_PER_NODE, pool_resource
from cotenant.manifests.serve import serve_config
from tests.contracts.autoscaling_ray import NodeType, autoscaling_ray
from tests.contracts.metadata_server import MetadataServer, metadata_server
from tests.contracts.published_batch import publish_batch

pytestmark = [pytest.mark.integration, pytest.mark.timeout(420)]
#: `scripts/test` builds images beside it.
WAITS_FOR_RAY = True

#: One renderer that runs only while there is work, and the doors on a pool that is always there.
PLATFORM = """
workloads:
  mugs:
    mockup: {{templates: [mug], variant: scalar}}
    gpu: {{vram_gib: 2}}
    cpus: 0.5
    replicas: {{min: {least}, max: 1}}
jobs: {{store: {store}, lease_s: 10, drain_s: 5}}
environments:
  local:
    pools:
      front: {{machine: e2-standard-4, nodes: {{min: 1, max: 1}}}}
      shared: {{accelerator: cpu, vram_gib: 8, nodes: {{max: 2, spare: {spare}}}}}
"""
WITHIN_S = 150.0
#: Short enough to see a node go, and longer than headroom takes to be asked again.
IDLE_S = 5.0


def platform_of(folder: Path, *, spare: int, replicas_min: int = 0) -> Platform:
    file = folder / "platform.yaml"
    file.write_text(PLATFORM.format(store=folder / "results", spare=spare, least=replicas_min))
    return load_platform(file, "local")


@contextmanager
def cluster(*, v2: bool = True, **environment: str) -> Iterator[Any]:
    """Ray on a head that is the front pool, connected; its autoscaler can make the nodes of pool `shared`."""
    import ray
    import ray.autoscaler.v2.utils as generation

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        # What Ray remembers in this process of another cluster's autoscaler.
        patch.setattr(generation, "cached_is_autoscaler_v2", None)
        head = {"CPU": 2.0, pool_resource("front"): POOL_RESOURCE_PER_NODE}
        shared = NodeType({"CPU": 2.0, "GPU": 1.0, pool_resource("shared"): POOL_RESOURCE_PER_NODE}, max=2)
        ours = {"COTENANT_JOBS_SOURCE": "memory", **environment}
        with autoscaling_ray(head, {"shared": shared}, idle_s=IDLE_S, v2=v2, environment=ours) as address:
            ray.init(address=address, log_to_driver=False, namespace="test")
            try:
                yield ray
            finally:
                ray.shutdown()


@pytest.fixture(scope="module")
def machines() -> Iterator[MetadataServer]:
    """What tells every machine of the cluster whether it is to be preempted."""
    with metadata_server() as server:
        yield server


@pytest.fixture(scope="module")
def serving(machines: MetadataServer) -> Iterator[Any]:
    """A cluster under the second generation of autoscalers, and Serve on it."""
    with cluster(GCE_METADATA_HOST=machines.host) as ray:
        from ray import serve

        serve.start(proxy_location="Disabled")
        yield ray
        serve.shutdown()


def gpus(ray: Any) -> int:
    """GPUs of nodes that are alive; those nodes have one each."""
    return round(sum(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]))


def wait_for(condition: Callable[[], Any], *, meanwhile: Callable[[], None] = lambda: None) -> Any:
    end = time.monotonic() + WITHIN_S
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come true in time"
        meanwhile()
        time.sleep(0.5)
    return value


def keeper(platform: Platform, state: Any = None) -> tuple[Any, Callable[[], None]]:
    """Headroom for the platform's pools, and what has it look once."""
    from deployments.headroom import Headroom

    headroom = Headroom(headroom_terms(platform, plan(platform)), state=state)
    return headroom, lambda: headroom.keep(time.time())


def a_spare_node_comes_stays_and_goes(ray: Any, folder: Path) -> None:
    headroom, keep = keeper(platform_of(folder, spare=1))
    assert gpus(ray) == 0
    wait_for(lambda: gpus(ray) == 1, meanwhile=keep)
    # It stays, idle for longer than idle nodes may.
    end = time.monotonic() + 2 * IDLE_S
    while time.monotonic() < end:
        keep()
        assert gpus(ray) == 1
        time.sleep(0.5)
    # The file has no spare nodes any more.
    _, keep = keeper(platform_of(folder, spare=0), headroom.state())
    wait_for(lambda: gpus(ray) == 0, meanwhile=keep)


def test_a_spare_node_comes_stays_and_goes_with_the_first_generation_of_autoscalers(tmp_path: Path) -> None:
    with cluster(v2=False) as ray:
        a_spare_node_comes_stays_and_goes(ray, tmp_path)


def test_a_spare_node_is_there_before_anything_needs_it_and_goes_when_it_is_not_wanted(
    serving: Any, tmp_path: Path
) -> None:
    a_spare_node_comes_stays_and_goes(serving, tmp_path)


def test_a_job_makes_a_node_come_from_none_and_the_node_goes_when_the_job_is_done(serving: Any, tmp_path: Path) -> None:
    from ray import serve

    platform = platform_of(tmp_path, spare=0)
    store = open_store(platform.jobs.store)
    deploy(platform)
    wait_for(lambda: serve.status().applications["ingress"].status == "RUNNING")
    assert gpus(serving) == 0

    line = {"custom_id": "m1", "method": "POST", "url": "/v1/mockups", "body": mug()}
    jobs = read_jobs([json.dumps(line).encode()], "jobs.jsonl", tenant="acme", batch="b1")
    ingress = serve.get_app_handle("ingress")

    async def publish(messages: Any) -> None:
        submitting = ingress.submit.remote(platform.jobs.topic, list(messages))
        await asyncio.to_thread(submitting.result, timeout_s=30)

    asyncio.run(publish_batch(jobs, store, publish))
    wait_for(lambda: gpus(serving) == 1)
    wait_for(lambda: asyncio.run(store.result(jobs[0].identity)))
    output: list[bytes] = []
    asyncio.run(collect(store, output.append, tenant="acme", batch="b1", timeout_s=10))
    assert json.loads(output[0])["response"]["status_code"] == 200
    wait_for(lambda: gpus(serving) == 0)


def test_a_node_that_is_to_be_preempted_is_drained_and_its_replica_moves_to_another(
    serving: Any, machines: MetadataServer, tmp_path: Path
) -> None:
    deploy(platform_of(tmp_path, spare=0, replicas_min=1))
    first = wait_for(home_of_mugs)
    # The agent of that node has looked, and waits.
    wait_for(lambda: any("wait_for_change" in path for path in machines.asked))
    machines.preempt()
    wait_for(lambda: "TRUE" in machines.told)
    # Only that machine: the next node's agent asks the same server.
    machines.preempt("FALSE")
    second = wait_for(lambda: (home := home_of_mugs()) != first and home)
    assert second in alive(serving)
    # Ray ends a node that drains as soon as nothing is on it any more, or when its time is up.
    wait_for(lambda: first not in alive(serving))


def test_a_node_that_leaves_waits_for_its_replica_to_move(serving: Any, tmp_path: Path) -> None:
    deploy(platform_of(tmp_path, spare=0, replicas_min=1))
    first = wait_for(home_of_mugs)
    leave = [sys.executable, "-m", "deployments.leave", "--within", "100", "--node", first]
    address = {"RAY_ADDRESS": serving.get_runtime_context().gcs_address}
    left = subprocess.run(
        leave, env={**os.environ, **address}, capture_output=True, text=True, check=False, timeout=150
    )
    assert left.returncode == 0, left.stderr
    assert '"node_left"' in left.stderr and '"empty": true' in left.stderr, left.stderr
    # It waited until the replica was gone from there, and another one runs.
    assert wait_for(lambda: (home := home_of_mugs()) != first and home) in alive(serving)


def alive(ray: Any) -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def deploy(platform: Platform) -> None:
    """The platform's config as `serve deploy` takes it, without its HTTP door, and quicker to let a replica go."""
    from ray.serve._private.api import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    config = serve_config(platform, plan(platform))
    config["applications"] = [each for each in config["applications"] if each["name"] != "gateway"]
    # A renderer on made-up nodes is soon there, so it is not kept for long.
    (ingress,) = next(each for each in config["applications"] if each["name"] == "ingress")["deployments"]
    for workload in ingress["user_config"]["scaling"]["workloads"]:
        workload |= {"share_s": 0.5, "node_s": 1.0}
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config), _blocking=False)


def mug() -> dict[str, Any]:
    from PIL import Image

    data = io.BytesIO()
    Image.new("RGB", (8, 8), "#c81e1e").save(data, "PNG")
    return {"template": "mug", "artwork": base64.b64encode(data.getvalue()).decode(), "size": 32, "samples": 1}


def home_of_mugs() -> str | None:
    """The node of the replica that serves, if one does."""
    from ray.serve._private.api import _get_global_client

    application = _get_global_client().get_serve_details()["applications"].get("mugs", {})
    replicas = application.get("deployments", {}).get("Replica", {}).get("replicas", [])
    return next((each["node_id"] for each in replicas if each["state"] == "RUNNING"), None)
