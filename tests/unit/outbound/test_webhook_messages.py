"""Webhooks: what is signed, what is believed, when it is tried again, and whose secret is whose."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import pickle
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.errors import EnvironmentFault, SignatureInvalid
from cotenant.outbound.webhooks import (
    JITTER,
    MAX_RETRY_AFTER_S,
    SCHEDULE_S,
    TOLERANCE_S,
    Answered,
    Event,
    Failed,
    Failure,
    Fate,
    Next,
    Outcome,
    Secret,
    after,
    load_secrets,
    message_id,
    payload,
    sign,
    signed_headers,
    verify,
)

pytestmark = pytest.mark.unit

NOW_S = 1_700_000_000

SECRETS = st.binary(min_size=24, max_size=64).map(Secret)
IDS = st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True)
TIMES_S = st.integers(0, 2**33)


def text_of(key: bytes) -> str:
    return "whsec_" + base64.b64encode(key).decode()


# --- signing ---


def test_the_signature_is_the_one_that_the_reference_libraries_give() -> None:
    secret = Secret.parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signature = sign([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@given(SECRETS, IDS, TIMES_S, st.binary())
def test_the_signature_covers_id_time_and_body(secret: Secret, ident: str, at_s: int, body: bytes) -> None:
    content = f"{ident}.{at_s}.".encode() + body
    expected = base64.b64encode(hmac.new(secret.key, content, hashlib.sha256).digest()).decode()
    assert sign([secret], ident, at_s, body) == f"v1,{expected}"


@pytest.mark.parametrize("ident", ["", "a.b", "a b", "a\nb", "ä", "x" * 129])
def test_an_id_that_could_be_read_in_two_ways_is_not_signed(ident: str) -> None:
    with pytest.raises(ValueError, match="id is letters"):
        sign([Secret(bytes(24))], ident, NOW_S, b"")


def test_nothing_is_sent_unsigned() -> None:
    with pytest.raises(ValueError, match="needs a secret"):
        sign([], "msg_1", NOW_S, b"")


# --- verifying ---


@given(SECRETS, IDS, TIMES_S, st.binary(), st.floats(-TOLERANCE_S, TOLERANCE_S))
def test_what_was_signed_is_believed_while_the_clocks_are_close(
    secret: Secret, ident: str, at_s: int, body: bytes, skew_s: float
) -> None:
    headers = signed_headers([secret], ident, at_s, body)
    shouted = {name.upper(): value for name, value in headers.items()}
    assert verify(shouted, body, [secret], at_s + skew_s) == ident


@given(TIMES_S, st.floats(TOLERANCE_S + 1, 1e9), st.sampled_from([-1, 1]))
def test_an_attempt_from_another_time_is_not_believed(at_s: int, skew_s: float, sign_of: int) -> None:
    secret = Secret(bytes(24))
    headers = signed_headers([secret], "msg_1", at_s, b"{}")
    with pytest.raises(SignatureInvalid, match=f"too {'old' if sign_of > 0 else 'new'}"):
        verify(headers, b"{}", [secret], at_s + sign_of * skew_s)
    assert verify(headers, b"{}", [secret], at_s + sign_of * skew_s, tolerance_s=2e9) == "msg_1"


@given(st.data())
def test_no_single_changed_byte_is_believed(data: st.DataObject) -> None:
    secret, body = data.draw(SECRETS), data.draw(st.binary(min_size=1))
    at_s = data.draw(st.integers(10_000, 2**33))
    headers = signed_headers([secret], data.draw(IDS), at_s, body)
    name = data.draw(st.sampled_from(["body", "webhook-id", "webhook-timestamp", "webhook-signature"]))
    before = body if name == "body" else headers[name].encode()
    where = data.draw(st.integers(0, len(before) - 1))
    flipped = before[where] ^ data.draw(st.integers(1, 127))
    after_ = before[:where] + bytes([flipped]) + before[where + 1 :]
    if name == "body":
        body = after_
    else:
        headers[name] = after_.decode("latin-1")
    with pytest.raises(SignatureInvalid):
        verify(headers, body, [secret], at_s)


@given(st.lists(SECRETS, min_size=1, max_size=4, unique=True), st.lists(SECRETS, max_size=4, unique=True))
def test_while_secrets_are_rotated_any_one_in_common_will_do(ours: list[Secret], theirs: list[Secret]) -> None:
    headers = signed_headers(ours, "msg_1", NOW_S, b"{}")
    assert len(headers["webhook-signature"].split(" ")) == len(ours)
    for common in ours:
        assert verify(headers, b"{}", [*theirs, common], NOW_S) == "msg_1"
    strangers = [secret for secret in theirs if secret not in ours]
    with pytest.raises(SignatureInvalid):
        verify(headers, b"{}", strangers, NOW_S)


def test_signatures_of_other_schemes_stand_beside_ours_and_count_for_nothing() -> None:
    secret = Secret(bytes(24))
    headers = signed_headers([secret], "msg_1", NOW_S, b"{}")
    ours = headers["webhook-signature"]
    others = ["v1a,AAAA", "v2" + ours[2:], "v1", "v1,", "", "\udcff"]
    headers["webhook-signature"] = " ".join([*others, ours])
    assert verify(headers, b"{}", [secret], NOW_S) == "msg_1"
    headers["webhook-signature"] = " ".join(others)
    with pytest.raises(SignatureInvalid, match="no signature"):
        verify(headers, b"{}", [secret], NOW_S)


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_header_is_named(name: str) -> None:
    headers = signed_headers([Secret(bytes(24))], "msg_1", NOW_S, b"{}")
    for lacking in ({k: v for k, v in headers.items() if k != name}, headers | {name: ""}):
        with pytest.raises(SignatureInvalid, match=f"needs the header {name}"):
            verify(lacking, b"{}", [Secret(bytes(24))], NOW_S)


@pytest.mark.parametrize("value", ["now", "1.7e9", "-1", "1_700_000_000", " 1700000000", "\u0661\u0667", "9" * 40])
def test_a_timestamp_that_is_not_unix_seconds_is_refused(value: str) -> None:
    headers = signed_headers([Secret(bytes(24))], "msg_1", NOW_S, b"{}") | {"webhook-timestamp": value}
    with pytest.raises(SignatureInvalid, match="not Unix seconds"):
        verify(headers, b"{}", [Secret(bytes(24))], NOW_S)


def test_an_id_cannot_be_stretched_over_the_dot() -> None:
    secret = Secret(bytes(24))
    body = b"1700000000.{}"
    headers = signed_headers([secret], "msg_1", NOW_S, body)
    moved = headers | {"webhook-id": f"msg_1.{NOW_S}", "webhook-timestamp": "1700000000"}
    with pytest.raises(SignatureInvalid, match="webhook-id"):
        verify(moved, b"{}", [secret], NOW_S)


# --- secrets ---


def test_each_tenant_has_its_own_secrets_and_a_bare_one_is_the_default_tenants() -> None:
    a, b, c, d = (bytes([n]) * 32 for n in range(4))
    listed = f"acme:{text_of(a)}, bolt:{text_of(b)} ,acme:{text_of(c)},{text_of(d)},"
    secrets = load_secrets({"COTENANT_WEBHOOK_SECRETS": listed})
    assert [secret.key for secret in secrets.for_tenant("acme")] == [a, c]
    assert [secret.key for secret in secrets.for_tenant("bolt")] == [b]
    assert [secret.key for secret in secrets.for_tenant("default")] == [d]


@pytest.mark.parametrize("environ", [{}, {"COTENANT_WEBHOOK_SECRETS": " , "}])
def test_a_tenant_without_a_secret_is_told_what_to_set(environ: dict[str, str]) -> None:
    with pytest.raises(EnvironmentFault, match=r"tenant acme has no webhook secret; add acme:whsec_.*WEBHOOK_SECRETS"):
        load_secrets(environ).for_tenant("acme")


def test_another_variable_is_read_and_named_where_it_is_asked_for() -> None:
    secrets = load_secrets({"HOOKS": f"acme:{text_of(bytes(32))}", "COTENANT_WEBHOOK_SECRETS": "broken"}, "HOOKS")
    assert len(secrets.for_tenant("acme")) == 1
    with pytest.raises(EnvironmentFault, match="to the variable HOOKS"):
        secrets.for_tenant("bolt")
    with pytest.raises(EnvironmentFault, match="entry 1 of the variable HOOKS"):
        load_secrets({"HOOKS": "broken"}, "HOOKS")


def test_the_default_tenants_secret_is_nobody_elses() -> None:
    secrets = load_secrets({"COTENANT_WEBHOOK_SECRETS": text_of(bytes(32))})
    with pytest.raises(EnvironmentFault):
        secrets.for_tenant("acme")


@pytest.mark.parametrize(
    "entry",
    [
        "acme:", "acme:hush-hush", "acme:whsec_", "acme:whsec_hush", "acme:whsec_!!hush!!" + "A" * 40,
        "acme:WHSEC_" + "A" * 44, "acme:whsec_" + "A" * 31, "acme:whsec_" + "A" * 88, "ac me:whsec_" + "A" * 44,
        ":whsec_" + "A" * 44, "hushhushhush", "acme:bolt:whsec_" + "A" * 44, "acme:whsec_hush-_" + "A" * 40,
    ],
)  # fmt: skip
def test_a_malformed_entry_is_refused_by_number_without_quoting_it(entry: str) -> None:
    with pytest.raises(EnvironmentFault, match="entry 2 of the variable COTENANT_WEBHOOK_SECRETS") as caught:
        load_secrets({"COTENANT_WEBHOOK_SECRETS": f"good:{text_of(bytes(32))},{entry}"})
    told = f"{caught.value} {caught.value.__cause__}"
    assert "hush" not in told
    assert "AAAA" not in told
    assert "openssl rand" in told


def test_padding_may_be_left_out() -> None:
    for size in range(24, 65):
        text = text_of(bytes(range(size)))
        assert Secret.parse(text) == Secret.parse(text.rstrip("=")) == Secret(bytes(range(size)))


def test_one_secret_for_two_tenants_is_refused_and_twice_for_one_is_one() -> None:
    same = text_of(bytes(32))
    with pytest.raises(EnvironmentFault, match=r"entry 2 .* another tenant has"):
        load_secrets({"COTENANT_WEBHOOK_SECRETS": f"acme:{same},bolt:{same}"})
    assert len(load_secrets({"COTENANT_WEBHOOK_SECRETS": f"acme:{same},acme:{same}"}).for_tenant("acme")) == 1


def test_secrets_do_not_show_themselves_and_travel_between_processes() -> None:
    secrets = load_secrets({"COTENANT_WEBHOOK_SECRETS": "acme:" + text_of(b"hush" * 8)})
    (secret,) = secrets.for_tenant("acme")
    for shown in (repr(secrets), str(secrets), repr(secret), str(secret), f"{secret}"):
        assert "hush" not in shown
        assert "aHVz" not in shown
    assert pickle.loads(pickle.dumps(secrets)) == secrets


# --- attempts ---

FAILURES: tuple[Outcome, ...] = (
    *(Failed(failure, "") for failure in Failure),
    *(Answered(status) for status in (100, 199, 300, 301, 302, 307, 308, 400, 401, 404, 429, 500, 502, 503, 504, 599)),
)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
@pytest.mark.parametrize("attempts", [1, 10])
def test_any_2xx_delivers(status: int, attempts: int) -> None:
    assert after(Answered(status, retry_after_s=60), attempts, NOW_S) == Next(Fate.DELIVERED)


@pytest.mark.parametrize("attempts", [1, 10])
def test_410_disables(attempts: int) -> None:
    assert after(Answered(410), attempts, NOW_S) == Next(Fate.DISABLED)


@pytest.mark.parametrize("outcome", FAILURES, ids=str)
def test_all_else_is_tried_again_by_the_schedule_and_then_given_up(outcome: Outcome) -> None:
    at_s, times_s = float(NOW_S), [0.0]
    for attempts in range(1, 10):
        what_next = after(outcome, attempts, at_s)
        assert what_next.fate is Fate.RETRY
        assert what_next.at_s is not None
        at_s = what_next.at_s
        times_s.append(at_s - NOW_S)
    # The column "time since start" of the specification's example.
    clock = ["0:00:00", "0:00:05", "0:05:05", "0:35:05", "2:35:05", "7:35:05", "17:35:05", "31:35:05", "51:35:05"]
    assert [f"{int(s) // 3600}:{int(s) // 60 % 60:02}:{int(s) % 60:02}" for s in times_s] == [*clock, "75:35:05"]
    assert after(outcome, 10, at_s) == Next(Fate.GIVEN_UP)


@given(
    st.sampled_from(FAILURES), st.integers(1, 9), st.floats(0, 1e10), st.floats(0, 1),
    st.none() | st.floats(0, 1e9, allow_nan=False),
)  # fmt: skip
def test_a_retry_is_never_sooner_than_planned_nor_later_than_jitter_or_the_receiver_makes_it(
    outcome: Outcome, attempts: int, now_s: float, jitter: float, asked_s: float | None
) -> None:
    if isinstance(outcome, Answered):
        outcome = Answered(outcome.status, asked_s)
    else:
        asked_s = None
    what_next = after(outcome, attempts, now_s, jitter=jitter)
    assert what_next.fate is Fate.RETRY
    assert what_next.at_s is not None
    least_s = max(SCHEDULE_S[attempts], min(asked_s or 0.0, MAX_RETRY_AFTER_S))
    most_s = max(SCHEDULE_S[attempts] * (1 + JITTER), least_s)
    slack_s = 1e-5
    assert now_s + least_s - slack_s <= what_next.at_s <= now_s + most_s + slack_s


# --- payloads ---


def test_a_payload_is_compact_json_with_type_time_and_data() -> None:
    body = payload(Event.JOB_SUCCEEDED, NOW_S + 0.25, {"id": "job_1", "name": "Tässchen"})
    expected = '{"type":"job.succeeded","timestamp":"2023-11-14T22:13:20.250Z","data":{"id":"job_1","name":"Tässchen"}}'
    assert body.decode() == expected


@given(
    st.sampled_from(Event),
    st.floats(0, 4e9),
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.none() | st.integers() | st.booleans()),
)
def test_every_payload_can_be_read_back(event: Event, at_s: float, data: dict[str, object]) -> None:
    read = json.loads(payload(event, at_s, data))
    assert (read["type"], read["data"]) == (event.value, data)
    stamp = datetime.fromisoformat(read["timestamp"].replace("Z", "+00:00"))
    assert abs(stamp.timestamp() - at_s) < 0.002


def test_what_is_not_json_is_not_sent() -> None:
    with pytest.raises(ValueError, match="JSON"):
        payload(Event.JOB_FAILED, NOW_S, {"seconds": float("nan")})
    with pytest.raises(TypeError):
        payload(Event.JOB_FAILED, NOW_S, {"body": b"bytes"})


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_an_id_follows_from_what_is_told_and_from_nothing_else(one: list[str], other: list[str]) -> None:
    assert (message_id(*one) == message_id(*other)) == (one == other)
    sign([Secret(bytes(24))], message_id(*one), NOW_S, b"")
