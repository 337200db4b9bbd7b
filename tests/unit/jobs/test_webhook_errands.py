"""Webhooks as errands: told once whoever dies, tried again by the schedule, and never unsigned."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress

import pytest

from cotenant.errors import MalformedJob, RequestRefused, SourceUnavailable, StoreUnavailable
from cotenant.jobs.clerk.putting_off import PuttingOff
from cotenant.jobs.clerk.webhooks import TRIED_AT_ONCE, Webhooks, webhook_check
from cotenant.jobs.errand import Errand
from cotenant.jobs.model import Identity, Job, Result, Wishes, error_line, result_line
from cotenant.outbound.webhooks import SCHEDULE_S, Answered, Event, Outcome, Secrets, verify
from tests.contracts.desk_house import HOOK, SECRETS, FaultyObjects, House, worked

pytestmark = pytest.mark.unit


def ended_job(custom_id: str = "a") -> tuple[Job, Result]:
    job = Job(
        Identity("acme", "b1", custom_id), "/v1/chat/completions", b'{"model":"tiny"}', wishes=Wishes(webhook=HOOK)
    )
    return job, Result(job.identity, job.sha256, result_line(job, worked(job)))


async def told(house: House) -> Errand:
    await house.clerk.job_ended(*ended_job())
    return house.errands[-1]


async def test_the_end_of_a_job_is_delivered_signed_and_with_its_result() -> None:
    house = House()
    errand = await told(house)
    assert await house.clerk.advance(errand) is None
    (posted,) = house.deliver.posted
    assert verify(posted.headers, posted.body, SECRETS.for_tenant("acme"), house.now_s) == errand.id
    message = json.loads(posted.body)
    assert (message["type"], message["data"]["status"]) == ("job.succeeded", "succeeded")
    assert (message["data"]["batch"], message["data"]["custom_id"]) == ("b1", "a")
    assert await house.clerk.advance(errand) is None
    assert len(house.deliver.posted) == 1


@pytest.mark.parametrize(
    ("line", "event"),
    [
        (error_line(Identity("acme", "b1", "a"), "cancelled", "x"), "job.cancelled"),
        (error_line(Identity("acme", "b1", "a"), "expired", "x"), "job.expired"),
        (error_line(Identity("acme", "b1", "a"), "attempts_exhausted", "x"), "job.failed"),
    ],
)
async def test_the_event_says_how_it_ended(line: bytes, event: str) -> None:
    house = House()
    job, result = ended_job()
    await house.clerk.job_ended(job, Result(result.identity, result.job_sha256, line))
    await house.clerk.advance(house.errands[-1])
    assert json.loads(house.deliver.posted[0].body)["type"] == event


async def test_a_job_that_wants_no_webhook_makes_none() -> None:
    house = House()
    job, result = ended_job()
    await house.clerk.job_ended(Job(job.identity, job.url, job.body), result)
    assert house.published == []


async def test_what_is_told_twice_is_one_webhook_with_the_body_of_the_first_time() -> None:
    house = House()
    first = await told(house)
    house.now_s += 60
    again = await told(house)
    assert again == first
    await house.clerk.advance(first)
    house.published.clear()
    await house.clerk.job_ended(*ended_job())
    assert house.published == [], "it was delivered"


async def test_a_receiver_that_fails_is_tried_again_by_the_schedule_with_the_same_id_and_body() -> None:
    house = House()
    answers = iter([500, 302, 200])

    def receive(headers: Mapping[str, str], body: bytes) -> Outcome:
        return Answered(next(answers))

    house.receivers[HOOK] = house.deliver.receivers[HOOK] = receive
    errand = await told(house)
    assert await house.clerk.advance(errand) == SCHEDULE_S[1]
    assert await house.clerk.advance(errand) == SCHEDULE_S[1], "not before its time"
    house.now_s += SCHEDULE_S[1]
    assert await house.clerk.advance(errand) is None, "put off: it does not keep its place"
    assert await brought_back(house) == []
    house.now_s += SCHEDULE_S[2]
    assert await brought_back(house) == [errand]
    assert await house.new_clerk().advance(errand) is None
    assert len({(p.headers["webhook-id"], p.body) for p in house.deliver.posted}) == 1
    assert len({p.headers["webhook-timestamp"] for p in house.deliver.posted}) == 3
    record = await house.webhooks.find("acme", errand.id)
    assert record is not None
    assert ([a["status"] for a in record.attempts], record.fate) == ([500, 302, 200], "delivered")
    assert await brought_back(house) == []


async def brought_back(house: House) -> list[Errand]:
    before = len(house.errands)
    await house.clerk.tick()
    return house.errands[before:]


async def test_at_last_it_is_given_up_whoever_was_down_meanwhile() -> None:
    house = House()
    del house.deliver.receivers[HOOK]
    errand, days = await told(house), 0.0
    while (record := await house.webhooks.find("acme", errand.id)) is None or record.fate is None:
        again_s = await house.clerk.advance(errand)
        step_s = again_s if again_s is not None else 0.0
        while again_s is None and not await brought_back(house):
            house.now_s, step_s = house.now_s + 3600, step_s + 3600
            record = await house.webhooks.find("acme", errand.id)
            if record is not None and record.fate is not None:
                break
        house.now_s += again_s or 0.0
        days += step_s / 86_400
        assert days < 5
    assert len(house.deliver.posted) == len(SCHEDULE_S)
    assert (record.fate, record.attempts[0]["failure"]) == ("given_up", "unreachable")


async def test_receivers_that_hang_keep_nobody_elses_webhooks_waiting() -> None:
    house = House()
    hang = asyncio.Event()

    async def hanging(headers: Mapping[str, str], body: bytes) -> Outcome:
        await hang.wait()
        return Answered(200)

    house.deliver.receivers[HOOK] = hanging
    for n in range(TRIED_AT_ONCE + 5):
        await house.clerk.job_ended(*ended_job(f"c{n}"))
    tasks = [asyncio.create_task(house.clerk.advance(errand)) for errand in house.errands]
    for _ in range(50):
        await asyncio.sleep(0)
    assert sum(task.done() for task in tasks) == 5, "they are put off"
    hang.set()
    await asyncio.gather(*tasks)
    house.now_s += 60
    for errand in await brought_back(house):
        assert await house.clerk.advance(errand) is None
    assert len({posted.headers["webhook-id"] for posted in house.deliver.posted}) == TRIED_AT_ONCE + 5


async def test_a_fault_while_errands_are_put_off_or_brought_back_loses_none() -> None:
    for after in (False, True):
        for fail_at in range(1, 9):
            objects = FaultyObjects()
            house = House(objects)
            putting_off = PuttingOff(objects, house.publish, house.jobs, house.now)
            errands = [Errand("webhook", "acme", f"msg_{n}") for n in range(2)]
            objects.fail_at, objects.after = fail_at, after
            for errand in errands:
                with suppress(StoreUnavailable):
                    await putting_off.put_off(errand, 30)
                    continue
                await putting_off.put_off(errand, 30)
            house.now_s += 31
            for _ in range(2):
                with suppress(StoreUnavailable):
                    await putting_off.bring_back()
            assert set(house.errands) == set(errands)
            objects.fail_at = None
            assert await putting_off.bring_back() == 0


async def test_a_receiver_that_is_gone_is_left_alone() -> None:
    house = House()
    house.deliver.receivers[HOOK] = lambda headers, body: Answered(410)
    errand = await told(house)
    assert await house.clerk.advance(errand) is None
    record = await house.webhooks.find("acme", errand.id)
    assert record is not None and record.fate == "disabled"


async def test_without_a_secret_nothing_is_sent_and_it_waits_for_one() -> None:
    house = House()
    errand = await told(house)
    bare = Webhooks(
        house.objects, house.publish, house.jobs, house.deliver, Secrets(), now=house.now, jitter=lambda: 0.0
    )
    assert await bare.advance("acme", errand.id) == SCHEDULE_S[1]
    assert house.deliver.posted == []
    house.now_s += SCHEDULE_S[1] * 1.1
    assert await house.clerk.advance(errand) is None


async def test_a_webhook_that_was_never_kept_is_malformed() -> None:
    house = House()
    for errand in (Errand("webhook", "acme", "msg_x"), Errand("batch", "acme", "batch_x")):
        with pytest.raises(MalformedJob, match="there is no"):
            await house.clerk.advance(errand)


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
async def test_a_fault_at_any_call_loses_no_webhook(after: bool) -> None:
    for fail_at in range(1, 12):
        objects = FaultyObjects()
        house = House(objects)
        objects.fail_at, objects.after = fail_at, after
        for _ in range(3):
            try:
                await house.clerk.job_ended(*ended_job())
                break
            except Exception:
                house.clerk = house.new_clerk()
        for errand in house.errands:
            for _ in range(3):
                try:
                    await house.clerk.advance(errand)
                    break
                except Exception:
                    house.clerk = house.new_clerk()
        assert len({posted.headers["webhook-id"] for posted in house.deliver.posted}) == 1


async def test_a_queue_that_is_down_is_told_to_who_asked() -> None:
    house = House()
    house.down.add("jobs-clerk")
    with pytest.raises(SourceUnavailable):
        await house.clerk.job_ended(*ended_job())
    house.down.clear()
    await house.clerk.job_ended(*ended_job())
    assert len(house.errands) == 1


def test_a_url_is_checked_when_it_is_handed_in() -> None:
    check = webhook_check(SECRETS)
    check("acme", HOOK)
    for tenant, url in (("acme", "http://example.com"), ("acme", "https://10.0.0.1"), ("bolt", HOOK)):
        with pytest.raises(RequestRefused) as caught:
            check(tenant, url)
        assert (caught.value.status, caught.value.param) == (400, "webhook_url")
    webhook_check(SECRETS, frozenset({"10.0.0.1:8080"}))("acme", "http://10.0.0.1:8080/x")


def test_every_end_of_a_batch_has_an_event() -> None:
    for status in ("completed", "failed", "cancelled", "expired"):
        assert Event(f"batch.{status}")
