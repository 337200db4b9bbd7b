#!/usr/bin/env python3
"""What a neighbour feels when the agent stops an offender, how soon that is, and what a lease costs per call.

    python benchmarks/enforcement.py --rounds 10

The real agent, in a process of its own, looks after a virtual GPU (process memory stands for GPU memory). On it:

  neighbour  always resident; does a unit of about 5 ms of matrix products on one thread, over and over
  offender   computes as well, and touches fresh memory at a steady rate all the while. At first it lets go of it
             before its budget is reached; then it goes on to twice its budget, and the agent stops it

A round compares the neighbour's latencies while the offender keeps within its budget with those from 0.5 s before to
1 s after the stop. The control is the same comparison where nothing happens: the last 1.5 s before the offender turns
against the time before that. It shows how much of the ratio is the machine's own noise.

Then the lease: `Tenancy.lease` around nothing, on a resident engine, with a real line to a real agent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

MIB = 2**20
NODE = "bench"
USABLE_GIB = 4.0
NEIGHBOUR_GIB, OFFENDER_GIB = 0.5, 0.5
WITHIN_PART = 0.8
"""Of its budget: where an offender that behaves lets go. The agent warns at 0.9."""
BLOCK_MIB = 4
UNIT_S = 0.005
BEFORE_S, AFTER_S = 0.5, 1.0
RATIO_AIM = 1.10
QUIET_CORES = 0.03
"""Of CPU time that others, the hypervisor included, may take in an undisturbed round."""
PATIENCE_S = 30.0
CONTEXT = multiprocessing.get_context("spawn")


def terms_of(workload: str, vram_gib: float, residency: str = "always", floor_gib: float | None = None) -> Any:
    from cotenant.gpu.terms import Terms

    return Terms.model_validate(
        {
            "workload": workload,
            "kind": "image",
            "pool": "shared",
            "accelerator": "cpu",
            "usable_gib": USABLE_GIB,
            "vram_gib": vram_gib,
            "floor_gib": floor_gib or vram_gib,
            "num_gpus": 0.1,
            "residency": residency,
        }
    )


def line_of(terms: Any, number: int = 0) -> Any:
    """A line to the agent, connected and granted if `terms` are those of an always resident one."""
    from cotenant.agent.client import AgentLink, Figures
    from cotenant.agent.paths import socket_path
    from cotenant.agent.protocol import Identity
    from cotenant.gpu.terms import Priority, Tier

    identity = Identity(application=terms.workload, deployment="Replica", replica=f"{terms.workload}#{number}")
    link = AgentLink(socket_path(NODE), identity, terms, figures=lambda: Figures(tier=Tier.RESIDENT))
    link.start()
    if not link.wait_connected(PATIENCE_S):
        raise SystemExit(f"the agent did not welcome {terms.workload}")
    if terms.residency == "always":
        link.request(Priority.INTERACTIVE).result(PATIENCE_S)
    return link


def work(repeats: int) -> Callable[[], None]:
    """A unit of work: so many products of two fixed matrices."""
    import numpy as np

    a = np.random.default_rng(1).random((128, 128))
    b, out = a.T.copy(), np.empty_like(a)

    def unit() -> None:
        for _ in range(repeats):
            np.matmul(a, b, out=out)

    return unit


def calibrated() -> int:
    """Repeats that take about `UNIT_S`."""
    once = work(1)
    times = []
    for _ in range(400):
        began = time.perf_counter()
        once()
        times.append(time.perf_counter() - began)
    return max(1, round(UNIT_S / statistics.median(times)))


def agent_main(pipe: Connection, interval_s: float) -> None:
    """The agent's process. Tells of each stop the workload, what it held in MiB, and when that was decided."""
    from cotenant.agent.node import Obituary
    from cotenant.agent.server import Agent
    from cotenant.gpu.probe.host import ProcessTable, VirtualGpus

    async def on_stop(obituary: Obituary) -> None:
        pipe.send((obituary.workload, obituary.held_mib, time.monotonic()))

    async def serve() -> None:
        gpus = VirtualGpus(int(USABLE_GIB * 2**20))
        agent = Agent(gpus, ProcessTable(), node_id=NODE, on_stop=on_stop, interval_s=interval_s)
        await agent.start()
        pipe.send(os.getpid())
        await agent.serve_forever()

    asyncio.run(serve())


