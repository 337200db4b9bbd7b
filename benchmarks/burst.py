#!/usr/bin/env python3
"""A burst of jobs at nothing: how long until the first result, and until the last, by what scales and what is ready.

    python benchmarks/burst.py [--scale 8] [--rounds 3] [--jobs 12] [--decisions 20] [--json FILE]

The control path is real: the Pub/Sub emulator, the ingress, Ray Serve, the scaler, replicas that are processes. What
this machine does not have is *emulated*: the making of a node, driver, image, weights and warm-up are a sleep in
the replica's start, `--scale` times as short as the means that `cotenant simulate` assumes. The start of the replica's
process is real and not scaled, so a figure times the scale overstates what a start takes by some seconds each.

Against it, in the same run and at the same scale, a loop that polls a metric, as an HPA or KEDA does: undelivered
messages sampled every 60 s, readable 60 s later, looked at every 15 s, one replica a message up to the most. It starts
from zero too, as KEDA does, and waits for no stabilisation.

Told are seconds as measured, at scale, and times the scale. Then, with starts that take no time, how long after a job
is published the scaler has decided and the replica's process has begun: limit 0.5 s at the 95th percentile for the
decision.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ingress import START_TIMEOUT_S, the_emulator
from cotenant.calls import Call, Directory, Reply, Served
from cotenant.cli.machine import ray_node
from cotenant.cli.machine.serve_api import ServeApi
from cotenant.cli.up import _python_path
from cotenant.config import Jobs
from cotenant.engines.admission import Admission
from cotenant.gpu.terms import Priority
from cotenant.jobs.queue.pubsub import PubSubSource
from cotenant.jobs.queue.source import Message
from cotenant.sim.stages import DEFAULTS as STAGES
from deployments.replica import DEPLOYMENT, Answering

MODEL = "bench-model"
SLOTS, MOST = 2, 4
JOB_S = 1.0
METRIC_EVERY_S, METRIC_LAG_S, SYNC_EVERY_S = 60.0, 60.0, 15.0
DECISION_LIMIT_S = 0.5
ROUND_TIMEOUT_S = 300.0
_POOL = "cotenant-pool-shared"


@dataclass(frozen=True)
class Scenario:
    """What scales, and which stages of a start are still to be gone through; `warm` replicas are there."""

    name: str
    by_metric: bool
    stages: tuple[str, ...]
    warm: int = 0
    wakes: bool = False

    @property
    def start_s(self) -> float:
        return sum(getattr(STAGES, stage).mean_s for stage in self.stages)


_ENGINE = ("weights", "warm_up")
SCENARIOS = (
    Scenario("metric, image pulled", True, ("node", "driver", "pull", *_ENGINE)),
    Scenario("metric, image streamed", True, ("node", "driver", "stream", *_ENGINE)),
    Scenario("metric, nodes preloaded", True, _ENGINE),
    Scenario("queue, image streamed", False, ("node", "driver", "stream", *_ENGINE)),
    Scenario("queue, a spare node", False, _ENGINE),
    Scenario("queue, an engine asleep", False, _ENGINE, warm=1, wakes=True),
    Scenario("queue, a free slot", False, _ENGINE, warm=1),
)


# --- the workload -------------------------------------------------------------------------------------------


class Engine(Answering):
    """Starts for as long as it is told, then sleeps a second for each job; the first one may have to wake it."""

    def __init__(self, start_s: float, wake_s: float) -> None:
        super().__init__()
        self._born = time.time()
        time.sleep(start_s)
        self._wake_s = wake_s
        self._admission = Admission(SLOTS)
        self._waking = asyncio.Lock()

    async def call(self, call: Call) -> Reply:
        async with self._admission.entered(Priority.BATCH):
            async with self._waking:
                wake_s, self._wake_s = self._wake_s, 0.0
                await asyncio.sleep(wake_s)
            await asyncio.sleep(json.loads(call.body)["sleep_s"])
        return Reply(200, json.dumps({"object": "chat.completion", "model": MODEL, "born": self._born}).encode())


def build(args: dict[str, Any]) -> Any:
    """The Serve application of the workload."""
    from ray import serve

    return serve.deployment(
        Engine,
        name="Replica",
        max_ongoing_requests=3 * SLOTS,
        ray_actor_options={"num_cpus": 0.1, "resources": {_POOL: 0.001}},
        graceful_shutdown_timeout_s=2,
        graceful_shutdown_wait_loop_s=0.1,
        **DEPLOYMENT,
    ).bind(float(args["start_s"]), float(args["wake_s"]))


class Written:
    """The policy that does what a metric loop has written: Serve's fixed numbers can't be zero."""

    def __init__(self, file: str) -> None:
        self._file = file

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        with open(self._file) as file:  # noqa: PTH123 - sent by value, with nothing that is imported
            return int(file.read() or 0), {}


def serve_config(jobs: Jobs, scenario: Scenario, scale: float, written: Path, name: str) -> dict[str, Any]:
    """Ingress and a workload of that name. A metric loop writes its number of replicas to the file."""
    served = Served(name, "llm", models=(MODEL,), slots=SLOTS, deadline_s=300)
    wake_s = STAGES.wake.mean_s / scale if scenario.wakes else 0.0
    share_s = (STAGES.weights.mean_s + STAGES.warm_up.mean_s) / scale
    told = {"name": name, "pool_resource": _POOL, "num_gpus": 0.01, "cpus": 0.1, "slots": SLOTS,
            "min": scenario.warm, "max": MOST, "target_wait_s": 5.0 / scale,
            "wake_s": 0.1, "share_s": share_s, "node_s": max(share_s, scenario.start_s / scale)}  # fmt: skip
    # Told for the metric loop too, whose policy does not ask for it: so a call waits at the ingress until the loop has
    # made a replica, and does not make Serve start one.
    scaling = {"workloads": [told], "pools": []}
    policy = {"policy_function": "deployments.policy:Policy", "policy_kwargs": {"name": name}}
    if scenario.by_metric:
        policy = {"policy_function": "benchmarks.burst:Written", "policy_kwargs": {"file": str(written)}}
    deployment = {
        "name": "Replica",
        "autoscaling_config": {
            "min_replicas": scenario.warm,
            "max_replicas": MOST,
            "upscale_delay_s": 0.0,
            "downscale_delay_s": 0.0,
            "policy": policy,
        },
    }
    workload = {
        "name": name,
        "route_prefix": None,
        "import_path": "benchmarks.burst:build",
        "args": {"start_s": scenario.start_s / scale, "wake_s": wake_s},
        "deployments": [deployment],
    }
    user_config = {"workloads": Directory((served,)).to_plain(), "scaling": scaling}
    ingress = {
        "name": "ingress",
        "route_prefix": None,
        "import_path": "deployments.ingress:build",
        "args": {"jobs": jobs.model_dump(mode="json")},
        "deployments": [{"name": "Ingress", "user_config": user_config}],
    }
    return {"proxy_location": "Disabled", "applications": [workload, ingress]}


# --- one round ----------------------------------------------------------------------------------------------


class Bench:
    """The platform under test, and what is asked of it from outside."""

    def __init__(self, jobs: Jobs, serve: ServeApi, source: PubSubSource, scale: float) -> None:
        self.jobs = jobs
        self.serve = serve
        self.source = source
        self.scale = scale
        self.name = "bench"
        self.written = Path(jobs.store).with_name("replicas")

    def write(self, replicas: int) -> None:
        self.written.write_text(str(replicas))

    async def deploy(self, scenario: Scenario) -> None:
        config = serve_config(self.jobs, scenario, self.scale, self.written, self.name)
        await asyncio.to_thread(self.serve.deploy, config)

    async def settled(self, replicas: int) -> None:
        """Wait until so many replicas serve, and the ingress runs."""
        end = time.monotonic() + START_TIMEOUT_S
        while True:
            found = await asyncio.to_thread(self.serve.applications)
            if found and "ingress" in found and found["ingress"].ready and self.name in found:
                workload = found[self.name]
                if len(workload.pids) == replicas and (workload.ready or not replicas):
                    return
            if time.monotonic() > end:
                raise RuntimeError(f"not {replicas} replicas after {START_TIMEOUT_S:.0f} s: {found}")
            await asyncio.sleep(0.2)

    async def burst(self, scenario: Scenario, count: int) -> tuple[float, float]:
        """Seconds from the burst to its first and to its last result."""
        self.write(0)
        # Another one each time: what the scaler has learned of the one before is no affair of this one.
        self.name = f"bench-{time.monotonic_ns()}"
        await asyncio.to_thread(self.serve.deploy, {"proxy_location": "Disabled", "applications": []})
        await self.deploy(scenario)
        await self.settled(scenario.warm)
        await asyncio.sleep(2.0)
        batch, began = await self.publish(count)
        loop = asyncio.create_task(self._poll_metric(batch, count)) if scenario.by_metric else None
        try:
            return await self.results(batch, count, began)
        finally:
            if loop is not None:
                loop.cancel()
                await asyncio.wait({loop})

    async def publish(self, count: int) -> tuple[str, float]:
        batch = f"b{time.monotonic_ns()}"
        began = time.time()
        messages = [Message(line(number), {"batch": batch, "tenant": "bench"}) for number in range(count)]
        await self.source.publish(self.jobs.topic, messages)
        return batch, began

    async def results(self, batch: str, count: int, began: float) -> tuple[float, float]:
        end = time.monotonic() + ROUND_TIMEOUT_S
        while len(found := self.found(batch)) < count:
            if time.monotonic() > end:
                raise RuntimeError(f"{len(found)} of {count} results after {ROUND_TIMEOUT_S:.0f} s")
            await asyncio.sleep(0.1)
        times = sorted(path.stat().st_mtime - began for path in found)
        return times[0], times[-1]

    def found(self, batch: str) -> list[Path]:
        folders = [path for path in Path(self.jobs.store).glob("**/results") if batch in str(path)]
        return [path for folder in folders for path in folder.glob("*.json")]

    async def _poll_metric(self, batch: str, count: int) -> None:
        """What an autoscaler on a metric does, at scale. The metric's first point comes at a random time."""
        replicas, seen = 0, list[tuple[float, int]]()
        next_sample = time.monotonic() + METRIC_EVERY_S / self.scale * (hash(batch) % 100) / 100
        while True:
            now = time.monotonic()
            if now >= next_sample:
                seen.append((now, count - len(self.found(batch))))
                next_sample += METRIC_EVERY_S / self.scale
            readable = [undelivered for at, undelivered in seen if at <= now - METRIC_LAG_S / self.scale]
            if readable and (wanted := min(MOST, readable[-1])) > replicas:
                replicas = wanted
                self.write(replicas)
            await asyncio.sleep(SYNC_EVERY_S / self.scale)


