"""What is decided about a batch: how much of it is out, when to look, what a line or a result says. All pure."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.calls import Reply, error_reply
from cotenant.jobs.clerk.manifest import Manifest
from cotenant.jobs.clerk.windows import (
    BASE_WINDOW,
    MAX_LOOK_S,
    MAX_WINDOW,
    MIN_LOOK_S,
    MIN_WINDOW,
    cheaper_to_list,
    next_look_s,
    to_publish,
    window,
)
from cotenant.jobs.endings import HEAD_BYTES, error_of, output_of, parsed, status_in, status_of
from cotenant.jobs.lines import lines_of
from cotenant.jobs.model import Identity, Job, Result, error_line, result_line
from cotenant.jobs.store.records import WorkloadPace

pytestmark = pytest.mark.unit

UNKNOWN = WorkloadPace()


@pytest.mark.parametrize(
    ("slots", "mean_s", "look_s", "batches", "expected"),
    [
        pytest.param(0, 0.0, 0.5, 1, BASE_WINDOW, id="nothing is known"),
        pytest.param(100, 10.0, 0.5, 1, 400, id="four times the slots"),
        pytest.param(8, 0.05, 3.0, 1, 960, id="work for two looks"),
        pytest.param(100, 10.0, 0.5, 4, 100, id="shared by four batches"),
        pytest.param(2, 10.0, 0.5, 100, MIN_WINDOW, id="never too little to begin"),
        pytest.param(1000, 0.01, 15.0, 1, MAX_WINDOW, id="never too much to take back"),
    ],
)
def test_a_window_follows_slots_pace_and_other_batches(
    slots: int, mean_s: float, look_s: float, batches: int, expected: int
) -> None:
    assert window(WorkloadPace(slots=slots, mean_s=mean_s), look_s=look_s, batches=batches) == expected


@pytest.mark.parametrize(("unpublished", "out", "expected"), [(100, 0, 64), (10, 0, 10), (100, 60, 4), (100, 80, 0)])
def test_what_is_published_fills_the_window(unpublished: int, out: int, expected: int) -> None:
    assert to_publish(unpublished=unpublished, out=out, window=64) == expected


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        pytest.param((2.0, False, 64, UNKNOWN, 0.0), 3.0, id="nothing moved: half as long again"),
        pytest.param((14.0, False, 64, UNKNOWN, 0.0), MAX_LOOK_S, id="but not for ever"),
        pytest.param((2.0, True, 64, UNKNOWN, 0.0), 0.5, id="moved, at no known pace"),
        pytest.param((2.0, True, 64, WorkloadPace(slots=4, mean_s=0.5), 0.0), 2.0, id="a quarter of what is out"),
        pytest.param((2.0, True, 1, WorkloadPace(slots=4, mean_s=0.1), 0.0), MIN_LOOK_S, id="near the end"),
        pytest.param((2.0, True, 64, WorkloadPace(slots=99, mean_s=0.1), 0.9), 9.0, id="a listing that is slow"),
        pytest.param((2.0, True, 64, WorkloadPace(slots=1, mean_s=3600), 0.0), MAX_LOOK_S, id="jobs of an hour"),
    ],
)
def test_the_next_look_comes_when_there_is_something_to_see(
    given_: tuple[float, bool, int, WorkloadPace, float], expected: float
) -> None:
    before_s, moved, out, pace, looked_s = given_
    assert next_look_s(before_s=before_s, moved=moved, out=out, pace=pace, looked_s=looked_s) == expected


def test_few_of_many_are_asked_for_by_name_and_many_of_few_are_listed() -> None:
    assert not cheaper_to_list(published=40_000, out=64)
    assert cheaper_to_list(published=500, out=64)


# --- lines ---


async def pieces(data: bytes, sizes: list[int]) -> AsyncIterator[bytes]:
    at = 0
    for size in [*sizes, len(data)]:
        yield data[at : at + size]
        at += size


@given(
    st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line), max_size=20),
    st.lists(st.integers(0, 20), max_size=30),
    st.booleans(),
)
async def test_lines_are_found_however_the_file_is_cut_and_lie_where_they_say(
    given_lines: list[bytes], sizes: list[int], ends: bool
) -> None:
    data = b"\n".join(given_lines) + (b"\n" if ends else b"")
    found = [line async for line in lines_of(pieces(data, sizes))]
    expected = [(n, line) for n, line in enumerate(data.split(b"\n"), start=1) if line.strip()]
    bom = b"\xef\xbb\xbf"
    expected = [(n, line[3:] if n == 1 and line.startswith(bom) else line) for n, line in expected]
    assert [(line.number, line.data) for line in found] == [(n, line) for n, line in expected if line.strip()]
    assert all(data[line.offset : line.offset + len(line.data)] == line.data for line in found)


def test_runs_of_lines_cover_what_is_wanted_and_skip_what_is_far_away() -> None:
    manifest = Manifest(0)
    for n in range(100):
        manifest.add(f"c{n}", "0" * 64, "writer" if n % 2 else "mockups", n * 100_000, 90_000)
    wanted = [1, 3, 5, 50, 99]
    runs = list(manifest.runs(wanted))
    assert sorted(index for run in runs for index in run) == wanted
    assert runs == [[1, 3, 5], [50], [99]]
    assert manifest.span([1, 3, 5]) == (100_000, 490_000)
    assert all(manifest.span(run)[1] <= 8 << 20 for run in manifest.runs(list(range(100))))
    loaded = Manifest.load(manifest.dump("acme", "b"))
    assert loaded == manifest
    assert Manifest.load(b'{"batch": "b", "tenant": "t", "created_at": 1, "jobs": []}') is None


# --- endings ---

JOB = Job(Identity("acme", "b1", "x"), "/v1/chat/completions", b"{}")


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (error_reply(400, "no", code="bad"), {"code": "bad", "message": "no"}),
        (error_reply(404, "gone"), {"code": "not_found_error", "message": "gone"}),
        (Reply(500, b"oops", "text/plain"), {"code": "http_500", "message": "the workload answered 500"}),
        (Reply(422, b'{"detail": []}'), {"code": "http_422", "message": "the workload answered 422"}),
    ],
)
def test_a_failure_is_told_by_code_and_message(reply: Reply, error: dict[str, str]) -> None:
    line = parsed(result_line(JOB, reply))
    assert (status_of(line), error_of(line), output_of(line)) == ("failed", error, None)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("cancelled", "cancelled"),
        ("batch_cancelled", "cancelled"),
        ("expired", "expired"),
        ("batch_expired", "expired"),
        ("attempts_exhausted", "failed"),
    ],
)
def test_a_line_without_a_reply_says_by_its_code_how_the_job_ended(code: str, status: str) -> None:
    line = parsed(error_line(JOB.identity, code, "why"))
    assert (status_of(line), error_of(line)) == (status, {"code": code, "message": "why"})


@given(st.text(min_size=1, max_size=512).filter(lambda name: len(name.encode("utf-8", "replace")) <= 512))
def test_the_head_of_a_result_tells_its_status_whatever_the_custom_id(custom_id: str) -> None:
    tricky = custom_id[:200] + '","response":{"status_code":500'
    for name in (custom_id, tricky[:480]):
        job = Job(Identity("acme", "b1", name), "/v1/mockups", b"{}")
        for reply, status in ((Reply(200, b"{}"), 200), (Reply(404, b"x" * 5000, "text/plain"), 404)):
            head = Result(job.identity, "0" * 64, result_line(job, reply)).dump()[:HEAD_BYTES]
            assert status_in(head) == status
        dead = Result(job.identity, "0" * 64, error_line(job.identity, "cancelled", "x" * 5000)).dump()
        assert status_in(dead[:HEAD_BYTES]) == 0
    assert status_in(b"{}") is None


def test_an_output_is_embedded_json_inline_bytes_or_an_object() -> None:
    made = output_of(parsed(result_line(JOB, Reply(200, b'{"a": "\xc3\xa4"}'))))
    assert made is not None and made.embedded
    assert json.loads(made.data or b"") == {"a": "ä"}
    made = output_of(parsed(result_line(JOB, Reply(200, b"\x89PNG", "image/png"))))
    assert made is not None and (made.content_type, made.data, made.embedded) == ("image/png", b"\x89PNG", False)
