"""Jobs per second through the ingress on Serve, against a process-pool loop over the same Pub/Sub client without Ray.

    python benchmarks/ingress.py [--rounds 3] [--jobs 2000] [--slow-jobs 800] [--json FILE]

One Pub/Sub emulator and one machine serve both. The pool loop is what one would write without a platform: pull as many
messages as there is room for, run each in a pool of processes, create the result object if it is absent, publish the
result messages and acknowledge, both in batches. The ingress is deployed as `cotenant up` deploys it, on a Ray that
`up` would start, before a workload of 2 replicas with 4 slots each; the pool has as many processes as that has slots.
Two engines: one that does nothing and one that sleeps 50 ms. Rounds alternate between the two sides, and the order
swaps every round. Both are driven from outside alone: jobs are published on the topic, and what counts is when the
result objects came to be in the store.

While one side is measured the other is idle; the pool loop is also measured once before Ray is started. Prints the
median rate of each side and the ratio of each round, and where the CPU time went, in ms a job.

Exit status 1 if a ratio falls below its limit: 0.8 for the engine that does nothing, 0.95 for the one of 50 ms.
"""

import argparse
import asyncio
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from cotenant.calls import Call, Directory, Reply, Served
from cotenant.cli.machine import ray_node
from cotenant.cli.machine.serve_api import ServeApi
from cotenant.cli.up import _python_path
from cotenant.config import Jobs
from cotenant.engines.admission import Admission
from cotenant.gpu.terms import Priority
from cotenant.jobs.ingress.batcher import Batcher
from cotenant.jobs.queue import emulator
from cotenant.jobs.queue.pubsub import PubSubSource
from cotenant.jobs.queue.source import Delivery, Message
from cotenant.manifests.serve import admitted
from deployments.replica import DEPLOYMENT, Answering

REPLICAS, SLOTS = 2, 4
WORKLOAD, MODEL = "bench", "bench-model"
START_TIMEOUT_S, ROUND_TIMEOUT_S = 120.0, 120.0
#: What both sides do after the last result object (messages, acks) is over by then.
SETTLE_S = 1.5
ENGINES = {"no-op": 0.0, "50 ms": 0.05}
LIMITS = {"no-op": 0.8, "50 ms": 0.95}


# --- the engine ---------------------------------------------------------------------------------------------


def answer_to(body: bytes) -> bytes:
    """What the engine says: the OpenAI form, a few words."""
    asked = json.loads(body)
    choice = {"index": 0, "message": {"role": "assistant", "content": asked["messages"][0]["content"][:40]}}
    return json.dumps({"object": "chat.completion", "model": MODEL, "choices": [choice]}).encode()


class Engine(Answering):
    """A replica that sleeps for as long as the job says, with the admission that every replica has."""

    def __init__(self) -> None:
        super().__init__()
        self._admission = Admission(SLOTS)

    async def call(self, call: Call) -> Reply:
        async with self._admission.entered(Priority.BATCH):
            await asyncio.sleep(json.loads(call.body)["sleep_s"])
        return Reply(200, answer_to(call.body))


def build(_: dict[str, Any]) -> Any:
    """The Serve application of the workload."""
    from ray import serve

    options = {"num_cpus": 0.1}
    return serve.deployment(
        Engine,
        name="Replica",
        num_replicas=REPLICAS,
        max_ongoing_requests=admitted(SLOTS, ingresses=1),
        ray_actor_options=options,
        **DEPLOYMENT,
    ).bind()


def serve_config(jobs: Jobs) -> dict[str, Any]:
    """The workload and the ingress before it."""
    served = Served(WORKLOAD, "llm", models=(MODEL,), slots=SLOTS, deadline_s=60)
    ingress = {"name": "Ingress", "user_config": {"workloads": Directory((served,)).to_plain()}}
    return {
        "proxy_location": "Disabled",
        "applications": [
            {"name": WORKLOAD, "route_prefix": None, "import_path": "benchmarks.ingress:build"},
            {
                "name": "ingress",
                "route_prefix": None,
                "import_path": "deployments.ingress:build",
                "args": {"jobs": jobs.model_dump(mode="json")},
                "deployments": [ingress],
            },
        ],
    }


# --- the pool loop ------------------------------------------------------------------------------------------


def work(data: bytes) -> tuple[str, bytes]:
    """In a process of the pool: one job line in, its name and its output line out."""
    job = json.loads(data)
    time.sleep(job["body"]["sleep_s"])
    body = json.loads(answer_to(json.dumps(job["body"]).encode()))
    response = {"status_code": 200, "request_id": job["custom_id"], "body": body}
    line = {"id": job["custom_id"], "custom_id": job["custom_id"], "response": response, "error": None}
    return job["custom_id"], json.dumps(line).encode()


