"""Replicas and agents as processes of their own: engines that really allocate, and do as they are told by pipe."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from cotenant.agent.client import AgentLink, Figures
from cotenant.agent.guard import Limits
from cotenant.agent.look import ask
from cotenant.agent.node import Obituary
from cotenant.agent.paths import socket_path
from cotenant.agent.protocol import Identity
from cotenant.agent.server import Agent
from cotenant.agent.snapshot import Snapshot
from cotenant.agent.turns import StartTurn
from cotenant.gpu.probe import Gpu, GpuProbe
from cotenant.gpu.probe.fake import FakeProbe
from cotenant.gpu.probe.host import ProcessTable, VirtualGpus
from cotenant.gpu.terms import Priority, Terms, Tier

MIB = 1024
NODE = "node-1"
L4 = Gpu("GPU-14-aaaa", 0, "NVIDIA L4", 23 * 2**20)
PATIENCE_S = 30.0
PART = 0.4
"""What an engine allocates of its budget."""
_PAGE = 4096

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["__main__", __name__])


class LightEngine:
    """One replica. Its memory is a block of bytes, of the size that its budget says."""

    def __init__(self, terms: Terms, number: int) -> None:
        self.terms = terms
        self._held: list[bytearray] = []
        self._tier = Tier.COLD
        self._change = threading.Lock()
        self._up = False
        self._turn = ExitStack()
        self.recalls = 0
        identity = Identity(application=terms.workload, deployment="Replica", replica=f"{terms.workload}#{number}")
        self.link = AgentLink(
            socket_path(NODE), identity, terms, wake_s=0.0, figures=self._figures, on_recall=self._recalled
        )
        self.link.start()

    def _figures(self) -> Figures:
        return Figures(tier=self._tier, running=int(self._up))

    def _recalled(self, wanted_by: str) -> None:
        """Obeys at once if it has nothing to do."""
        self.recalls += 1
        if self._up:
            self.drop()

    def start(self, delay_s: float = 0.0) -> int:
        """A whole start, sized from the plan: its turn, its lease, its memory. Returns bytes allocated."""
        threading.Event().wait(delay_s)
        with StartTurn("GPU", self.terms.workload):
            self.ask(Priority.INTERACTIVE)
            size = int(self.terms.vram_gib * 2**30 * PART)
            with self._change:
                self.take(size // 2**20)
                self._up = True
        self.link.idle()
        return size

    def ask(self, priority: Priority) -> None:
        self.link.request(priority).result(PATIENCE_S)

    def take(self, mib: int) -> None:
        block = bytearray(mib * 2**20)
        block[::_PAGE] = b"x" * len(block[::_PAGE])
        self._held.append(block)
        self._tier = Tier.RESIDENT

    def drop(self) -> None:
        with self._change:
            self._held.clear()
            self._tier = Tier.ASLEEP
            self._up = False
        self.link.slept()

    def take_turn(self) -> None:
        self._turn.enter_context(StartTurn("GPU", self.terms.workload))

    def connected(self) -> bool:
        return self.link.wait_connected(PATIENCE_S)

    def holds(self) -> bool:
        return self.link.holds

    def start_child(self) -> int:
        return subprocess.Popen(["sleep", str(PATIENCE_S)]).pid

    def fork_child(self) -> int:
        """A child that has, by inheritance, this replica's connection."""
        pid = os.fork()
        if pid == 0:
            time.sleep(PATIENCE_S)
            os._exit(0)
        return pid

    def close(self) -> None:
        self.link.close()


def engine(commands: Connection, terms: Terms, number: int) -> None:
    """A replica's main: methods of LightEngine by name, each answered by its result or its error."""
    here = LightEngine(terms, number)
    while True:
        try:
            name, *arguments = commands.recv()
        except EOFError:
            return
        try:
            commands.send(getattr(here, name)(*arguments))
        except Exception as error:
            commands.send(error)


def agent(told: Connection, gpu: str, interval_s: float, limits: Limits) -> None:
    """An agent's main. GPU `cpu` is a CPU pool; else memory of processes is shown as if on that GPU, by NVML."""
    table = ProcessTable()
    agents: list[Agent] = []

    def measure(key: str) -> dict[int, int]:
        return {one.pid: table.private_kib(one.pid) for one in agents[0].node.replicas.values() if one.gpu == key}

    probe: GpuProbe = VirtualGpus(12 * 2**20) if gpu == "cpu" else FakeProbe([L4], measure=measure)

    def end_with_the_test() -> None:
        with suppress(EOFError, OSError):
            told.recv()
        os._exit(0)

    threading.Thread(target=end_with_the_test, daemon=True).start()

    async def on_stop(obituary: Obituary) -> None:
        told.send(obituary)

    async def serve() -> None:
        here = Agent(probe, table, node_id=NODE, on_stop=on_stop, interval_s=interval_s, limits=limits)
        agents.append(here)
        await here.start()
        told.send("up")
        await here.serve_forever()

    asyncio.run(serve())


def _main(folder: str, main: Callable[..., None], *arguments: Any) -> None:
    """The fork server has the environment of the first test."""
    os.environ["COTENANT_AGENT_DIR"] = folder
    main(*arguments)


@dataclass
class Running:
    """A process, and the pipe to it."""

    process: BaseProcess
    pipe: Connection

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def tell(self, name: str, *arguments: Any) -> None:
        self.pipe.send((name, *arguments))

    def answer(self) -> Any:
        """The next answer; what it raised is raised here."""
        assert self.pipe.poll(PATIENCE_S), f"no answer from {self.process.name}"
        answer = self.pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def do(self, name: str, *arguments: Any) -> Any:
        self.tell(name, *arguments)
        return self.answer()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def ended(self) -> int | None:
        """Waits for its end; its exit code."""
        self.process.join(PATIENCE_S)
        return self.process.exitcode


class Machine:
    """Processes of one test, all ended with it."""

    def __init__(self) -> None:
        self._all: list[Running] = []

    def agent(self, gpu: str = "cpu", *, interval_s: float = 0.05, limits: Limits | None = None) -> Running:
        running = self._run(agent, "agent", gpu, interval_s, limits or Limits())
        assert running.answer() == "up"
        return running

    def engine(self, terms: Terms, number: int = 1) -> Running:
        return self._run(engine, terms.workload, terms, number)

    def snapshot(self) -> Snapshot:
        found = ask(socket_path(NODE))
        assert found is not None, "no agent answers"
        return found

    def wait(self, for_what: Callable[[Snapshot], bool]) -> Snapshot:
        """The first snapshot of which that is true."""
        pause = threading.Event()
        for _ in range(int(PATIENCE_S / 0.02)):
            found = ask(socket_path(NODE))
            if found is not None and for_what(found):
                return found
            pause.wait(0.02)
        raise AssertionError(f"it did not come about: {found and found.model_dump_json(indent=1)}")

    def close(self) -> None:
        for running in self._all:
            running.kill()
            running.pipe.close()

    def _run(self, main: Callable[..., None], name: str, *arguments: Any) -> Running:
        here, there = CONTEXT.Pipe()
        folder = os.environ["COTENANT_AGENT_DIR"]
        process = CONTEXT.Process(target=_main, args=(folder, main, there, *arguments), name=name, daemon=False)
        process.start()
        there.close()
        running = Running(process, here)
        self._all.append(running)
        return running
