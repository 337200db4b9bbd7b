#!/usr/bin/env python3
"""What ran, replayed in the simulator: do the waits and the replica-seconds come out as they were?

    python benchmarks/validation.py [--minutes 10] [--seed 7] [--keep FOLDER]

Brings the platform up with `cotenant up` (a renderer that is scaled from none to three replicas, a language model that
is always there), publishes jobs of both kinds at random times for so many minutes, in bursts for the renderer, and
looks once a second how many replicas there are. Then `cotenant record` makes a trace of what ran, `cotenant starts`
tells how long starts took, and the simulator plays the trace with those times and the same policy.

Compared are the 95th percentile of the wait, over the jobs of each workload, and the renderer's replica-seconds, from
the start of each start to its end. Limit: 15 %, or a quarter of a second for waits that are as short.

A start takes some time between the shortest and the longest that was measured, so each of 40 replays draws others;
their median is compared, and their range told.

What the simulator is told is measured, what it gives is *simulated*. Jobs' times in a slot come from the record, so
what engines cost each other on the same cores is in them.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from cotenant.cli.machine.serve_api import ServeApi
from cotenant.cli.machine.state import RunState
from cotenant.cli.options import with_budgets
from cotenant.config import load_platform
from cotenant.gpu.plan import plan as make_plan
from cotenant.jobs.queue.pubsub import PubSubSource
from cotenant.jobs.queue.source import Message
from cotenant.manifests.scaling import ASSUMED_STARTS_S
from cotenant.sim.model import Request, Scene, SimWorkload
from cotenant.sim.run import Outcome, simulate
from cotenant.sim.scalers import Cotenant
from cotenant.sim.scene import scene_parts
from cotenant.sim.stages import Image, Stages, overridden

COTENANT = Path(sys.executable).with_name("cotenant")
LIMIT, SHORT_S = 0.15, 0.25
SEEDS = 40
SETTLE_S = 240.0
PLATFORM = {
    "name": "validation",
    "workloads": {
        "mockups": {"mockup": {"templates": ["mug"]}, "gpu": {"vram_gib": 1.5}, "cpus": 0.2, "concurrency": 1,
                    "target_wait_s": 5, "replicas": {"min": 0, "max": 3}},
        "writer": {"llm": {"model": "smollm2-135m", "context_tokens": 1024}, "gpu": {"vram_gib": 5}, "cpus": 0.5},
    },
    "jobs": {"store": "./results"},
    "environments": {"local": {"pools": {"shared": {"accelerator": "cpu", "vram_gib": 12,
                                                    "nodes": {"min": 1, "max": 1}}}}},
}  # fmt: skip


# --- the load -----------------------------------------------------------------------------------------------


def load(minutes: float, seed: int) -> list[tuple[float, dict[str, Any]]]:
    """When each job is published, and its line: a burst of renders every other minute or so, chats all the time."""
    rng = random.Random(seed)
    jobs: list[tuple[float, dict[str, Any]]] = []
    at_s, number = 5.0, 0
    while at_s < 60 * minutes:
        for _ in range(rng.randint(4, 14)):
            number += 1
            body = {"template": "mug", "artwork": artwork(number), "size": rng.choice([256, 384, 512]),
                    "samples": rng.choice([8, 16, 32])}  # fmt: skip
            jobs.append((at_s + rng.uniform(0, 3), line(f"m{number}", "/v1/mockups", body)))
        at_s += rng.uniform(45, 150)
    at_s = 0.0
    while (at_s := at_s + rng.expovariate(1 / 8)) < 60 * minutes:
        number += 1
        body = {"model": "smollm2-135m", "max_tokens": rng.choice([16, 32, 64]),
                "messages": [{"role": "user", "content": f"Write a post about mug number {number}."}]}  # fmt: skip
        jobs.append((at_s, line(f"w{number}", "/v1/chat/completions", body)))
    return sorted(jobs, key=lambda job: job[0])


def line(custom_id: str, url: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def artwork(number: int) -> str:
    from PIL import Image as Picture

    data = io.BytesIO()
    Picture.new("RGB", (64, 64), (number * 37 % 256, 90, 120)).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


# --- the real run -------------------------------------------------------------------------------------------


class Watch(threading.Thread):
    """Counts the renderer's replicas once a second."""

    def __init__(self, state: RunState) -> None:
        super().__init__(daemon=True)
        self._state = state
        self.seen: list[tuple[float, int]] = []
        self.over = False

    def run(self) -> None:
        with ServeApi(self._state.dashboard, self._state.token_file) as serve:
            while not self.over:
                states = serve.applications()["mockups"].replicas
                # What stops has only to finish what it has: the simulator counts that too.
                self.seen.append((time.time(), sum(states.values())))
                time.sleep(1.0)

    def replica_s(self) -> float:
        """Seconds of all replicas together."""
        steps = zip(self.seen, self.seen[1:], strict=False)
        return sum(count * (later - at) for (at, count), (later, _) in steps)


