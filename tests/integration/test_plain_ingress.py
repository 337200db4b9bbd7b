"""`cotenant ingress`: real Pub/Sub messages, a real process that is told to end, and a gateway that does the work."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from cotenant.calls import Call, Directory, Reply
from cotenant.config import Jobs, load_platform
from cotenant.jobs.queue import emulator
from cotenant.jobs.queue.pubsub import PubSubSource
from tests.contracts.jobs_house import chat, echo, message, picture, render
from tests.contracts.upstream_house import Upstream, upstream

pytestmark = pytest.mark.integration
#: `scripts/test` runs it beside another.
WAITS_MORE_THAN_IT_COMPUTES = True

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def emulator_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    found = emulator.find_emulator()
    if isinstance(found, str):
        pytest.skip(found)
    running = found.start(tmp_path_factory.mktemp("emulator"))
    yield running.host_port
    emulator.stop(running.pid)


def a_file(tmp_path: Path, **jobs: Any) -> Path:
    file = tmp_path / "platform.yaml"
    jobs = {"lease_s": 10, "drain_s": 20, "store": "./results", "ingresses": 0, **jobs}
    file.write_text(
        yaml.safe_dump(
            {
                "workloads": {
                    "writer": {"llm": {"model": "tiny"}, "gpu": {"vram_gib": 4}, "concurrency": 4},
                    "mockups": {"mockup": {"templates": ["mug"]}, "gpu": {"vram_gib": 1}, "concurrency": 2},
                },
                "jobs": jobs,
                "environments": {"local": {"pools": {"shared": {"accelerator": "cpu", "vram_gib": 12}}}},
            }
        )
    )
    return file


class Work:
    """What the engines did, and how fast they do it."""

    def __init__(self, seconds: float = 0.05) -> None:
        self.seconds = seconds
        self.ended: Counter[str] = Counter()
        self.now = self.most = 0
        self.calls: list[Call] = []

    async def __call__(self, call: Call) -> Reply:
        self.calls.append(call)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.now -= 1
        self.ended[call.request_id] += 1
        return picture(call) if "mockups" in call.url else echo(call)


class Process:
    """An ingress that runs; its probes are at `url`."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self.log = log
        self.url = ""

    async def started(self, within_s: float = 60) -> None:
        end = time.monotonic() + within_s
        while not self.url:
            assert time.monotonic() < end, self.log.read_text()
            assert self.process.returncode is None, self.log.read_text()
            await asyncio.sleep(0.1)
            for line in self.log.read_text().splitlines():
                if '"ingress_started"' in line:
                    self.url = json.loads(line)["probes"]

    async def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 60)


@asynccontextmanager
async def an_ingress(
    file: Path, url: str, host: str, *arguments: str, key: str = "sk-ingress"
) -> AsyncIterator[Process]:
    log = file.parent / f"ingress-{time.monotonic_ns()}.log"
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}",
        "PUBSUB_EMULATOR_HOST": host,
        "COTENANT_UPSTREAM_KEY": key,
    }
    environment.pop("COTENANT_JOBS_SOURCE", None)
    command = [sys.executable, "-c", "from cotenant.cli import main; main()", "ingress", "-f", str(file)]
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *command, "--upstream", url, "--port", "0", *arguments, env=environment, cwd=file.parent, stderr=out
        )
    running = Process(process, log)
    try:
        await running.started()
        yield running
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def a_gateway(file: Path, work: Work, keys: str = "jobs:sk-ingress") -> AsyncIterator[Upstream]:
    directory = Directory.of(load_platform(file, "local"))
    async with upstream(
        {"writer": work, "mockups": work}, directory, slots=8, keys=keys, max_job_s=3600, grace_s=0
    ) as behind:
        yield behind


async def publish(jobs: Jobs, host: str, lines: list[dict[str, Any]]) -> None:
    source = PubSubSource(jobs, emulator_host=host, pull_wait_s=1.0)
    await source.setup()
    await source.publish(jobs.topic, [message(line) for line in lines])
    await source.close()


