"""Files, batches and jobs at the door: who may see what, what a refusal says, how long an answer waits."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import httpx
import pytest

from cotenant.config.model import Gateway
from cotenant.errors import (
    IdentityConflict,
    JobError,
    MalformedJob,
    RequestRefused,
    SourceUnavailable,
    StoreUnavailable,
)
from cotenant.gateway.downloads import disposition
from cotenant.gateway.waiting import MAX_WAIT_S, pause_s, wished_wait_s
from cotenant.jobs.desk import asked, batches
from tests.unit.gateway.desks import DictDesk
from tests.unit.gateway.house import House, keyring

pytestmark = pytest.mark.unit

JOB = {"url": "/v1/mockups", "body": {"template": "mug"}}
BATCH = {"input_file_id": "file-1", "endpoint": "/v1/mockups", "completion_window": "24h"}
#: Every route about one thing.
OF_ONE = (
    ("GET", "/v1/files/{file}"),
    ("DELETE", "/v1/files/{file}"),
    ("GET", "/v1/files/{file}/content"),
    ("GET", "/v1/batches/{batch}"),
    ("POST", "/v1/batches/{batch}/cancel"),
    ("GET", "/v1/jobs/{job}"),
    ("DELETE", "/v1/jobs/{job}"),
    ("GET", "/v1/jobs/{job}/content"),
)
LISTS = ("/v1/files", "/v1/batches", "/v1/jobs")


@pytest.fixture
def desk() -> DictDesk:
    return DictDesk()


@pytest.fixture
def house(desk: DictDesk) -> House:
    return House({}, desk=desk)


async def upload(client: httpx.AsyncClient, data: bytes = b"{}\n", filename: str = "a.jsonl") -> str:
    reply = await client.post("/v1/files", data={"purpose": "batch"}, files={"file": (filename, data)})
    assert reply.status_code == 200, reply.text
    return str(reply.json()["id"])


async def one_of_each(client: httpx.AsyncClient) -> dict[str, str]:
    batch = await client.post("/v1/batches", json=BATCH)
    job = await client.post("/v1/jobs", json=JOB)
    return {"file": await upload(client), "batch": batch.json()["id"], "job": job.json()["id"]}


async def test_a_job_is_accepted_told_of_and_cancelled(house: House, desk: DictDesk) -> None:
    async with house.client() as client:
        made = await client.post("/v1/jobs", json=JOB, headers={"idempotency-key": "k-1"})
        seen = await client.get(made.headers["location"])
        ended = await client.delete(made.headers["location"])
    assert (made.status_code, made.headers["location"]) == (202, f"/v1/jobs/{made.json()['id']}")
    assert seen.json() == made.json()
    assert made.headers["retry-after"] == seen.headers["retry-after"] == "2"
    assert (ended.status_code, ended.json()["status"]) == (200, "cancelled")
    assert "retry-after" not in ended.headers
    assert desk.calls == [("create_job", "default", JOB, "k-1")]


async def test_a_file_comes_back_as_it_was_with_its_length_and_name(house: House, desk: DictDesk) -> None:
    data = bytes(range(256)) * 1000
    async with house.client() as client:
        name = await upload(client, data, 'mü"g.jsonl')
        reply = await client.get(f"/v1/files/{name}/content")
        empty = await client.get(f"/v1/files/{await upload(client, b'')}/content")
    assert reply.content == data
    assert reply.headers["content-length"] == str(len(data))
    assert reply.headers["content-disposition"].startswith('attachment; filename="m_')
    assert reply.headers["content-type"] == "application/jsonl"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert (empty.content, empty.headers["content-length"]) == (b"", "0")
    assert desk.closed == 2


async def test_nobody_sees_what_is_another_tenants(desk: DictDesk) -> None:
    house = House({}, desk=desk, keys=keyring("acme:sk-a,other:sk-o"))
    async with house.client(authorization="Bearer sk-a") as mine, house.client(authorization="Bearer sk-o") as other:
        ids = await one_of_each(mine)
        before = json.dumps(desk.kept["acme"])
        for method, url in OF_ONE:
            stolen = await other.request(method, url.format(**ids))
            assert (stolen.status_code, stolen.json()["error"]["code"]) == (404, "not_found"), url
        for url in LISTS:
            assert (await other.get(url)).json()["data"] == []
            assert len((await mine.get(url)).json()["data"]) == 1
        assert json.dumps(desk.kept["acme"]) == before
        for method, url in OF_ONE:
            if method == "GET":
                assert (await mine.get(url.format(**ids))).status_code == 200
    assert {call[1] for call in desk.calls} == {"acme"}


async def test_without_a_key_the_door_is_shut(desk: DictDesk) -> None:
    house = House({}, desk=desk, keys=keyring("acme:sk-a"))
    async with house.client() as client:
        for method, url in (*OF_ONE, *(("GET", url) for url in LISTS), *(("POST", url) for url in LISTS)):
            assert (await client.request(method, url)).status_code == 401
    assert not desk.calls


async def test_a_platform_without_jobs_says_so_on_every_route() -> None:
    async with House({}).client() as client:
        for method, url in (*OF_ONE, *(("GET", url) for url in LISTS), *(("POST", url) for url in LISTS)):
            reply = await client.request(method, url)
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_served"), url
            assert "jobs.ingresses is 0" in reply.json()["error"]["message"]
        assert "/v1/jobs" not in (await client.get("/openapi.json")).json()["paths"]


@pytest.mark.parametrize(
    ("error", "status", "code", "param"),
    [
        (RequestRefused("no such endpoint", param="endpoint", code="unknown"), 400, "unknown", "endpoint"),
        (RequestRefused("another body", status=409, code="idempotency_conflict"), 409, "idempotency_conflict", None),
        (StoreUnavailable("gs://secret-bucket did not answer for k"), 503, "store_unavailable", None),
        (SourceUnavailable("project secret-project did not publish"), 503, "queue_unavailable", None),
        (IdentityConflict("another job has this name"), 409, "identity_conflict", None),
        (MalformedJob("is no job"), 400, "malformed_job", None),
        (JobError("gs://secret-bucket/k is no record"), 500, None, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)  # fmt: skip
async def test_what_the_desk_cannot_do_is_an_error_as_openai_words_it(
    house: House,
    desk: DictDesk,
    logs: io.StringIO,
    *,
    error: Exception,
    status: int,
    code: str | None,
    param: str | None,
) -> None:
    def fails() -> None:
        raise error

    desk.fails = fails
    async with house.client() as client:
        for method, url in (*OF_ONE, *(("GET", url) for url in LISTS)):
            await check(await client.request(method, url), error, status, code, param)
        await check(await client.post("/v1/jobs", json=JOB), error, status, code, param)
        await check(await client.post("/v1/batches", json=BATCH), error, status, code, param)
        form = {"data": {"purpose": "batch"}, "files": {"file": b"x"}}
        await check(await client.post("/v1/files", **form), error, status, code, param)  # type: ignore[arg-type]
    assert ("desk_failed" in logs.getvalue()) is (status >= 500)
    assert "request_crashed" not in logs.getvalue()


async def check(reply: httpx.Response, error: Exception, status: int, code: str | None, param: str | None) -> None:
    told = reply.json()["error"]
    assert (reply.status_code, told["code"], told["param"]) == (status, code, param)
    assert reply.headers["x-request-id"]
    assert "secret" not in reply.text
    if status == 503:
        assert reply.headers["retry-after"] == "5"
        assert "nothing was lost" in told["message"]
    elif status < 500:
        assert told["message"] == str(error)


async def test_a_crash_in_the_desk_names_only_the_request(house: House, desk: DictDesk) -> None:
    def fails() -> None:
        raise KeyError("the customer's words")

    desk.fails = fails
    async with house.client() as client:
        reply = await client.get("/v1/jobs/job-1")
    assert reply.status_code == 500
    assert "customer" not in reply.text


@pytest.mark.parametrize(
    ("url", "param", "says"),
    [
        ("/v1/files?limit=-1", "limit", "1 or more"),
        ("/v1/jobs?limit=ten", "limit", "got 'ten'"),
        ("/v1/jobs?limit=٣", "limit", "whole number"),
        ("/v1/jobs?limit=99999999999999999999", "limit", "whole number"),
        ("/v1/jobs/job-1?wait_s=soon", "wait_s", "needs seconds"),
        ("/v1/jobs/job-1?wait_s=-1", "wait_s", "needs seconds"),
        ("/v1/jobs/job-1?wait_s=nan", "wait_s", "needs seconds"),
    ],
)
async def test_a_query_that_is_wrong_says_what_it_takes(house: House, url: str, param: str, says: str) -> None:
    async with house.client() as client:
        reply = await client.get(url)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert says in reply.json()["error"]["message"]


async def test_lists_are_paged_ordered_and_filtered(house: House) -> None:
    async with house.client() as client:
        ids = [await upload(client, filename=f"{n}.jsonl") for n in range(5)]
        await client.post("/v1/files", data={"purpose": "user_data"}, files={"file": b"x"})
        newest = (await client.get("/v1/files", params={"limit": 2, "purpose": "batch"})).json()
        rest = (await client.get("/v1/files", params={"after": newest["data"][-1]["id"], "purpose": "batch"})).json()
        oldest = (await client.get("/v1/files", params={"order": "asc", "limit": 1})).json()
    assert [one["id"] for one in (*newest["data"], *rest["data"])] == ids[::-1]
    assert (newest["has_more"], rest["has_more"]) == (True, False)
    assert oldest["data"][0]["id"] == ids[0]


async def test_a_body_over_the_gateways_limit_is_refused_but_not_a_file(desk: DictDesk) -> None:
    async with House({}, desk=desk, gateway=Gateway(max_body_mib=0.01)).client() as client:
        large = await client.post("/v1/jobs", json={**JOB, "pad": "x" * 20_000})
        wrong = await client.post("/v1/batches", content=b"[1]", headers={"content-type": "application/json"})
        name = await upload(client, b"x" * 100_000)
    assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "invalid_json")
    assert len(desk.content[name]) == 100_000


@pytest.mark.parametrize(
    ("query", "prefer", "applied"), [("?wait_s=5", {}, None), ("", {"prefer": "respond-async, wait=5"}, "wait=5")]
)
async def test_an_answer_waits_for_the_jobs_end_and_no_longer(
    house: House, desk: DictDesk, query: str, prefer: dict[str, str], applied: str | None
) -> None:
    desk.job_ends_after_looks = 4
    async with house.client() as client:
        name = (await client.post("/v1/jobs", json=JOB)).json()["id"]
        open_ = await client.get(f"/v1/jobs/{name}")
        ended = await client.get(f"/v1/jobs/{name}{query}", headers=prefer)
    assert open_.json()["status"] == "queued"
    assert ended.json()["status"] == "succeeded"
    assert desk.looks == 4
    assert ended.headers.get("preference-applied") == applied
    assert "retry-after" not in ended.headers


async def test_an_answer_that_waited_long_enough_tells_how_the_job_stands(house: House, desk: DictDesk) -> None:
    desk.job_ends_after_looks = 1000
    async with house.client() as client:
        name = (await client.post("/v1/jobs", json=JOB)).json()["id"]
        reply = await client.get(f"/v1/jobs/{name}", params={"wait_s": 0.3})
    assert (reply.status_code, reply.json()["status"]) == (200, "queued")
    assert reply.headers["retry-after"] == "2"
    assert 3 <= desk.looks <= 5


async def test_a_job_may_be_waited_for_as_it_is_submitted(house: House) -> None:
    async with house.client() as client:
        reply = await client.post("/v1/jobs", json=JOB, headers={"prefer": "wait=5"})
    assert (reply.status_code, reply.json()["status"]) == (202, "succeeded")
    assert reply.headers["location"] == f"/v1/jobs/{reply.json()['id']}"


async def test_a_client_that_leaves_ends_its_wait_and_not_its_job(house: House, desk: DictDesk) -> None:
    desk.job_ends_after_looks = 1000
    async with house.client() as client:
        name = (await client.post("/v1/jobs", json=JOB)).json()["id"]
    left = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None: ...

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
        "path": f"/v1/jobs/{name}", "raw_path": f"/v1/jobs/{name}".encode(), "query_string": b"wait_s=30",
        "root_path": "", "headers": [(b"host", b"localhost")], "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1),
    }  # fmt: skip
    visit = asyncio.create_task(house.app(scope, receive, send))
    await asyncio.sleep(0.05)
    left.set()
    await asyncio.wait_for(visit, 5)
    assert desk.kept["default"][name]["status"] == "queued"
    assert house.count("requests_total", workload="", route="/v1/jobs/{job_id}", status="499", tenant="") == 1


@pytest.mark.parametrize(
    ("query", "prefer", "waits_s"),
    [
        (None, (), 0),
        ("2.5", ("wait=9",), 2.5),
        ("600", (), MAX_WAIT_S),
        (None, ("wait=9",), 9),
        (None, ("respond-async", 'Wait="9"; x=y'), 9),
        (None, ("handling=lenient, wait = 9",), 9),
        (None, ("wait=600",), MAX_WAIT_S),
        (None, ("wait=soon, wait=9",), 0),
        (None, ("wait",), 0),
        (None, ("await=9",), 0),
    ],
)
def test_how_long_a_client_would_wait(query: str | None, prefer: tuple[str, ...], waits_s: float) -> None:
    assert wished_wait_s(query, prefer) == waits_s


def test_a_job_is_looked_at_often_at_first_and_seldom_later() -> None:
    waited_s, looks = 0.0, 0
    while waited_s < MAX_WAIT_S:
        waited_s, looks = waited_s + pause_s(waited_s), looks + 1
    assert pause_s(0) == 0.1
    assert pause_s(30) == 1.0
    assert looks < 60


async def test_content_that_breaks_off_leaves_the_answer_unfinished(
    house: House, desk: DictDesk, logs: io.StringIO
) -> None:
    async with house.client() as client:
        name = await upload(client, bytes(200_000))
        desk.content_breaks = StoreUnavailable("the store is down")
        with pytest.raises(AssertionError):  # httpx's own, at an answer without an end
            await client.get(f"/v1/files/{name}/content")
    lines = [json.loads(line) for line in logs.getvalue().splitlines()]
    [broke] = [line for line in lines if line["action"] == "download_broke"]
    assert broke["error"] == "StoreUnavailable"
    assert lines[-1]["outcome"] == "broken"
    assert desk.closed == 1


async def test_content_whose_bytes_are_gone_is_not_there(house: House, desk: DictDesk) -> None:
    async with house.client() as client:
        name = await upload(client, b"words")
        desk.content[name] = b""
        reply = await client.get(f"/v1/files/{name}/content")
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "content_gone")


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a b.jsonl", 'attachment; filename="a b.jsonl"'),
        ('a";x.jsonl', "attachment; filename=\"a_;x.jsonl\"; filename*=UTF-8''a%22%3Bx.jsonl"),
        ("é\r\n.txt", "attachment; filename=\"___.txt\"; filename*=UTF-8''%C3%A9%0D%0A.txt"),
    ],
)
def test_a_files_name_travels_in_a_header_without_harm(name: str, header: str) -> None:
    assert disposition(name) == header


async def test_the_access_line_and_the_counts_have_the_route_and_never_the_id(house: House, logs: io.StringIO) -> None:
    async with house.client() as client:
        ids = await one_of_each(client)
        for method, url in OF_ONE:
            await client.request(method, url.format(**ids))
    lines = [json.loads(line) for line in logs.getvalue().splitlines()]
    routes = [line["route"] for line in lines if line["action"] == "request"]
    assert routes[3:] == [url.format(file="{file_id}", batch="{batch_id}", job="{job_id}") for _, url in OF_ONE]
    sent = [line for line in lines if line.get("route", "").endswith("/content")]
    assert all(line["chunks"] == 1 for line in sent if line["status"] == 200)
    assert house.count("requests_total", workload="", route="/v1/jobs/{job_id}", status="200", tenant="") == 2


async def test_the_api_description_shows_the_objects_with_examples(house: House) -> None:
    async with house.client() as client:
        schema = (await client.get("/openapi.json")).json()
    schemas = schema["components"]["schemas"]
    assert {"File", "Batch", "Job", "FileList", "BatchList", "JobList", "Error"} <= set(schemas)
    for name in ("File", "Batch", "Job"):
        [example] = schemas[name]["examples"]
        assert set(schemas[name]["required"]) <= set(example) <= set(schemas[name]["properties"])
    jobs = schema["paths"]["/v1/jobs"]["post"]
    assert jobs["responses"]["202"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Job"}
    assert {"Location", "Retry-After"} <= set(jobs["responses"]["202"]["headers"])
    assert [one["name"] for one in jobs["parameters"]] == ["Idempotency-Key", "Prefer", "wait_s"]
    [content] = schema["paths"]["/v1/files/{file_id}/content"]["get"]["responses"]["200"]["content"]
    assert content == "application/octet-stream"
    assert {one["name"] for one in schema["paths"]["/v1/files"]["get"]["parameters"]} == {
        *("limit", "after", "order", "purpose")
    }
    one_job = schema["paths"]["/v1/jobs/{job_id}"]["get"]
    assert [parameter["name"] for parameter in one_job["parameters"]] == ["job_id", "Prefer", "wait_s"]
    assert set(one_job["responses"]) == {"200", "4XX"}


async def test_the_api_description_knows_every_parameter_that_the_desk_takes(house: House) -> None:
    async with house.client() as client:
        paths = (await client.get("/openapi.json")).json()["paths"]

    def described(url: str) -> set[str]:
        return set(paths[url]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"])

    assert described("/v1/batches") == batches._PARAMS
    assert described("/v1/jobs") == set(asked._PARAMS) - {"method"}
