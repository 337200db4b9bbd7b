"""Starts and stops one Ray head node on loopback, with token authentication.

Ray is started blocking, in a session of its own: its first process owns all others, so stopping that one (and
whatever still names our session folder) stops everything we started and nothing of anybody else's, which
`ray stop` could not promise.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from cotenant.cli.machine.state import ProcessRef
from cotenant.config.home import home
from cotenant.errors import EnvironmentFault
from cotenant.manifests.ray_settings import PRELOAD, PRELOADED, shared_settings

#: Shared memory for objects in flight; pictures pass through it, weights do not.
OBJECT_STORE_BYTES = 512 * 2**20
#: Zero lets the kernel choose, so two Rays on one machine never claim the same port.
WORKER_PORTS = (0, 0)
START_TIMEOUT_S = 90.0
#: Ray may take so long to stop by itself; it waits for detached actors: each node's GPU agent, and the scaler.
STOP_TIMEOUT_S = 4.0


@dataclass(frozen=True)
class NodeSpec:
    """What the node offers: CPU cores, GPUs (virtual on a CPU pool) and custom resources."""

    num_cpus: int
    num_gpus: int
    resources: Mapping[str, float]

    def lacking(self, have: Mapping[str, float]) -> dict[str, tuple[float, float]]:
        """Resources of which `have` holds too little, as name -> (need, have)."""
        need = {"GPU": float(self.num_gpus), **self.resources}
        return {name: (amount, have.get(name, 0.0)) for name, amount in need.items() if have.get(name, 0.0) < amount}

    def start_line(self) -> str:
        """The `ray start` command that would offer this."""
        return (
            f"ray start --head --num-gpus {self.num_gpus} --resources {shlex.quote(json.dumps(dict(self.resources)))}"
        )


@dataclass(frozen=True)
class RayNode:
    """A running Ray: its GCS address, its dashboard's base URL, its metrics' URL, the token file, its first process."""

    address: str
    dashboard: str
    metrics: str
    token_file: Path
    directory: Path
    process: ProcessRef


def token_file() -> Path:
    """The file with this user's Ray token (0600), made on first use."""
    path = home() / "ray-token"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        draft.replace(path)
    return path


def start(spec: NodeSpec, environment: Mapping[str, str], on_wait: Callable[[float], None]) -> RayNode:
    """Start a head node and return once its dashboard answers; `on_wait` is told the seconds waited.

    Raises:
        EnvironmentFault: it did not come up; the text ends with what Ray said.
    """
    # Unix sockets have short names (107 bytes), so the session folder cannot live under a long home.
    directory = Path(tempfile.mkdtemp(prefix="cotenant-ray-"))
    token = token_file()
    gcs_port, dashboard_port, client_port, agent_port, metrics_port = _free_ports(5)
    command = [
        sys.executable,
        "-c",
        "from ray.scripts.scripts import main; main()",
        "start",
        "--head",
        "--block",
        "--node-ip-address=127.0.0.1",
        f"--port={gcs_port}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard_port}",
        f"--ray-client-server-port={client_port}",
        f"--dashboard-agent-listen-port={agent_port}",
        f"--metrics-export-port={metrics_port}",
        f"--min-worker-port={WORKER_PORTS[0]}",
        f"--max-worker-port={WORKER_PORTS[1]}",
        f"--num-cpus={spec.num_cpus}",
        f"--num-gpus={spec.num_gpus}",
        f"--resources={json.dumps(dict(spec.resources))}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={directory}",
        "--disable-usage-stats",
    ]
    log = directory / "ray.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=_process_environment({**environment, **ray_environment(token), **preloading(os.environ)}),
        )
    node = RayNode(
        address=f"127.0.0.1:{gcs_port}",
        dashboard=f"http://127.0.0.1:{dashboard_port}",
        metrics=f"http://127.0.0.1:{metrics_port}/metrics",
        token_file=token,
        directory=directory,
        process=ProcessRef.of(process.pid),
    )
    begun = time.monotonic()
    try:
        while (waited := time.monotonic() - begun) < START_TIMEOUT_S:
            if process.poll() is not None:
                break
            if _listens(dashboard_port) and b"Ray runtime started" in log.read_bytes():
                return node
            on_wait(waited)
            time.sleep(0.2)
    except BaseException:  # Ctrl-C: nobody has a record of this Ray yet
        stop(node.process, directory)
        raise
    tail = "\n".join(log.read_text(errors="replace").strip().splitlines()[-8:])
    stop(node.process, directory)
    raise EnvironmentFault(f"Ray did not start within {START_TIMEOUT_S:.0f} s; the end of {log}:\n{tail}")


def _process_environment(ours: Mapping[str, str]) -> dict[str, str]:
    # Every engine process imports the same thousands of modules; forbidden to keep bytecode, each would compile them.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, **ours}


def preloading(environment: Mapping[str, str]) -> dict[str, str]:
    """The variable for Ray's worker processes. Modules that `environment` names there come too, `mitsuba` say: every
    spare process then imports and holds them, whatever it will be for."""
    more = [name for name in environment.get(PRELOAD, "").split(",") if name and name not in PRELOADED]
    return {PRELOAD: ",".join([*PRELOADED, *more])}


def ray_environment(token: Path) -> dict[str, str]:
    """Variables that keep Ray on loopback and behind the token, for `ray start` and for whoever joins it."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        # Ray's own switch for "this machine only": with it every Ray port binds to 127.0.0.1.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        **shared_settings(),
        # Serve's replicas do not follow that switch; deployments/loopback.py does.
        "COTENANT_LOOPBACK_ONLY": "1",
    }


def stop(owner: ProcessRef, directory: Path) -> None:
    """Stop the node owned by `owner` and every process that still names its session `directory`."""
    process = owner.find()
    family = []
    if process is not None:
        family = [process, *process.children(recursive=True)]
        process.send_signal(signal.SIGTERM)
        psutil.wait_procs([process], timeout=STOP_TIMEOUT_S)
    family += [p for p in psutil.process_iter(["cmdline"]) if str(directory) in " ".join(p.info["cmdline"] or ())]
    for leftover in family:
        try:
            leftover.terminate()
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs(family, timeout=5)
    for stubborn in alive:
        try:
            stubborn.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=5)


def _free_ports(count: int) -> list[int]:
    """Distinct loopback ports that nobody listens on just now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        ports = []
        for each in sockets:
            each.bind(("127.0.0.1", 0))
            ports.append(int(each.getsockname()[1]))
        return ports
    finally:
        for each in sockets:
            each.close()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
