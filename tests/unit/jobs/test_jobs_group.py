"""`cotenant jobs ls | show | cancel | setup`, at the store of a platform that does not run."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cotenant.calls import Reply, error_reply
from cotenant.cli import jobs_door
from cotenant.config import Jobs
from cotenant.jobs.desk.singles import Singles
from cotenant.jobs.model import Identity, Job, Result, error_line, result_line
from cotenant.jobs.queue.setup import MemoryAdmin
from cotenant.jobs.queue.topology import Subscription, labels_of, wanted
from cotenant.jobs.store.records import Board, Records
from cotenant.jobs.store.results import Attempt
from tests.contracts.command_house import House, cotenant, file_of
from tests.contracts.jobs_house import DIRECTORY, chat, render

pytestmark = pytest.mark.unit


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    return House.build(tmp_path, monkeypatch)


def single(house: House, custom_id: str, *, tenant: str = "default", **body: Any) -> str:
    """Submit a job by itself, as the gateway does; its id."""

    async def create() -> str:
        async def publish(topic: str, messages: Any) -> None:
            house.published += [(topic, message) for message in messages]

        singles = Singles(house.store, publish, Jobs(), lambda: DIRECTORY)
        line = chat(custom_id, **body)
        asked = {"url": line["url"], "body": line["body"], "custom_id": custom_id}
        return str((await singles.create(tenant, asked))["id"])

    return asyncio.run(create())


def submitted(house: House, *jobs: Any, batch: str = "mine") -> dict[str, str]:
    """Submit a batch; its jobs' ids by custom_id."""
    result = cotenant("submit", "-", "--batch", batch, stdin=file_of(*jobs))
    assert result.exit_code == 0, result.output
    return {custom_id: job_id for job_id, custom_id in (line.split("  ") for line in result.stdout.splitlines()[1:])}


