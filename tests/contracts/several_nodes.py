"""A Ray of several nodes on this machine, as pods would start it: each node offers what its pod was given.

Each is `ray start --block` in a session of its own, with Ray's token, so stopping their processes stops it all.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cotenant.cli.machine import ray_node
from cotenant.cli.machine.state import ProcessRef

ROOT = Path(__file__).parents[2]
_START_S = 90.0
Started = tuple[subprocess.Popen[bytes], ProcessRef]


@dataclass(frozen=True)
class Node:
    """What a node offers."""

    cpus: int
    gpus: int
    resources: Mapping[str, float]


@dataclass(frozen=True)
class Cluster:
    """Address of the head, URL of its dashboard, and the variables that a client needs."""

    address: str
    dashboard: str
    environment: Mapping[str, str]


@contextmanager
def several_nodes(head: Node, workers: Sequence[Node], environment: Mapping[str, str]) -> Iterator[Cluster]:
    """The head and its workers while the block runs. The token is made in `COTENANT_HOME`."""
    token = ray_node.token_file()
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    ours = {**inherited, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}", **auth, **environment}
    directory = Path(tempfile.mkdtemp(prefix="cotenant-ray-"))
    gcs, dashboard, client = (free_port() for _ in range(3))
    address = f"127.0.0.1:{gcs}"
    as_head = [
        "--head", "--node-ip-address=127.0.0.1", f"--port={gcs}", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}", f"--temp-dir={directory}",
    ]  # fmt: skip
    started: list[Started] = []
    try:
        started.append(start(head, as_head, directory / "head.log", ours))
        for number, worker in enumerate(workers):
            joined = [f"--address={address}", "--node-ip-address=127.0.0.1"]
            started.append(start(worker, joined, directory / f"worker-{number}.log", ours))
        yield Cluster(address, f"http://127.0.0.1:{dashboard}", {**auth, "RAY_ADDRESS": address})
    finally:
        for process, owner in reversed(started):
            ray_node.stop(owner, directory)
            process.wait()
        shutil.rmtree(directory, ignore_errors=True)


def start(
    node: Node, how: Sequence[str], log: Path, environment: Mapping[str, str], *, under: Sequence[str] = ()
) -> Started:
    """A node by `ray start` with the arguments `how`, by way of the command `under`; returns when it runs."""
    command = [
        *under,
        sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block", *how,
        f"--num-cpus={node.cpus}", f"--num-gpus={node.gpus}", f"--resources={json.dumps(dict(node.resources))}",
        f"--object-store-memory={128 * 2**20}", "--min-worker-port=0", "--max-worker-port=0",
        f"--dashboard-agent-listen-port={free_port()}", f"--metrics-export-port={free_port()}",
        "--disable-usage-stats",
    ]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            env=dict(environment),
        )  # fmt: skip
    owner = ProcessRef.of(process.pid)
    end = time.monotonic() + _START_S
    while b"Ray runtime started" not in log.read_bytes():
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.1)
    return process, owner


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
