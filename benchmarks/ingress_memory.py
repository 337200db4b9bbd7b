"""What an ingress holds in memory over 100,000 jobs: it must stay flat.

    python benchmarks/ingress_memory.py [--jobs 100000] [--memory] [--json FILE]

One pump in this process, with an engine that answers at once, the real Pub/Sub emulator (its process is not measured)
and a folder as the store, emptied as it goes. Messages are of 50 tenants and ever new batches, some go by the main lane
and are moved, some fail once and are tried again, some are refused. With `--memory` the queue is in this process too;
its topics keep their last 10,000 messages, so that memory grows until they are full.

Resident memory is taken every 5,000 jobs after a collection. The growth is that of a line fitted through what comes
after the first fifth, when caches are full and the allocator has its arenas.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from cotenant.calls import Call, Directory, InMemoryBackend, Reply, Served, error_reply
from cotenant.config import Jobs
from cotenant.jobs.ingress.pump import Pump
from cotenant.jobs.queue import emulator
from cotenant.jobs.queue.lanes import MAIN, Lanes, lane_of, topic_of
from cotenant.jobs.queue.memory import MemoryLanes
from cotenant.jobs.queue.pubsub import PubSubLanes
from cotenant.jobs.queue.source import Message
from cotenant.jobs.store.results import open_store

EVERY = 5_000
TENANTS = 50
#: Published ahead of what is done.
AHEAD = 1_000
SLOTS = 32
WARM_UP = 0.2
DIRECTORY = Directory((Served("writer", "llm", models=("writer",), slots=SLOTS),))


def engine() -> Any:
    """Answers at once; a job in a hundred fails the first time, another one is refused."""
    failed: set[str] = set()

    def answer(call: Call) -> Reply:
        number = json.loads(call.body)["number"]
        if number % 100 == 1 and call.request_id not in failed:
            failed.add(call.request_id)
            return error_reply(500, "once")
        failed.discard(call.request_id)
        return error_reply(400, "refused") if number % 100 == 2 else Reply(200, b'{"text": "hello"}')

    return answer


def message(number: int) -> Message:
    line = {
        "custom_id": f"job-{number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "writer", "number": number, "messages": [{"role": "user", "content": "hello " * 20}]},
    }
    attributes = {"tenant": f"tenant-{number % TENANTS}", "batch": f"batch-{number // 500}"}
    return Message(json.dumps(line).encode(), attributes)


async def measure(jobs: Jobs, lanes: Lanes, count: int) -> list[tuple[int, float]]:
    """Jobs done and MiB held, every `EVERY` jobs."""
    store = open_store(jobs.store)
    pump = Pump(jobs, lanes, store, InMemoryBackend({"writer": engine()}, slots=SLOTS), DIRECTORY)
    source = lanes.open(MAIN)
    lane = lane_of("writer")
    await source.setup()
    await lanes.open(lane).setup()
    pump.start()
    process, published, began = psutil.Process(), 0, time.monotonic()
    taken: list[tuple[int, float]] = []
    while len(taken) <= count // EVERY:
        done = sum(pump.settled[outcome] for outcome in pump.settled if outcome.value in ("done", "refused"))
        if done >= EVERY * len(taken):
            gc.collect()
            taken.append((done, process.memory_info().rss / 2**20))
            print(f"{done:7} jobs  {taken[-1][1]:7.1f} MiB  {time.monotonic() - began:6.0f} s", flush=True)
            await asyncio.to_thread(empty, Path(jobs.store))
        while published < count and published - done < AHEAD:
            some = [message(number) for number in range(published, min(count, published + 250))]
            await source.publish(topic_of(jobs, lane if published % 1000 else MAIN), some)
            published += len(some)
        await asyncio.sleep(0.2)
    await pump.drain(10)
    return taken


def empty(store: Path) -> None:
    """What is done is fetched and gone; what came in the last moments stays."""
    old_s = time.time() - 5
    for folder in store.glob("tenant-*/*/*"):
        for path in folder.iterdir():
            # An upload under way has a name of its own for a moment.
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < old_s:
                    path.unlink()
    for folder in store.glob("tenant-*/*"):
        if not any(path.is_file() for path in folder.rglob("*")) and folder.stat().st_mtime < old_s:
            shutil.rmtree(folder, ignore_errors=True)


def growth(taken: list[tuple[int, float]]) -> Mapping[str, float]:
    """MiB for each 10,000 jobs after the warm-up, and what it held at its end and at the very end."""
    settled = taken[int(len(taken) * WARM_UP) :]
    slope, _ = statistics.linear_regression([done for done, _ in settled], [mib for _, mib in settled])
    return {
        "warm_mib": round(settled[0][1], 1),
        "last_mib": round(settled[-1][1], 1),
        "most_mib": round(max(mib for _, mib in settled), 1),
        "mib_per_10000_jobs": round(slope * 10_000, 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--memory", action="store_true", help="the queue in this process instead of the emulator")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    folder = Path(tempfile.mkdtemp(prefix="cotenant-memory-"))
    jobs = Jobs(store=str(folder / "results"), look_ahead=SLOTS)
    running = None
    try:
        if arguments.memory:
            lanes: Lanes = MemoryLanes(jobs)
        else:
            command = emulator.find_emulator()
            if isinstance(command, str):
                print(f"skipped: {command}")
                return 0
            running = command.start(folder)
            lanes = PubSubLanes(jobs, emulator_host=running.host_port)
        taken = asyncio.run(measure(jobs, lanes, arguments.jobs))
    finally:
        if running is not None:
            emulator.stop(running.pid)
        shutil.rmtree(folder, ignore_errors=True)
    figures = growth(taken)
    print(figures)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"figures": figures, "taken": taken}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
