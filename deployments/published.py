"""Publishes plain metrics through Ray's metrics endpoint. A counter is fed with its growth."""

from collections.abc import Iterable

from ray.util import metrics as ray_metrics

from cotenant.telemetry.series import Metric, Row


class Published:
    """Ray's own metrics for these."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        kinds = {"gauge": ray_metrics.Gauge, "counter": ray_metrics.Counter}
        self._metrics = {m.name: kinds[m.kind](m.name, description=m.help, tag_keys=m.labels) for m in metrics}
        self._counted: dict[tuple[str, tuple[str, ...]], float] = {}

    def publish(self, rows: Iterable[Row]) -> None:
        for name, labels, value in rows:
            metric = self._metrics[name]
            if isinstance(metric, ray_metrics.Gauge):
                metric.set(value, tags=labels)
                continue
            series = (name, tuple(labels.values()))
            growth, self._counted[series] = value - self._counted.get(series, 0.0), value
            if growth > 0:
                metric.inc(growth, tags=labels)
