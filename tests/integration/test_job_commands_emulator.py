"""The job commands on the real Pub/Sub emulator, with a pump and a clerk that run beside them."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cotenant.calls import Call, InMemoryBackend, Reply, error_reply
from cotenant.jobs.clerk.clerk import Clerk
from cotenant.jobs.clerk.webhooks import Webhooks
from cotenant.jobs.ingress.pump import Pump
from cotenant.jobs.queue import emulator
from cotenant.jobs.queue.lanes import MAIN
from cotenant.jobs.queue.pubsub import PubSubLanes
from cotenant.jobs.store.results import open_store
from cotenant.outbound.delivery import InMemoryDeliver
from cotenant.outbound.webhooks import Secrets
from tests.contracts.command_house import cotenant, file_of, soon
from tests.contracts.job_source import contract_jobs
from tests.contracts.jobs_house import DIRECTORY, chat, render

pytestmark = pytest.mark.integration
#: `scripts/test` runs it beside another.
WAITS_MORE_THAN_IT_COMPUTES = True

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def emulator_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    found = emulator.find_emulator()
    if isinstance(found, str):
        pytest.skip(found)
    running = found.start(tmp_path_factory.mktemp("emulator"))
    yield running.host_port
    emulator.stop(running.pid)


class Platform:
    """A folder with a platform file, on topics of its own."""

    def __init__(self, folder: Path, host: str) -> None:
        self.folder = folder
        self.host = host
        self.calls: Counter[str] = Counter()
        self.broken: set[str] = set()
        """custom_ids in a body's `name` whose job fails."""
        self.slow_s = 0.0
        suffix = f"-cli{next(_numbers)}"
        store = str(folder / "results")
        self.jobs = contract_jobs(suffix).model_copy(update={"store": store, "max_attempts": 2})
        (folder / "platform.yaml").write_text(
            f"jobs: {self.jobs.model_dump_json()}\n"
            "workloads:\n"
            "  writer: {llm: {model: tiny}, gpu: {vram_gib: 2}}\n"
            "  mockups: {mockup: {templates: [mug]}, gpu: {vram_gib: 1}}\n"
            "environments: {local: {pools: {shared: {accelerator: cpu, vram_gib: 12}}}}\n"
        )

    @contextmanager
    def ingress(self) -> Iterator[None]:
        """A pump and a clerk in a thread of their own, as an ingress has them."""
        stop = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(self._serve(stop)))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(60)

    async def _serve(self, stop: threading.Event) -> None:
        lanes = PubSubLanes(self.jobs, self.host, pull_wait_s=0.5)
        store = open_store(self.jobs.store)
        home = lanes.open(MAIN)
        await home.setup()
        webhooks = Webhooks(store.objects, home.publish, self.jobs, InMemoryDeliver({}), Secrets())
        clerk = Clerk(store, home.publish, self.jobs, lambda: DIRECTORY, webhooks=webhooks)
        backend = InMemoryBackend({"writer": self._answer, "mockups": self._answer}, slots=8)
        pump = Pump(self.jobs, lanes, store, backend, DIRECTORY, clerk=clerk)
        pump.start()
        await asyncio.to_thread(stop.wait)
        await pump.drain(5)
        await home.close()

    async def _answer(self, call: Call) -> Reply:
        await asyncio.sleep(self.slow_s)
        name = str(json.loads(call.body).get("name", call.request_id))
        self.calls[name] += 1
        if name in self.broken:
            return error_reply(500, f"{name} breaks")
        if call.url == "/v1/mockups":
            return Reply(200, b"\x89PNG" + call.body[:50], "image/png")
        return Reply(200, json.dumps({"name": name}).encode())


