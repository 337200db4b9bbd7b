"""Starts as traces: off without an endpoint, else a span a start and one a stage, at the recorded times."""

from __future__ import annotations

import subprocess
import sys

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cotenant.telemetry import traces
from cotenant.telemetry.starts import Span
from tests.unit.telemetry.test_start_records import COLD

pytestmark = pytest.mark.unit


def test_without_an_endpoint_there_are_none() -> None:
    assert traces.from_environment({}) is None
    assert traces.from_environment({traces.ENDPOINT: ""}) is None


def test_without_an_endpoint_opentelemetry_is_not_imported() -> None:
    program = "import sys; from cotenant.telemetry import traces; traces.from_environment({}); "
    program += "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_start_is_a_span_with_its_stages_below() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    exported = traces.StartTraces(provider)
    exported.export(COLD, COLD.spans)
    result = Span(stage="first_result", began_at=COLD.ready_at + 5, ended_at=COLD.ready_at + 6)
    exported.export(COLD.model_copy(update={"spans": (*COLD.spans, result)}), (result,))
    whole, *stages = exporter.get_finished_spans()
    assert whole.name == "start writer"
    assert whole.attributes is not None
    assert whole.attributes["cotenant.start.kind"] == "cold"
    assert (whole.start_time, whole.end_time) == (int(COLD.began_at * 1e9), int(COLD.ready_at * 1e9))
    assert [span.name for span in stages] == ["process", "imports", "turn", "weights", "warm_up", "first_result"]
    assert {span.parent.span_id for span in stages if span.parent} == {whole.context.span_id}
    assert {span.context.trace_id for span in stages} == {whole.context.trace_id}
    assert [span.start_time for span in stages] == [int(span.began_at * 1e9) for span in (*COLD.spans, result)]
