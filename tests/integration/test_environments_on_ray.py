"""Each environment's Serve config, out of its manifest, by plain `serve deploy` on a Ray of several nodes.

The nodes offer what the manifest's pods would: their groups' resources, cores and GPUs, which Ray is told of and this
machine has not. So engines are stood for (`tests/contracts/placed.py`); doors, policy, shares and placement are real.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from cotenant.cli.machine.serve_api import ServeApi
from cotenant.config import load_platform
from cotenant.gpu.plan import Plan, plan
from cotenant.manifests.environment import cluster_objects
from cotenant.manifests.rules import requested
from tests.contracts.several_nodes import Cluster, Node, several_nodes

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
#: `scripts/test` builds images beside it.
WAITS_FOR_RAY = True

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ("dev", "staging", "prod")


def rendered(environment: str) -> tuple[dict[str, Any], Plan]:
    platform = load_platform(ROOT / "deployments/platform.yaml", environment)
    the_plan = plan(platform)
    (service,) = [each for each in cluster_objects(platform, the_plan) if each["kind"] == "RayService"]
    return service["spec"], the_plan


def node_of(group: dict[str, Any]) -> Node:
    """What Ray would be told on a pod of a worker group."""
    amounts = requested(group["template"]["spec"])
    resources = {name: float(amount) for name, amount in group["resources"].items()}
    return Node(int(amounts["cpu"]), int(amounts.get("nvidia.com/gpu", 0)), resources)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """What prod has at its least, which has room for the others: its front nodes, the head on one, and a GPU node."""
    groups = {name: rendered(name)[0]["rayClusterConfig"]["workerGroupSpecs"] for name in ENVIRONMENTS}
    assert len({str(node_of(shared)) for _, shared in groups.values()}) == 1
    front, *others = [node_of(group) for group in groups["prod"] for _ in range(group["minReplicas"])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COTENANT_HOME", str(tmp_path_factory.mktemp("home")))
        environment = {"COTENANT_JOBS_SOURCE": "memory", "COTENANT_API_KEYS": "acme:secret"}
        with several_nodes(front, others, environment) as started:
            yield started


def made_to_run_here(spec: dict[str, Any], folder: Path, port: int) -> dict[str, Any]:
    """The config as the manifest has it, but for engines, the bucket and the door's address."""
    config: dict[str, Any] = yaml.safe_load(spec["serveConfigV2"])
    for application in config["applications"]:
        kind = application["import_path"].removeprefix("deployments.").removesuffix(":build")
        if "spec" in application["args"]:
            application["args"]["kind"] = kind
            application["import_path"] = "tests.contracts.placed:build"
        else:
            application["args"]["jobs"]["store"] = str(folder / "results")
        if kind == "gateway":
            application["args"]["gateway"] |= {"host": "127.0.0.1", "port": port}
    return config


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_serve_deploy_places_every_workload_in_its_pool_with_its_share(
    environment: str, cluster: Cluster, tmp_path: Path
) -> None:
    spec, the_plan = rendered(environment)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    config = made_to_run_here(spec, tmp_path, port)
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(config))
    client = {**os.environ, **cluster.environment}
    # Another environment's replicas would be replaced by a surge, for which this Ray makes no further node.
    with ServeApi(cluster.dashboard, cluster.environment["RAY_AUTH_TOKEN_PATH"]) as api:
        api.shutdown()
        wait_for(lambda: not api.applications(), api.applications)
    serve = [str(Path(sys.executable).parent / "serve"), "deploy", str(file), "--address", cluster.dashboard]
    done = subprocess.run(serve, env=client, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    with ServeApi(cluster.dashboard, cluster.environment["RAY_AUTH_TOKEN_PATH"]) as api:
        wanted = {application["name"] for application in config["applications"]}
        wait_for(
            lambda: {name for name, app in api.applications().items() if app.ready} == wanted, lambda: unready(api)
        )
    door = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"authorization": "Bearer secret"}, timeout=30)
    assert door.get("/healthz").status_code == 200
    assert httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=30).status_code == 401
    served = {model["id"] for model in door.get("/v1/models").json()["data"]}
    assert {"writer", "painter"} <= served
    homes = json.loads(subprocess.run([sys.executable, "-c", _HOMES, *the_plan.workloads], env=client, text=True,
                                      capture_output=True, timeout=120, check=True).stdout)  # fmt: skip
    booked = 0.0
    for name, booking in the_plan.workloads.items():
        for home in homes["replicas"].get(name, []):
            # An LLM's share is its placement group's, for vLLM's own worker.
            gpus = "" if booking.terms.kind == "llm" else "0"
            assert home == {"pool": [f"cotenant-pool-{booking.pool}"], "gpus": gpus}, name
            booked += booking.num_gpus
    for name, booking in the_plan.workloads.items():
        assert len(homes["replicas"].get(name, [])) >= booking.replicas_min, name
    assert homes["gpu"] == pytest.approx(1 - booked, abs=1e-3)


#: Asks each workload's replicas where they are: Ray's client has to be a process that knows the token from its start.
_HOMES = """
import json, sys
import ray
from ray import serve
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
pools = {n["NodeID"]: [r for r in n["Resources"] if r.startswith("cotenant-pool-")] for n in ray.nodes() if n["Alive"]}
status = serve.status().applications
replicas = {}
for name in sys.argv[1:]:
    running = sum(d.replica_states.get("RUNNING", 0) for d in status[name].deployments.values())
    if running:
        where = serve.get_app_handle(name).where.remote().result(timeout_s=60)
        replicas[name] = [{"pool": pools[where["node"]], "gpus": where["gpus"]}] * running
print(json.dumps({"replicas": replicas, "gpu": ray.available_resources().get("GPU", 0.0)}))
"""


def unready(api: ServeApi) -> list[str]:
    return [
        f"{name}: {app.status} {app.replicas} {app.message}"
        for name, app in api.applications().items()
        if not app.ready
    ]


def wait_for(condition: Callable[[], bool], say: Callable[[], object], within_s: float = 150.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, say()
        time.sleep(0.5)