async def pool_loop(jobs: Jobs, emulator_host: str, ready: Callable[[], object]) -> None:
    """Serve jobs for ever, without Ray."""
    import obstore
    from obstore.store import LocalStore

    store = LocalStore(Path(jobs.store), mkdir=True)
    source = PubSubSource(jobs, emulator_host=emulator_host)
    await source.setup()
    results = Batcher[Message](lambda messages: source.publish(jobs.results, messages))
    acks = Batcher[str](source.ack)
    room = asyncio.Semaphore(REPLICAS * SLOTS + jobs.look_ahead)
    running: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()

    async def one(delivery: Delivery) -> None:
        try:
            name, line = await loop.run_in_executor(pool, work, delivery.data)
        finally:
            room.release()
        await obstore.put_async(store, f"{delivery.attributes['batch']}/results/{name}.json", line, mode="create")
        await results.add(Message(line, {**delivery.attributes, "status": "200"}))
        await acks.add(delivery.ack_id)

    with ProcessPoolExecutor(REPLICAS * SLOTS, multiprocessing.get_context("spawn")) as pool:
        await asyncio.gather(*(loop.run_in_executor(pool, time.sleep, 0.5) for _ in range(REPLICAS * SLOTS)))
        ready()
        while True:
            free = 0
            await room.acquire()
            free += 1
            while not room.locked():
                await room.acquire()
                free += 1
            deliveries = await source.pull(free)
            for _ in range(free - len(deliveries)):
                room.release()
            for delivery in deliveries:
                task = asyncio.create_task(one(delivery))
                running.add(task)
                task.add_done_callback(running.discard)


def run_pool_loop(jobs: Jobs, emulator_host: str, ready: Any) -> None:
    """The pool loop's process."""
    asyncio.run(pool_loop(jobs, emulator_host, ready.set))


# --- measuring ----------------------------------------------------------------------------------------------


class Side:
    """One of the two: where its jobs go, where its results lie, whose CPU time is its own."""

    def __init__(self, name: str, jobs: Jobs, processes: Callable[[], dict[str, set[int]]]) -> None:
        self.name = name
        self.jobs = jobs
        self._processes = processes
        self.rates: dict[str, list[float]] = {}
        self.cpu_ms: dict[str, dict[str, list[float]]] = {}

    async def measure(self, source: PubSubSource, engine: str, count: int) -> float:
        """Jobs per second, from before the first is published until the last result object is there."""
        batch = f"{engine.replace(' ', '-')}-{time.monotonic_ns()}"
        attributes = {"batch": batch, "tenant": "bench"}
        messages = [Message(job_line(number, ENGINES[engine]), attributes) for number in range(count)]
        before = self._cpu_s()
        began = time.time()
        await source.publish(self.jobs.topic, messages)
        end = began + ROUND_TIMEOUT_S
        while len(found := self._results(batch)) < count:
            if time.time() > end:
                raise RuntimeError(f"{self.name} has {len(found)} of {count} results after {ROUND_TIMEOUT_S:.0f} s")
            await asyncio.sleep(0.5)
        rate = count / (max(path.stat().st_mtime for path in found) - began)
        self.rates.setdefault(engine, []).append(rate)
        await asyncio.sleep(SETTLE_S)
        for who, seconds in self._cpu_s().items():
            spent = self.cpu_ms.setdefault(engine, {}).setdefault(who, [])
            spent.append(1000 * (seconds - before.get(who, 0.0)) / count)
        return rate

    def _results(self, batch: str) -> list[Path]:
        """The result objects of a batch, wherever the store's layout puts them."""
        folders = [path for path in Path(self.jobs.store).glob("**/results") if batch in str(path)]
        return [path for folder in folders for path in folder.glob("*.json")]

    def _cpu_s(self) -> dict[str, float]:
        return {who: sum(map(cpu_s, pids)) for who, pids in self._processes().items()}


