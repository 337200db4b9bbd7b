"""The platform that the chaos test breaks: Ray and Serve as `cotenant up` starts them, the emulator, a folder.

Only what was started here is ever killed: processes are looked for among this Ray's own descendants.
"""

from __future__ import annotations

import copy
import ctypes
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from cotenant.cli.machine import ray_node
from cotenant.cli.machine.serve_api import ServeApi
from cotenant.cli.up import node_spec
from cotenant.config import Jobs, Platform, load_platform
from cotenant.errors import CotenantError, EnvironmentFault
from cotenant.gpu.plan import plan
from cotenant.jobs.queue import emulator
from cotenant.manifests.serve import serve_config

ROOT = Path(__file__).parents[3]
INGRESSES = 2
#: Simulated ones, and the real one.
SIMULATED, RENDERER = ("writer", "painter"), "mockups"
WORKLOADS = (*SIMULATED, RENDERER)
_SIMULATED_REPLICAS = {"writer": 2, "painter": 1}
#: Serve looks for dead replicas so often; ten seconds, as the platform has it, would make an hour's run two.
_HEALTH_CHECK_S = 2.0
_RENAME_EXCHANGE = 2


class Stage:
    """Everything that runs, and its files under `folder`."""

    def __init__(self, folder: Path, *, lease_s: int = 10, max_attempts: int = 10) -> None:
        self.folder = folder
        self.store = folder / "results"
        self.platform = _platform(folder, lease_s, max_attempts)
        self.jobs: Jobs = self.platform.jobs
        self._config = self._first_config()
        self._node: ray_node.RayNode | None = None
        self._emulator: emulator.RunningEmulator | None = None
        self._aside = folder / "not-a-folder"
        self._aside.write_text("the store is away")
        self.store.mkdir(exist_ok=True)

    # --- up and down ---

    def start(self, command: emulator.EmulatorCommand, say: Callable[[str], None]) -> None:
        """Start everything and return when all applications run."""
        self._emulator = command.start(self.folder)
        os.environ["PUBSUB_EMULATOR_HOST"] = self._emulator.host_port
        environment = {
            "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}",
            "PUBSUB_EMULATOR_HOST": self._emulator.host_port,
            "COTENANT_AGENT_DIR": str(self.folder / "agent"),
        }
        self._node = ray_node.start(node_spec(self.platform), environment, lambda waited_s: None)
        say(f"Ray runs, its logs are in {self._node.directory}")
        self.deploy()
        self.wait_ready(240)
        say("all applications run")

    def stop(self, *, keep: bool = False) -> None:
        """Stop what was started; `keep` Ray's logs."""
        if self._node is not None:
            ray_node.stop(self._node.process, self._node.directory)
            if not keep:
                shutil.rmtree(self._node.directory, ignore_errors=True)
        if self._emulator is not None:
            os.kill(self._emulator.pid, signal.SIGCONT)
            emulator.stop(self._emulator.pid)

    def deploy(self) -> None:
        """Hand Serve the config as it is now, as often as it takes: its controller may be dead just now."""
        end = time.monotonic() + 120
        while True:
            try:
                with self._api() as serve:
                    return serve.deploy(self._config)
            except EnvironmentFault:
                if time.monotonic() > end:
                    raise
                time.sleep(1)

    def ready(self) -> bool:
        try:
            with self._api() as serve:
                found = serve.applications()
        except CotenantError:
            return False
        wanted = [application["name"] for application in self._config["applications"]]
        return all(name in found and found[name].ready for name in wanted)

    def wait_ready(self, within_s: float) -> None:
        end = time.monotonic() + within_s
        while not self.ready():
            if time.monotonic() > end:
                raise EnvironmentFault(f"not every application runs after {within_s:.0f} s")
            time.sleep(0.5)

    # --- what can be done to it ---

    def pids(self, application: str) -> list[int]:
        """Process ids of an application's replicas that live."""
        return self._descendants(f"ray::ServeReplica:{application}:")

    def kill_replica(self, application: str, index: int) -> int | None:
        """SIGKILL a replica: its process id, None where there is none just now."""
        pids = self.pids(application)
        if not pids:
            return None
        pid = pids[index % len(pids)]
        os.kill(pid, signal.SIGKILL)
        return pid

    def kill_controller(self) -> int | None:
        pids = self._descendants("ray::ServeController")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return pids[0] if pids else None

    def redeploy(self, application: str) -> None:
        """Deploy another version of an application: its replicas are drained and replaced."""
        (found,) = (one for one in self._config["applications"] if one["name"] == application)
        if application == "ingress":
            jobs = found["args"]["jobs"]
            jobs["look_ahead"] = 2 if jobs["look_ahead"] == 3 else 3
        else:
            found["args"]["generation"] += 1
        self.deploy()

    def remove_ingress(self) -> None:
        """Drain the ingresses and have none."""
        config = copy.deepcopy(self._config)
        config["applications"] = [one for one in config["applications"] if one["name"] != "ingress"]
        self._config = config
        self.deploy()
        end = time.monotonic() + self.jobs.drain_s + 60
        while self.pids("ingress") and time.monotonic() < end:
            time.sleep(0.5)

    def pause_emulator(self) -> None:
        assert self._emulator is not None
        os.kill(self._emulator.pid, signal.SIGSTOP)

    def resume_emulator(self) -> None:
        assert self._emulator is not None
        os.kill(self._emulator.pid, signal.SIGCONT)

    def swap_store(self) -> None:
        """Take the store away and put a file in its place, in one step; or the other way round."""
        libc = ctypes.CDLL(None, use_errno=True)
        here = -100  # AT_FDCWD
        if libc.renameat2(here, bytes(self.store), here, bytes(self._aside), _RENAME_EXCHANGE):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    # --- inside ---

    def _api(self) -> ServeApi:
        assert self._node is not None
        return ServeApi(self._node.dashboard, self._node.token_file)

    def _descendants(self, title: str) -> list[int]:
        """Processes of this Ray with this title."""
        assert self._node is not None
        owner = self._node.process.find()
        found = []
        for process in owner.children(recursive=True) if owner is not None else ():
            try:
                if " ".join(process.cmdline()).startswith(title) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
            except psutil.Error:
                continue
        return sorted(found)

    def _first_config(self) -> dict[str, Any]:
        """What `cotenant up` would deploy, without the gateway and with the simulated engines in their places."""
        config = serve_config(self.platform, plan(self.platform))
        config["applications"] = [one for one in config["applications"] if one["name"] != "gateway"]
        for application in config["applications"]:
            name = application["name"]
            (deployment,) = application["deployments"]
            deployment["health_check_period_s"] = _HEALTH_CHECK_S
            if name == RENDERER:
                application["import_path"] = "tests.acceptance.chaos.simulated:build_renderer"
                application["args"] |= {"folder": str(self.folder), "workload": name, "generation": 0}
            elif name in SIMULATED:
                application["import_path"] = "tests.acceptance.chaos.simulated:build_engine"
                application["args"] = {"folder": str(self.folder), "workload": name, "generation": 0}
                application["deployments"] = [
                    {
                        "name": "Replica",
                        "num_replicas": _SIMULATED_REPLICAS[name],
                        "max_ongoing_requests": deployment["max_ongoing_requests"],
                        "max_queued_requests": deployment["max_queued_requests"],
                        "health_check_period_s": _HEALTH_CHECK_S,
                        "graceful_shutdown_wait_loop_s": 0.5,
                        "graceful_shutdown_timeout_s": 10,
                        "ray_actor_options": {"num_cpus": 0.1},
                    }
                ]
        return config


def _platform(folder: Path, lease_s: int, max_attempts: int) -> Platform:
    file = folder / "platform.yaml"
    content = {
        "name": "chaos",
        "workloads": {
            "writer": {"llm": {"model": "smollm2-135m"}, "gpu": {"vram_gib": 1}, "concurrency": 4},
            "painter": {"image": {"model": "tiny-inpaint"}, "gpu": {"vram_gib": 1}, "concurrency": 2},
            "mockups": {"mockup": {"templates": ["mug"]}, "gpu": {"vram_gib": 1.5}},
        },
        "jobs": {
            "store": str(folder / "results"),
            "lease_s": lease_s,
            "max_attempts": max_attempts,
            "max_job_s": 120,
            "drain_s": 15,
            "ingresses": INGRESSES,
        },
        "environments": {"local": {"pools": {"shared": {"accelerator": "cpu", "vram_gib": 8}}}},
    }
    file.write_text(yaml.safe_dump(content))
    return load_platform(file, "local")
