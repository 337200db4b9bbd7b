"""A file of jobs: read strictly, published whole, collected in order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from cotenant.calls import Reply, error_reply
from cotenant.errors import JobError, JobsFileError, MalformedJob
from cotenant.jobs.clock import ManualClock
from cotenant.jobs.collecting import Progress, collect
from cotenant.jobs.model import Job, Result, error_line, result_line
from cotenant.jobs.queue.source import Message
from cotenant.jobs.reading import read_jobs
from tests.contracts.jobs_house import DIRECTORY, FlakyStore, chat, render
from tests.contracts.published_batch import publish_batch

pytestmark = pytest.mark.unit


def lines(*jobs: Any) -> list[bytes]:
    return [job if isinstance(job, bytes) else json.dumps(job).encode() for job in jobs]


def read(*jobs: Any, batch: str = "b1") -> list[Job]:
    return read_jobs(lines(*jobs), "jobs.jsonl", tenant="acme", batch=batch, directory=DIRECTORY)


def test_every_problem_of_a_file_is_said_with_its_line() -> None:
    with pytest.raises(JobsFileError) as caught:
        read(chat("a"), b"{", b"", chat("a"), render("b", template="mugg"), chat("c", model="other"))
    assert str(caught.value).splitlines() == [
        "jobs.jsonl:2: is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        "jobs.jsonl:4: custom_id 'a' was given on line 1; each job of a file needs its own",
        "jobs.jsonl:5: the template 'mugg' does not exist; did you mean 'mug'?",
        "jobs.jsonl:6: the model 'other' does not exist; here are tiny, writer",
    ]
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("batch", ["", "b" * 2000, "two\nlines"], ids=["empty", "too long", "unprintable"])
def test_a_batch_that_no_message_can_carry_is_refused(batch: str) -> None:
    with pytest.raises(MalformedJob, match="the batch"):
        read(chat("a"), batch=batch)


def test_a_file_without_jobs_is_refused() -> None:
    with pytest.raises(JobsFileError, match="has no jobs"):
        read(b"", b"  ")


def test_a_file_of_garbage_shows_twenty_problems_and_no_more() -> None:
    with pytest.raises(JobsFileError) as caught:
        read(*[b"{"] * 1000)
    assert len(caught.value.problems) == 20


async def nowhere(messages: Sequence[Message]) -> None:
    del messages


async def finish(store: FlakyStore, job: Job, reply: Reply) -> None:
    await store.create_result(Result(job.identity, job.sha256, result_line(job, reply)))


async def test_results_come_in_the_order_of_the_file_with_failures_and_given_up_jobs_among_them() -> None:
    store = FlakyStore()
    jobs = read(chat("a"), chat("b"), chat("c"))
    await publish_batch(jobs, store, nowhere)
    await finish(store, jobs[2], Reply(200, b"{}"))
    await finish(store, jobs[0], error_reply(400, "no"))
    await store.bury(jobs[1].identity, error_line(jobs[1].identity, "attempts_exhausted", "gave up"))
    output: list[bytes] = []
    collected = await collect(store, output.append, tenant="acme", batch="b1", timeout_s=1, clock=ManualClock())
    assert (collected.written, collected.failed, collected.missing) == (3, 2, ())
    parsed = [json.loads(line) for line in output]
    assert [line["custom_id"] for line in parsed] == ["a", "b", "c"]
    assert parsed[1]["error"]["code"] == "attempts_exhausted"
    assert all(line.endswith(b"\n") for line in output)


async def test_a_job_done_after_it_was_given_up_counts_as_done() -> None:
    store = FlakyStore()
    (job,) = jobs = read(chat("a"))
    await publish_batch(jobs, store, nowhere)
    await store.bury(job.identity, error_line(job.identity, "attempts_exhausted", "gave up"))
    await finish(store, job, Reply(200, b"{}"))
    output: list[bytes] = []
    collected = await collect(store, output.append, tenant="acme", batch="b1", timeout_s=1, clock=ManualClock())
    assert collected.failed == 0
    assert json.loads(output[0])["error"] is None


async def test_at_the_timeout_what_is_there_is_written_and_what_is_missing_named() -> None:
    store, clock = FlakyStore(), ManualClock()
    jobs = read(chat("a"), chat("b"), chat("c"))
    await publish_batch(jobs, store, nowhere)
    await finish(store, jobs[1], Reply(200, b"{}"))
    told: list[Progress] = []
    output: list[bytes] = []
    collecting = asyncio.create_task(
        collect(store, output.append, tenant="acme", batch="b1", timeout_s=30, clock=clock, on_progress=told.append)
    )
    while not collecting.done():
        await clock.advance(1)
    collected = await collecting
    assert collected.missing == ("a", "c")
    assert [json.loads(line)["custom_id"] for line in output] == ["b"]
    assert told[-1] == Progress(done=1, given_up=0, total=3)
    assert clock.now() <= 31
    assert len(told) < 40


async def test_a_batch_that_nobody_submitted_is_said_so() -> None:
    with pytest.raises(JobError, match="no batch nothing of tenant acme"):
        await collect(FlakyStore(), print, tenant="acme", batch="nothing", timeout_s=1)
