"""One replica takes more than its budget beside another that works: what the agent does, and what the other feels."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass

from gpukit.child import Child
from gpukit.machine import ceiling_mib, on_cuda, pick, require_room
from gpukit.node import Node

_SETTLED_S = 0.5


@dataclass(frozen=True)
class Offence:
    """What happened. Times in monotonic seconds, steps in milliseconds."""

    budget_mib: int
    measured_by: str
    """How the agent knew what who holds: nvml, reported, or processes."""
    crossed_at: float
    ended_at: float
    status: int | None
    stopped: list[str]
    """Replicas that the agent stopped."""
    neighbour_failed: str
    neighbour_alive: bool
    work: str
    before_ms: list[float]
    while_ms: list[float]
    """Steps that ended between the offence and half a second after the offender's end."""
    after_ms: list[float]

    @property
    def took_s(self) -> float:
        """From the offender's asking for too much to its end."""
        return self.ended_at - self.crossed_at

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL


def offend(*, interval_s: float = 1.0, before_s: float = 3.0, after_s: float = 2.0, reports: bool = True) -> Offence:
    """Let one replica go 1.5 times past its budget at once, and on from there, while its neighbour multiplies matrices.

    Args:
        interval_s: from look to look of the agent.
        before_s: how long the neighbour is watched first.
        after_s: how long it is watched afterwards.
        reports: whether the offender tells what its allocator holds.
    """
    budget = min(4096, ceiling_mib() // 6) if on_cuda() else 768
    room = pick(2048, 1024)
    most = 3 * budget
    require_room(most + room)
    with Node(interval_s=interval_s) as node:
        environment = node.environment
        with Child("neighbour", env=environment) as neighbour, Child("offender", env=environment, wait=False) as bad:
            bad.ready()
            usable = float(ceiling_mib())
            for child, mib in ((neighbour, room), (bad, budget)):
                terms = node.terms(child.name, mib, usable)
                child.ask(
                    "join", socket=node.socket, replica=child.name, terms=terms, gpu=node.gpu,
                    reports=reports,
                )  # fmt: skip
            work = neighbour.ask("prepare", loop="matmul", sizes={"side": pick(4096, 256), "products": 4})
            bad.ask("hold", mib=budget // 8)
            time.sleep(2 * interval_s + _SETTLED_S)
            neighbour.tell("run")
            began = time.monotonic()
            time.sleep(before_s)
            measured_by = next(gpu.measured_by for gpu in node.snapshot().gpus if gpu.key == node.gpu)
            bad.tell("grow", step_mib=budget * 11 // 8, pause_s=0.2, to_mib=most - budget * 11 // 8)
            status = bad.wait_end(10 * interval_s + 10)
            ended = time.monotonic()
            time.sleep(after_s)
            neighbour.tell("stop")
            run = neighbour.answer("run")
            growing = [event for event in bad.heard() if event.get("event") == "growing"]
            alive = neighbour.process.poll() is None
            stopped = [str(obituary.replica) for obituary in node.stops]
    if not growing:
        raise RuntimeError(f"the offender never grew: {bad.last_words()}")
    crossed = float(growing[0]["at"])
    steps = [(float(at), float(ms)) for at, ms in run["steps"]]
    return Offence(
        budget_mib=budget,
        measured_by=str(measured_by),
        crossed_at=crossed,
        ended_at=ended,
        status=status,
        stopped=stopped,
        neighbour_failed=str(run["failed"]),
        neighbour_alive=alive,
        work=str(work["label"]),
        before_ms=[ms for at, ms in steps if began + _SETTLED_S <= at < crossed - _SETTLED_S / 2],
        while_ms=[ms for at, ms in steps if crossed <= at < ended + _SETTLED_S],
        after_ms=[ms for at, ms in steps if at >= ended + _SETTLED_S],
    )
