"""An agent's state as metrics: names, labels, values. Who hosts the agent publishes them.

Labels hold what the operator named (workloads, pools) and what the machine has (nodes, GPUs), so the number of
series is bounded; replicas are added up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cotenant.agent.snapshot import GpuView, ReplicaView, Snapshot
from cotenant.telemetry.series import Metric, Row
from cotenant.telemetry.starts import Span, Start

_GPU = ("node", "gpu", "pool")
_WORKLOAD = ("node", "gpu", "workload")

METRICS = (
    Metric("cotenant_gpu_total_mib", "gauge", "Memory of the GPU.", _GPU),
    Metric("cotenant_gpu_used_mib", "gauge", "Memory of the GPU that can no longer be allocated.", _GPU),
    Metric("cotenant_gpu_free_mib", "gauge", "Memory that no lease and no unknown process takes.", _GPU),
    Metric("cotenant_gpu_unattributed_mib", "gauge", "Memory in use that is nobody's by name.", _GPU),
    Metric("cotenant_gpu_unknown_mib", "gauge", "Memory of processes that are no replicas.", _GPU),
    Metric("cotenant_gpu_sm_utilisation", "gauge", "Part of the time in which a kernel ran, 0 to 1.", _GPU),
    Metric("cotenant_gpu_memory_mib", "gauge", "Memory that a workload's replicas hold.", _WORKLOAD),
    Metric("cotenant_gpu_memory_peak_mib", "gauge", "Most that one replica of a workload has held.", _WORKLOAD),
    Metric("cotenant_gpu_memory_budget_mib", "gauge", "Budgets of a workload's replicas.", _WORKLOAD),
    Metric("cotenant_gpu_memory_lease_mib", "gauge", "What a workload's replicas may hold now.", _WORKLOAD),
    Metric("cotenant_gpu_replicas", "gauge", "Replicas by warmth.", (*_WORKLOAD, "tier")),
    Metric("cotenant_gpu_requests_running", "gauge", "Requests in work.", _WORKLOAD),
    Metric("cotenant_gpu_requests_waiting", "gauge", "Requests that wait for the GPU.", _WORKLOAD),
    Metric("cotenant_gpu_seconds_total", "counter", "Seconds times the part of the GPU that was occupied.", _WORKLOAD),
    Metric("cotenant_gpu_warnings_total", "counter", "Warnings for memory near or past what was allowed.", _WORKLOAD),
    Metric("cotenant_gpu_stops_total", "counter", "Replicas stopped for memory past what was allowed.", _WORKLOAD),
    Metric("cotenant_gpu_wakes_total", "counter", "Leases granted.", _WORKLOAD),
    Metric("cotenant_gpu_sleeps_total", "counter", "Leases given back.", _WORKLOAD),
)
#: By whom, by stage and by kind of start; each start is observed once.
START = Metric(
    "cotenant_start_seconds",
    "histogram",
    "What a stage of a start took.",
    ("workload", "stage", "kind"),
    bounds=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320),
)


def start_rows(start: Start, news: Iterable[Span]) -> list[Row]:
    """Of the stages of `start` that were not told before."""
    seconds: dict[str, float] = {}
    for span in news:
        seconds[span.stage] = seconds.get(span.stage, 0.0) + span.seconds
    return [
        Row(START.name, {"workload": start.workload, "stage": stage, "kind": start.kind}, value)
        for stage, value in seconds.items()
    ]


def rows(snapshot: Snapshot) -> list[Row]:
    """All values of a snapshot; what is not known has no row."""
    node = snapshot.node_id
    found = [row for gpu in snapshot.gpus for row in _of_gpu(node, gpu)]
    for tally in snapshot.tallies:
        labels = {"node": node, "gpu": tally.gpu, "workload": tally.workload}
        found += [
            Row("cotenant_gpu_memory_peak_mib", labels, tally.peak_mib),
            Row("cotenant_gpu_seconds_total", labels, tally.gpu_seconds),
            Row("cotenant_gpu_warnings_total", labels, tally.warnings),
            Row("cotenant_gpu_stops_total", labels, tally.stops),
            Row("cotenant_gpu_wakes_total", labels, tally.wakes),
            Row("cotenant_gpu_sleeps_total", labels, tally.sleeps),
        ]
    return found


def _of_gpu(node: str, gpu: GpuView) -> Iterator[Row]:
    labels = {"node": node, "gpu": gpu.key, "pool": gpu.pool}
    values = {
        "cotenant_gpu_total_mib": gpu.total_mib,
        "cotenant_gpu_used_mib": gpu.used_mib,
        "cotenant_gpu_free_mib": gpu.free_mib,
        "cotenant_gpu_unattributed_mib": gpu.unattributed_mib,
        "cotenant_gpu_unknown_mib": sum(stranger.held_mib or 0 for stranger in gpu.unknown),
        "cotenant_gpu_sm_utilisation": gpu.sm_util,
    }
    yield from (Row(name, labels, value) for name, value in values.items() if value is not None)
    workloads: dict[str, list[ReplicaView]] = {}
    for replica in gpu.replicas:
        workloads.setdefault(replica.workload, []).append(replica)
    for workload, replicas in workloads.items():
        yield from _of_workload({"node": node, "gpu": gpu.key, "workload": workload}, replicas)


def _of_workload(labels: dict[str, str], replicas: Iterable[ReplicaView]) -> Iterator[Row]:
    replicas = tuple(replicas)
    held = [replica.held_mib for replica in replicas if replica.held_mib is not None]
    if held:
        yield Row("cotenant_gpu_memory_mib", labels, sum(held))
    yield Row("cotenant_gpu_memory_budget_mib", labels, sum(replica.budget_mib for replica in replicas))
    yield Row("cotenant_gpu_memory_lease_mib", labels, sum(replica.lease_mib for replica in replicas))
    yield Row("cotenant_gpu_requests_running", labels, sum(replica.running for replica in replicas))
    yield Row("cotenant_gpu_requests_waiting", labels, sum(replica.waiting for replica in replicas))
    for tier in sorted({replica.tier.value for replica in replicas}):
        count = sum(replica.tier.value == tier for replica in replicas)
        yield Row("cotenant_gpu_replicas", {**labels, "tier": tier}, count)
