from __future__ import annotations

import io
import json
import logging

import pytest

from cotenant.calls import Call, Reply
from cotenant.telemetry.logs import event
from tests.unit.gateway.house import House, keyring

pytestmark = pytest.mark.unit

SECRETS = ("my secret prompt", "s3cret-key", "wrong-key", "picture-bytes", "q=private")


def lines(logs: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in logs.getvalue().splitlines()]


async def test_no_log_line_holds_a_prompt_a_picture_or_a_key(logs: io.StringIO) -> None:
    def engine(call: Call) -> Reply:
        if b"crash" in call.body:
            raise ValueError(f"cannot handle {call.body!r}")
        return Reply(200, call.body)

    house = House({"writer": engine, "mockups": engine}, keys=keyring("acme:s3cret-key"))
    prompt = [{"role": "user", "content": "my secret prompt"}]
    async with house.client(authorization="Bearer s3cret-key") as client:
        await client.post("/v1/chat/completions?q=private", json={"model": "tiny", "messages": prompt})
        await client.post("/v1/chat/completions", json={"model": "tiny", "stream": True, "messages": prompt})
        await client.post("/v1/chat/completions", json={"model": "tiny", "crash": 1, "messages": prompt})
        await client.post("/v1/chat/completions", content=b"my secret prompt {")
        await client.post("/v1/mockups", data={"template": "mug"}, files={"artwork": b"picture-bytes"})
        await client.get("/my secret prompt")
        await client.get("/v1/models", headers={"authorization": "Bearer wrong-key"})
    assert len(lines(logs)) == 8  # one access line each, and one for the crash
    assert not [secret for secret in SECRETS if secret in logs.getvalue()]


async def test_the_access_line_says_who_asked_what_and_how_it_went(house: House, logs: io.StringIO) -> None:
    house = House(house.handlers, keys=keyring("acme:k"))
    async with house.client(authorization="Bearer k", **{"x-request-id": "r-1"}) as client:
        await client.post("/v1/chat/completions", json={"model": "tiny", "stream": True})
        await client.get("/healthz")
    [line] = lines(logs)
    assert line.pop("seconds") >= line.pop("first_chunk_s") > 0  # type: ignore[operator]
    assert str(line.pop("time")).endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "cotenant.gateway.access",
        "action": "request",
        "request_id": "r-1",
        "method": "POST",
        "route": "/v1/chat/completions",
        "status": 200,
        "tenant": "acme",
        "workload": "writer",
        "chunks": 3,
    }


def test_an_exception_is_logged_by_type_and_place_without_its_text(logs: io.StringIO) -> None:
    logger = logging.getLogger("cotenant.test")
    try:
        raise KeyError("the customer's words")
    except KeyError as error:
        event(logger, "broke", level=logging.ERROR, error=error, long="x" * 1000, none=None, count=3)
    [line] = lines(logs)
    assert (line["error"], line["level"], line["count"]) == ("KeyError", "error", 3)
    assert "test_logs.py" in line["stack"][-1]  # type: ignore[index]
    assert len(str(line["long"])) == 300
    assert "none" not in line
    assert "customer" not in logs.getvalue()