def cpu_s(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def family(pid: int) -> set[int]:
    return {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}


def job_line(number: int, sleep_s: float) -> bytes:
    body = {"model": MODEL, "sleep_s": sleep_s, "messages": [{"role": "user", "content": f"{number} " + "x" * 200}]}
    job = {"custom_id": f"job-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(job).encode()


@contextmanager
def the_emulator(folder: Path) -> Iterator[emulator.RunningEmulator]:
    found = emulator.find_emulator()
    if isinstance(found, str):
        raise SystemExit(found)
    running = found.start(folder)
    try:
        yield running
    finally:
        emulator.stop(running.pid)


@contextmanager
def the_pool(jobs: Jobs, host_port: str, emulator_pid: int) -> Iterator[Side]:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=run_pool_loop, args=(jobs, host_port, ready))
    process.start()
    if not ready.wait(START_TIMEOUT_S):
        raise RuntimeError("the pool loop did not start")
    assert process.pid is not None
    pid = process.pid

    def processes() -> dict[str, set[int]]:
        return {"loop": {pid}, "pool": family(pid) - {pid}, "emulator": {emulator_pid}}

    try:
        yield Side("pool", jobs, processes)
    finally:
        children = psutil.Process(pid).children(recursive=True)
        process.kill()
        process.join()
        for child in children:
            if child.is_running():
                child.kill()


@contextmanager
def the_ingress(jobs: Jobs, host_port: str, emulator_pid: int) -> Iterator[Side]:
    root = str(Path(__file__).resolve().parent.parent)
    environment = {"PYTHONPATH": f"{root}:{_python_path()}", "PUBSUB_EMULATOR_HOST": host_port}
    node = ray_node.start(ray_node.NodeSpec(num_cpus=4, num_gpus=0, resources={}), environment, lambda _: None)
    try:
        with ServeApi(node.dashboard, node.token_file) as serve:
            serve.deploy(serve_config(jobs))
            end = time.monotonic() + START_TIMEOUT_S
            while not ((applications := serve.applications()) and all(app.ready for app in applications.values())):
                if time.monotonic() > end or any(app.failed for app in applications.values()):
                    raise RuntimeError(f"Serve did not start: {applications}")
                time.sleep(0.5)
        replicas, ingress = set(applications[WORKLOAD].pids), set(applications["ingress"].pids)

        def processes() -> dict[str, set[int]]:
            others = family(node.process.pid) - replicas - ingress
            return {"ingress": ingress, "replicas": replicas, "other Ray": others, "emulator": {emulator_pid}}

        yield Side("ingress", jobs, processes)
    finally:
        ray_node.stop(node.process, node.directory)


async def measure(sides: Sequence[Side], host_port: str, counts: dict[str, int], rounds: int) -> None:
    source = PubSubSource(Jobs(), emulator_host=host_port)
    for side in sides:
        await side.measure(source, "no-op", 200)
        side.rates.clear()
        side.cpu_ms.clear()
    for number in range(rounds):
        for engine, count in counts.items():
            for side in sides if number % 2 == 0 else reversed(sides):
                rate = await side.measure(source, engine, count)
                print(f"round {number + 1}  {engine:6} {side.name:8} {rate:6.0f}/s", flush=True)
    await source.close()


def report(pool: Side, ingress: Side, alone: dict[str, float]) -> dict[str, Any]:
    """Print the figures; returns them."""
    figures: dict[str, Any] = {}
    for engine in ENGINES:
        ratios = [ours / theirs for ours, theirs in zip(ingress.rates[engine], pool.rates[engine], strict=True)]
        ratio = statistics.median(ratios)
        figures[engine] = {"ratio": ratio, "pool without Ray running": alone[engine]}
        print(
            f"\n{engine} engine: pool {statistics.median(pool.rates[engine]):.0f}/s (without Ray running"
            f" {alone[engine]:.0f}), ingress {statistics.median(ingress.rates[engine]):.0f}/s,"
            f" ratio {ratio:.2f} ({', '.join(f'{each:.2f}' for each in ratios)}), limit {LIMITS[engine]}"
        )
        for side in (pool, ingress):
            spent = {who: statistics.median(values) for who, values in side.cpu_ms[engine].items()}
            figures[engine][side.name] = {"per_s": side.rates[engine], "cpu_ms_per_job": spent}
            parts = ", ".join(f"{who} {ms:.2f}" for who, ms in spent.items())
            print(f"  {side.name:8} CPU ms a job: {sum(spent.values()):.2f} ({parts})")
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2000, help="a round, for the engine that does nothing")
    parser.add_argument("--slow-jobs", type=int, default=800, help="a round, for the engine of 50 ms")
    parser.add_argument("--look-ahead", type=int, default=Jobs().look_ahead)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    counts = {"no-op": arguments.jobs, "50 ms": arguments.slow_jobs}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cotenant-bench-")))
        running = stack.enter_context(the_emulator(folder))

        def jobs_of(name: str) -> Jobs:
            names = {key: f"{key}-{name}" for key in ("topic", "subscription", "results", "dead_letter")}
            return Jobs(**names, store=str(folder / name), look_ahead=arguments.look_ahead)

        pool = stack.enter_context(the_pool(jobs_of("pool"), running.host_port, running.pid))
        asyncio.run(measure([pool], running.host_port, counts, 1))
        alone = {engine: rates[0] for engine, rates in pool.rates.items()}
        ingress = stack.enter_context(the_ingress(jobs_of("ingress"), running.host_port, running.pid))
        asyncio.run(measure([pool, ingress], running.host_port, counts, arguments.rounds))
        figures = report(pool, ingress, alone)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))
    return 0 if all(figures[engine]["ratio"] >= LIMITS[engine] for engine in ENGINES) else 1


if __name__ == "__main__":
    sys.exit(main())
