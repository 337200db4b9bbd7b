"""Plain metrics as Prometheus reads them: asked for when somebody looks, kept by nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from cotenant.telemetry.series import Metric, Row

Family = CounterMetricFamily | GaugeMetricFamily


class RowsCollector(Collector):
    """Gauges and counters whose values `rows` tells."""

    def __init__(self, metrics: Sequence[Metric], rows: Callable[[], Iterable[Row]]) -> None:
        self._metrics = tuple(metrics)
        self._rows = rows

    def describe(self) -> Iterable[Family]:
        return self._families().values()

    def collect(self) -> Iterable[Family]:
        families = self._families()
        labels = {metric.name: metric.labels for metric in self._metrics}
        for name, values, value in self._rows():
            families[name].add_metric([values[label] for label in labels[name]], value)
        return families.values()

    def _families(self) -> dict[str, Family]:
        return {
            metric.name: (
                CounterMetricFamily(metric.name.removesuffix("_total"), metric.help, labels=metric.labels)
                if metric.kind == "counter"
                else GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
            )
            for metric in self._metrics
        }