def data(*arguments: str) -> Any:
    """What a command prints as JSON."""
    result = cotenant(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


# --- ls ---


def test_ls_lists_the_tenants_own_jobs_the_newest_first(house: House) -> None:
    first = single(house, "one")
    time.sleep(0.01)
    second = single(house, "two")
    single(house, "hers", tenant="other")
    result = cotenant("jobs", "ls")
    assert result.exit_code == 0, result.output
    heading, *rows = result.stdout.splitlines()
    assert heading.split() == ["id", "status", "workload", "created", "custom_id"]
    assert [row.split()[0] for row in rows] == [second, first]
    assert all("queued" in row and "writer" in row for row in rows)
    assert [job["id"] for job in data("jobs", "ls")["data"]] == [second, first]
    page = data("jobs", "ls", "--limit", "1")
    assert page["has_more"] and data("jobs", "ls", "--after", page["last_id"])["data"][0]["id"] == first


def test_ls_of_batches_has_a_bar_of_how_far_each_is(house: House) -> None:
    submitted(house, *[chat(f"c{n}") for n in range(4)])
    house.ingress(
        lambda job: {"c0": Reply(200, b"{}"), "c1": error_reply(400, "no")}.get(job.identity.custom_id), rounds=4
    )
    result = cotenant("jobs", "ls", "--batches")
    (row,) = result.stdout.splitlines()[1:]
    assert row.split()[:2] == ["mine", "in_progress"]
    assert "2/4 (1 failed)" in row
    counts = data("jobs", "ls", "--batches")["data"][0]["request_counts"]
    assert counts == {"total": 4, "completed": 1, "failed": 1}


def test_a_tenant_without_jobs_is_told_where_else_to_look(house: House) -> None:
    single(house, "one")
    result = cotenant("jobs", "ls", "--tenant", "nobody")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "nothing of tenant nobody" in result.stderr and "--batches" in result.stderr


# --- show ---


def test_show_tells_all_of_a_job_of_a_batch_also_where_its_output_lies(house: House) -> None:
    ids = submitted(house, chat("a"), render("b"), chat("c"))
    large = Reply(200, b"\x89PNG" + b"x" * (2 << 20), "image/png")
    house.ingress(lambda job: {"a": error_reply(400, "too hot"), "b": large}.get(job.identity.custom_id))
    failed, done, waits = (data("jobs", "show", ids[name]) for name in "abc")
    assert (failed["status"], failed["batch"], failed["custom_id"]) == ("failed", "mine", "a")
    assert (failed["workload"], failed["url"]) == ("writer", "/v1/chat/completions")
    assert failed["error"]["message"] == "too hot"
    assert done["status"] == "succeeded"
    assert done["output"]["bytes"] == (2 << 20) + 4
    assert Path(done["output"]["object"].removeprefix("file://")).read_bytes() == large.body
    assert waits["status"] == "queued"
    told = cotenant("jobs", "show", ids["a"]).stdout
    assert "too hot" in told and "status" in told


def test_show_tells_of_attempts_and_of_what_runs(house: House) -> None:
    ids = submitted(house, chat("a"), chat("b"))
    house.ingress(lambda job: None)

    async def put() -> None:
        identity = Identity("default", "mine", "a")
        await house.store.put_attempts(identity, [Attempt(time.time(), "replica_died", "it died")])
        await Records(house.store.objects).put_board(Board("i1", time.time(), running=(ids["b"],)))

    asyncio.run(put())
    told = cotenant("jobs", "show", ids["a"], "--batch", "mine").stdout
    assert "replica_died: it died" in told
    assert data("jobs", "show", ids["b"])["status"] == "running"


def test_show_of_a_job_that_was_given_up_says_why(house: House) -> None:
    ids = submitted(house, chat("a"))
    house.ingress(lambda job: None)
    identity = Identity("default", "mine", "a")
    asyncio.run(house.store.bury(identity, error_line(identity, "attempts_exhausted", "gave up after 5")))
    shown = data("jobs", "show", ids["a"])
    assert (shown["status"], shown["error"]["code"]) == ("failed", "attempts_exhausted")


def test_show_tells_of_a_job_that_was_submitted_by_itself(house: House) -> None:
    job_id = single(house, "one")
    shown = data("jobs", "show", job_id)
    assert (shown["status"], shown["position"]) == ("queued", 0)

    async def end() -> None:
        record = await Records(house.store.objects).job("default", job_id)
        assert record is not None
        job = Job(record.identity, record.url, b"{}")
        await house.store.create_result(Result(record.identity, record.sha256, result_line(job, Reply(200, b"{}"))))

    asyncio.run(end())
    shown = data("jobs", "show", job_id)
    assert (shown["status"], shown["output"]["content_type"]) == ("succeeded", "application/json")
    assert Path(shown["output"]["object"].removeprefix("file://")).exists()


def test_show_tells_of_a_batch_where_its_files_lie(house: House) -> None:
    submitted(house, chat("a"), chat("b"))
    house.ingress(lambda job: Reply(200, b"{}") if job.identity.custom_id == "a" else error_reply(400, "no"))
    shown = data("jobs", "show", "mine")
    assert (shown["status"], shown["request_counts"]["failed"]) == ("completed", 1)
    for which in ("input", "output", "error"):
        assert Path(shown[f"{which}_object"].removeprefix("file://")).exists()
    told = cotenant("jobs", "show", "mine").stdout
    assert "2, 1 completed, 1 failed" in told


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("job_000000000000000000000000", "is no job of tenant default in any batch"),
        ("nothing", "there is no batch 'nothing'"),
    ],
)
def test_what_is_not_there_is_said_so(house: House, name: str, said: str) -> None:
    submitted(house, chat("a"))
    for command in ("show", "cancel"):
        result = cotenant("jobs", command, name)
        assert result.exit_code == 1
        assert said in " ".join(result.stderr.split())
        assert "Traceback" not in result.output


# --- cancel ---