def results(file: Path) -> Counter[str]:
    """Visible results, by custom id."""
    paths = (file.parent / "results").rglob("results/**/*.json")
    lines = (json.loads(path.read_bytes()).get("line") for path in paths)
    return Counter(line["custom_id"] for line in lines if line is not None)


async def come(file: Path, count: int, within_s: float = 60) -> None:
    end = time.monotonic() + within_s
    while len(results(file)) < count:
        assert time.monotonic() < end, results(file)
        await asyncio.sleep(0.1)


async def test_an_ingress_that_is_told_to_end_in_the_middle_loses_nothing_and_another_does_the_rest(
    tmp_path: Path, emulator_host: str
) -> None:
    file, work = a_file(tmp_path, topic="mid", subscription="mid-s", results="mid-r", dead_letter="mid-d"), Work()
    jobs = load_platform(file, "local").jobs
    lines = [chat(f"c-{n}") if n % 2 else render(f"r-{n}") for n in range(120)]
    await publish(jobs, emulator_host, lines)
    async with a_gateway(file, work) as behind:
        async with an_ingress(file, behind.url, emulator_host) as first:
            await come(file, 20)
            assert await first.end() == 0
            done = len(results(file))
            assert 20 <= done < 120
            assert '"ingress_ended"' in first.log.read_text()
        async with an_ingress(file, behind.url, emulator_host) as second:
            await come(file, 120)
            async with httpx.AsyncClient() as probes:
                metrics = (await probes.get(f"{second.url}/metrics")).text
            assert await second.end(signal.SIGINT) == 0
    assert set(results(file)) == {line["custom_id"] for line in lines}
    assert set(results(file).values()) == {1}
    assert max(work.ended.values()) == 1
    assert 'cotenant_jobs_settled_total{outcome="done",tenant="acme",workload="writer"}' in metrics
    assert all(call.batch for call in work.calls)


async def test_while_the_gateway_is_gone_or_lets_nobody_in_jobs_wait_and_none_is_blamed(
    tmp_path: Path, emulator_host: str
) -> None:
    names = {"topic": "gone", "subscription": "gone-s", "results": "gone-r", "dead_letter": "gone-d"}
    file, work = a_file(tmp_path, max_attempts=1, **names), Work()
    jobs = load_platform(file, "local").jobs
    await publish(jobs, emulator_host, [chat(f"c-{n}") for n in range(10)])
    async with a_gateway(file, work) as behind:
        port, url = behind.server.port, behind.url
    async with an_ingress(file, url, emulator_host) as ingress, httpx.AsyncClient(base_url=ingress.url) as probes:
        await asyncio.sleep(2)
        ready = await probes.get("/readyz")
        assert (ready.status_code, "can't be reached" in ready.json()["why"]) == (503, True)
        assert (await probes.get("/healthz")).status_code == 200
        directory = Directory.of(load_platform(file, "local"))
        handlers: Any = {"writer": work, "mockups": work}
        async with upstream(handlers, directory, port=port, keys="jobs:sk-other"):
            await asyncio.sleep(3)
        assert results(file) == {}
        async with upstream(handlers, directory, port=port, keys="jobs:sk-ingress"):
            await come(file, 10)
            assert (await probes.get("/readyz")).json()["workloads"] == {"writer": True, "mockups": True}
        assert await ingress.end() == 0
    assert set(results(file).values()) == {1}


async def test_so_many_jobs_are_worked_on_at_once_as_it_was_told(tmp_path: Path, emulator_host: str) -> None:
    names = {"topic": "few", "subscription": "few-s", "results": "few-r", "dead_letter": "few-d"}
    file, work = a_file(tmp_path, **names), Work(0.2)
    await publish(load_platform(file, "local").jobs, emulator_host, [chat(f"c-{n}") for n in range(24)])
    async with (
        a_gateway(file, work) as behind,
        an_ingress(file, behind.url, emulator_host, "--concurrency", "6") as ingress,
    ):
        await come(file, 24)
        assert await ingress.end() == 0
    # Jobs this short may be one or two ahead of their slots.
    assert 4 < work.most <= 8