@pytest.fixture
def platform(emulator_host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Platform:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COTENANT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", emulator_host)
    return Platform(tmp_path, emulator_host)


def named(*names: str) -> list[dict[str, Any]]:
    return [chat(name, name=name) for name in names]


def data(*arguments: str) -> Any:
    result = cotenant(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_batch_is_submitted_before_anybody_listens_and_its_results_are_followed(platform: Platform) -> None:
    names = [f"c{n}" for n in range(30)]
    submitted = cotenant("submit", "-", "--batch", "mine", stdin=file_of(*named(*names)))
    assert submitted.exit_code == 0, submitted.output
    platform.slow_s = 0.05
    with platform.ingress():
        first = cotenant("results", "mine", "--follow", "-o", "out.jsonl", "--timeout", "0.5")
        second = cotenant("results", "mine", "--follow", "-o", "out.jsonl", "--timeout", "60")
        assert second.exit_code == 0, first.output + second.output
        soon(lambda: data("jobs", "show", "mine")["status"] == "completed")
    lines = [json.loads(line) for line in (platform.folder / "out.jsonl").read_text().splitlines()]
    assert sorted(line["custom_id"] for line in lines) == sorted(names)
    assert all(platform.calls[name] == 1 for name in names)
    (row,) = data("jobs", "ls", "--batches")["data"]
    assert row["request_counts"] == {"total": 30, "completed": 30, "failed": 0}
    assert cotenant("submit", "-", "--batch", "mine", stdin=file_of(*named(*names))).exit_code == 0
    assert all(platform.calls[name] == 1 for name in names)


def test_designs_come_back_as_pictures(platform: Platform) -> None:
    for number in range(3):
        path = platform.folder / "art" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.effect_noise((150 + number, 150), 100).convert("RGB").save(path)
    options = ("--template", "mug", "--designs", "art", "--color", "#ff0000", "--color", "#00ff00")
    assert cotenant("submit", *options, "--batch", "spring").exit_code == 0
    with platform.ingress():
        result = cotenant("results", "spring", "--save", "out", "--timeout", "60")
    assert result.exit_code == 0, result.output
    names = {f"mug-{number}.png-{colour}.png" for number in range(3) for colour in ("ff0000", "00ff00")}
    assert {path.name for path in (platform.folder / "out").iterdir()} == names


def test_what_was_given_up_is_listed_retried_and_purged(platform: Platform) -> None:
    platform.broken = {"a", "b"}
    ids = dict(
        reversed(line.split("  "))
        for line in cotenant(
            "submit", "-", "--batch", "mine", stdin=file_of(*named("a", "b", "c"))
        ).stdout.splitlines()[1:]
    )
    with platform.ingress():
        cotenant("results", "mine", "--timeout", "60")
        soon(lambda: len(data("dead", "list")["data"]) == 2)
        letters = {letter["attributes"]["custom_id"]: letter for letter in data("dead", "list")["data"]}
        assert {letter["outcome"] for letter in letters.values()} == {"attempts_exhausted"}
        assert json.loads(data("dead", "show", ids["a"])["data"]) == named("a")[0]
        assert data("jobs", "show", ids["a"])["error"]["code"] == "attempts_exhausted"
        platform.broken = set()
        retried = cotenant("dead", "retry", ids["a"])
        assert retried.exit_code == 0, retried.output
        soon(lambda: data("jobs", "show", ids["a"])["status"] == "succeeded")
        soon(lambda: [one["attributes"]["custom_id"] for one in data("dead", "list")["data"]] == ["b"])
        purged = cotenant("dead", "purge", "--all", "--yes")
        assert purged.exit_code == 0, purged.output
        assert data("dead", "list")["data"] == []
    assert data("jobs", "show", ids["b"])["status"] == "failed"
    assert data("jobs", "show", ids["a"])["attempts"] == []


def test_setup_makes_the_topics_and_finds_them_as_they_should_be(platform: Platform) -> None:
    assert cotenant("jobs", "setup", "--check").exit_code == 1
    done = cotenant("jobs", "setup")
    assert done.exit_code == 0, done.output
    assert f"created topic {platform.jobs.topic}.writer" in done.stdout
    again = cotenant("jobs", "setup", "--check")
    assert again.exit_code == 0, again.output


CHILD = "import sys; from cotenant.cli import main; main(sys.argv[1:])"


def test_ctrl_c_at_any_moment_of_a_real_submission_leaves_all_of_it_or_nothing(platform: Platform) -> None:
    jobs = named(*[f"c{n}" for n in range(400)]) + [render(f"r{n}", artwork="x" * 20_000) for n in range(400)]
    (platform.folder / "jobs.jsonl").write_bytes(file_of(*jobs))
    chosen = random.Random(5)
    command = [sys.executable, "-c", CHILD, "submit", "-f", "platform.yaml", "jobs.jsonl"]
    started = time.monotonic()
    whole = subprocess.run([*command, "--batch", "whole"], capture_output=True, text=True, check=True)
    takes_s = time.monotonic() - started
    ends = Counter[str]()
    for number in range(12):
        batch = f"b{number}"
        child = subprocess.Popen(
            [*command, "--batch", batch], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        time.sleep(chosen.uniform(0.3, 1.05) * takes_s)
        child.send_signal(signal.SIGINT)
        stdout, stderr = child.communicate(timeout=60)
        records = list((platform.folder / "results").glob(f"*/batches/{batch}-*.json"))
        if stdout:
            assert (stdout.splitlines()[0], len(stdout.splitlines()), len(records)) == (batch, 801, 1), stderr
            ends["all"] += 1
        else:
            assert (child.returncode, records) == (1, []), stderr
            ends["nothing"] += 1
        listed = {path.name for path in (platform.folder / "results").glob("*/files/*.json")}
        assert len(listed) == 1 + ends["all"], "a file for each batch that was submitted, and no other"
    assert len(whole.stdout.splitlines()) == 801
    with platform.ingress():
        for batch in ["whole", *[f"b{n}" for n in range(12)]]:
            result = cotenant("results", batch, "--timeout", "120", "-o", f"{batch}.jsonl")
            assert result.exit_code == (0 if (platform.folder / f"{batch}.jsonl").exists() else 1), result.output
    assert sum(1 for _ in platform.folder.glob("*.jsonl")) == 2 + ends["all"]
