"""What the GPU agent costs: CPU-seconds per second, at one look a second, with 20 replicas that work.

    python benchmarks/agent.py [--replicas 20] [--seconds 30]

Every replica is a process with a connection of its own and two processes beneath it, and reports new figures each
second, so nothing is saved by nothing having changed. Measured twice: on a CPU pool, where the agent reads the memory
of all those processes, and on a GPU whose NVML is made up (what the real library takes is not in it). The CPU time is
the agent process's, by the scheduler's count. Limit: 1 % of a core.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

from cotenant.agent.client import AgentLink, Figures
from cotenant.agent.look import ask
from cotenant.agent.metrics import rows
from cotenant.agent.paths import socket_path
from cotenant.agent.protocol import Identity
from cotenant.agent.server import Agent
from cotenant.agent.snapshot import Snapshot
from cotenant.gpu.probe import Gpu, GpuProbe
from cotenant.gpu.probe.fake import FakeProbe
from cotenant.gpu.probe.host import ProcessTable, VirtualGpus
from cotenant.gpu.terms import Priority, Terms, Tier

NODE = "benchmark"
LIMIT = 0.01
SETTLE_S = 3.0
GPU = Gpu("GPU-made-up", 0, "made up", 80 * 2**20)


def agent(told: Connection, pool: str) -> None:
    """The agent, publishing metrics as its host would, until killed."""
    agents: list[Agent] = []

    def on_gpu(_: str) -> dict[int, int]:
        return {replica.pid: 2**20 for replica in agents[0].node.replicas.values()}

    async def serve() -> None:
        probe: GpuProbe = VirtualGpus(GPU.total_kib) if pool == "CPU pool" else FakeProbe([GPU], measure=on_gpu)
        here = Agent(probe, ProcessTable(), node_id=NODE, on_sample=publish)
        agents.append(here)
        await here.start()
        told.send("up")
        await here.serve_forever()

    asyncio.run(serve())


def publish(snapshot: Snapshot) -> None:
    """What a host does with a sample, less handing the values to Ray."""
    for _ in rows(snapshot):
        pass


def replica(number: int) -> None:
    """A replica that holds its lease and always has something new to say, until killed with what it started."""
    for _ in range(2):
        subprocess.Popen(["sleep", "600"])
    said = count()
    terms = Terms(
        workload=f"workload-{number % 5}",
        kind="image",
        pool="shared",
        accelerator="cpu",
        usable_gib=72,
        vram_gib=3,
        floor_gib=0.5,
        num_gpus=0.05,
        residency="sleep",
    )
    identity = Identity(application=terms.workload, deployment="Replica", replica=f"replica-{number}")
    link = AgentLink(
        socket_path(NODE), identity, terms, figures=lambda: Figures(tier=Tier.RESIDENT, running=next(said))
    )
    link.start()
    link.request(Priority.INTERACTIVE).result()
    link.busy(Priority.INTERACTIVE)
    time.sleep(600)


def cpu_s(pid: int) -> float:
    """CPU time of all threads of a process, as the scheduler counts it."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def measure(pool: str, replicas: int, seconds: float) -> float:
    """The agent's part of one core."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    agents = context.Process(target=agent, args=(there, pool))
    agents.start()
    assert here.recv() == "up"
    assert agents.pid is not None
    others = [context.Process(target=replica, args=(number,)) for number in range(replicas)]
    try:
        for other in others:
            other.start()
        while (found := snapshot()) is None or sum(view.running > 1 for view in found.gpus[0].replicas) < replicas:
            time.sleep(0.5)
        time.sleep(SETTLE_S)
        before_s, began = cpu_s(agents.pid), time.monotonic()
        time.sleep(seconds)
        used_s, passed_s = cpu_s(agents.pid) - before_s, time.monotonic() - began
        found = snapshot()
        assert found is not None
        assert len(found.gpus[0].replicas) == replicas
    finally:
        table = ProcessTable()
        table.refresh()
        for process in (*others, agents):
            for pid in table.tree(process.pid or 0) - {process.pid}:
                table.kill(pid, table.started(pid) or 0)
            process.kill()
            process.join()
    return used_s / passed_s


def snapshot() -> Snapshot | None:
    return ask(socket_path(NODE))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=30.0)
    wanted = parser.parse_args()
    processes = sum(name.name.isdigit() for name in Path("/proc").iterdir())
    print(f"{wanted.replicas} replicas of three processes, one look a second, {processes} other processes")
    parts = []
    for pool in ("CPU pool", "GPU, NVML made up"):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["COTENANT_AGENT_DIR"] = folder
            parts.append(measure(pool, wanted.replicas, wanted.seconds))
        verdict = "ok" if parts[-1] < LIMIT else "TOO MUCH"
        print(f"{pool:<18} {parts[-1]:6.2%} of a core (limit {LIMIT:.0%}): {verdict}")
    return 0 if max(parts) < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
