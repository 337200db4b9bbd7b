"""A GPU agent on a thread of this process, as a node runs one, with what it has to look at here."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import tempfile
import threading
from types import TracebackType
from typing import Any

from gpukit.machine import facts, on_cuda, total_mib

_NEEDS = ("pydantic", "yaml", "typing_extensions")


def missing() -> str:
    """Why no agent can run here; empty if one can."""
    wanted = (*_NEEDS, "pynvml") if on_cuda() else _NEEDS
    absent = [name for name in wanted if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


class Node:
    """An agent that looks once an interval, in a folder of its own, until the `with` ends.

    `stops` are the obituaries that it wrote.
    """

    def __init__(self, *, interval_s: float = 1.0) -> None:
        self.interval_s = interval_s
        self.stops: list[Any] = []
        self.gpu: str | None = None
        self._folder = tempfile.mkdtemp(prefix="cotenant-gs-")
        self._started = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="agent", daemon=True)
        self._agent: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._before: str | None = None

    @property
    def socket(self) -> str:
        return str(self._agent.path)

    @property
    def environment(self) -> dict[str, str]:
        """For processes that are to find this agent's folder."""
        return {"COTENANT_AGENT_DIR": self._folder}

    def __enter__(self) -> Node:
        self._before = os.environ.get("COTENANT_AGENT_DIR")
        os.environ["COTENANT_AGENT_DIR"] = self._folder
        self._thread.start()
        if not self._started.wait(30) or self._failed is not None:
            self.__exit__(None, None, None)
            raise RuntimeError(f"the agent did not start: {self._failed}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop is not None and self._loop.is_running():
            self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(20)
        if self._before is None:
            os.environ.pop("COTENANT_AGENT_DIR", None)
        else:
            os.environ["COTENANT_AGENT_DIR"] = self._before
        shutil.rmtree(self._folder, ignore_errors=True)

    def terms(self, workload: str, budget_mib: float, usable_mib: float) -> dict[str, Any]:
        """A replica's terms: always resident, with that budget of what is usable."""
        return {
            "workload": workload,
            "kind": "image",
            "pool": "suite",
            "accelerator": "suite" if on_cuda() else "cpu",
            "usable_gib": usable_mib / 1024,
            "vram_gib": budget_mib / 1024,
            "floor_gib": budget_mib / 1024,
            "num_gpus": min(1.0, round(budget_mib / usable_mib, 4)),
            "residency": "always",
        }

    def snapshot(self) -> Any:
        """All that the agent knows now."""
        assert self._loop is not None

        async def ask() -> Any:
            return self._agent.snapshot()

        return asyncio.run_coroutine_threadsafe(ask(), self._loop).result(10)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failed = error
            self._started.set()

    async def _serve(self) -> None:
        from cotenant.agent.server import Agent
        from cotenant.gpu.probe.host import ProcessTable, VirtualGpus

        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        probe: Any = VirtualGpus(int(total_mib() * 1024))
        if on_cuda():
            from cotenant.gpu.probe.nvml import NvmlProbe

            probe = NvmlProbe()
        keys = [gpu.key for gpu in probe.gpus()]
        self.gpu = facts()["uuid"] if facts()["uuid"] in keys else keys[0]
        self._agent = Agent(probe, ProcessTable(), node_id="suite", interval_s=self.interval_s, on_stop=self._stopped)
        await self._agent.start()
        self._started.set()
        await self._over.wait()
        await self._agent.close()

    async def _stopped(self, obituary: Any) -> None:
        self.stops.append(obituary)
