"""Batches from their file to their last word, as OpenAI's client sees them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from openai.types import Batch

from cotenant.calls.desk import Page
from cotenant.errors import IdentityConflict, RequestRefused, SourceUnavailable
from cotenant.jobs import lines
from cotenant.jobs.clerk import intake, windows
from cotenant.jobs.clerk.clerk import BATCHES_AT_ONCE
from cotenant.jobs.errand import Errand
from cotenant.jobs.model import MAX_INLINE_BYTES, Result, error_line
from cotenant.jobs.store.objects import open_objects
from cotenant.jobs.store.records import WorkloadPace
from tests.contracts.desk_house import HOOK, START_S, House, chunks, worked
from tests.contracts.jobs_house import chat, render

pytestmark = pytest.mark.unit


@pytest.fixture(params=["memory", "folder"])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> House:
    return House() if request.param == "memory" else House(open_objects(str(tmp_path / "store")))


async def see_through(house: House, batch: str, *, pass_s: float = 1.0, work: bool = True, rounds: int = 200) -> None:
    """Let the clerk and the ingresses go on until the errand is done."""
    for _ in range(rounds):
        if await house.clerk.advance(Errand("batch", "acme", batch)) is None:
            return
        if work:
            await house.work()
        house.now_s += pass_s
    raise AssertionError(await house.shown(batch))


async def status(house: House, batch: str) -> str:
    return Batch.model_validate(await house.shown(batch)).status


async def test_a_batch_goes_from_file_to_output_and_error_file(house: House) -> None:
    batch = await house.batch(chat("a"), chat("bad-1"), chat("c"), metadata={"for": "me"})
    assert house.errands == [Errand("batch", "acme", batch)]
    shown = Batch.model_validate(await house.shown(batch), strict=True)
    assert (shown.status, shown.created_at, shown.expires_at) == ("validating", START_S, START_S + 86_400)
    house.now_s += 1
    await house.clerk.advance(house.errands[0])
    shown = Batch.model_validate(await house.shown(batch), strict=True)
    assert (shown.status, shown.in_progress_at) == ("in_progress", START_S + 1)
    assert shown.request_counts is not None and shown.request_counts.total == 3
    assert [topic for topic, _ in house.published[1:]] == ["jobs.writer"] * 3
    await see_through(house, batch)
    shown = Batch.model_validate(await house.shown(batch), strict=True)
    assert (shown.status, shown.errors, shown.metadata) == ("completed", None, {"for": "me"})
    assert shown.completed_at is not None and shown.finalizing_at is not None
    assert shown.request_counts is not None
    assert (shown.request_counts.total, shown.request_counts.completed, shown.request_counts.failed) == (3, 2, 1)
    output = await house.lines(shown.output_file_id)
    assert [line["custom_id"] for line in output] == ["a", "c"]
    assert output[0]["response"] == {"status_code": 200, "request_id": output[0]["id"], "body": {"made": "a"}}
    (error,) = await house.lines(shown.error_file_id)
    assert (error["custom_id"], error["response"]["status_code"], error["error"]) == ("bad-1", 400, None)
    files = (await house.desk.files("acme", Page(), purpose="batch_output"))["data"]
    assert {file["filename"] for file in files} == {f"{batch}_output.jsonl", f"{batch}_error.jsonl"}


async def test_what_ends_well_leaves_no_error_file_and_the_other_way_round(house: House) -> None:
    good, bad = await house.batch(chat("a")), await house.batch(chat("bad"))
    for batch in (good, bad):
        await see_through(house, batch)
    assert (await house.shown(good))["error_file_id"] is None
    assert (await house.shown(bad))["output_file_id"] is None


async def test_outputs_are_in_the_order_of_the_input_whatever_ended_first(house: House) -> None:
    batch = await house.batch(*[chat(f"{'bad-' if n % 3 == 0 else 'c'}{n}") for n in range(40)])
    await house.clerk.advance(house.errands[0])
    house.published.reverse()
    await see_through(house, batch)
    shown = await house.shown(batch)
    assert [line["custom_id"] for line in await house.lines(shown["output_file_id"])] == [
        f"c{n}" for n in range(40) if n % 3
    ]
    assert [line["custom_id"] for line in await house.lines(shown["error_file_id"])] == [
        f"bad-{n}" for n in range(0, 40, 3)
    ]


async def test_counts_are_kept_current_while_it_runs(house: House) -> None:
    batch = await house.batch(*[chat(x) for x in ("a", "bad", "c", "d")])
    for most in (2, 1):
        await house.clerk.advance(house.errands[0])
        await house.work(most)
        house.now_s += 1
    await house.clerk.advance(house.errands[0])
    assert (await house.shown(batch))["request_counts"] == {"total": 4, "completed": 2, "failed": 1}


async def test_a_job_that_was_given_up_is_in_the_error_file(house: House) -> None:
    batch = await house.batch(chat("a"), chat("b"))
    await house.clerk.advance(house.errands[0])
    lost = house.sent[0].identity
    await house.store.bury(lost, error_line(lost, "attempts_exhausted", "gave up"))
    house.worked = 1
    await see_through(house, batch)
    shown = await house.shown(batch)
    assert shown["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    assert [line["error"]["code"] for line in await house.lines(shown["error_file_id"])] == ["attempts_exhausted"]


async def test_lines_are_out_in_windows_that_follow_the_slots_and_are_shared(house: House) -> None:
    await house.put_board(writer=WorkloadPace(slots=20, mean_s=10))
    first = await house.batch(*[chat(f"c{n}") for n in range(300)])
    await house.clerk.advance(Errand("batch", "acme", first))
    assert len(house.sent) == 80
    second = await house.batch(*[chat(f"d{n}") for n in range(300)])
    house.now_s += 60
    await house.put_board(writer=WorkloadPace(slots=20, mean_s=10))
    await house.clerk.advance(Errand("batch", "acme", second))
    assert len(house.sent) == 80 + 40
    await house.work(30)
    house.now_s += 6
    await house.clerk.advance(Errand("batch", "acme", first))
    assert len(house.sent) == 80 + 40, "50 of the first are out, and its share is 40"


async def test_a_tenants_many_batches_leave_room_for_those_of_others(house: House) -> None:
    batches = [await house.batch(chat("a")) for _ in range(BATCHES_AT_ONCE + 3)]
    for batch in batches:
        await house.clerk.advance(Errand("batch", "acme", batch))
    assert len(house.sent) == BATCHES_AT_ONCE
    await house.clerk.tick()
    assert len(house.errands) == len(batches), "those put off are not due yet"
    house.now_s += 60
    await house.clerk.tick()
    assert {errand.id for errand in house.errands[len(batches) :]} == set(batches[-3:])
    for batch in batches:
        await see_through(house, batch)
    assert {await status(house, batch) for batch in batches} == {"completed"}


async def test_one_workload_that_is_down_does_not_hold_up_another(house: House) -> None:
    mixed = [chat(f"c{n}") if n % 2 else render(f"r{n}") for n in range(400)]
    data = b"".join(json.dumps(line).encode() + b"\n" for line in mixed)
    shown = await house.batches.submit("acme", chunks(data), filename="x.jsonl", input_sha256="1")
    for _ in range(30):
        await house.clerk.advance(Errand("batch", "acme", shown["id"]))
        await house.work(engine=lambda job: worked(job) if job.url == "/v1/chat/completions" else None)
        house.now_s += 1
    sent = [job.identity.custom_id for job in house.sent]
    assert sum(name.startswith("c") for name in sent) == 200
    assert sum(name.startswith("r") for name in sent) == 64


async def test_a_large_body_is_published_by_reference(house: House) -> None:
    data = json.dumps(render("big", artwork="x" * MAX_INLINE_BYTES)).encode() + b"\n"
    await house.batches.submit("acme", chunks(data), filename="x.jsonl", input_sha256="1", batch_id="b")
    await house.clerk.advance(house.errands[0])
    (job,) = house.sent
    assert job.body is None and len(await house.store.body(job)) > MAX_INLINE_BYTES


async def test_priority_and_deadline_of_a_batch_are_those_of_its_lines(house: House) -> None:
    batch = await house.batch(chat("a"), priority=3, deadline=START_S + 60)
    await house.clerk.advance(Errand("batch", "acme", batch))
    assert (house.sent[0].wishes.priority, house.sent[0].wishes.deadline_at_s) == (3, START_S + 60)


# --- what is wrong with a file ---


@pytest.mark.parametrize(
    ("line", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"[]", "invalid_json_line", None),
        (b"\xff", "invalid_json_line", None),
        (b'{"custom_id": "x", "custom_id": "y"}', "invalid_json_line", None),
        ({"method": "POST", "url": "/v1/chat/completions", "body": {}}, "missing_required_parameter", "custom_id"),
        ({"custom_id": "x", "url": "/v1/chat/completions", "body": {}}, "missing_required_parameter", "method"),
        ({"custom_id": "x", "method": "POST", "body": {}}, "missing_required_parameter", "url"),
        ({"custom_id": "x", "method": "POST", "url": "/v1/chat/completions"}, "missing_required_parameter", "body"),
        ({**chat("x"), "extra": 1}, "unknown_parameter", "extra"),
        ({**chat("x"), "method": "GET"}, "invalid_method", "method"),
        ({**chat("x"), "url": "https://x"}, "invalid_url", "url"),
        ({**chat("x"), "body": []}, "invalid_request", "body"),
        ({**chat("x"), "custom_id": 7}, "invalid_request", "custom_id"),
        (render("x"), "invalid_url", "url"),
        (chat("x", model="other"), "model_not_found", "body.model"),
        (chat("x", model=None), "invalid_request", "body.model"),
        (chat("x", stream=True), "streaming_unsupported", "body.stream"),
        (chat("a"), "duplicate_custom_id", "custom_id"),
        (chat("x", image={"file_id": "file-nope"}), "file_not_found", "body.image"),
    ],
)  # fmt: skip
async def test_a_line_that_is_no_job_fails_the_batch_with_code_line_and_parameter(
    house: House, line: Mapping[str, Any] | bytes, code: str, param: str | None
) -> None:
    batch = await house.batch(chat("a"), b"", line, chat("z"))
    await see_through(house, batch)
    shown = Batch.model_validate(await house.shown(batch), strict=True)
    assert shown.status == "failed" and shown.failed_at is not None and shown.errors is not None
    assert shown.errors.data is not None
    (error,) = shown.errors.data
    assert (error.code, error.line, error.param) == (code, 3, param)
    assert error.message
    assert house.sent == []
    assert (shown.output_file_id, shown.error_file_id) == (None, None)


async def test_every_problem_is_shown_up_to_a_hundred(house: House) -> None:
    batch = await house.batch(*[b"{"] * (intake.MAX_PROBLEMS + 50))
    await see_through(house, batch)
    errors = (await house.shown(batch))["errors"]["data"]
    assert [error["line"] for error in errors] == list(range(1, intake.MAX_PROBLEMS + 1))


@pytest.mark.parametrize("what", ["missing", "purpose", "deleted"])
async def test_a_file_that_is_not_there_fails_the_batch_as_openai_does(house: House, what: str) -> None:
    file_id = "file-nope"
    if what != "missing":
        file_id = await house.upload(chat("a"), purpose="vision" if what == "purpose" else "batch")
    if what == "deleted":
        await house.desk.delete_file("acme", file_id)
    batch = await house.batch(chat("a"), input_file_id=file_id)
    await see_through(house, batch)
    (error,) = (await house.shown(batch))["errors"]["data"]
    assert (error["code"], error["param"], error["line"]) == ("invalid_request", "input_file_id", None)


async def test_a_file_of_blanks_and_one_of_too_many_lines_fail_the_batch(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "MAX_LINES", 3)
    for content, code in (([b"", b"  "], "empty_file"), ([chat(f"c{n}") for n in range(4)], "too_many_tasks")):
        batch = await house.batch(*content)
        await see_through(house, batch)
        assert [error["code"] for error in (await house.shown(batch))["errors"]["data"]] == [code]


async def test_a_line_that_is_too_long_is_passed_over_unread(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 500)
    batch = await house.batch(chat("a"), chat("b", text="x" * 5000), b"{")
    await see_through(house, batch)
    errors = (await house.shown(batch))["errors"]["data"]
    assert [(error["code"], error["line"]) for error in errors] == [("line_too_long", 2), ("invalid_json_line", 3)]


async def test_the_bytes_that_windows_puts_into_files_do_no_harm(house: House) -> None:
    crlf = b"\xef\xbb\xbf" + json.dumps(chat("a")).encode() + b"\r"
    batch = await house.batch(crlf, json.dumps(chat("b")).encode() + b"\r")
    await see_through(house, batch)
    shown = await house.shown(batch)
    assert [line["custom_id"] for line in await house.lines(shown["output_file_id"])] == ["a", "b"]


# --- what is asked for ---


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"input_file_id": None}, "input_file_id", "missing_required_parameter"),
        ({"input_file_id": 7}, "input_file_id", "invalid_type"),
        ({"endpoint": None}, "endpoint", "missing_required_parameter"),
        ({"endpoint": "/v1/embeddings"}, "endpoint", "invalid_value"),
        ({"completion_window": "48h"}, "completion_window", "invalid_value"),
        ({"metadata": {f"k{n}": "v" for n in range(17)}}, "metadata", "invalid_value"),
        ({"metadata": {"k": ["v"]}}, "metadata.k", "invalid_type"),
        ({"metadata": {"k" * 65: "v"}}, "metadata." + "k" * 64, "string_above_max_length"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k", "string_above_max_length"),
        ({"metadata": []}, "metadata", "invalid_type"),
        ({"output_expires_after": {}}, "output_expires_after", "invalid_value"),
        ({"priority": 11}, "priority", "invalid_value"),
        ({"deadline": "2020-01-01T00:00:00Z"}, "deadline", "invalid_value"),
        ({"webhook_url": "http://10.0.0.1/"}, "webhook_url", "invalid_webhook_url"),
        ({"wait": True}, "wait", "unknown_parameter"),
    ],
)  # fmt: skip
async def test_a_request_that_is_wrong_is_refused_with_its_parameter(
    change: dict[str, Any], param: str, code: str
) -> None:
    house = House()
    body = {"input_file_id": "file-x", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    with pytest.raises(RequestRefused) as caught:
        await house.desk.create_batch("acme", {**body, **change})
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)
    assert house.published == []


async def test_our_own_routes_are_endpoints_too(house: House) -> None:
    batch = await house.batch(render("a"), endpoint="/v1/mockups")
    await see_through(house, batch)
    assert await status(house, batch) == "completed"


async def test_a_queue_that_is_down_refuses_the_batch_which_is_not_listed() -> None:
    house = House()
    house.down.add("jobs-clerk")
    with pytest.raises(SourceUnavailable):
        await house.batch(chat("a"))
    assert (await house.desk.batches("acme", Page()))["data"] == []


async def test_batches_are_listed_in_pages_the_newest_first(house: House) -> None:
    made = []
    for n in range(5):
        house.now_s += 1
        made.append(await house.batch(chat(f"c{n}")))
    page = await house.desk.batches("acme", Page(limit=3))
    assert ([one["id"] for one in page["data"]], page["has_more"]) == (made[:1:-1], True)
    page = await house.desk.batches("acme", Page(limit=3, after=page["last_id"]))
    assert ([one["id"] for one in page["data"]], page["has_more"]) == (made[1::-1], False)
    assert (await house.desk.batches("bolt", Page()))["data"] == []


@pytest.mark.parametrize("name", ["batch_x", "", "a/../b", "\ud800"])
async def test_a_batch_that_nobody_made_is_not_found(name: str) -> None:
    house = House()
    for call in (house.desk.batch, house.desk.cancel_batch):
        with pytest.raises(RequestRefused) as caught:
            await call("acme", name)
        assert caught.value.status == 404


# --- cancelling and expiring ---


async def test_a_cancelled_batch_keeps_what_was_done_and_says_what_was_not(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "BASE_WINDOW", 4)
    monkeypatch.setattr(windows, "MIN_WINDOW", 4)
    batch = await house.batch(*[chat(f"c{n}") for n in range(10)])
    await house.clerk.advance(house.errands[0])
    await house.work(2)
    house.now_s += 1
    shown = Batch.model_validate(await house.desk.cancel_batch("acme", batch))
    assert (shown.status, shown.cancelling_at) == ("cancelling", START_S + 1)
    assert (await house.desk.cancel_batch("acme", batch))["status"] == "cancelling"
    house.now_s += 1
    assert await house.clerk.advance(house.errands[0]) is not None
    await house.work()
    shown = Batch.model_validate(await house.shown(batch), strict=True)
    assert (shown.status, shown.cancelling_at, shown.cancelled_at) == ("cancelled", START_S + 1, START_S + 2)
    assert shown.request_counts is not None
    assert (shown.request_counts.total, shown.request_counts.completed, shown.request_counts.failed) == (10, 2, 0)
    assert [line["custom_id"] for line in await house.lines(shown.output_file_id)] == ["c0", "c1"]
    errors = await house.lines(shown.error_file_id)
    assert [line["custom_id"] for line in errors] == [f"c{n}" for n in range(2, 10)]
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}
    assert (await house.desk.cancel_batch("acme", batch))["status"] == "cancelled"


async def test_the_mark_of_a_cancelled_batch_stays_until_every_ingress_has_seen_it(house: House) -> None:
    batch = await house.batch(chat("a"))
    await house.clerk.advance(house.errands[0])
    await house.desk.cancel_batch("acme", batch)
    left_s = await house.clerk.advance(house.errands[0])
    assert left_s is not None and left_s > 2
    assert house.sent[0].identity in await house.store.cancelled()
    house.now_s += left_s
    assert await house.clerk.advance(house.errands[0]) is None
    assert house.sent[0].identity not in await house.store.cancelled()


async def test_a_batch_that_is_cancelled_before_it_was_looked_at_publishes_nothing(house: House) -> None:
    batch = await house.batch(chat("a"))
    await house.desk.cancel_batch("acme", batch)
    await see_through(house, batch, pass_s=60)
    assert (await status(house, batch), house.sent) == ("cancelled", [])


@pytest.mark.parametrize("ended", ["completed", "failed"])
async def test_a_batch_that_has_ended_cannot_be_cancelled(house: House, ended: str) -> None:
    batch = await house.batch(chat("a") if ended == "completed" else b"{")
    await see_through(house, batch)
    with pytest.raises(RequestRefused, match=f"a batch that is {ended} can't be cancelled") as caught:
        await house.desk.cancel_batch("acme", batch)
    assert caught.value.status == 409


async def test_after_a_day_what_is_not_done_has_expired(house: House) -> None:
    batch = await house.batch(*[chat(f"c{n}") for n in range(4)])
    await house.clerk.advance(house.errands[0])
    await house.work(1)
    late = house.sent[1].identity
    # An ingress that stopped it has left this.
    line = error_line(late, "cancelled", "the job was cancelled")
    await house.store.create_result(Result(late, house.sent[1].sha256, line))
    house.now_s = START_S + 86_400
    await see_through(house, batch, pass_s=60)
    shown = Batch.model_validate(await house.shown(batch), strict=True)
    assert (shown.status, shown.expired_at) == ("expired", START_S + 86_400)
    assert [line["custom_id"] for line in await house.lines(shown.output_file_id)] == ["c0"]
    errors = await house.lines(shown.error_file_id)
    assert [(line["custom_id"], line["error"]["code"]) for line in errors] == [
        (f"c{n}", "batch_expired") for n in (1, 2, 3)
    ]
    assert errors[0]["id"] == late.job_id
    with pytest.raises(RequestRefused):
        await house.desk.cancel_batch("acme", batch)


async def test_a_file_that_is_deleted_on_the_way_fails_what_was_not_read(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "BASE_WINDOW", 4)
    monkeypatch.setattr(windows, "MIN_WINDOW", 4)
    batch = await house.batch(*[chat(f"c{n}") for n in range(10)])
    await house.clerk.advance(house.errands[0])
    await house.desk.delete_file("acme", (await house.shown(batch))["input_file_id"])
    await see_through(house, batch)
    shown = await house.shown(batch)
    assert shown["status"] == "completed"
    assert len(await house.lines(shown["output_file_id"])) == 4
    assert {line["error"]["code"] for line in await house.lines(shown["error_file_id"])} == {"input_file_gone"}


async def test_outputs_expire_as_asked(house: House) -> None:
    expiry = {"anchor": "created_at", "seconds": 3600}
    batch = await house.batch(chat("a"), output_expires_after=expiry)
    await see_through(house, batch)
    file = await house.desk.file("acme", (await house.shown(batch))["output_file_id"])
    assert file["expires_at"] == file["created_at"] + 3600


# --- submitted from the command line ---


async def submitted(house: House, data: bytes, **more: Any) -> Any:
    return await house.batches.submit("acme", chunks(data), filename="jobs.jsonl", **more)


async def test_a_submitted_file_may_go_to_any_route_and_the_same_again_is_the_same_batch(house: House) -> None:
    data = json.dumps(chat("a")).encode() + b"\n" + json.dumps(render("b")).encode()
    first = await submitted(house, data, input_sha256="1", batch_id="mine")
    again = await submitted(house, data, input_sha256="1", batch_id="mine")
    assert (first["id"], again["input_file_id"]) == ("mine", first["input_file_id"])
    assert len((await house.desk.files("acme", Page()))["data"]) == 1
    await see_through(house, "mine")
    assert house.runs == {"a": 1, "b": 1}
    assert (await submitted(house, data, input_sha256="1", batch_id="mine"))["status"] == "completed"
    with pytest.raises(IdentityConflict, match="batch mine exists with other jobs"):
        await submitted(house, data, input_sha256="2", batch_id="mine")


async def test_a_batch_named_by_its_user_is_listed_and_found(house: House) -> None:
    name = "Wörk/2026 — " + "x" * 200
    await submitted(house, json.dumps(chat("a")).encode(), input_sha256="1", batch_id=name)
    assert [one["id"] for one in (await house.desk.batches("acme", Page()))["data"]] == [name]
    await see_through(house, name)
    assert await status(house, name) == "completed"


# --- webhooks ---


async def test_a_webhook_is_told_how_a_batch_ended(house: House) -> None:
    batch = await house.batch(chat("a"), webhook_url=HOOK)
    await see_through(house, batch)
    webhook = house.errands[-1]
    assert webhook.kind == "webhook"
    assert await house.clerk.advance(webhook) is None
    (posted,) = house.deliver.posted
    told = json.loads(posted.body)
    assert (posted.url, told["type"], told["data"]["id"]) == (HOOK, "batch.completed", batch)
    assert told["data"] == await house.shown(batch)
