"""Decisions as metrics and as plain data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cotenant.scaling.autoscaler import Decision
from cotenant.telemetry.series import Metric, Row

_ONE = ("workload",)

METRICS = (
    Metric("cotenant_replicas", "gauge", "Replicas of a workload.", (*_ONE, "which")),
    Metric("cotenant_calls", "gauge", "Calls of a workload that are worked on, and that wait for a slot.",
           (*_ONE, "which")),
    Metric("cotenant_waiting_work_s", "gauge", "Slot-seconds that the calls which wait are reckoned to need.", _ONE),
    Metric("cotenant_arriving_per_s", "gauge", "Calls that come in a second, over a minute.", _ONE),
    Metric("cotenant_service_s", "gauge", "Mean seconds that a call has a slot, as learned.", _ONE),
)  # fmt: skip


def rows(decisions: Mapping[str, Decision]) -> Iterator[Row]:
    """All values."""
    for name, one in decisions.items():
        for which, value in (
            ("serving", one.supply.resident),
            ("starting", len(one.supply.starting)),
            ("wanted", one.target.replicas),
            ("needed", one.target.needed),
        ):
            yield Row("cotenant_replicas", {"workload": name, "which": which}, value)
        for which, value in (("running", one.demand.running), ("waiting", one.demand.waiting)):
            yield Row("cotenant_calls", {"workload": name, "which": which}, value)
        labels = {"workload": name}
        yield Row("cotenant_waiting_work_s", labels, sum(queue.work_s for queue in one.demand.queues))
        yield Row("cotenant_arriving_per_s", labels, one.demand.arriving_per_s)
        yield Row("cotenant_service_s", labels, one.demand.service_s)


def plain(decision: Decision) -> dict[str, Any]:
    """A decision for people and programs."""
    target, demand, supply = decision.target, decision.demand, decision.supply
    return {
        "replicas": target.replicas,
        "needed": target.needed,
        "why": target.why,
        "serving": supply.resident,
        "starting_in_s": [round(seconds, 1) for seconds in supply.starting],
        "running": demand.running,
        "waiting": demand.waiting,
        "waiting_work_s": round(sum(queue.work_s for queue in demand.queues), 2),
        "arriving_per_s": round(demand.arriving_per_s, 4),
        "service_s": round(demand.service_s, 3),
    }
