"""A message becomes a job or says why not; a reply becomes OpenAI's output line."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.calls import Reply, error_reply
from cotenant.errors import MalformedJob
from cotenant.jobs.model import (
    MAX_INLINE_BYTES,
    BodyRef,
    Identity,
    Job,
    ObjectRef,
    Result,
    digest,
    error_line,
    is_large,
    parse_job,
    parse_line,
    result_line,
)

pytestmark = pytest.mark.unit

GOOD: dict[str, Any] = {
    "custom_id": "r-1",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "m", "temperature": 0.5},
}


def line(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def parse(data: bytes) -> Job:
    return parse_line(data, tenant="acme", batch="b1")


JOB = parse(line())

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3), max_leaves=8
)
BODIES = st.dictionaries(st.text(), VALUES, max_size=5)
IDENTITIES = st.builds(Identity, *[st.text("ab/", min_size=1, max_size=3)] * 3)


def test_a_line_becomes_a_job_with_its_identity() -> None:
    job = parse_job(line(), {"tenant": "acme", "batch": "b7"}, "42")
    assert job.identity == Identity("acme", "b7", "r-1")
    assert (job.url, json.loads(job.body or b"")) == ("/v1/chat/completions", GOOD["body"])


def test_a_bare_message_is_its_own_batch_of_the_default_tenant() -> None:
    assert parse_job(line(), {}, "42").identity == Identity("default", "42", "r-1")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "is not JSON", id="empty"),
        pytest.param(b"{", "is not JSON", id="cut off"),
        pytest.param(b"\xff", "is not UTF-8", id="no UTF-8"),
        pytest.param(b"[" * 200_000, "nested too deeply", id="nested"),
        pytest.param(b"[1]", "this is a list", id="list"),
        pytest.param(b'{"custom_id": "a"}', "method, url, body missing", id="keys missing"),
        pytest.param(line(priority=1), "'priority' unknown", id="unknown key"),
        pytest.param(line(custom_id=""), "custom_id needs to be a string that is not empty", id="empty custom_id"),
        pytest.param(line(custom_id=7), "custom_id needs to be a string", id="number as custom_id"),
        pytest.param(line(custom_id="x" * 600), "600 bytes, at most 512", id="long custom_id"),
        pytest.param(line(custom_id="a\nb"), "can't be printed", id="line break in custom_id"),
        pytest.param(line(custom_id="\ud800"), "surrogate", id="half a surrogate pair"),
        pytest.param(line(method="GET"), 'method needs to be "POST"', id="GET"),
        pytest.param(line(url="http://elsewhere/v1/x"), "url needs to be a route", id="foreign url"),
        pytest.param(line(body="x"), "body needs to be a JSON object, got a string", id="body of text"),
        pytest.param(line(body={"t": float("nan")}), "NaN is not a JSON number", id="NaN"),
        pytest.param(line().replace(b"0.5", b"1e999"), "is not JSON", id="infinite number"),
        pytest.param(line().replace(b'"model"', b'"temperature"'), "given twice", id="key given twice"),
    ],
)
def test_what_is_no_job_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(MalformedJob, match=reason):
        parse(data)


@pytest.mark.parametrize(
    "ref",
    [
        pytest.param({"sha256": "../../secrets", "bytes": 3}, id="a path"),
        pytest.param({"sha256": "A" * 64, "bytes": 3}, id="no hex"),
        pytest.param({"sha256": "a" * 64}, id="no size"),
        pytest.param({"sha256": "a" * 64, "bytes": True}, id="boolean size"),
        pytest.param({"sha256": "a" * 64, "bytes": 1 << 40}, id="beyond the limit"),
        pytest.param("a" * 64, id="text"),
    ],
)
def test_a_body_reference_is_a_hash_and_a_size_and_nothing_else(ref: Any) -> None:
    data = json.dumps({key: GOOD[key] for key in ("custom_id", "method", "url")} | {"body_ref": ref}).encode()
    with pytest.raises(MalformedJob, match="body_ref"):
        parse(data)


def test_a_body_by_reference_is_the_same_job_as_the_body_itself() -> None:
    assert JOB.body is not None
    by_reference = Job(JOB.identity, JOB.url, None, BodyRef(digest(JOB.body), len(JOB.body)))
    assert by_reference.sha256 == JOB.sha256
    assert parse(by_reference.line()) == by_reference


def test_key_order_and_spaces_do_not_make_another_job_but_a_value_does() -> None:
    reordered = json.dumps(dict(reversed(GOOD.items())), indent=3).encode()
    assert parse(reordered).sha256 == JOB.sha256
    assert parse(line(body={**GOOD["body"], "temperature": 0.6})).sha256 != JOB.sha256
    assert parse(line(url="/v1/completions")).sha256 != JOB.sha256


@given(BODIES)
def test_a_job_survives_the_message(body: dict[str, Any]) -> None:
    job = parse(line(body=body))
    assert parse(job.line()) == job
    assert json.loads(job.body or b"") == body


@given(IDENTITIES, IDENTITIES)
def test_different_identities_have_different_job_ids(one: Identity, other: Identity) -> None:
    assert (one.job_id == other.job_id) == (one == other)


def test_a_json_reply_is_embedded_as_openai_does() -> None:
    reply = Reply(200, b'{"choices": []}', headers={"x-request-id": "req-9"})
    assert json.loads(result_line(JOB, reply)) == {
        "id": JOB.identity.job_id,
        "custom_id": "r-1",
        "response": {"status_code": 200, "request_id": "req-9", "body": {"choices": []}},
        "error": None,
    }


def test_a_refusal_is_a_result_with_its_status_and_no_error() -> None:
    parsed = json.loads(result_line(JOB, error_reply(400, "no such size", param="size")))
    assert parsed["response"]["status_code"] == 400
    assert parsed["response"]["body"]["error"]["param"] == "size"
    assert parsed["error"] is None


def test_a_small_picture_is_embedded_and_a_large_one_referred_to() -> None:
    small = Reply(200, b"\x89PNG", "image/png")
    body = json.loads(result_line(JOB, small))["response"]["body"]
    assert body == {"b64_json": base64.b64encode(b"\x89PNG").decode(), "content_type": "image/png"}
    large = Reply(200, b"x" * MAX_INLINE_BYTES, "image/png")
    assert not is_large(small)
    assert is_large(large)
    stored = ObjectRef("gs://b/k.png", "image/png", len(large.body))
    body = json.loads(result_line(JOB, large, stored))["response"]["body"]
    assert body == {"object": "gs://b/k.png", "content_type": "image/png", "bytes": MAX_INLINE_BYTES}


@pytest.mark.parametrize("body", [b"<html>", b'{"a": NaN}', b"", b"\xff"])
def test_a_reply_that_only_claims_to_be_json_is_kept_byte_for_byte(body: bytes) -> None:
    embedded = json.loads(result_line(JOB, Reply(200, body)))["response"]["body"]
    assert base64.b64decode(embedded["b64_json"]) == body


def test_a_job_without_reply_has_an_error_line() -> None:
    parsed = json.loads(error_line(JOB.identity, "attempts_exhausted", "gave up"))
    assert parsed["response"] is None
    assert parsed["error"] == {"code": "attempts_exhausted", "message": "gave up"}


def test_a_result_object_loads_as_it_was_dumped() -> None:
    result = Result(JOB.identity, JOB.sha256, result_line(JOB, Reply(200, b'{"a": [1.50, "\xc3\xa4"]}')))
    assert Result.load(JOB.identity, result.dump()) == result
    assert result.status == 200
