"""The receiver's code in docs/webhooks.md believes what we sign, and nothing else."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cotenant.outbound.webhooks import SCHEDULE_S, Event, Secret, signed_headers

pytestmark = pytest.mark.unit

PAGE = (Path(__file__).parents[3] / "docs" / "webhooks.md").read_text(encoding="utf-8")
OURS, OTHER = "whsec_" + base64.b64encode(bytes(32)).decode(), "whsec_" + base64.b64encode(b"\1" * 32).decode()


@pytest.fixture
def verified() -> Callable[..., bool]:
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "def verified" in block)
    names: dict[str, Callable[..., bool]] = {}
    exec(code, names)
    return names["verified"]


def test_its_code_believes_what_we_sign(verified: Callable[..., bool]) -> None:
    body = '{"data":"Tässchen"}'.encode()
    rotating = [Secret.parse(OTHER), Secret.parse(OURS)]
    headers = signed_headers(rotating, "msg_1", time.time(), body)
    assert verified(headers, body, OURS)
    assert verified(headers, body, OTHER)


def test_its_code_believes_nothing_else(verified: Callable[..., bool]) -> None:
    headers = signed_headers([Secret.parse(OURS)], "msg_1", time.time(), b"{}")
    late = signed_headers([Secret.parse(OURS)], "msg_1", time.time() - 400, b"{}")
    assert not verified(headers, b"{ }", OURS)
    assert not verified(headers, b"{}", OTHER)
    assert not verified(headers | {"webhook-id": "msg_2"}, b"{}", OURS)
    assert not verified(late, b"{}", OURS)
    assert not verified({}, b"{}", OURS)


def test_it_names_every_event_and_every_delay() -> None:
    assert all(f"`{event.value}`" in PAGE for event in Event)
    (row,) = (line for line in PAGE.splitlines() if line.startswith("| after |"))
    units = {"s": 1, "min": 60, "h": 3600}
    delays = [cell.split() for cell in row.strip("|").split("|")[2:]]
    assert [0, *(int(number) * units[unit] for number, unit in delays)] == list(SCHEDULE_S)
