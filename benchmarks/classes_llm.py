"""What interactive requests feel of jobs in the same LLM engine, and what is left to the jobs.

    python benchmarks/classes_llm.py [--rounds 4] [--json out.json]

One engine for everything, behind Serve and the gateway. Interactive requests are streamed chats over HTTP, one after
the other with a pause of random length; jobs go through the Serve handle as the ingress sends them, as many at a time
as the engine has slots. Each round measures in turn, in an order that rotates:

  alone       interactive requests, no jobs
  with jobs   the same interactive requests while jobs fill every slot
  solo        jobs, nobody else
  half        jobs, while interactive requests are answered half of the time
  as equals   a few interactive requests while as many jobs as leave one slot come in as interactive ones

Prints p50 and p95 of the time to first token and of the whole answer, alone against with jobs, and the jobs' tokens
per second (counted by the engine) in half of the time against solo: over all the time, and over the time in which no
interactive request was open. On a CPU that is all that jobs have, but for the step that is under way when a request
arrives. Slots and answers have fixed sizes, prompts differ.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from chat import START_TIMEOUT_S, Stream, free_port

from cotenant.calls import Call
from cotenant.config import load_platform
from cotenant.gpu.plan import plan
from cotenant.manifests.serve import serve_config

if TYPE_CHECKING:
    from deployments.backend import ServeBackend

WORKLOAD, SLOTS = "writer", 32
CHAT_TOKENS, JOB_TOKENS = 48, 64
CHATS, FEW_CHATS, SECONDS = 12, 3, 10.0
#: Pause between two interactive requests: up to a second, so that they meet jobs anywhere within a step.
PAUSE_S = 1.0
LIMIT, AIM = 1.25, 0.80


@dataclass
class Found:
    """Seconds to first token and to the end, by company; jobs' tokens per second, by what they are over."""

    first_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    whole_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    rate: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


class Bench:
    """What is measured, over one engine."""

    def __init__(self, port: int, backend: ServeBackend, handle: Any) -> None:
        self._port = port
        self._backend = backend
        self._handle = handle
        self._number = random.randrange(10**6)
        self.found = Found()

    async def alone(self) -> None:
        await self._chats("alone")

    async def with_jobs(self) -> None:
        async with self._jobs():
            await self._chats("with jobs")

    async def as_equals(self) -> None:
        async with self._jobs(batch=False, slots=SLOTS - 1):
            await self._chats("as equals", FEW_CHATS)

    async def solo(self) -> None:
        async with self._jobs():
            began, tokens = time.perf_counter(), await self._tokens()
            await asyncio.sleep(SECONDS)
            made = await self._tokens() - tokens
            self.found.rate["solo"].append(made / (time.perf_counter() - began))

    async def half(self) -> None:
        """Each interactive answer is followed by a pause as long as it took."""
        async with self._jobs(), self._connection() as stream:
            began, tokens, answering_s, chats = time.perf_counter(), await self._tokens(), 0.0, 0
            while time.perf_counter() - began < 2 * SECONDS:
                _, whole_s = await self._chat(stream)
                answering_s += whole_s
                chats += 1
                await asyncio.sleep(whole_s)
            made = await self._tokens() - tokens - chats * CHAT_TOKENS
            took_s = time.perf_counter() - began
        self.found.rate["half, all"].append(made / took_s)
        self.found.rate["half, slack"].append(made / (took_s - answering_s))

    async def _chats(self, kind: str, count: int = CHATS) -> None:
        async with self._connection() as stream:
            for _ in range(count):
                await asyncio.sleep(random.uniform(0, PAUSE_S))
                first_s, whole_s = await self._chat(stream)
                self.found.first_s[kind].append(first_s)
                self.found.whole_s[kind].append(whole_s)

    async def _chat(self, stream: Stream) -> tuple[float, float]:
        """Seconds to the first token and to the end of one streamed answer."""
        body = json.dumps(self._body(CHAT_TOKENS) | {"stream": True}).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        began = time.perf_counter()
        first_s = await stream.ask(head.encode() + body)
        return first_s, time.perf_counter() - began

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Stream]:
        _, stream = await asyncio.get_running_loop().create_connection(Stream, "127.0.0.1", self._port)
        try:
            yield stream
        finally:
            stream.close()

    @contextlib.asynccontextmanager
    async def _jobs(self, *, batch: bool = True, slots: int = SLOTS) -> AsyncIterator[None]:
        """Jobs in every slot, replaced as they finish; they start at different times, so that they don't march."""
        workers = [asyncio.create_task(self._one_after_another(number * 0.05, batch)) for number in range(slots)]
        await asyncio.sleep(4)
        try:
            yield
        finally:
            for worker in workers:
                worker.cancel()
            ended = await asyncio.gather(*workers, return_exceptions=True)
            failed = [error for error in ended if not isinstance(error, asyncio.CancelledError)]
            if failed:
                raise RuntimeError(f"jobs failed: {failed[0]!r}")
            while await self._busy():  # noqa: ASYNC110 - the engine is asked; it tells nobody by itself
                await asyncio.sleep(0.1)

    async def _one_after_another(self, delay_s: float, batch: bool) -> None:
        await asyncio.sleep(delay_s)
        while True:
            body = json.dumps(self._body(JOB_TOKENS)).encode()
            reply = await self._backend.call(WORKLOAD, Call("/v1/chat/completions", body, batch=batch))
            if not reply.ok:
                raise RuntimeError(f"a job got {reply.status}: {reply.body[:200]!r}")

    def _body(self, tokens: int) -> dict[str, Any]:
        self._number += 1
        text = f"Story {self._number}: tell me about a traveller who meets {self._number} ravens near a far city."
        messages = [{"role": "user", "content": text}]
        return {"model": WORKLOAD, "messages": messages, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}

    async def _tokens(self) -> float:
        return await self._metric("generation_tokens_total")

    async def _busy(self) -> float:
        return await self._metric("num_requests_running|num_requests_waiting")

    async def _metric(self, names: str) -> float:
        reply = await self._handle.call.remote(Call("/metrics", method="GET"))
        found = re.findall(rf"^vllm:(?:{names})\{{.*\}} (\S+)$", reply.body.decode(), re.MULTILINE)
        return sum(float(value) for value in found)


