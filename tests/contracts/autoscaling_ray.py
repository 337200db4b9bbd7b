"""A Ray with its own autoscaler and made-up nodes: each node that it makes is a few processes on this machine.

`ray.cluster_utils.AutoscalingCluster` is meant for that, but Ray's package lacks the file that it reads its defaults
from, and it calls `ray stop`, which ends every Ray on the machine. So the cluster is described here in full, and
started and stopped as `cotenant up` does it.
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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cotenant.cli.machine import ray_node
from cotenant.cli.machine.state import ProcessRef
from cotenant.manifests.ray_settings import GRPC_MESSAGE_BYTES

ROOT = Path(__file__).parents[2]
_HEAD = "ray.head.default"
_START_S = 90.0


@dataclass(frozen=True)
class NodeType:
    """Nodes that the autoscaler can make. `resources` with CPU and GPU."""

    resources: Mapping[str, float]
    min: int = 0
    max: int = 1


@contextmanager
def autoscaling_ray(
    head: Mapping[str, float],
    types: Mapping[str, NodeType],
    *,
    idle_s: float,
    v2: bool = True,
    environment: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """The address of a head that offers `head`, whose autoscaler makes nodes of `types` and ends those idle so long.

    `v2` is the generation of the autoscaler. Access is by this user's own Ray token, as after a local `ray.init`.
    """
    from ray._private.authentication import authentication_token_setup as tokens
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
    from ray.util import get_node_ip_address

    tokens.enable_token_auth_by_default()
    tokens.ensure_token_if_auth_enabled(None, create_token_if_missing=True)

    directory = Path(tempfile.mkdtemp(prefix="cotenant-ray-"))
    port, client_port = _free_port(), _free_port()
    address = f"{get_node_ip_address()}:{port}"
    (directory / "autoscaling.yaml").write_text(json.dumps(_config(head, types, address, idle_s)))
    options = dict(head)
    command = [
        sys.executable,
        "-c",
        "from ray.scripts.scripts import main; main()",
        "start",
        "--head",
        "--block",
        f"--port={port}",
        "--include-dashboard=false",
        f"--ray-client-server-port={client_port}",
        "--dashboard-agent-listen-port=0",
        "--min-worker-port=0",
        "--max-worker-port=0",
        f"--num-cpus={options.pop('CPU'):.0f}",
        "--num-gpus=0",
        f"--resources={json.dumps(options)}",
        f"--object-store-memory={128 * 2**20}",
        f"--temp-dir={directory}",
        f"--autoscaling-config={directory / 'autoscaling.yaml'}",
        "--disable-usage-stats",
    ]
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    ours = {
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(GRPC_MESSAGE_BYTES),
        "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}",
        "RAY_FAKE_CLUSTER": "1",
        # Nothing is left to be finished when a test is over.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        **(environment or {}),
    }
    if v2:
        ours |= {
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        }
    log = directory / "ray.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            env={**inherited, **ours},
        )  # fmt: skip
    owner = ProcessRef.of(process.pid)
    try:
        end = time.monotonic() + _START_S
        while b"Ray runtime started" not in log.read_bytes():
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield address
    finally:
        ray_node.stop(owner, directory)
        process.wait()
        if not os.environ.get("COTENANT_KEEP_RAY_LOGS"):
            shutil.rmtree(directory, ignore_errors=True)


def _config(head: Mapping[str, float], types: Mapping[str, NodeType], address: str, idle_s: float) -> dict[str, Any]:
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    available: dict[str, Any] = {_HEAD: {"resources": dict(head), "node_config": {}, "max_workers": 0}}
    for name, each in types.items():
        available[name] = {
            "resources": {**each.resources, "object_store_memory": 80 * 2**20},
            "node_config": {},
            "min_workers": each.min,
            "max_workers": each.max,
        }
    return {
        "cluster_name": "made-up",
        "max_workers": sum(each.max for each in types.values()),
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": idle_s / 60,
        "provider": {
            # Not by its own name, for the defaults that its name stands for are what Ray's package lacks.
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
            "disable_node_updaters": True,
            "use_node_id_as_ip": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": available,
        "head_node_type": _HEAD,
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
