"""The ways to scale that `cotenant simulate` compares, and what came of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cotenant.sim.model import Request, Scaler, Scene, SimPool, SimWorkload
from cotenant.sim.run import Outcome, simulate
from cotenant.sim.scalers import Cotenant, FixedPeak, HpaOnMetric, Keda, ServeDefault

#: Samples of a whole simulation at most, and seconds between two at least.
_SAMPLES = 300
_SAMPLE_S = 10.0


@dataclass(frozen=True)
class Run:
    """One way to run the platform, and what came of it."""

    name: str
    pools: tuple[SimPool, ...]
    workloads: tuple[SimWorkload, ...]
    outcome: Outcome

    @property
    def usd(self) -> float:
        return self.outcome.cost_usd(tuple(pool.usd_per_h for pool in self.pools))

    @property
    def gpu_hours(self) -> float:
        return sum(self.outcome.spent.node_s) / 3600


def sample_s(until_s: float) -> float:
    """Seconds between two looks at a simulation of that length."""
    return max(_SAMPLE_S, until_s / _SAMPLES)


def play_all(
    pools: tuple[SimPool, ...],
    workloads: tuple[SimWorkload, ...],
    requests: Callable[[], Iterable[Request]],
    until_s: float,
    seed: int,
    *,
    progress: bool,
) -> Sequence[Run]:
    """Ours, the others on the same shares, and what there was before: a whole GPU for every replica, at its peak."""
    whole = tuple(replace(one, share=1.0) for one in workloads)
    replicas = sum(one.bounds.max for one in workloads)
    roomy = tuple(replace(pool, max_nodes=max(pool.max_nodes, replicas)) for pool in pools)

    def at_peak(some: tuple[SimWorkload, ...]) -> tuple[SimWorkload, ...]:
        return tuple(replace(one, bounds=replace(one.bounds, min=one.bounds.max)) for one in some)

    ways: list[tuple[str, tuple[SimPool, ...], tuple[SimWorkload, ...], Scaler]] = [
        ("cotenant", pools, workloads, Cotenant()),
        ("Serve's default", pools, workloads, ServeDefault()),
        ("HPA on the queue metric", pools, workloads, HpaOnMetric()),
        ("KEDA", pools, workloads, Keda()),
        ("fixed at the peak", pools, at_peak(workloads), FixedPeak()),
        ("a GPU each, at the peak", roomy, at_peak(whole), FixedPeak()),
    ]
    from rich.console import Console  # noqa: PLC0415 - `--json` and errors do without rich
    from rich.progress import track  # noqa: PLC0415

    runs = []
    console = Console(stderr=True)
    shown = progress and console.is_terminal
    for name, its_pools, its_workloads, scaler in track(
        ways, "simulating", console=console, transient=True, disable=not shown
    ):
        scene = Scene(its_pools, its_workloads, requests(), until_s, seed=seed, sample_s=sample_s(until_s))
        runs.append(Run(name, its_pools, its_workloads, simulate(scene, scaler)))
    return runs


def data_of(run: Run) -> dict[str, Any]:
    """What `--json` and the tables say of it."""
    outcome = run.outcome
    waits = {
        one.name: {
            "calls": seen.count,
            "wait_s": {f"p{round(part * 100)}": round(seen.quantile(part), 3) for part in (0.5, 0.95, 0.99)},
            "longer_than_target": round(seen.longer_than(one.bounds.target_wait_s), 4),
            "target_wait_s": one.bounds.target_wait_s,
            **_dated(outcome, number),
            "starts": outcome.spent.starts[number],
            "wakes": outcome.spent.wakes[number],
            "replica_hours": round(outcome.spent.replica_s[number] / 3600, 3),
            "busy_slot_hours": round(outcome.busy_s[number] / 3600, 3),
        }
        for number, (one, seen) in enumerate(zip(run.workloads, outcome.waits, strict=True))
    }
    return {
        "name": run.name,
        "gpu_hours": round(run.gpu_hours, 3),
        "usd": round(run.usd, 2),
        "nodes_made": outcome.spent.nodes_made,
        "nodes_lost": outcome.spent.nodes_lost,
        "undone": outcome.undone,
        "workloads": waits,
    }


def _dated(outcome: Outcome, number: int) -> dict[str, Any]:
    """Of the calls with deadlines of their own, if there were any."""
    seen = outcome.dated[number]
    if not seen.count:
        return {}
    return {"dated": {"calls": seen.count, "wait_s_p95": round(seen.quantile(0.95), 3),
                      "overdue": round(outcome.overdue[number] / seen.count, 4)}}  # fmt: skip


def notes_of(pools: Sequence[SimPool]) -> list[str]:
    """What was taken for granted of the pools, in sentences."""
    said = []
    for pool in pools:
        if pool.losses_per_h:
            meanwhile = "" if pool.fallback is None else f"; meanwhile they come from pool {pools[pool.fallback].name}"
            said.append(
                f"Spot nodes of pool {pool.name} are taken away {pool.losses_per_h:g} times an hour, and none is to be "
                f"had for {pool.dry_s:g} s after{meanwhile}. Both are assumed; --losses and --stages take your own."
            )
    return said