@contextlib.contextmanager
def platform() -> Iterator[tuple[int, Any]]:
    """A writer and a gateway on a Ray of their own; gives the gateway's port and Serve."""
    import ray
    from ray import serve
    from ray.serve._private.api import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    port = free_port()
    writer = {
        "llm": {"model": "smollm2-135m", "context_tokens": 2048},
        "gpu": {"vram_gib": 5},
        "concurrency": SLOTS,
        "replicas": {"min": 1, "max": 1},
    }
    content = {
        "workloads": {WORKLOAD: writer},
        "gateway": {"port": port},
        "jobs": {"ingresses": 0},
        "environments": {"local": {"pools": {"shared": {"accelerator": "cpu", "vram_gib": 12}}}},
    }
    with tempfile.TemporaryDirectory(prefix="bench-classes-") as folder:
        file = Path(folder) / "platform.yaml"
        file.write_text(yaml.safe_dump(content))
        loaded = load_platform(file, "local")
        config = serve_config(loaded, plan(loaded))
    root = Path(__file__).resolve().parents[1]
    os.environ["PYTHONPATH"] = f"{root / 'platform'}:{root}"
    for name in ("PYTHONDONTWRITEBYTECODE", "RAY_ADDRESS", "COTENANT_API_KEYS"):
        os.environ.pop(name, None)
    ray.init(
        address="local",
        num_cpus=3,
        num_gpus=1,
        resources={"cotenant-pool-shared": 1000},
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 << 20,
    )
    try:
        serve.start(proxy_location="Disabled")
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config), _blocking=False)
        limit = time.monotonic() + START_TIMEOUT_S
        while {app.status.value for app in serve.status().applications.values()} != {"RUNNING"}:
            if time.monotonic() > limit:
                raise RuntimeError(f"it did not start: {serve.status()}")
            time.sleep(0.5)
        yield port, serve
    finally:
        serve.shutdown()
        ray.shutdown()


async def measure(port: int, serve: Any, rounds: int) -> Found:
    from deployments.backend import ServeBackend

    backend = ServeBackend()
    bench = Bench(port, backend, serve.get_app_handle(WORKLOAD))
    parts = [bench.alone, bench.with_jobs, bench.solo, bench.half, bench.as_equals]
    await bench.alone()
    bench.found = Found()
    for number in range(rounds):
        first = number % len(parts)
        for part in parts[first:] + parts[:first]:
            await part()
    await backend.close()
    return bench.found


def percentile(values: list[float], part: float) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[round(part * 100) - 1]


def report(found: Found) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    print(f"interactive, {len(found.first_s['alone'])} each    alone  with jobs  ratio (limit {LIMIT})")
    measures = {"first token": found.first_s, "whole answer": found.whole_s}
    parts: dict[str, Callable[[list[float]], float]] = {
        "p50": lambda values: percentile(values, 0.5),
        "p95": lambda values: percentile(values, 0.95),
    }
    for measure_name, values in measures.items():
        for part_name, part in parts.items():
            alone, beside = part(values["alone"]), part(values["with jobs"])
            print(f"{measure_name:>14} {part_name} {alone:11.3f} s {beside:8.3f} s {beside / alone:6.2f}")
            figures[f"{measure_name} {part_name}"] = {"alone_s": alone, "with_jobs_s": beside, "ratio": beside / alone}
    rates = {name: statistics.median(values) for name, values in found.rate.items()}
    solo = rates["solo"]
    equal = percentile(found.whole_s["as equals"], 0.5)
    before = equal / percentile(found.whole_s["alone"], 0.5)
    print(f"beside {SLOTS - 1} others of its class: whole answer p50 {equal:.3f} s {before:.2f}")
    print(f"jobs alone {solo:.1f} tokens/s; with interactive requests half of the time:")
    print(f"  over all the time {rates['half, all']:7.1f} tokens/s {rates['half, all'] / solo:6.2f}")
    print(f"  over the slack    {rates['half, slack']:7.1f} tokens/s {rates['half, slack'] / solo:6.2f} (aim {AIM})")
    figures["as equals p50"] = {"whole_s": equal, "ratio": before}
    return figures | {"jobs_tokens_per_s": rates, "rounds": found.rate}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    with platform() as (port, serve):
        found = asyncio.run(measure(port, serve, options.rounds))
    figures = report(found)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
