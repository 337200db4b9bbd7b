"""Fixtures of the gateway's unit tests: a house with both kinds of workload, and what is logged meanwhile."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from cotenant.telemetry.logs import configure_logs
from tests.unit.gateway.house import House, echo, three_events


@pytest.fixture
def house() -> House:
    return House(
        {"writer": lambda call: three_events(call) if b'"stream"' in call.body else echo(call), "mockups": echo}
    )


@pytest.fixture
def logs() -> Iterator[io.StringIO]:
    """Everything that cotenant logs meanwhile."""
    logger = logging.getLogger("cotenant")
    before = (logger.handlers[:], logger.level, logger.propagate)
    stream = io.StringIO()
    configure_logs(stream, logging.DEBUG)
    yield stream
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])