def line(number: int) -> bytes:
    body = {"model": MODEL, "sleep_s": JOB_S, "messages": [{"role": "user", "content": str(number)}]}
    job = {"custom_id": f"job-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(job).encode()


async def decisions(bench: Bench, node: ray_node.RayNode, count: int) -> dict[str, list[float]]:
    """Seconds from a job's publication to the decision, and to the birth of the replica, each time from nothing."""
    await asyncio.to_thread(bench.serve.deploy, {"proxy_location": "Disabled", "applications": []})
    bench.name = "bench"
    await bench.deploy(Scenario("no start", False, ()))
    told: dict[str, list[float]] = {"decided_s": [], "born_s": [], "result_s": []}
    began_s = []
    for number in range(count):
        await bench.settled(0)
        await asyncio.sleep(1.0 + 0.37 * (number % 10))
        batch, began = await bench.publish(1)
        first, _ = await bench.results(batch, 1, began)
        kept = json.loads(bench.found(batch)[0].read_bytes())["line"]
        born = json.loads(kept if isinstance(kept, str) else json.dumps(kept))["response"]["body"]["born"]
        began_s.append(began)
        told["born_s"].append(born - began)
        told["result_s"].append(first)
        print(f"  {number + 1}: born {born - began:.2f} s, result {first:.2f} s", flush=True)
    cotenant = Path(sys.executable).with_name("cotenant")
    command = [cotenant, "scaling", "--json", "--address", node.address]
    environment = {**os.environ, **ray_node.ray_environment(node.token_file)}
    done = await asyncio.to_thread(subprocess.run, command, env=environment, capture_output=True, text=True, check=True)
    changes = [one for one in json.loads(done.stdout)["changes"] if one["workload"] == "bench" and one["replicas"] > 0]
    for began in began_s:
        told["decided_s"].append(min(one["at_s"] for one in changes if one["at_s"] >= began) - began)
    return told


@contextmanager
def the_platform(host_port: str) -> Iterator[tuple[ray_node.RayNode, ServeApi]]:
    root = str(Path(__file__).resolve().parent.parent)
    environment = {"PYTHONPATH": f"{root}:{_python_path()}", "PUBSUB_EMULATOR_HOST": host_port}
    # Ray's spare processes have imported what the replicas need, as those of `cotenant up` have.
    os.environ[ray_node.PRELOAD] = "benchmarks.burst"
    spec = ray_node.NodeSpec(num_cpus=6, num_gpus=1, resources={_POOL: 1000})
    node = ray_node.start(spec, environment, lambda _: None)
    try:
        with ServeApi(node.dashboard, node.token_file) as serve:
            yield node, serve
    finally:
        ray_node.stop(node.process, node.directory)


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {"scale": arguments.scale, "jobs": arguments.jobs, "emulated": {}}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cotenant-burst-")))
        emulator = stack.enter_context(the_emulator(folder))
        host_port = emulator.host_port
        jobs = Jobs(store=str(folder / "results"), lease_s=60)
        node, serve = stack.enter_context(the_platform(host_port))
        source = PubSubSource(jobs, emulator_host=host_port)
        await source.setup()
        bench = Bench(jobs, serve, source, arguments.scale)
        taken: dict[str, list[tuple[float, float]]] = {scenario.name: [] for scenario in SCENARIOS}
        for number in range(arguments.rounds):
            for scenario in SCENARIOS:
                first, last = await bench.burst(scenario, arguments.jobs)
                taken[scenario.name].append((first, last))
                print(f"round {number + 1}  {scenario.name:26} first {first:6.1f} s, last {last:6.1f} s", flush=True)
        if arguments.decisions:
            figures["decisions"] = await decisions(bench, node, arguments.decisions)
        await source.close()
    for name, rounds in taken.items():
        figures["emulated"][name] = {"first_s": [r[0] for r in rounds], "last_s": [r[1] for r in rounds]}
    return figures


def report(figures: dict[str, Any]) -> bool:
    """Print the figures; whether the limit is kept."""
    scale = figures["scale"]
    print(f"\nburst of {figures['jobs']} jobs at nothing, emulated at 1/{scale:g}: median of rounds")
    print(f"{'':28}{'first result':>14}{'x scale':>10}{'last':>10}{'x scale':>10}")
    for name, one in figures["emulated"].items():
        first, last = statistics.median(one["first_s"]), statistics.median(one["last_s"])
        print(f"{name:28}{first:12.1f} s{first * scale:8.0f} s{last:8.1f} s{last * scale:8.0f} s")
    if "decisions" not in figures:
        return True
    print()
    for name, seconds in figures["decisions"].items():
        ranked = sorted(seconds)
        p95 = ranked[min(len(ranked) - 1, int(0.95 * len(ranked)))]
        print(f"{name:12} p50 {statistics.median(ranked):.2f} s, p95 {p95:.2f} s, most {ranked[-1]:.2f} s")
    decided = sorted(figures["decisions"]["decided_s"])
    kept = decided[min(len(decided) - 1, int(0.95 * len(decided)))] <= DECISION_LIMIT_S
    print(f"published to decided, p95: {'within' if kept else 'ABOVE'} the limit of {DECISION_LIMIT_S} s")
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scale", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--decisions", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = asyncio.run(run(arguments))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2))
    sys.exit(0 if report(figures) else 1)


if __name__ == "__main__":
    main()
