"""Streamed chat through the gateway against the raw vLLM server: same model, same engine arguments, same cores.

    python benchmarks/chat.py [--rounds 3] [--json out.json]

Starts `python -m vllm.entrypoints.openai.api_server`, then the platform with `cotenant up` (one writer, gateway,
no jobs), and lets both live to the end. Each concurrency is measured in rounds that alternate between the two, so
that a noisy machine is noisy for both; the order swaps every round. One client process speaks raw HTTP over
asyncio to both, keeps its connections and never parses a token. Prompts differ between requests and are the same
on both sides; answers have a fixed length.

Prints, per concurrency, tokens/s and the median time to first token of both and their ratios, the CPU seconds
that each side spent per 1,000 tokens, and how long each took to start.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import yaml

from cotenant.cli.machine.serve_api import ServeApi
from cotenant.cli.machine.state import RunState
from cotenant.config import load_platform
from cotenant.config.home import home
from cotenant.engines.llm.config import Shape, Slice, engine_arguments, environment
from cotenant.engines.llm.models import locate, materialise

CONCURRENCIES = (1, 8, 32)
REQUESTS = {1: 4, 8: 16, 32: 64}
TOKENS = 64
PLATFORM = "bench-chat"
WORKLOAD = "writer"
START_TIMEOUT_S = 300


class Stream(asyncio.Protocol):
    """One kept-alive connection that asks for streamed chats and notes when tokens come."""

    _CONTENT = b'"content":"'

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    async def ask(self, request: bytes) -> float:
        """Send `request`, wait for the whole answer; returns the seconds to its first token."""
        self._first_s: float | None = None
        self._head = b""
        self._tail = b""
        self._done = asyncio.get_running_loop().create_future()
        began = time.perf_counter()
        self._transport.write(request)  # type: ignore[attr-defined]
        await self._done
        if b" 200 " not in self._head[:16] or self._first_s is None:
            raise RuntimeError(f"the server answered {self._head[:300]!r}")
        return self._first_s - began

    def data_received(self, data: bytes) -> None:
        if self._first_s is None:
            self._head += data
            at = self._head.find(self._CONTENT)
            while at >= 0 and self._first_s is None:
                at += len(self._CONTENT)
                if self._head[at : at + 1] not in (b'"', b""):
                    self._first_s = time.perf_counter()
                at = self._head.find(self._CONTENT, at)
        self._tail = (self._tail + data)[-7:]
        if self._tail == b"\r\n0\r\n\r\n":
            self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(RuntimeError(f"the server hung up: {exc}"))

    def close(self) -> None:
        self._transport.close()


def request_bytes(port: int, number: int) -> bytes:
    prompt = f"Story {number}: tell me about a traveller who meets {number} ravens on the way to a far city."
    body = json.dumps(
        {
            "model": WORKLOAD,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": TOKENS,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
        }
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def load(port: int, concurrency: int, requests: int, seed: int) -> tuple[float, list[float]]:
    """Seconds that `requests` streams took, `concurrency` at a time, and each one's time to first token."""
    numbers = iter(range(seed, seed + requests))
    firsts_s: list[float] = []

    async def client() -> None:
        _, stream = await asyncio.get_running_loop().create_connection(Stream, "127.0.0.1", port)
        for number in numbers:
            firsts_s.append(await stream.ask(request_bytes(port, number)))
        stream.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    return time.perf_counter() - began, firsts_s


@dataclass
class Side:
    """One of the two servers: where it listens, its processes, how long it took to start, what was measured."""

    name: str
    port: int
    pids: Callable[[], set[int]]
    start_s: float
    seconds: dict[int, list[float]] = field(default_factory=dict)
    firsts_s: dict[int, list[float]] = field(default_factory=dict)
    cpu_s: dict[int, float] = field(default_factory=dict)

    def measure(self, concurrency: int, seed: int) -> None:
        before = self._cpu_s()
        took_s, firsts_s = asyncio.run(load(self.port, concurrency, REQUESTS[concurrency], seed))
        self.cpu_s[concurrency] = self.cpu_s.get(concurrency, 0) + self._cpu_s() - before
        self.seconds.setdefault(concurrency, []).append(took_s)
        self.firsts_s.setdefault(concurrency, []).extend(firsts_s)

    def tokens_per_s(self, concurrency: int) -> float:
        return REQUESTS[concurrency] * TOKENS / statistics.median(self.seconds[concurrency])

    def first_s(self, concurrency: int) -> float:
        return statistics.median(self.firsts_s[concurrency])

    def cpu_s_per_1k_tokens(self, concurrency: int) -> float:
        return 1000 * self.cpu_s[concurrency] / (len(self.seconds[concurrency]) * REQUESTS[concurrency] * TOKENS)

    def _cpu_s(self) -> float:
        total = 0.0
        for pid in self.pids():
            with contextlib.suppress(psutil.Error):
                times = psutil.Process(pid).cpu_times()
                total += times.user + times.system
        return total


def platform_file(folder: Path, port: int) -> Path:
    path = folder / "platform.yaml"
    writer = {
        "llm": {"model": "smollm2-135m", "context_tokens": 2048},
        "gpu": {"vram_gib": 5},
        "concurrency": 32,
        "replicas": {"min": 1, "max": 1},
    }
    content = {
        "name": PLATFORM,
        "workloads": {WORKLOAD: writer},
        "gateway": {"port": port},
        "jobs": {"ingresses": 0},
        "environments": {"local": {"pools": {"shared": {"accelerator": "cpu", "vram_gib": 12}}}},
    }
    path.write_text(yaml.safe_dump(content))
    return path


