"""What an ingress has done and holds, as metrics: names, labels, values. Who hosts the pump publishes them.

Labels hold what the operator named: workloads and tenants, never jobs.
"""

from __future__ import annotations

from collections.abc import Iterator

from cotenant.jobs.ingress.pump import PumpStats
from cotenant.telemetry.series import Metric, Row

_ONE = ("workload", "tenant")

METRICS = (
    Metric("cotenant_jobs_settled_total", "counter", "Deliveries that ended, by how.", (*_ONE, "outcome")),
    Metric("cotenant_jobs_seconds_total", "counter", "Seconds in which jobs had a slot.", _ONE),
    Metric("cotenant_jobs_slots", "gauge", "Slots that this ingress may fill.", ("workload", "ingress")),
    Metric("cotenant_jobs_running", "gauge", "Jobs that a workload works on.", ("workload", "ingress")),
    Metric("cotenant_jobs_waiting", "gauge", "Jobs held here that wait for a slot.", ("workload", "ingress")),
    Metric("cotenant_jobs_oldest_waiting_s", "gauge", "Age of the oldest job held that waits.", ("ingress",)),
)


def rows(stats: PumpStats) -> Iterator[Row]:
    """All values of an ingress."""
    for (workload, tenant, outcome), count in stats.tallies.items():
        labels = {"workload": workload, "tenant": tenant, "outcome": outcome}
        yield Row("cotenant_jobs_settled_total", labels, count)
    for (workload, tenant), seconds in stats.seconds.items():
        yield Row("cotenant_jobs_seconds_total", {"workload": workload, "tenant": tenant}, seconds)
    for workload, pace in stats.paces.items():
        labels = {"workload": workload, "ingress": stats.ingress}
        yield Row("cotenant_jobs_slots", labels, pace.slots)
        yield Row("cotenant_jobs_running", labels, pace.running)
        yield Row("cotenant_jobs_waiting", labels, pace.waiting)
    yield Row("cotenant_jobs_oldest_waiting_s", {"ingress": stats.ingress}, stats.oldest_waiting_s)
