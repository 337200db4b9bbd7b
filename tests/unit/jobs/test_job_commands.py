"""`cotenant submit` and `cotenant results`, without a platform behind them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cotenant.calls import Reply
from cotenant.cli import jobs_door, main
from cotenant.errors import SourceUnavailable
from cotenant.jobs import model
from cotenant.jobs.source import Message
from cotenant.jobs.store import open_store
from tests.contracts.jobs_house import chat, render

pytestmark = pytest.mark.unit

PLATFORM = """
workloads:
  mockups: {mockup: {templates: [mug]}, gpu: {vram_gib: 1}}
  writer: {llm: {model: tiny}, gpu: {vram_gib: 2}}
environments: {local: {pools: {shared: {accelerator: cpu, vram_gib: 12}}}}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "platform.yaml").write_text(PLATFORM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COTENANT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    return tmp_path


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    messages: list[Message] = []

    @asynccontextmanager
    async def publisher(*_: Any) -> AsyncIterator[Any]:
        async def publish(some: Sequence[Message]) -> None:
            messages.extend(some)

        yield publish

    monkeypatch.setattr(jobs_door, "publisher", publisher)
    return messages


def cotenant(*arguments: str, stdin: bytes | None = None) -> Result:
    command, *rest = arguments
    return CliRunner().invoke(main, [command, "-f", "platform.yaml", *rest], input=stdin)


def file_of(*jobs: Any) -> bytes:
    return b"\n".join(json.dumps(job).encode() for job in jobs) + b"\n"


def test_submit_prints_the_batch_and_a_line_for_each_job(folder: Path, published: list[Message]) -> None:
    (folder / "jobs.jsonl").write_bytes(file_of(chat("a"), render("b")))
    result = cotenant("submit", "jobs.jsonl", "--tenant", "acme")
    assert result.exit_code == 0, result.output
    name, *ids = result.stdout.splitlines()
    assert name.startswith("batch_")
    assert [line.split("  ")[1] for line in ids] == ["a", "b"]
    assert [m.attributes for m in published] == [
        {"tenant": "acme", "batch": name, "custom_id": "a"},
        {"tenant": "acme", "batch": name, "custom_id": "b"},
    ]
    assert f"cotenant results {name}" in result.stderr.replace("\n", " ")


def test_submit_reads_stdin(published: list[Message]) -> None:
    result = cotenant("submit", "-", "--batch", "mine", stdin=file_of(chat("a")))
    assert result.stdout.splitlines()[0] == "mine"
    assert len(published) == 1


def test_a_wrong_file_is_refused_line_by_line_and_nothing_is_published(folder: Path, published: list[Message]) -> None:
    (folder / "jobs.jsonl").write_bytes(file_of(chat("a"), chat("a")) + b"{\n")
    result = cotenant("submit", "jobs.jsonl")
    assert result.exit_code == 2
    assert "jobs.jsonl:2: custom_id 'a' was given on line 1" in result.stderr
    assert "jobs.jsonl:3: is not JSON" in result.stderr
    assert published == []


def test_without_a_platform_or_a_queue_submit_says_what_to_start(folder: Path) -> None:
    (folder / "jobs.jsonl").write_bytes(file_of(chat("a")))
    result = cotenant("submit", "jobs.jsonl")
    assert result.exit_code == 1
    assert "cotenant up -e local" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_file_that_is_not_there_is_said_so() -> None:
    result = cotenant("submit", "nowhere.jsonl")
    assert result.exit_code == 2
    assert "nowhere.jsonl:1: can't be read" in result.stderr


def test_a_submission_that_breaks_off_says_how_to_finish_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def publisher(*_: Any) -> AsyncIterator[Any]:
        taken = 0

        async def publish(some: Sequence[Message]) -> None:
            nonlocal taken
            taken += len(some)
            if taken > 500:
                raise SourceUnavailable("the emulator died")

        yield publish

    monkeypatch.setattr(jobs_door, "publisher", publisher)
    (folder / "jobs.jsonl").write_bytes(file_of(*[chat(f"c{n}") for n in range(600)]))
    result = cotenant("submit", "jobs.jsonl", "--batch", "mine")
    assert result.exit_code == 1
    assert "500 of 600 jobs were published" in result.stderr
    assert "cotenant submit --batch mine" in result.stderr


def answer(folder: Path, published: Sequence[Message]) -> None:
    """Do the jobs, as an ingress would."""

    async def work() -> None:
        store = open_store(str(folder / "results"))
        for message in published:
            job = model.parse_job(message.data, message.attributes, "1")
            line = model.result_line(job, Reply(200, b'{"ok": true}'))
            await store.create_result(model.Result(job.identity, job.sha256, line))

    asyncio.run(work())


def test_results_writes_openais_output_file(folder: Path, published: list[Message]) -> None:
    cotenant("submit", "-", "--batch", "mine", stdin=file_of(chat("a"), render("b")))
    answer(folder, published)
    result = cotenant("results", "mine", "-o", "out.jsonl")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == ["a", "b"]
    assert lines[0]["response"]["body"] == {"ok": True}
    assert sorted(path.name for path in folder.iterdir()) == ["out.jsonl", "platform.yaml", "results"]


def test_results_names_what_is_missing_at_the_timeout_and_exits_1(folder: Path, published: list[Message]) -> None:
    cotenant("submit", "-", "--batch", "mine", stdin=file_of(chat("a"), chat("b")))
    answer(folder, published[:1])
    result = cotenant("results", "mine", "--timeout", "0.3")
    assert result.exit_code == 1
    assert "missing 1 after 0.3 s: b" in result.stderr
    assert [json.loads(line)["custom_id"] for line in result.stdout.splitlines()] == ["a"]


def test_results_of_an_unknown_batch_are_a_clear_error() -> None:
    result = cotenant("results", "nothing")
    assert result.exit_code == 1
    assert "no batch nothing of tenant default" in result.stderr


def test_a_store_in_memory_cannot_be_read_from_here(folder: Path) -> None:
    (folder / "platform.yaml").write_text(PLATFORM + 'jobs: {store: "memory://"}\n')
    result = cotenant("results", "mine")
    assert result.exit_code == 1
    assert "only the ingress can read" in result.stderr
