"""Starts as OpenTelemetry traces: a span for the start, and one for each of its stages.

Off, and nothing imported, unless `OTEL_EXPORTER_OTLP_ENDPOINT` says where traces go. The exporter's other settings are
OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_RESOURCE_ATTRIBUTES`, …).
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cotenant.telemetry.logs import event
from cotenant.telemetry.starts import Span, Start

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
LOG = logging.getLogger("cotenant.traces")
#: Starts whose first result may still come.
_REMEMBERED = 200


def from_environment(environment: Mapping[str, str] = os.environ) -> StartTraces | None:
    """Traces to the collector that the environment names; None if it names none, or nothing here can reach one."""
    if not environment.get(ENDPOINT):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - as above
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        event(LOG, "traces_off", level=logging.WARNING, error=error, needs="opentelemetry-exporter-otlp-proto-http")
        return None
    provider = TracerProvider(resource=Resource.create({"service.name": "cotenant"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return StartTraces(provider)


class StartTraces:
    """Exports starts through `provider`, whose processor must not block."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("cotenant.starts")
        self._contexts: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    def export(self, start: Start, news: Sequence[Span]) -> None:
        """Export the spans of `start` that were not exported before, and the start itself the first time."""
        from opentelemetry import trace  # noqa: PLC0415 - imported already, by whoever made the provider

        context = self._contexts.get(start.id)
        if context is None:
            attributes = {
                "cotenant.workload": start.workload,
                "cotenant.start.kind": start.kind,
                "cotenant.replica": start.replica,
                "cotenant.node": start.node,
            }
            whole = self._tracer.start_span(
                f"start {start.workload}", start_time=_ns(start.began_at), attributes=attributes
            )
            context = self._contexts[start.id] = trace.set_span_in_context(whole)
            whole.end(_ns(start.ready_at))
            while len(self._contexts) > _REMEMBERED:
                self._contexts.popitem(last=False)
        for span in news:
            made = self._tracer.start_span(span.stage, context=context, start_time=_ns(span.began_at))
            made.end(_ns(span.ended_at))


def _ns(unix_s: float) -> int:
    return int(unix_s * 1e9)
