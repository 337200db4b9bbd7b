"""Answers as bytes: what goes in comes out, however the bytes are cut, and nothing else is taken for one."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.calls import Reply
from cotenant.calls.wire import Decoder, encode
from cotenant.errors import (
    BudgetExceeded,
    CallError,
    DeadlineExceeded,
    Overloaded,
    ReplicaDied,
    UnknownWorkload,
    WorkloadUnavailable,
)

pytestmark = pytest.mark.unit

replies = st.builds(
    Reply,
    status=st.integers(100, 599),
    body=st.binary(max_size=300),
    content_type=st.text(max_size=20),
    headers=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3),
)
errors = st.one_of(
    st.builds(
        lambda kind, text: kind(text),
        st.sampled_from([UnknownWorkload, DeadlineExceeded, ReplicaDied, BudgetExceeded, WorkloadUnavailable]),
        st.text(max_size=50),
    ),
    st.builds(lambda text, after: Overloaded(text, retry_after_s=after), st.text(max_size=50), st.floats(0, 1e6)),
)
answers = st.lists(st.tuples(st.integers(0, 1000), st.one_of(replies, errors)), max_size=6)


def plain(answer: tuple[int, Reply | CallError]) -> tuple[object, ...]:
    index, given = answer
    if isinstance(given, Reply):
        return index, given
    return index, type(given), str(given), getattr(given, "retry_after_s", None)


@given(sent=answers, cuts=st.lists(st.integers(0, 2000), max_size=8))
def test_answers_come_out_as_they_went_in_however_their_bytes_are_cut(
    sent: list[tuple[int, Reply | CallError]], cuts: list[int]
) -> None:
    data = b"".join(map(encode, sent))
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    decoder = Decoder()
    got = [answer for start, end in pairwise(places) for answer in decoder.feed(data[start:end])]
    assert [plain(answer) for answer in got] == [plain(answer) for answer in sent]


def test_an_error_of_an_unknown_class_comes_out_as_an_unavailable_workload() -> None:
    class Novel(CallError):
        pass

    ((index, error),) = Decoder().feed(encode((3, Novel("something new"))))
    assert (index, type(error), str(error)) == (3, WorkloadUnavailable, "something new")


@pytest.mark.parametrize(
    "head", [b"{}", b"[1]", b'[0, "Exception", "x", null]', b'["0", 200, "a/b", {}]', b"nonsense", b"\xff"]
)
def test_bytes_that_are_no_answer_are_refused(head: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        list(Decoder().feed(struct.pack("!IQ", len(head), 0) + head))