def neighbour_main(pipe: Connection) -> None:
    """Works until told `end`. `take` hands over what was noted since: when each unit ended, how long it took."""
    link = line_of(terms_of("neighbour", NEIGHBOUR_GIB))
    unit = work(calibrated())
    noted: list[tuple[float, float]] = []
    lost = 0
    pipe.send("up")
    while True:
        began = time.monotonic()
        unit()
        ended = time.monotonic()
        noted.append((ended, ended - began))
        lost += not (link.connected and link.holds)
        if pipe.poll():
            if pipe.recv() == "end":
                link.close()
                return
            pipe.send((noted, lost))
            noted = []


def offender_main(pipe: Connection, seen: Any, number: int, rate_mib_s: float) -> None:
    """Works and allocates. Told anything, it stops letting go. `seen` is when it first was past its budget, and the
    most KiB that it held, by its own look at its memory; the kernel's figure, as the agent's is."""
    import mmap

    line_of(terms_of("offender", OFFENDER_GIB), number)
    unit = work(calibrated())
    budget_kib = int(OFFENDER_GIB * 2**20)
    page_kib = os.sysconf("SC_PAGE_SIZE") // 1024
    statm = os.open("/proc/self/statm", os.O_RDONLY)

    def held_kib() -> int:
        fields = os.pread(statm, 200, 0).split()
        return (int(fields[1]) - int(fields[2])) * page_kib

    blocks: list[mmap.mmap] = []
    touched = b"x" * (BLOCK_MIB * MIB)
    turned = False
    pipe.send("up")
    due = time.monotonic()
    while True:
        unit()
        turned = turned or pipe.poll()
        while time.monotonic() >= due and held_kib() < 2 * budget_kib:
            due += BLOCK_MIB / rate_mib_s
            if held_kib() + BLOCK_MIB * 1024 > budget_kib:
                seen[0] = seen[0] or time.monotonic()
            block = mmap.mmap(-1, len(touched), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            block.write(touched)
            blocks.append(block)
            held = held_kib()
            seen[1] = max(seen[1], held)
            if not turned and held > WITHIN_PART * budget_kib:
                blocks.clear()


@asynccontextmanager
async def nothing() -> AsyncIterator[None]:
    yield


class Idle:
    """An engine with nothing to load."""

    async def wake(self) -> None: ...

    async def sleep(self, tier: Any) -> None: ...


def lease_main(pipe: Connection, agent_pid: int, calls: int) -> None:
    """Microseconds per call, by residency: wall time, CPU time of this process, of the agent, in turn with an empty
    context manager."""
    import psutil

    from cotenant.agent.tenancy import Tenancy
    from cotenant.agent.turns import StartTurn
    from cotenant.gpu.terms import Priority

    agent = psutil.Process(agent_pid)

    async def measured(lease: Callable[[], Any]) -> tuple[float, float, float]:
        times = agent.cpu_times()
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(calls):
            async with lease():
                pass
        wall_s = time.perf_counter() - wall
        await asyncio.sleep(0.3)  # what was posted to the line's thread is said and heard
        cpu_s = time.process_time() - cpu
        after = agent.cpu_times()
        return wall_s, cpu_s, after.user + after.system - times.user - times.system

    async def compare(residency: str) -> dict[str, Any]:
        terms = terms_of(f"leased-{residency}", 0.5, residency, 0.2 if residency == "sleep" else None)
        link = await asyncio.to_thread(line_of, terms)
        tenancy = Tenancy(terms, Idle(), link, turn=lambda: StartTurn("bench", terms.workload))
        await tenancy.start()
        empty, alone, beside = [], [], []
        for _ in range(5):
            empty.append(await measured(nothing))
            alone.append(await measured(lambda: tenancy.lease(Priority.INTERACTIVE)))
            async with tenancy.lease(Priority.INTERACTIVE):
                beside.append(await measured(lambda: tenancy.lease(Priority.INTERACTIVE)))
        await tenancy.close()
        await asyncio.to_thread(link.close)

        def more_us(which: list[tuple[float, float, float]]) -> dict[str, float]:
            return {
                name: round(
                    statistics.median(
                        1e6 * (some[at] - none[at]) / calls for some, none in zip(which, empty, strict=True)
                    ),
                    2,
                )
                for at, name in enumerate(("wall_us", "cpu_us", "agent_cpu_us"))
            }

        return {"one at a time": more_us(alone), "beside another": more_us(beside)}

    async def both() -> dict[str, Any]:
        return {residency: await compare(residency) for residency in ("always", "sleep")}

    pipe.send(asyncio.run(both()))


@dataclass
class Running:
    """A process and the pipe to it."""

    process: Any
    pipe: Connection

    @classmethod
    def start(cls, main: Callable[..., None], *arguments: Any) -> Running:
        ours, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(target=main, args=(theirs, *arguments), daemon=True)
        process.start()
        theirs.close()
        return cls(process, ours)

    def answer(self, within_s: float = PATIENCE_S) -> Any:
        if not self.pipe.poll(within_s):
            raise SystemExit(f"no answer from {self.process.name} within {within_s:g} s")
        return self.pipe.recv()


@dataclass(frozen=True)
class Round:
    """One stop. Latencies in seconds."""

    before: list[float]
    window: list[float]
    until_stop: list[float]
    since_stop: list[float]
    control: list[float]
    earlier: list[float]
    """What the control compares with."""
    to_decision_s: float
    """From the start of the first allocation past its budget."""
    to_end_s: float
    overshoot_mib: float
    agent_saw_mib: float
    others_cores: float
    """Taken by other processes; the more of before and around the stop."""


def others_s(mine: Sequence[Any]) -> float:
    """CPU seconds since the machine started, less those of this process, those it has waited for, and `mine`."""
    import psutil

    all_of_it = psutil.cpu_times()
    busy = sum(getattr(all_of_it, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))
    own = psutil.Process().cpu_times()
    used = own.user + own.system + own.children_user + own.children_system
    for process in mine:
        if process.is_running():
            times = process.cpu_times()
            used += times.user + times.system
    return float(busy - used)


def one_round(number: int, agent: Running, neighbour: Running, chance: random.Random, args: Any) -> Round:
    import psutil

    seen = CONTEXT.RawArray("d", 2)
    # The last round ended with a look of the agent; over all rounds budgets are passed anywhere between two looks.
    time.sleep(args.interval_s * (number + chance.random()) / args.rounds)
    offender = Running.start(offender_main, seen, number, args.rate_mib_s)
    offender.answer()
    time.sleep(1.0)  # past the start
    mine = [psutil.Process(one.process.pid) for one in (agent, neighbour, offender)]
    began, others_began = time.monotonic(), others_s(mine)
    time.sleep(args.before_s)
    turned, others_turned = time.monotonic(), others_s(mine)
    offender.pipe.send("turn")
    workload, agent_saw_mib, decided = agent.answer()
    offender.process.join(PATIENCE_S)
    ended = time.monotonic()
    assert workload == "offender"
    assert offender.process.exitcode == -9, offender.process.exitcode
    time.sleep(AFTER_S)
    others_after = (others_s(mine) - others_turned) / (time.monotonic() - turned)
    time.sleep(0.1)
    neighbour.pipe.send("take")
    noted, lost = neighbour.answer()
    assert not lost, f"the neighbour was without its lease or its line {lost} times"
    assert_untouched(neighbour)

    def between(start: float, end: float) -> list[float]:
        return [seconds for at, seconds in noted if start <= at < end]

    parted = turned - BEFORE_S - AFTER_S
    return Round(
        before=between(began, turned),
        window=between(ended - BEFORE_S, ended + AFTER_S),
        until_stop=between(ended - BEFORE_S, ended),
        since_stop=between(ended, ended + AFTER_S),
        control=between(parted, turned),
        earlier=between(began, parted),
        to_decision_s=decided - seen[0],
        to_end_s=ended - seen[0],
        overshoot_mib=seen[1] / 1024 - OFFENDER_GIB * 1024,
        agent_saw_mib=agent_saw_mib,
        others_cores=max(0.0, others_after, (others_turned - others_began) / (turned - began)),
    )


def assert_untouched(neighbour: Running) -> None:
    """The agent knows the neighbour as before, and nobody else."""
    from cotenant.agent.look import ask
    from cotenant.agent.paths import socket_path

    end = time.monotonic() + PATIENCE_S
    while True:
        snapshot = ask(socket_path(NODE))
        assert snapshot is not None
        (gpu,) = snapshot.gpus
        if len(gpu.replicas) == 1:
            break
        assert time.monotonic() < end, "the offender's lease was never freed"
        time.sleep(0.05)
    (view,) = gpu.replicas
    assert (view.workload, view.pid, view.connected) == ("neighbour", neighbour.process.pid, True)
    assert view.lease_mib == view.budget_mib == NEIGHBOUR_GIB * 1024
    assert sum(tally.stops for tally in snapshot.tallies if tally.workload == "neighbour") == 0


def percentile(values: Sequence[float], part: float) -> float:
    """The smallest value that at least this part of them does not exceed."""
    return sorted(values)[max(0, math.ceil(part * len(values)) - 1)]


def latencies(values: Sequence[float]) -> dict[str, float]:
    return {
        "units": len(values),
        "p50_ms": round(1e3 * percentile(values, 0.50), 3),
        "p99_ms": round(1e3 * percentile(values, 0.99), 3),
        "max_ms": round(1e3 * max(values), 3),
    }


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    quiet = [one for one in rounds if one.others_cores <= QUIET_CORES]

    def spread(values: Sequence[float]) -> dict[str, float]:
        return {"median": round(statistics.median(values), 3), "max": round(max(values), 3)}

    return {
        "all": compared(rounds),
        "undisturbed": compared(quiet) if quiet else None,
        "p99_ratio_by_round": [round(percentile(one.window, 0.99) / percentile(one.before, 0.99), 3) for one in rounds],
        "others_cores_by_round": [round(one.others_cores, 3) for one in rounds],
        "over_budget_to_decision_s": spread([one.to_decision_s for one in rounds]),
        "over_budget_to_end_s": spread([one.to_end_s for one in rounds]),
        "overshoot_mib": spread([one.overshoot_mib for one in rounds]),
        "agent_saw_mib": spread([one.agent_saw_mib for one in rounds]),
    }


def compared(rounds: Sequence[Round]) -> dict[str, Any]:
    """The latencies of these rounds together, and their ratios."""
    pooled = {
        name: latencies([value for one in rounds for value in getattr(one, name)])
        for name in ("before", "window", "until_stop", "since_stop", "control", "earlier")
    }
    return {
        "rounds": len(rounds),
        "latency": pooled,
        "p50_ratio": round(pooled["window"]["p50_ms"] / pooled["before"]["p50_ms"], 3),
        "p99_ratio": round(pooled["window"]["p99_ms"] / pooled["before"]["p99_ms"], 3),
        "p99_ratio_control": round(pooled["control"]["p99_ms"] / pooled["earlier"]["p99_ms"], 3),
    }


def kept(found: dict[str, Any]) -> bool:
    """Judged by the undisturbed rounds; all of them if fewer than half were."""
    quiet = found["undisturbed"]
    judged = quiet if quiet and 2 * quiet["rounds"] >= found["all"]["rounds"] else found["all"]
    return bool(judged["p99_ratio"] <= RATIO_AIM)


def show(found: dict[str, Any], args: Any) -> None:
    rows = {
        "within budget": "before",
        "around the stop": "window",
        "  0.5 s until it": "until_stop",
        "  1 s since": "since_stop",
        "control, earlier": "earlier",
        "control, last 1.5 s": "control",
    }
    print(f"{args.rounds} rounds, virtual GPU, {args.rate_mib_s:g} MiB/s, a look each {args.interval_s:g} s; measured")
    print(f"{'neighbour, a unit of work':26}{'units':>8}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}")
    for name, key in rows.items():
        one = found["all"]["latency"][key]
        print(f"  {name:24}{one['units']:>8}{one['p50_ms']:>9.2f}{one['p99_ms']:>9.2f}{one['max_ms']:>9.2f}")
    for name in ("all", "undisturbed"):
        one = found[name]
        if one:
            print(
                f"{name} {one['rounds']} rounds: p99 around the stop / within budget {one['p99_ratio']:.3f} "
                f"(aim <= {RATIO_AIM:.2f}), p50 {one['p50_ratio']:.3f}; control p99 {one['p99_ratio_control']:.3f}"
            )
    print(
        f"{'kept' if kept(found) else 'MISSED'}; disturbed is a round in which others took more than {QUIET_CORES:g} "
        f"of a core; they took up to {max(found['others_cores_by_round']):.2f}"
    )
    for name, key, unit in (
        ("past its budget to decision", "over_budget_to_decision_s", "s"),
        ("past its budget to its end", "over_budget_to_end_s", "s"),
        (f"overshoot of {OFFENDER_GIB * 1024:.0f} MiB", "overshoot_mib", "MiB"),
    ):
        print(f"{name:30} median {found[key]['median']:.2f} {unit}, most {found[key]['max']:.2f} {unit}")
    print("the neighbour kept its lease, its line and its process in every round")
    print("\na lease on a resident engine, us per call beyond an empty context manager")
    print(f"{'':26}{'wall':>8}{'CPU':>8}{'agent CPU':>11}")
    for residency, ways in found["lease"].items():
        for way, one in ways.items():
            name = f"{residency}, {way}"
            print(f"  {name:24}{one['wall_us']:>8.1f}{one['cpu_us']:>8.1f}{one['agent_cpu_us']:>11.1f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--before-s", type=float, default=4.0, help="how long the offender keeps within its budget")
    parser.add_argument("--rate-mib-s", type=float, default=256.0, help="how fast it touches fresh memory")
    parser.add_argument("--interval-s", type=float, default=1.0, help="how often the agent looks")
    parser.add_argument("--calls", type=int, default=2000, help="leases in each of five measurements")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    if args.rounds < 1 or args.before_s <= BEFORE_S + AFTER_S:
        parser.error(f"--rounds must be at least 1 and --before-s more than {BEFORE_S + AFTER_S:g}")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["COTENANT_AGENT_DIR"] = folder
        agent = Running.start(agent_main, args.interval_s)
        agent_pid = agent.answer()
        neighbour = Running.start(neighbour_main)
        neighbour.answer()
        rounds = [one_round(number, agent, neighbour, chance, args) for number in range(args.rounds)]
        neighbour.pipe.send("end")
        neighbour.process.join(PATIENCE_S)
        lease = Running.start(lease_main, agent_pid, args.calls)
        found: dict[str, Any] = {
            "label": "measured",
            "machine": {"cpus": os.cpu_count(), "processor": platform.processor() or platform.machine()},
            "arguments": {key: value for key, value in vars(args).items() if key != "json"},
            **summary(rounds),
            "lease": lease.answer(120),
        }
        lease.process.join(PATIENCE_S)
        agent.process.terminate()
        agent.process.join(PATIENCE_S)
    show(found, args)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if kept(found) else 1


if __name__ == "__main__":
    sys.exit(main())
