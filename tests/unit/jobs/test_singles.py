"""Single jobs: accepted once, shown as they stand, cancelled for good."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cotenant.calls import Reply
from cotenant.calls.desk import Json, Page
from cotenant.errors import RequestRefused, SourceUnavailable, StoreUnavailable
from cotenant.jobs.desk.references import resolve_files
from cotenant.jobs.desk.singles import estimate_s
from cotenant.jobs.model import MAX_INLINE_BYTES, Result, error_line, result_line
from cotenant.jobs.store.keys import jobs_prefix, queued_prefix
from cotenant.jobs.store.objects import MemoryObjects, keys, open_objects
from cotenant.jobs.store.records import WorkloadPace
from cotenant.jobs.store.results import Attempt
from tests.contracts.desk_house import HOOK, START_S, FaultyObjects, House, chunks

pytestmark = pytest.mark.unit

CHAT = {"url": "/v1/chat/completions", "body": {"model": "tiny", "messages": []}}
RENDER = {"url": "/v1/mockups", "body": {"template": "mug", "artwork": "AAAA"}}


@pytest.fixture(params=["memory", "folder"])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> House:
    return House() if request.param == "memory" else House(open_objects(str(tmp_path / "store")))


async def made(house: House, asked: Json = CHAT, *, key: str | None = None, **more: Any) -> Json:
    return await house.desk.create_job("acme", {**asked, **more}, idempotency_key=key)


async def shown(house: House, job: Json) -> Json:
    house.now_s += 2  # what is believed for a second is asked again
    return await house.desk.job("acme", job["id"])


async def test_a_job_is_accepted_published_to_its_workload_and_shown(house: House) -> None:
    job = await made(
        house, custom_id="mine", priority=2, deadline="2026-01-01T01:00:00Z", webhook_url=HOOK, metadata={"a": "b"}
    )
    assert job == {
        "id": job["id"],
        "object": "job",
        "status": "queued",
        "created_at": START_S,
        "url": "/v1/chat/completions",
        "workload": "writer",
        "custom_id": "mine",
        "priority": 2,
        "deadline": START_S + 3600,
        "webhook_url": HOOK,
        "position": 0,
        "estimate_s": None,
        "attempts": [],
        "error": None,
        "output": None,
        "metadata": {"a": "b"},
    }
    assert [topic for topic, _ in house.published] == ["jobs.writer"]
    (sent,) = house.sent
    assert (sent.identity.job_id, sent.identity.custom_id, sent.wishes.priority) == (job["id"], "mine", 2)
    assert (sent.wishes.deadline_at_s, sent.wishes.webhook, sent.wishes.queued_at_s) == (START_S + 3600, HOOK, START_S)
    assert await house.records.lanes() == ("writer",)
    assert await shown(house, job) == job


async def test_two_jobs_with_one_custom_id_are_two_jobs(house: House) -> None:
    first, second = await made(house, custom_id="x"), await made(house, custom_id="x")
    assert first["id"] != second["id"]
    assert {job.identity.batch for job in house.sent} != {house.sent[0].identity.batch}


async def test_a_job_runs_succeeds_and_gives_what_its_route_answers(house: House) -> None:
    job = await made(house)
    await house.put_board(running=[job["id"]], writer=WorkloadPace(slots=1, running=1))
    assert (await shown(house, job))["status"] == "running"
    assert (await shown(house, job))["position"] is None
    with pytest.raises(RequestRefused, match="not done yet"):
        await house.desk.job_content("acme", job["id"])
    await house.work()
    ended = await shown(house, job)
    assert (ended["status"], ended["custom_id"], ended["error"]) == ("succeeded", None, None)
    data = json.dumps({"made": house.sent[0].identity.custom_id}, separators=(",", ":")).encode()
    assert ended["output"] == {
        "content_type": "application/json",
        "bytes": len(data),
        "url": f"/v1/jobs/{job['id']}/content",
        "body": json.loads(data),
    }
    content = await house.desk.job_content("acme", job["id"])
    assert (content.content_type, content.bytes) == ("application/json", len(data))
    assert b"".join([chunk async for chunk in content.chunks]) == data


@pytest.mark.parametrize("size", [1000, MAX_INLINE_BYTES + 1], ids=["in the result", "an object of its own"])
async def test_a_picture_comes_back_as_bytes_however_large(house: House, size: int) -> None:
    job = await made(house, RENDER)
    (sent,) = house.sent
    reply = Reply(200, bytes(size), "image/png")
    stored = await house.store.put_output(sent.identity, reply) if size > MAX_INLINE_BYTES else None
    await house.store.create_result(Result(sent.identity, sent.sha256, result_line(sent, reply, stored)))
    ended = await shown(house, job)
    assert ended["output"] == {"content_type": "image/png", "bytes": size, "url": f"/v1/jobs/{job['id']}/content"}
    content = await house.desk.job_content("acme", job["id"])
    assert (content.content_type, content.bytes) == ("image/png", size)
    assert b"".join([chunk async for chunk in content.chunks]) == bytes(size)


class SigningObjects(MemoryObjects):
    refuses = False

    async def sign(self, key: str, expires_s: float) -> str | None:
        if self.refuses:
            raise StoreUnavailable("no key to sign with")
        return f"https://store.example.com/{key}?for={expires_s:g}"


async def test_where_the_store_can_sign_a_large_output_has_a_signed_url() -> None:
    objects = SigningObjects()
    house = House(objects)
    job = await made(house, RENDER)
    (sent,) = house.sent
    reply = Reply(200, bytes(MAX_INLINE_BYTES + 1), "image/png")
    stored = await house.store.put_output(sent.identity, reply)
    await house.store.create_result(Result(sent.identity, sent.sha256, result_line(sent, reply, stored)))
    url = (await shown(house, job))["output"]["url"]
    assert url.startswith("https://store.example.com/acme-") and url.endswith(".png?for=3600")
    objects.refuses = True
    assert (await shown(house, job))["output"]["url"] == f"/v1/jobs/{job['id']}/content"


async def test_a_failed_job_says_why(house: House) -> None:
    refused, lost, late = await made(house, custom_id="bad"), await made(house), await made(house)
    await house.work(1)
    gone, expired = house.sent[1:]
    await house.store.bury(gone.identity, error_line(gone.identity, "attempts_exhausted", "gave up after 5"))
    await house.store.put_attempts(gone.identity, [Attempt(START_S, "replica_died", "killed")])
    line = error_line(expired.identity, "expired", "its deadline passed")
    await house.store.create_result(Result(expired.identity, expired.sha256, line))
    told = await shown(house, refused)
    assert (told["status"], told["error"]) == ("failed", {"code": "bad", "message": "no"})
    told = await shown(house, lost)
    assert (told["status"], told["error"]["code"]) == ("failed", "attempts_exhausted")
    assert told["attempts"] == [{"outcome": "replica_died", "reason": "killed", "at": START_S}]
    told = await shown(house, late)
    assert (told["status"], told["error"]["code"]) == ("expired", "expired")
    with pytest.raises(RequestRefused, match="no output: it is expired") as caught:
        await house.desk.job_content("acme", late["id"])
    assert caught.value.status == 404


# --- the queue ---


async def test_positions_count_the_jobs_before_and_estimates_follow_the_pace(house: House) -> None:
    jobs = []
    for _ in range(5):
        house.now_s += 1
        jobs.append(await made(house))
    other = await made(house, RENDER)
    await house.put_board(writer=WorkloadPace(slots=2, mean_s=10))
    told = [await shown(house, job) for job in jobs]
    assert [job["position"] for job in told] == [0, 1, 2, 3, 4]
    assert [job["estimate_s"] for job in told] == [10, 10, 20, 20, 30]
    assert (await shown(house, other))["position"] == 0
    await house.desk.cancel_job("acme", jobs[0]["id"])
    assert (await shown(house, jobs[4]))["position"] == 3


@pytest.mark.parametrize(
    ("position", "slots", "mean_s", "expected"),
    [(0, 4, 2.0, 2.0), (3, 4, 2.0, 2.0), (4, 4, 2.0, 4.0), (0, 0, 2.0, None), (0, 4, 0.0, None)],
)
def test_an_estimate_is_rounds_of_all_slots(position: int, slots: int, mean_s: float, expected: float | None) -> None:
    assert estimate_s(position, WorkloadPace(slots=slots, mean_s=mean_s)) == expected


async def test_a_place_that_nobody_gave_up_is_given_up_when_it_is_old(house: House) -> None:
    stuck = await made(house)
    house.now_s += 1
    waits = await made(house)
    await house.work(1)  # and its ingress died before it could give up the place
    assert (await shown(house, waits))["position"] == 1
    house.now_s += 3600
    await shown(house, waits)
    assert (await shown(house, waits))["position"] == 0
    assert (await shown(house, stuck))["status"] == "succeeded"
    assert len(await keys(house.objects, queued_prefix("writer"))) == 1


async def test_jobs_are_listed_in_pages_the_newest_first_and_by_tenant(house: House) -> None:
    jobs = []
    for _ in range(5):
        house.now_s += 1
        jobs.append((await made(house))["id"])
    page = await house.desk.jobs("acme", Page(limit=3))
    assert ([job["id"] for job in page["data"]], page["has_more"]) == (jobs[:1:-1], True)
    page = await house.desk.jobs("acme", Page(limit=3, after=page["last_id"]))
    assert ([job["id"] for job in page["data"]], page["has_more"]) == (jobs[1::-1], False)
    assert (await house.desk.jobs("bolt", Page()))["data"] == []
    for call in (house.desk.job, house.desk.job_content, house.desk.cancel_job):
        with pytest.raises(RequestRefused) as caught:
            await call("bolt", jobs[0])
        assert caught.value.status == 404


# --- what is asked for ---


@pytest.mark.parametrize(
    ("change", "status", "param", "code"),
    [
        ({"url": None}, 400, "url", "missing_required_parameter"),
        ({"url": "/v1/embeddings"}, 400, "url", "invalid_value"),
        ({"method": "GET"}, 400, "method", "invalid_value"),
        ({"body": None}, 400, "body", "missing_required_parameter"),
        ({"body": []}, 400, "body", "invalid_type"),
        ({"body": {"model": "other"}}, 404, "body.model", "model_not_found"),
        ({"body": {}}, 400, "body.model", "missing_required_parameter"),
        ({"url": "/v1/mockups", "body": {"template": "cup"}}, 404, "body.template", "template_not_found"),
        ({"url": "/v1/images/edits"}, 404, "url", "not_served"),
        ({"body": {"model": "tiny", "stream": True}}, 400, "body.stream", "streaming_unsupported"),
        ({"body": {"model": "tiny", "image": {"file_id": "file-x"}}}, 400, "body.image", "file_not_found"),
        ({"custom_id": ""}, 400, "custom_id", "invalid_value"),
        ({"custom_id": "\ud800"}, 400, "custom_id", "invalid_value"),
        ({"priority": 1.5}, 400, "priority", "invalid_value"),
        ({"deadline": START_S - 1}, 400, "deadline", "invalid_value"),
        ({"deadline": "tomorrow"}, 400, "deadline", "invalid_value"),
        ({"deadline": True}, 400, "deadline", "invalid_type"),
        ({"webhook_url": 1}, 400, "webhook_url", "invalid_type"),
        ({"webhook_url": "https://localhost/x"}, 400, "webhook_url", "invalid_webhook_url"),
        ({"metadata": {"a": 1}}, 400, "metadata.a", "invalid_type"),
        ({"stream": True}, 400, "stream", "unknown_parameter"),
    ],
)  # fmt: skip
async def test_a_request_that_is_wrong_is_refused_with_its_parameter(
    change: Json, status: int, param: str, code: str
) -> None:
    house = House()
    with pytest.raises(RequestRefused) as caught:
        await made(house, **change)
    assert (caught.value.status, caught.value.param, caught.value.code) == (status, param, code)
    assert (house.published, house.store.objects.created) == ([], [])


async def test_a_tenant_without_a_secret_cannot_ask_for_webhooks() -> None:
    house = House()
    with pytest.raises(RequestRefused, match="tenant bolt has no webhook secret") as caught:
        await house.desk.create_job("bolt", {**CHAT, "webhook_url": HOOK})
    assert caught.value.code == "no_webhook_secret"


async def test_a_large_body_travels_by_reference(house: House) -> None:
    await made(house, body={**RENDER["body"], "artwork": "A" * MAX_INLINE_BYTES}, url="/v1/mockups")
    (sent,) = house.sent
    assert len(house.published[0][1].data) < 500
    assert len(await house.store.body(sent)) > MAX_INLINE_BYTES


# --- files by reference ---


async def upload(house: House, data: bytes, *, purpose: str = "vision", tenant: str = "acme") -> str:
    record = await house.files.create(tenant, filename="art.png", purpose=purpose, chunks=chunks(data, 1 << 20))
    return record.id


async def test_artwork_that_was_uploaded_reaches_the_engine_as_an_upload(house: House) -> None:
    art = await upload(house, b"\x89PNG art")
    await made(house, RENDER, body={"template": "mug", "artwork": {"file_id": art}})
    (sent,) = house.sent
    body, files = await resolve_files(house.objects, "acme", await house.store.body(sent), now=house.now)
    assert json.loads(body) == {"template": "mug", "artwork": {"file": art}}
    assert files == {art: b"\x89PNG art"}


async def test_lists_and_masks_are_resolved_and_everything_else_is_left_alone(house: House) -> None:
    one, two = await upload(house, b"1"), await upload(house, b"2", purpose="user_data")
    body = {
        "images": [{"file_id": one}, {"image_url": "https://x"}, {"file_id": two}],
        "mask": {"file_id": one},
        "prompt": {"file_id": one},
    }
    resolved, files = await resolve_files(house.objects, "acme", json.dumps(body).encode(), now=house.now)
    assert json.loads(resolved) == {
        "images": [{"file": one}, {"image_url": "https://x"}, {"file": two}],
        "mask": {"file": one},
        "prompt": {"file_id": one},
    }
    assert files == {one: b"1", two: b"2"}
    plain = json.dumps({"a": 1}).encode()
    assert await resolve_files(house.objects, "acme", plain) == (plain, {})


async def test_files_of_others_of_another_purpose_or_too_large_are_refused(house: House) -> None:
    theirs = await upload(house, b"1", tenant="bolt")
    lines = await upload(house, b"{}", purpose="batch")
    large = await upload(house, bytes((20 << 20) + 1))
    for file_id, code in ((theirs, "file_not_found"), (lines, "invalid_file_purpose"), (large, "file_too_large")):
        body = {"template": "mug", "artwork": {"file_id": file_id}}
        with pytest.raises(RequestRefused) as caught:
            await made(house, RENDER, body=body)
        assert (caught.value.param, caught.value.code) == ("body.artwork", code)
        with pytest.raises(RequestRefused) as caught:
            await resolve_files(house.objects, "acme", json.dumps(body).encode(), now=house.now)
        assert (caught.value.status, caught.value.param, caught.value.code) == (400, "artwork", code)


# --- the same again ---


async def test_the_same_key_and_request_are_the_same_job_whatever_became_of_it(house: House) -> None:
    first = await made(house, key="k", deadline=START_S + 5, custom_id="x")
    house.now_s += 10
    again = await made(house, key="k", deadline=START_S + 5, custom_id="x")
    assert again == first
    await house.work()
    sent = len(house.sent)
    done = await made(house, key="k", deadline=START_S + 5, custom_id="x")
    assert (done["id"], done["status"], len(house.sent)) == (first["id"], "succeeded", sent)
    assert len((await house.desk.jobs("acme", Page()))["data"]) == 1
    assert len({job.identity for job in house.sent}) == 1


async def test_another_request_under_the_same_key_is_refused_and_another_tenant_has_its_own(house: House) -> None:
    await made(house, key="k")
    for change in ({"priority": 1}, {"body": {"model": "tiny", "n": 2}}, {"custom_id": "y"}):
        with pytest.raises(RequestRefused) as caught:
            await made(house, key="k", **change)
        assert (caught.value.status, caught.value.code) == (409, "idempotency_conflict")
    assert (await house.desk.create_job("bolt", CHAT, idempotency_key="k"))["status"] == "queued"
    assert len(house.sent) == 2


@pytest.mark.parametrize("key", ["", "k" * 256, "a\nb"])
async def test_a_key_that_is_none_is_refused(key: str) -> None:
    with pytest.raises(RequestRefused, match="Idempotency-Key"):
        await made(House(), key=key)


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
@pytest.mark.parametrize("key", [None, "k"], ids=["without a key", "with a key"])
async def test_whatever_fails_what_is_listed_was_published_and_a_key_finds_its_job_again(
    after: bool, key: str | None
) -> None:
    probe = House()
    await made(probe, key=key, custom_id="x")
    assert isinstance(probe.objects, FaultyObjects)
    for fail_at in range(1, probe.objects.calls + 1):
        house = House()
        assert isinstance(house.objects, FaultyObjects)
        house.objects.fail_at, house.objects.after = fail_at, after
        try:
            await made(house, key=key, custom_id="x")
        except StoreUnavailable:
            house.objects.fail_at = None
            listed = {job["id"] for job in (await house.desk.jobs("acme", Page()))["data"]}
            assert listed <= {job.identity.job_id for job in house.sent}
            if key is None:
                continue
            await made(house, key=key, custom_id="x")
        house.objects.fail_at = None
        assert len({job.identity for job in house.sent}) == 1
        assert len((await house.desk.jobs("acme", Page()))["data"]) == 1
        await house.work()
        assert house.runs == {"x": 1}


async def test_a_queue_that_is_down_leaves_nothing_of_a_job_that_nobody_can_ask_for_again() -> None:
    house = House()
    house.down.add("jobs.writer")
    with pytest.raises(SourceUnavailable):
        await made(house)
    assert await keys(house.objects, queued_prefix("writer")) == []
    assert await keys(house.objects, jobs_prefix("acme")) == []
    assert (await house.desk.jobs("acme", Page()))["data"] == []
    house.down.clear()
    assert (await made(house))["position"] == 0


# --- cancelling ---


async def test_a_cancelled_job_has_ended_when_the_call_returns(house: House) -> None:
    job = await made(house)
    ended = await house.desk.cancel_job("acme", job["id"])
    assert (ended["status"], ended["error"]["code"], ended["position"]) == ("cancelled", "cancelled", None)
    assert house.sent[0].identity in await house.store.cancelled(), "so that what runs is stopped"
    await house.work()
    assert (await shown(house, job))["status"] == "cancelled"
    assert (await house.desk.cancel_job("acme", job["id"]))["status"] == "cancelled"
    assert await keys(house.objects, queued_prefix("writer")) == []


async def test_what_has_ended_otherwise_cannot_be_cancelled(house: House) -> None:
    done, failed = await made(house), await made(house, custom_id="bad")
    await house.work()
    for job, status in ((done, "succeeded"), (failed, "failed")):
        with pytest.raises(RequestRefused, match=f"a job that has {status} can't be cancelled") as caught:
            await house.desk.cancel_job("acme", job["id"])
        assert caught.value.status == 409


async def test_a_job_that_ends_while_it_is_cancelled_keeps_its_result(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await made(house)
    cancel = house.store.cancel

    async def late(identity: Any) -> None:
        await house.work()
        await cancel(identity)

    monkeypatch.setattr(house.store, "cancel", late)
    with pytest.raises(RequestRefused):
        await house.desk.cancel_job("acme", job["id"])
    assert (await shown(house, job))["status"] == "succeeded"


async def test_a_webhook_is_told_of_a_cancelled_job_at_once_and_once(house: House) -> None:
    job = await made(house, webhook_url=HOOK, metadata={"order": "7"}, custom_id="x")
    await house.desk.cancel_job("acme", job["id"])
    (sent,) = house.sent
    result = await house.store.result(sent.identity)
    assert result is not None
    await house.clerk.job_ended(sent, result)  # the ingress, when it comes to the message
    errands = house.errands
    assert len({errand.id for errand in errands}) == 1
    for errand in errands:
        assert await house.clerk.advance(errand) is None
    (posted,) = house.deliver.posted
    told = json.loads(posted.body)
    assert told["type"] == "job.cancelled"
    assert told["data"] == {
        "id": job["id"],
        "object": "job",
        "status": "cancelled",
        "error": {"code": "cancelled", "message": "the job was cancelled"},
        "output": None,
        "url": "/v1/chat/completions",
        "batch": None,
        "custom_id": "x",
        "metadata": {"order": "7"},
    }
