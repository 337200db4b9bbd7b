"""What the gateway counts, in a Prometheus registry of its own.

Nothing here is global: each gateway makes one, so two of them (or two tests) in a process don't share counts.
Labels only take values that the operator chose (workloads, tenants, routes) or that HTTP defines (statuses),
so a client can't grow the number of series.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from cotenant.telemetry.exposition import RowsCollector
from cotenant.telemetry.series import Metric, Row

#: From a cached answer to a long render.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class GatewayMetrics:
    """Requests, latency, first chunks, work in flight and refusals of one gateway."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "cotenant_gateway_requests",
            "Requests answered; 499 is a client that left before its answer.",
            ("workload", "route", "status", "tenant"),
            registry=self.registry,
        )
        self._latency = Histogram(
            "cotenant_gateway_request_seconds",
            "From the request's head to the last byte of its answer.",
            ("workload", "route"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._first_chunk = Histogram(
            "cotenant_gateway_first_chunk_seconds",
            "From the request's head to the first chunk of a streamed answer (time to first token).",
            ("workload",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "cotenant_gateway_in_flight_requests",
            "Requests handed to a workload and not yet answered, waiting ones included.",
            ("workload",),
            registry=self.registry,
        )
        self._refusals = Counter(
            "cotenant_gateway_queue_refusals",
            "Requests refused with 429 because the workload's queue was full.",
            ("workload",),
            registry=self.registry,
        )

    def answered(self, *, workload: str, route: str, status: int, tenant: str, seconds: float) -> None:
        """A request ended, `workload` empty if none was asked."""
        if workload:
            self._in_flight.labels(workload).dec()
        self._requests.labels(workload, route, str(status), tenant).inc()
        self._latency.labels(workload, route).observe(seconds)

    def first_chunk(self, workload: str, seconds: float) -> None:
        self._first_chunk.labels(workload).observe(seconds)

    def refused(self, workload: str) -> None:
        self._refusals.labels(workload).inc()

    def handed_on(self, workload: str) -> None:
        """A request went to `workload`; `answered` with the same name must follow."""
        self._in_flight.labels(workload).inc()

    def show(self, metrics: Sequence[Metric], rows: Callable[[], Iterable[Row]]) -> None:
        """Show these beside the gateway's own; `rows` is asked whenever somebody looks."""
        self.registry.register(RowsCollector(metrics, rows))

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)
