"""Publishes plain metrics through Ray's metrics endpoint. A counter is fed with its growth."""

from collections.abc import Iterable
from typing import Any

from ray.util import metrics as ray_metrics

from cotenant.telemetry.series import Metric, Row


class Published:
    """Ray's own metrics for these."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = {metric.name: _made(metric) for metric in metrics}
        self._counted: dict[tuple[str, tuple[str, ...]], float] = {}

    def publish(self, rows: Iterable[Row]) -> None:
        for name, labels, value in rows:
            metric = self._metrics[name]
            if isinstance(metric, ray_metrics.Gauge):
                metric.set(value, tags=labels)
                continue
            if isinstance(metric, ray_metrics.Histogram):
                # Ray takes nothing below its least; what took no time is not worth a bucket.
                if value > 0:
                    metric.observe(value, tags=labels)
                continue
            series = (name, tuple(labels.values()))
            growth, self._counted[series] = value - self._counted.get(series, 0.0), value
            if growth > 0:
                metric.inc(growth, tags=labels)


def _made(metric: Metric) -> Any:
    if metric.kind == "histogram":
        return ray_metrics.Histogram(
            metric.name, description=metric.help, boundaries=list(metric.bounds), tag_keys=metric.labels
        )
    kind = ray_metrics.Gauge if metric.kind == "gauge" else ray_metrics.Counter
    return kind(metric.name, description=metric.help, tag_keys=metric.labels)
