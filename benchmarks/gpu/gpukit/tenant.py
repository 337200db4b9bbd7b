"""A process under test, from inside: it does what it is told on stdin and answers on stdout, one JSON object a line.

Run as `python -m gpukit.tenant`; `child.Child` is its other end. It ends when stdin does. What libraries print goes
to stderr.
"""

from __future__ import annotations

import json
import os
import queue
import random
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

import torch

from gpukit.loops import Loop, make
from gpukit.machine import device
from gpukit.warmth import give_back, settle

_MIB = 2**20


class Tenant:
    """What can be asked of a process under test: every method `do_…`, its keyword arguments from the request."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._said = threading.Lock()
        self.inbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.device = device()
        self._held: list[torch.Tensor] = []
        self._link: Any = None
        self._loop: Loop | None = None
        self._renderer: Any = None
        self._model: Any = None

    def say(self, **what: Any) -> None:
        with self._said:
            self._out.write(json.dumps(what) + "\n")
            self._out.flush()

    def serve(self) -> None:
        threading.Thread(target=self._read, name="inbox", daemon=True).start()
        if self.device == "cuda":
            torch.zeros(1, device="cuda")
            torch.cuda.synchronize()
        else:
            torch.set_num_threads(1)
        self.say(re="ready", pid=os.getpid(), device=self.device)
        while (order := self.inbox.get()) is not None:
            do = order.pop("do")
            try:
                self.say(re=do, **(getattr(self, f"do_{do}")(**order) or {}))
            except Exception as error:
                self.say(re=do, error=f"{type(error).__name__}: {error}", kind=type(error).__name__)

    def do_hold(self, mib: int) -> dict[str, Any]:
        """Hold `mib` more, written to."""
        self._allocate(mib)
        return self.do_figures()

    def do_release(self) -> dict[str, Any]:
        """Hold nothing any more."""
        self._held.clear()
        give_back(self.device)
        return self.do_figures()

    def do_figures(self) -> dict[str, Any]:
        """What it holds, by its own count and by its allocator's, in MiB."""
        reserved = torch.cuda.memory_reserved() / _MIB if self.device == "cuda" else None
        return {"held_mib": sum(part.numel() for part in self._held) / _MIB, "reserved_mib": reserved}

    def do_cap(self, mib: int) -> dict[str, Any]:
        """Let no more than `mib` be allocated: torch's own cap; on a CPU the kernel's, on private memory."""
        if self.device == "cuda":
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(mib * _MIB / total)
            return {"by": "torch.cuda.set_per_process_memory_fraction"}
        import resource

        statm = Path("/proc/self/statm").read_text().split()
        data = int(statm[5]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_DATA, (data + mib * _MIB, resource.RLIM_INFINITY))
        return {"by": "RLIMIT_DATA"}

    def do_join(
        self, socket: str, replica: str, terms: dict[str, Any], gpu: str | None, reports: bool
    ) -> dict[str, Any]:
        """Be a replica: say hello to the GPU agent, and have the whole budget granted.

        `reports` is whether it tells its allocator's figure; if not, the agent has only what it measures.
        """
        from cotenant.agent.client import AgentLink, Figures
        from cotenant.agent.protocol import Identity
        from cotenant.gpu.terms import Priority, Terms, Tier

        def figures() -> Figures:
            told = reports and self.device == "cuda"
            return Figures(tier=Tier.RESIDENT, allocated_bytes=torch.cuda.memory_reserved() if told else None)

        identity = Identity(application=replica, deployment=replica, replica=replica, pid=os.getpid())
        self._link = AgentLink(Path(socket), identity, Terms.model_validate(terms), gpu=gpu, figures=figures)
        self._link.start()
        if not self._link.wait_connected(10.0):
            raise TimeoutError("the agent did not welcome this replica within 10 s")
        self._link.request(Priority.INTERACTIVE).result(10.0)
        return {"gpu": self._link.gpu}

    def do_grow(self, step_mib: int, pause_s: float, to_mib: int) -> dict[str, Any]:
        """Hold more and more, saying so before each time, until `to_mib` is held or this process is ended."""
        while (held := self.do_figures()["held_mib"]) < to_mib:
            self.say(event="growing", to_mib=held + step_mib, at=time.monotonic())
            self._allocate(step_mib)
            time.sleep(pause_s)
        return self.do_figures()

    def do_prepare(self, loop: str, sizes: dict[str, Any]) -> dict[str, Any]:
        """Make a loop and run it a little, so that nothing is compiled or allocated later."""
        self._loop = make(loop, self.device, **sizes)
        for _ in range(3):
            self._loop.step()
        return {"label": self._loop.label, "unit": self._loop.unit, "per_step": self._loop.per_step}

    def do_run(self, seconds: float = 3600.0) -> dict[str, Any]:
        """Step until something else is asked for, or for so long: for each step when it ended and how long it took."""
        assert self._loop is not None
        steps: list[tuple[float, float]] = []
        until = time.monotonic() + seconds
        began = time.monotonic()
        failed = ""
        while began < until and self.inbox.empty():
            try:
                self._loop.step()
            except RuntimeError as error:
                failed = f"{type(error).__name__}: {error}"
                break
            now = time.monotonic()
            steps.append((round(now, 6), round((now - began) * 1e3, 4)))
            began = now
        return {"steps": steps, "failed": failed}

    def do_stop(self) -> None:
        """Ends `run`, by being asked for."""

    def do_sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def do_starts(self, gpu: str, who: str, count: int, mib: int, seed: int) -> dict[str, Any]:
        """Start and end `count` times, in turn with all others who start on that GPU.

        Within the turn it looks at the whole device's free memory before and after it allocates, as an engine does
        that sizes itself from it; then it holds that for a while outside its turn, and lets go.
        """
        from cotenant.agent.turns import StartTurn

        random_s = random.Random(seed)
        turns = []
        for _ in range(count):
            time.sleep(random_s.uniform(0.0, 0.05))
            asked = time.monotonic()
            with StartTurn(gpu, who):
                entered = time.monotonic()
                before = self._free_mib()
                self._allocate(mib)
                settle(self.device)
                after = self._free_mib()
                time.sleep(random_s.uniform(0.0, 0.01))
                left = time.monotonic()
            taken = None if before is None or after is None else before - after
            turns.append({"asked": asked, "entered": entered, "left": left, "took_mib": taken})
            time.sleep(random_s.uniform(0.0, 0.05))
            # Memory is given back in a turn of its own, or another's sizing would see it come free.
            with StartTurn(gpu, who):
                self.do_release()
        return {"turns": turns}

    def do_start_and_keep(self, gpu: str, who: str, mib: int) -> dict[str, Any]:
        """Take the turn, allocate, and never give the turn back."""
        from cotenant.agent.turns import StartTurn

        turn = StartTurn(gpu, who)
        turn.__enter__()
        self._allocate(mib)
        return {"entered": time.monotonic()}

    def do_renderer(self, paths_per_chunk: int | None = None) -> dict[str, Any]:
        """Make a renderer."""
        from gpukit.renderer import Renderer

        self._renderer = Renderer(paths_per_chunk=paths_per_chunk)
        return {"variant": self._renderer.variant.name, "paths_per_chunk": self._renderer.paths_per_chunk}

    def do_render(self, side: int, samples: int) -> dict[str, Any]:
        """Render and say the picture's digest."""
        began = time.monotonic()
        return {"digest": self._renderer.digest(side, samples), "seconds": time.monotonic() - began}

    def do_flush_renderer(self) -> None:
        self._renderer.give_back()

    def do_model(self, kind: str, **given: Any) -> dict[str, Any]:
        """Make a model of `models`."""
        from gpukit import models

        self._model = models.make(kind, self.device, **given)
        facts: dict[str, Any] = self._model.facts()
        return facts

    def do_model_do(self, what: str, **given: Any) -> dict[str, Any]:
        """Have the model do what its method of that name does."""
        return {"did": getattr(self._model, what)(**given)}

    def do_model_drop(self) -> None:
        """Let go of the model."""
        self._model.drop()
        self._model = None
        give_back(self.device)

    def _free_mib(self) -> float | None:
        return torch.cuda.mem_get_info()[0] / _MIB if self.device == "cuda" else None

    def _allocate(self, mib: int) -> None:
        self._held.append(torch.ones(mib * _MIB, dtype=torch.uint8, device=self.device))
        settle(self.device)

    def _read(self) -> None:
        for line in sys.stdin:
            self.inbox.put(json.loads(line))
        self.inbox.put(None)


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    Tenant(out).serve()
    # Not through interpreter shutdown: a renderer's threads and CUDA's may not agree on who ends first.
    out.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
