"""Requests from files and from chance."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from cotenant.errors import TraceError
from cotenant.sim.model import Request
from cotenant.sim.traces import Load, TokenSpeed, random_requests, read_trace

pytestmark = pytest.mark.unit

SPEED = TokenSpeed(prefill_per_s=1000, decode_per_s=10)
NAMES = ["writer", "mockups"]


def read(tmp_path: Path, text: str, all_for: str | None = None) -> list[Request]:
    file = tmp_path / "trace"
    file.write_text(text)
    return read_trace(file, NAMES, all_for=all_for, speed=SPEED)


def test_csv_and_json_lines_say_the_same_and_begin_at_zero(tmp_path: Path) -> None:
    wanted = [Request(0.0, 1, 0.5), Request(1.5, 0, 2.0)]
    assert read(tmp_path, "workload,at_s,service_s\nwriter,101.5,2\nmockups,100,0.5\n") == wanted
    rows = (
        '{"workload": "writer", "at_s": 7.5, "service_s": 2}\n\n{"workload": "mockups", "at_s": 6, "service_s": 0.5}\n'
    )
    assert read(tmp_path, rows) == wanted


def test_deadlines_and_hints_are_read_where_they_are(tmp_path: Path) -> None:
    columns = "at_s,service_s,workload,within_s,deadline_s,units\n"
    text = columns + "100,1,writer,60,,2.5\n110,1,writer,,170,\n120,1,writer,,90,\n"
    first, second, third = read(tmp_path, text)
    assert first == Request(0.0, 0, 1.0, 60.0, 2.5)
    assert second == Request(10.0, 0, 1.0, 60.0)
    assert 0 < third.within_s < 0.01


def test_azures_tokens_become_seconds(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4800,10\n"
        "2023-11-16 18:17:04.9799600,1000,8\n"
    )
    first, second = read(tmp_path, text, all_for="writer")
    assert first == Request(0.0, 0, pytest.approx(5.8))
    assert second == Request(pytest.approx(1.0), 0, pytest.approx(1.8))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has none"),
        ("a,b\n1,2\n", "needs the columns at_s, service_s and workload, or Azure's"),
        ("at_s,service_s,workload\n", "has no requests"),
        ("at_s,service_s\n1,2\n", ":2: names no workload; give --workload"),
        ("at_s,service_s,workload\n1,2,writer\n1,2,painter\n", ":3: there is no workload painter; the platform has"),
        ("at_s,service_s,workload\n1,-2,writer\n", ":2: service_s is -2.0"),
        ("at_s,service_s,workload\nx,2,writer\n", ":2: could not convert"),
        ("at_s,service_s,workload\n1,inf,writer\n", "service_s is inf"),
        ('{"at_s": 1}\n', ":1: has no service_s"),
        ('{"at_s": 1, \n', ":1: no JSON"),
    ],
)
def test_what_is_no_trace_is_refused_on_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(TraceError, match=re.escape(said)):
        read(tmp_path, text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="nowhere can't be read"):
        read_trace(tmp_path / "nowhere", NAMES, all_for=None, speed=SPEED)


def test_a_load_has_its_rate_and_its_seconds() -> None:
    found = list(Load(0, 2.0, 1.5).requests(20_000, random.Random(1)))
    assert len(found) / 20_000 == pytest.approx(2.0, rel=0.03)
    assert sum(one.service_s for one in found) / len(found) == pytest.approx(1.5, rel=0.03)


def test_a_burst_is_in_the_first_tenth_of_every_hour_and_the_mean_stays() -> None:
    found = list(Load(0, 1.0, 1.0, burst=5).requests(36_000, random.Random(1)))
    early = [one for one in found if one.at_s % 3600 < 360]
    assert len(found) / 36_000 == pytest.approx(1.0, rel=0.03)
    assert len(early) / 3600 == pytest.approx(5.0, rel=0.05)


def test_loads_come_together_in_order_and_the_same_each_time() -> None:
    requests = random_requests([Load(0, 1.0, 1.0), Load(1, 0.3, 2.0)], 1000, seed=4)
    once, again = list(requests()), list(requests())
    assert once == again == sorted(once)
    assert {one.workload for one in once} == {0, 1}
    assert list(random_requests([Load(0, 1.0, 1.0)], 1000, seed=5)()) != once
