#!/usr/bin/env python3
"""Loses the head of a Ray whose state is in Redis, as on KubeRay, and looks at what was being served meanwhile.

    python benchmarks/head_loss.py

Runs environment dev's Serve config on a head, a front node and a GPU node (made up, with stand-ins for engines), with a
`redis-server` of its own. The head's processes are killed, and ten seconds later it is started anew in a process
namespace of its own (so that it does not find the old processes, as in a new pod). Needs root and redis-server.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from cotenant.cli.machine import ray_node  # noqa: E402
from cotenant.cli.machine.serve_api import ServeApi  # noqa: E402
from tests.contracts.several_nodes import Node, Started, free_port, start  # noqa: E402
from tests.integration.test_environments_on_ray import made_to_run_here, node_of, rendered  # noqa: E402

WITHIN_S = 200.0
AWAY_S = 10.0
HEAD = Node(0, 0, {})


def main() -> None:
    for needed in ("redis-server", "unshare"):
        if shutil.which(needed) is None:
            sys.exit(f"head_loss: needs {needed}; apt-get install {needed if needed != 'unshare' else 'util-linux'}")
    folder = Path(tempfile.mkdtemp(prefix="cotenant-ray-"))
    os.environ["COTENANT_HOME"] = str(folder / "home")
    redis_port = free_port()
    redis = subprocess.Popen(
        ["redis-server", "--port", str(redis_port), "--requirepass", "pw", "--appendonly", "yes", "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
    )
    nodes: list[Started] = []
    try:
        lose_the_head(folder, redis_port, nodes)
    finally:
        for process, owner in reversed(nodes):
            ray_node.stop(owner, folder)
            process.wait()
        redis.terminate()
        shutil.rmtree(folder, ignore_errors=True)


def lose_the_head(folder: Path, redis_port: int, nodes: list[Started]) -> None:
    token = ray_node.token_file()
    spec, _ = rendered("dev")
    front, shared = map(node_of, spec["rayClusterConfig"]["workerGroupSpecs"])
    shared_env = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
        "COTENANT_JOBS_SOURCE": "memory",
        "COTENANT_API_KEYS": "acme:secret",
    }
    head_env = {
        **shared_env,
        "RAY_REDIS_ADDRESS": f"127.0.0.1:{redis_port}",
        "REDIS_PASSWORD": "pw",
        "RAY_external_storage_namespace": "uid",
    }
    gcs, dashboard, client, door_port = (free_port() for _ in range(4))
    as_head = [
        "--head", "--node-ip-address=127.0.0.1", f"--port={gcs}", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}", "--redis-password=pw",
    ]  # fmt: skip
    nodes.append(start(HEAD, [*as_head, f"--temp-dir={folder}"], folder / "head.log", head_env))
    for number, node in enumerate((front, shared)):
        joined = [f"--address=127.0.0.1:{gcs}", "--node-ip-address=127.0.0.1"]
        nodes.append(start(node, joined, folder / f"worker-{number}.log", shared_env))
    url = f"http://127.0.0.1:{dashboard}"
    config = made_to_run_here(spec, folder, door_port)
    with ServeApi(url, token) as api:
        api.deploy(config)
    before = wait_for(lambda: running(url, token, len(config["applications"])))
    door = httpx.Client(base_url=f"http://127.0.0.1:{door_port}", timeout=20)

    owner = psutil.Process(nodes[0][0].pid)
    for process in (*owner.children(recursive=True), owner):
        process.kill()
    print("the head's processes are killed", flush=True)
    asked, answered, end = 0, 0, time.monotonic() + AWAY_S
    while time.monotonic() < end:
        asked += 1
        answered += door.get("/healthz").status_code == 200
        time.sleep(0.5)
    print(f"while it is away the door answers {answered} of {asked}")
    begun = time.monotonic()
    again = folder / "again"
    again.mkdir()
    alone = ["unshare", "--pid", "--fork", "--mount-proc"]
    nodes[0] = start(HEAD, [*as_head, f"--temp-dir={again}"], folder / "head-again.log", head_env, under=alone)
    after = wait_for(lambda: running(url, token, len(config["applications"])))
    print(f"after {time.monotonic() - begun:.1f} s the new head knows all {len(after)} applications")
    kept = sum(before[name] == after[name] for name in before)
    print(f"{kept} of {len(before)} are served by the same processes; readyz {door.get('/readyz').status_code}")
    if kept < len(before) or answered < asked:
        sys.exit(1)


def running(url: str, token: Path, wanted: int) -> dict[str, tuple[int, ...]]:
    """Process ids by application once all run; empty before."""
    try:
        with ServeApi(url, token) as api:
            found = api.applications()
    except Exception:  # the head is on its way
        return {}
    return {name: app.pids for name, app in found.items()} if sum(a.ready for a in found.values()) == wanted else {}


def wait_for(look: Callable[[], Any]) -> Any:
    end = time.monotonic() + WITHIN_S
    while not (seen := look()):
        if time.monotonic() > end:
            sys.exit("head_loss: it did not come up in time")
        time.sleep(0.5)
    return seen


if __name__ == "__main__":
    main()