def cotenant(folder: Path, *arguments: str) -> str:
    done = subprocess.run([COTENANT, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"cotenant {' '.join(arguments)}: {done.stdout}{done.stderr}")
    return done.stdout


async def publish(state: RunState, platform: Any, jobs: list[tuple[float, dict[str, Any]]]) -> None:
    source = PubSubSource(platform.jobs, emulator_host=state.pubsub_emulator_host)
    began = time.monotonic()
    for number, (at_s, job) in enumerate(jobs):
        await asyncio.sleep(max(0.0, began + at_s - time.monotonic()))
        attributes = {"tenant": "bench", "batch": "validation"}
        await source.publish(platform.jobs.topic, [Message(json.dumps(job).encode(), attributes)])
        if number % 20 == 0:
            print(f"  {at_s:5.0f} s: {number} of {len(jobs)} published", flush=True)
    await source.close()


def results(folder: Path) -> int:
    return len(list((folder / "results").glob("**/results/*.json")))


# --- the replay ---------------------------------------------------------------------------------------------


def replay(platform: Any, rows: list[dict[str, Any]], stages: Stages) -> tuple[list[Outcome], tuple[SimWorkload, ...]]:
    """The trace under the real policy, on the one node that there is; each outcome draws other start times."""
    platform, _ = with_budgets(platform)
    pools, workloads = scene_parts(platform, make_plan(platform), image=Image.THERE, stages=stages)
    kinds = {name: workload.kind for name, workload in platform.workloads.items()}
    told = tuple(replace(one, assumed_s=ASSUMED_STARTS_S[kinds[one.name]]) for one in workloads)
    names = [one.name for one in told]
    first = min(row["at_s"] for row in rows)
    requests = [
        Request(row["at_s"] - first, names.index(row["workload"]), row["service_s"], units=row.get("units", 1.0))
        for row in sorted(rows, key=lambda row: row["at_s"])
    ]
    outcomes = []
    for seed in range(1, SEEDS + 1):
        scene = Scene(pools, told, requests, requests[-1].at_s + 1, patience_s=600.0, seed=seed, sample_s=10.0)
        outcomes.append(simulate(scene, Cotenant(every_s=0.2)))
    return outcomes, told


def compare(
    rows: list[dict[str, Any]], replica_s: float, outcomes: list[Outcome], workloads: tuple[SimWorkload, ...]
) -> bool:
    """Print both sides; whether they are near enough."""
    good = True
    print(f"\n{'':32}{'measured':>10}{'simulated':>11}{'of all seeds':>18}")

    def row(name: str, measured: float, simulated: list[float], least: float, *, counts: bool) -> None:
        nonlocal good
        middle = statistics.median(simulated)
        near = abs(middle - measured) <= max(LIMIT * measured, least)
        good = good and (near or not counts)
        spread = f"{min(simulated):.2f} to {max(simulated):.2f}"
        print(f"{name:32}{measured:10.2f}{middle:11.2f}{spread:>18}{'' if near else '   apart'}")

    for number, one in enumerate(workloads):
        mine = sorted(row["waited_s"] for row in rows if row["workload"] == one.name)
        for part in (0.5, 0.95):
            waits = [outcome.waits[number].quantile(part) for outcome in outcomes]
            measured = mine[min(len(mine) - 1, int(part * len(mine)))]
            row(f"{one.name}, wait p{100 * part:.0f}, s", measured, waits, SHORT_S, counts=part > 0.9)
        if one.bounds.min != one.bounds.max:
            seconds = [outcome.spent.replica_s[number] for outcome in outcomes]
            row(f"{one.name}, replica-seconds", replica_s, seconds, 0.0, counts=True)
    print(f"{'within' if good else 'NOT within'} {LIMIT:.0%}")
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--keep", type=Path, help="a folder for what was recorded; if it has that already, only replay")
    arguments = parser.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="cotenant-validation-"))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "platform.yaml"
    file.write_text(yaml.safe_dump(PLATFORM, sort_keys=False))
    os.chdir(folder)
    platform = load_platform(file, "local")
    if not (folder / "trace.jsonl").exists():
        print("up", flush=True)
        cotenant(folder, "up", "-f", str(file))
        try:
            state = RunState.load("validation")
            assert state is not None
            watch = Watch(state)
            jobs = load(arguments.minutes, arguments.seed)
            watch.start()
            asyncio.run(publish(state, platform, jobs))
            end = time.monotonic() + SETTLE_S
            # Until all is done and the renderer has gone back to nothing.
            while results(folder) < len(jobs) or not watch.seen or watch.seen[-1][1]:
                if time.monotonic() > end:
                    print(f"not over after {SETTLE_S:.0f} s: {results(folder)} of {len(jobs)} results", flush=True)
                    break
                time.sleep(1.0)
            time.sleep(8.0)  # the log of runs is written some seconds late
            watch.over = True
            watch.join()
            (folder / "replicas.json").write_text(json.dumps({"replica_s": watch.replica_s(), "seen": watch.seen}))
            cotenant(folder, "starts", "--workload", "mockups", "--stages", "stages.yaml")
            (folder / "scaling.json").write_text(cotenant(folder, "scaling", "--json"))
            cotenant(folder, "record", "-f", str(file), "-o", "trace.jsonl")
        finally:
            cotenant(folder, "down", "-f", str(file))
    rows = [json.loads(row) for row in (folder / "trace.jsonl").read_text().splitlines()]
    replica_s = json.loads((folder / "replicas.json").read_text())["replica_s"]
    stages = overridden(yaml.safe_load((folder / "stages.yaml").read_text()))
    outcomes, workloads = replay(platform, rows, stages)
    print(f"{len(rows)} jobs; kept in {folder}")
    sys.exit(0 if compare(rows, replica_s, outcomes, workloads) else 1)


if __name__ == "__main__":
    main()
