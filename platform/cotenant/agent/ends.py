"""How replicas end: stopped by the agent, or seen to have ended, with nothing of theirs left running.

A signal goes only to a process that was seen to be the replica's, is still the same process by its start time,
belongs to this user, and does not have the agent among its descendants.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from cotenant.agent.node import Node, Obituary
from cotenant.agent.reading import owners
from cotenant.gpu.probe import Processes

_LOG = logging.getLogger("cotenant.agent")
OBITUARY_S = 0.5
_POLL_S = 0.02
_DEATH_S = 5.0
#: What a dead replica left running may take so long to notice and end by itself.
_ORPHANS_S = 2.0


class Host(Protocol):
    """The agent, as seen from here."""

    @property
    def node(self) -> Node: ...

    def left(self, replica_id: str) -> None: ...


class Ends:
    """Stops replicas, and sees their ends through."""

    def __init__(self, host: Host, processes: Processes, on_stop: Callable[[Obituary], Awaitable[None]] | None) -> None:
        self._host = host
        self._processes = processes
        self._on_stop = on_stop
        self._following: dict[str, asyncio.Task[None]] = {}
        self._stopping: set[asyncio.Task[None]] = set()

    def stop(self, replica_id: str, obituary: Obituary) -> None:
        """Tell of its end, then end it."""
        task = asyncio.create_task(self._stop(replica_id, obituary), name=f"stop-{replica_id}")
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    def follow(self, replica_id: str) -> None:
        """Its connection is gone: when its processes are too, what it held is free. If it lives on, it keeps that."""
        if replica_id not in self._following:
            task = asyncio.create_task(self._follow(replica_id), name=f"end-{replica_id}")
            self._following[replica_id] = task
            task.add_done_callback(lambda _: self._following.pop(replica_id, None))

    async def close(self) -> None:
        """Whoever is being stopped is stopped; the rest is the next agent's."""
        await asyncio.gather(*self._stopping, return_exceptions=True)
        for task in tuple(self._following.values()):
            task.cancel()
        await asyncio.gather(*self._following.values(), return_exceptions=True)

    async def _stop(self, replica_id: str, obituary: Obituary) -> None:
        _LOG.warning("%s", obituary.text)
        if self._on_stop is not None:
            try:
                await asyncio.wait_for(self._on_stop(obituary), OBITUARY_S)
            except Exception:
                _LOG.warning("nobody could be told that %s is stopped", replica_id, exc_info=True)
        victims = self._of(replica_id)
        self._kill(victims)
        if not await self._gone(victims, _DEATH_S):
            self._host.node.stop_failed(replica_id)

    async def _follow(self, replica_id: str) -> None:
        replica = self._host.node.replicas.get(replica_id)
        if replica is None:
            return
        root = {replica.pid: replica.processes.get(replica.pid, 0)}
        if not await self._gone(root, _DEATH_S):
            return
        orphans = {pid: started for pid, started in replica.processes.items() if pid != replica.pid}
        if not await self._gone(orphans, _ORPHANS_S):
            left = self._kill(orphans)
            text = f"{replica.workload} ended and left {left} processes running, which were ended too"
            self._host.node.note("stopped", text, replica_id)
            await self._gone(orphans, _DEATH_S)
        # A replica that came back under this name in the meantime is another.
        if self._host.node.replicas.get(replica_id) is replica:
            self._host.left(replica_id)

    def _of(self, replica_id: str) -> dict[int, int]:
        """Its processes as they are now, its first one first, and when each started."""
        node = self._host.node
        replica = node.replicas.get(replica_id)
        if replica is None:
            return {}
        self._processes.refresh()
        pids = owners(self._processes, node.roots)[replica_id]
        found: dict[int, int] = {}
        for pid in sorted(pids, key=lambda pid: pid != replica.pid):
            started = replica.processes.get(pid) or self._processes.started(pid)
            if started is not None and os.getpid() not in self._processes.tree(pid):
                found[pid] = started
        return found

    def _kill(self, victims: Mapping[int, int]) -> int:
        return sum(self._processes.kill(pid, started) for pid, started in victims.items())

    async def _gone(self, processes: Mapping[int, int], within_s: float) -> bool:
        """Whether they all have ended within that time."""
        for _ in range(round(within_s / _POLL_S)):
            if not any(self._lives(pid, started) for pid, started in processes.items()):
                return True
            await asyncio.sleep(_POLL_S)
        return False

    def _lives(self, pid: int, started: int) -> bool:
        """Whether that very process runs; a start time of 0 is not known."""
        return self._processes.alive(pid) and (not started or self._processes.started(pid) == started)
