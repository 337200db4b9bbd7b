"""Every way a request can go wrong, and what the client is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from cotenant.calls import Call, Directory, Reply, Served, StreamedReply
from cotenant.config.model import Gateway
from cotenant.errors import DeadlineExceeded, Overloaded, ReplicaDied, WorkloadUnavailable
from tests.unit.gateway.house import MOCKUPS, WRITER, House, keyring

pytestmark = pytest.mark.unit

URL = "/v1/chat/completions"
CHAT = {"model": "tiny", "messages": []}


def error_of(reply: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"]
    return error


@pytest.mark.parametrize(
    ("method", "url", "body", "status", "code", "says"),
    [
        ("POST", "/v1/chat/completion", b"{}", 404, "route_not_found", "did you mean /v1/chat/completions?"),
        ("GET", "/v1/models/", None, 404, "model_not_found", "here are tiny"),
        ("DELETE", "/v1/chat/completions", None, 405, "wrong_method", "does not take DELETE; use POST"),
        ("POST", URL, b"{", 400, "invalid_json", "is not JSON"),
        ("POST", URL, b"", 400, "invalid_json", "is not JSON"),
        ("POST", URL, b"[1]", 400, "invalid_json", "a JSON array; send a JSON object"),
        ("POST", URL, b"\xff", 400, "invalid_json", "is not JSON"),
        ("POST", URL, b'{"messages": []}', 400, "missing_required_parameter", "needs model"),
        ("POST", URL, b'{"model": 7}', 400, "missing_required_parameter", "needs model"),
        ("POST", URL, b'{"model": "tinny"}', 404, "model_not_found", "did you mean 'tiny'?"),
        ("POST", "/v1/mockups", b'{"template": "mugg"}', 404, "template_not_found", "did you mean 'mug'?"),
        ("POST", "/v1/mockups", b"{}", 400, "missing_required_parameter", "needs template"),
    ],
)
async def test_a_wrong_request_is_told_what_is_wrong(
    house: House, *, method: str, url: str, body: bytes | None, status: int, code: str, says: str
) -> None:
    headers = {"content-type": "application/json"} if body is not None else {}
    async with house.client() as client:
        reply = await client.request(method, url, content=body, headers=headers)
    error = error_of(reply)
    assert (reply.status_code, error["code"]) == (status, code)
    assert says in error["message"]


@pytest.mark.parametrize("header", [{"content-type": "text/plain"}, {"content-encoding": "gzip"}], ids=str)
async def test_a_body_of_another_type_is_refused(house: House, header: dict[str, str]) -> None:
    async with house.client() as client:
        reply = await client.post(URL, content=b"{}", headers=header)
    assert reply.status_code == 415
    assert error_of(reply)["type"] == "invalid_request_error"


async def test_a_kind_that_this_platform_has_not_is_not_served(house: House) -> None:
    house.directory = Directory((WRITER,))
    async with house.client() as client:
        reply = await client.post("/v1/mockups", json={"template": "mug"})
    assert (reply.status_code, error_of(reply)["code"]) == (404, "not_served")


@pytest.mark.parametrize("form", [b"", b"--x\r\nnonsense", b"--x\r\nContent-Disposition: a\r\n\r\nz\r\n--x--"], ids=str)
async def test_a_broken_form_is_a_bad_request(house: House, form: bytes) -> None:
    async with house.client() as client:
        kind = {"content-type": "multipart/form-data; boundary=x"}
        reply = await client.post("/v1/mockups", content=form, headers=kind)
        bare = await client.post("/v1/mockups", content=form, headers={"content-type": "multipart/form-data"})
    assert (reply.status_code, bare.status_code) == (400, 400)
    error_of(reply)


async def test_a_form_field_sent_twice_is_refused(house: House) -> None:
    async with house.client() as client:
        reply = await client.post("/v1/mockups", data={"template": ["mug", "poster"]}, files={"artwork": b"x"})
    assert (reply.status_code, error_of(reply)["param"]) == (400, "template")


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
async def test_a_body_over_the_limit_is_refused_while_it_is_read(declared: bool) -> None:
    house = House({"writer": lambda call: Reply(200, b"{}")}, gateway=Gateway(max_body_mib=0.01))
    read = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1024
            yield b" " * 1024

    async with house.client() as client:
        content = b" " * 102_400 if declared else chunks()
        reply = await client.post(URL, content=content, headers={"content-type": "application/json"})
        fits = await client.post(URL, json={**CHAT, "pad": "x" * 10_000})
    assert (reply.status_code, error_of(reply)["code"]) == (413, "body_too_large")
    assert "0.01 MiB" in error_of(reply)["message"]
    assert fits.status_code == 200
    assert read <= 12 * 1024


async def test_metrics_need_no_key_where_the_file_says_so_and_everything_else_does() -> None:
    gateway = Gateway(open_metrics=True)
    house = House({"writer": lambda call: Reply(200, b"")}, keys=keyring("acme:s3cret"), gateway=gateway)
    async with house.client() as client:
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.get("/v1/models")).status_code == 401


async def test_every_route_but_the_probes_asks_for_a_key() -> None:
    house = House({"writer": lambda call: Reply(200, call.tenant.encode())}, keys=keyring("acme:s3cret"))
    async with house.client() as client:
        for url in ("/v1/models", "/metrics", "/nowhere"):
            reply = await client.get(url)
            assert (reply.status_code, error_of(reply)["code"]) == (401, "invalid_api_key")
            assert reply.headers["www-authenticate"] == "Bearer"
        for url in ("/healthz", "/readyz", "/openapi.json"):
            assert (await client.get(url)).status_code != 401
        for headers in ({"authorization": "Bearer wrong"}, {"authorization": "Basic s3cret"}, {"api-key": "s3cre"}):
            assert (await client.post(URL, json=CHAT, headers=headers)).status_code == 401
        for headers in ({"authorization": "bearer s3cret"}, {"api-key": "s3cret"}):
            assert (await client.post(URL, json=CHAT, headers=headers)).text == "acme"
    assert house.count("requests_total", workload="writer", route=URL, status="200", tenant="acme") == 2


async def test_an_open_door_answers_to_localhost_only_so_that_no_web_page_rebinds_to_it(house: House) -> None:
    async with house.client() as client:
        assert (await client.get("/v1/models", headers={"host": "evil.example:8000"})).status_code == 403
        for host in ("127.0.0.1:8000", "localhost", "[::1]:9"):
            assert (await client.get("/v1/models", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (Overloaded("writer has 8 waiting", retry_after_s=1.2), 429, "queue_full", "2"),
        (DeadlineExceeded("too late"), 504, "deadline_exceeded", None),
        (WorkloadUnavailable("no replica is ready"), 503, "workload_unavailable", "5"),
        (ReplicaDied("it died"), 503, "replica_died", "1"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_call_without_a_reply_has_its_own_status(
    error: Exception, status: int, code: str, retry_after: str | None, stream: bool
) -> None:
    def engine(call: Call) -> Reply:
        raise error

    house = House({"writer": engine})
    async with house.client() as client:
        reply = await client.post(URL, json={**CHAT, "stream": stream})
    assert (reply.status_code, error_of(reply)["code"]) == (status, code)
    assert error_of(reply)["message"] == str(error)
    assert reply.headers.get("retry-after") == retry_after
    assert house.count("queue_refusals_total", workload="writer") == (1 if status == 429 else 0)
    assert house.count("in_flight_requests", workload="writer") == 0


async def test_a_full_queue_refuses_the_next_request_and_serves_the_ones_it_took() -> None:
    go = asyncio.Event()

    async def engine(call: Call) -> Reply:
        await go.wait()
        return Reply(200, b"{}")

    async with House({"writer": engine}, slots=1, queue=1).client() as client:
        first = [asyncio.create_task(client.post(URL, json=CHAT)) for _ in range(2)]
        await asyncio.sleep(0.05)
        refused = await client.post(URL, json=CHAT)
        go.set()
        taken = [reply.status_code for reply in await asyncio.gather(*first)]
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert taken == [200, 200]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_call_whose_replica_died_is_repeated_once(stream: bool) -> None:
    calls: list[Call] = []

    def engine(call: Call) -> Reply:
        calls.append(call)
        if len(calls) == 1:
            raise ReplicaDied("it died")
        return Reply(200, b"{}")

    async with House({"writer": engine}).client() as client:
        reply = await client.post(URL, json={**CHAT, "stream": stream})
    assert reply.status_code == 200
    assert len(calls) == 2
    assert (calls[1].deadline_s or 0) < (calls[0].deadline_s or 0)


async def test_past_the_deadline_the_answer_is_504_and_the_work_is_cancelled() -> None:
    ended: list[str] = []

    async def engine(call: Call) -> Reply:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        return Reply(200, b"{}")

    hasty = Directory((Served("writer", "llm", models=("tiny",), deadline_s=0.05), MOCKUPS))
    async with House({"writer": engine}, directory=hasty).client() as client:
        reply = await client.post(URL, json=CHAT)
    assert (reply.status_code, error_of(reply)["code"]) == (504, "deadline_exceeded")
    assert ended == ["cancelled"]


def breaking(error: Callable[[], Exception] | None, content_type: str = "text/event-stream") -> tuple[Any, list[str]]:
    """An engine whose stream breaks (or, without an error, hangs) after one event, and how it ended."""
    ended: list[str] = []

    def engine(call: Call) -> StreamedReply:
        async def events() -> AsyncIterator[bytes]:
            try:
                yield b"data: one\n\n"
                if error is not None:
                    raise error()
                await asyncio.sleep(30)
            finally:
                ended.append("closed")

        return StreamedReply(200, content_type, events())

    return engine, ended


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (lambda: ReplicaDied("it died"), "replica_died"),
        (lambda: KeyError("the customer's words"), None),
        (None, "deadline_exceeded"),
    ],
    ids=["replica died", "a bug", "deadline"],
)
async def test_a_stream_that_breaks_tells_so_as_its_last_event(
    error: Callable[[], Exception] | None, code: str | None
) -> None:
    engine, ended = breaking(error)
    hasty = Directory((Served("writer", "llm", models=("tiny",), deadline_s=0.1),))
    async with House({"writer": engine}, directory=hasty).client() as client:
        reply = await client.post(URL, json={**CHAT, "stream": True})
    first, last, rest = reply.text.split("\n\n")
    assert (first, rest) == ("data: one", "")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == code
    assert "customer" not in reply.text
    assert ended == ["closed"]


async def test_an_unforeseen_failure_is_a_500_that_names_only_the_request(house: House) -> None:
    def engine(call: Call) -> Reply:
        raise KeyError("the customer's words")

    async with House({"writer": engine}).client() as client:
        reply = await client.post(URL, json=CHAT)
    error = error_of(reply)
    assert (reply.status_code, error["type"]) == (500, "server_error")
    assert reply.headers["x-request-id"] in error["message"]
    assert "customer" not in reply.text


async def test_a_form_field_that_is_nested_too_deeply_is_the_callers_mistake(house: House) -> None:
    form = {"template": (None, "mug"), "seed": (None, "[" * 500 + "]" * 500)}
    async with house.client() as client:
        reply = await client.post("/v1/mockups", files=form)
    assert reply.status_code == 400
    assert "can't be written as JSON" in error_of(reply)["message"]


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost.evil.example", "null"])
async def test_without_keys_a_page_from_elsewhere_cannot_have_its_visitor_post_here(house: House, origin: str) -> None:
    reply = await house.client().post("/v1/mockups", json={"template": "mug"}, headers={"origin": origin})
    assert reply.status_code == 403


async def test_without_keys_a_page_of_this_machine_may_post_here(house: House) -> None:
    reply = await house.client().get("/v1/models", headers={"origin": "http://localhost:3000"})
    assert reply.status_code == 200