@contextlib.contextmanager
def raw_server(file: Path, log: Path) -> Iterator[Side]:
    """The raw vLLM server with the very arguments that the replica gives to its engine."""
    workload = load_platform(file, "local").workloads[WORKLOAD]
    assert workload.llm is not None
    part = Slice("cpu", workload.gpu.vram_gib, gpu_share=1.0, cpus=workload.cpus, slots=workload.slots)
    model = locate(workload.llm.model)
    folder = materialise(model, home())
    arguments = engine_arguments(WORKLOAD, workload.llm, model, part, Shape.of_folder(Path(folder)))
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", folder, "--served-model-name", WORKLOAD, "--disable-uvicorn-access-log"]
    for name, value in arguments.items():
        flag = "--" + name.replace("_", "-")
        command += [flag] if value is True else [] if value is False else [flag, str(value)]
    began = time.perf_counter()
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=variables() | environment(model, part)
        )
    try:
        wait(lambda: answers(f"http://127.0.0.1:{port}/health"), server, log)
        yield Side("raw vLLM", port, lambda: family(server.pid), time.perf_counter() - began)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


@contextlib.contextmanager
def platform(file: Path, port: int, log: Path) -> Iterator[Side]:
    """The platform, as a user starts it. Its start time is that of the LLM application: from deploy to RUNNING."""
    cotenant = [sys.executable, "-c", "from cotenant.cli import main; main()"]
    options = ["-f", str(file), "-e", "local"]
    ready: list[float] = []
    watcher = threading.Thread(target=lambda: ready.append(application_start_s()), daemon=True)
    watcher.start()
    try:
        with log.open("wb") as output:
            subprocess.run(
                [*cotenant, "up", *options, "--no-emulator"], stdout=output, stderr=output, env=variables(), check=True
            )
        watcher.join(10)
        state = RunState.load(PLATFORM)
        assert state is not None
        assert state.ray is not None
        yield Side("gateway", port, lambda: family(state.ray.pid), ready[0])  # type: ignore[union-attr]
    finally:
        subprocess.run([*cotenant, "down", *options], env=variables(), check=False, capture_output=True)


def application_start_s() -> float:
    """Seconds from the moment that Ray is up and takes the config until the LLM application is RUNNING."""
    while (state := RunState.load(PLATFORM)) is None:
        time.sleep(0.1)
    began = time.perf_counter()
    with ServeApi(state.dashboard, state.token_file) as serve:
        while True:
            found = serve.applications().get(WORKLOAD)
            if found is not None and found.ready:
                return time.perf_counter() - began
            time.sleep(0.5)


def variables() -> dict[str, str]:
    """The environment of both: bytecode is kept, and the checkout is importable."""
    root = Path(__file__).resolve().parents[1]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPATH": f"{root / 'platform'}:{root}"}


def family(pid: int) -> set[int]:
    try:
        return {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}
    except psutil.Error:
        return set()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def wait(done: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    limit = time.monotonic() + START_TIMEOUT_S
    while not done():
        if process.poll() is not None or time.monotonic() > limit:
            raise RuntimeError(f"it did not start; the end of {log}:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-chat-") as name:
        folder, port = Path(name), free_port()
        file = platform_file(folder, port)
        with raw_server(file, folder / "raw.log") as raw, platform(file, port, folder / "up.log") as ours:
            for side in (raw, ours):
                side_seed = random.randrange(10**6)
                asyncio.run(load(side.port, 8, 8, side_seed))
            for number in range(options.rounds):
                seed = random.randrange(10**6)
                for concurrency in CONCURRENCIES:
                    for side in (raw, ours) if number % 2 == 0 else (ours, raw):
                        side.measure(concurrency, seed)
    figures = report(raw, ours)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def report(raw: Side, ours: Side) -> dict[str, object]:
    print(f"start: raw {raw.start_s:.1f} s, LLM application {ours.start_s:.1f} s: {ours.start_s / raw.start_s:.2f}x")
    print("streams   tokens/s raw  gateway  ratio    first token raw  gateway  ratio    CPU-s/1k tokens raw  gateway")
    rows = []
    for streams in CONCURRENCIES:
        row = {
            "streams": streams,
            "raw_tokens_per_s": raw.tokens_per_s(streams),
            "tokens_per_s": ours.tokens_per_s(streams),
            "tokens_ratio": ours.tokens_per_s(streams) / raw.tokens_per_s(streams),
            "raw_first_token_s": raw.first_s(streams),
            "first_token_s": ours.first_s(streams),
            "first_token_ratio": ours.first_s(streams) / raw.first_s(streams),
            "raw_cpu_s_per_1k_tokens": raw.cpu_s_per_1k_tokens(streams),
            "cpu_s_per_1k_tokens": ours.cpu_s_per_1k_tokens(streams),
        }
        rows.append(row)
        print(
            "{streams:7}   {raw_tokens_per_s:12.1f} {tokens_per_s:8.1f} {tokens_ratio:6.2f}    "
            "{raw_first_token_s:15.3f} {first_token_s:8.3f} {first_token_ratio:6.2f}    "
            "{raw_cpu_s_per_1k_tokens:19.2f} {cpu_s_per_1k_tokens:8.2f}".format(**row)
        )
    return {"raw_start_s": raw.start_s, "start_s": ours.start_s, "rows": rows}


if __name__ == "__main__":
    main()