def test_cancel_ends_jobs_and_batches_and_goes_on_after_one_that_can_not_be(house: House) -> None:
    ids = submitted(house, chat("a"), chat("b"))
    alone = single(house, "one")
    house.ingress(lambda job: Reply(200, b"{}") if job.identity.custom_id == "a" else None)
    result = cotenant("jobs", "cancel", ids["a"], ids["b"], alone)
    assert result.exit_code == 1
    assert f"{ids['a']}: has succeeded already" in result.stderr
    assert result.stdout.splitlines() == [f"{ids['b']}  cancelled", f"{alone}  cancelled"]
    assert data("jobs", "show", ids["b"])["status"] == "cancelled"
    assert Identity("default", "mine", "b") in asyncio.run(house.store.cancelled())
    house.ingress()
    assert house.done == {"a": 1}, "what was cancelled is not done, and its batch ends all the same"
    assert data("jobs", "show", "mine")["status"] == "completed"


def test_cancel_of_a_batch_takes_it_back(house: House) -> None:
    submitted(house, chat("a"))
    assert data("jobs", "cancel", "mine") == [{"id": "mine", "status": "cancelling", "error": None}]
    house.ingress()
    assert house.done == {}
    assert data("jobs", "show", "mine")["status"] == "cancelled"
    again = cotenant("jobs", "cancel", "mine")
    assert (again.exit_code, again.stdout) == (0, "mine  cancelled\n")


# --- setup ---


@pytest.fixture
def admin(house: House, monkeypatch: pytest.MonkeyPatch) -> MemoryAdmin:
    admin = MemoryAdmin()

    @asynccontextmanager
    async def opened(door: Any) -> AsyncIterator[MemoryAdmin]:
        yield admin

    monkeypatch.setattr(jobs_door, "admin", opened)
    return admin


def test_setup_creates_what_is_missing_once(house: House, admin: MemoryAdmin) -> None:
    dry = cotenant("jobs", "setup", "--dry-run")
    assert dry.exit_code == 0 and "missing topic jobs.writer" in dry.stdout
    assert admin.there == {}
    assert cotenant("jobs", "setup", "--check").exit_code == 1
    done = cotenant("jobs", "setup")
    assert done.exit_code == 0, done.output
    assert "created subscription jobs-cotenant-clerk" in done.stdout
    names = {name for kind, name in admin.there if kind == "topic"}
    assert names == {"jobs", "jobs-clerk", "jobs.mockups", "jobs.writer", "results", "dead"}
    again = cotenant("jobs", "setup", "--check")
    assert again.exit_code == 0
    assert "are as they should be" in again.stdout


def test_setup_tells_what_it_can_not_change_and_how_to(house: House, admin: MemoryAdmin) -> None:
    cotenant("jobs", "setup")
    there = admin.there["subscription", "jobs-cotenant"]
    assert isinstance(there, Subscription)
    admin.there["subscription", "jobs-cotenant"] = replace(there, filter='attributes.team = "a"', lease_s=30)
    result = cotenant("jobs", "setup")
    assert result.exit_code == 1
    assert "updated subscription jobs-cotenant: lease_s 30 (needs 60)" in result.stdout
    assert "gcloud pubsub subscriptions delete jobs-cotenant --project cotenant" in result.stdout
    steps = json.loads(cotenant("jobs", "setup", "--dry-run", "--json").stdout)["steps"]
    assert [(step["step"], step["name"], step["done"]) for step in steps] == [("recreate", "jobs-cotenant", False)]


def test_setup_of_a_real_project_names_the_rights_that_are_missing(
    house: House, admin: MemoryAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST")
    for resource in wanted(Jobs(), ("mockups", "writer"), labels_of("cotenant", "local")).subscriptions:
        admin.policies["subscription", resource.name] = {}
    result = cotenant("jobs", "setup")
    assert result.exit_code == 1
    assert "missing right of Pub/Sub's agent on subscription jobs-cotenant" in result.stdout
    assert "--role=roles/pubsub.subscriber" in result.stdout


def test_without_pubsub_setup_says_what_would_have_it(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST")
    result = cotenant("jobs", "setup")
    assert result.exit_code == 1
    assert "has no Pub/Sub" in result.stderr and "set PUBSUB_EMULATOR_HOST" in result.stderr
