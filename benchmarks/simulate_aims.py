"""What the policy's aims and the window of its rate are worth over four loads, beside Serve's default. Simulated.

    python benchmarks/simulate_aims.py [--hours 2] [--seed 5]

One seed, so a difference of a few parts in a hundred may be chance.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from cotenant.scaling.policy import AIMS
from cotenant.scaling.terms import Bounds
from cotenant.sim import run
from cotenant.sim.model import Scaler, Scene, SimPool, SimWorkload
from cotenant.sim.scalers import Cotenant, ServeDefault
from cotenant.sim.scene import SCENE
from cotenant.sim.stages import DEFAULTS
from cotenant.sim.traces import Load, random_requests

RENDERER = replace(DEFAULTS, weights=SCENE)
PAINTER = SimWorkload("painter", Bounds(1, 0, 4, 15.0, True), 0.4)
KEPT = (
    SimWorkload("mockups", Bounds(2, 1, 16, 5.0), 0.1, stages=RENDERER),
    SimWorkload("writer", Bounds(32, 1, 8, 2.0), 0.55),
    PAINTER,
)
FROM_ZERO = (
    SimWorkload("mockups", Bounds(2, 0, 16, 5.0), 0.25, stages=RENDERER),
    SimWorkload("writer", Bounds(8, 0, 8, 2.0), 0.25),
    PAINTER,
)
#: Workloads, calls, nodes at the least.
LOADS = {
    "bursty": (KEPT, (Load(0, 1, 1.2, 5), Load(1, 0.5, 4)), 1),
    "bursty from zero": (FROM_ZERO, (Load(0, 1, 1.2, 8), Load(1, 1, 4, 8), Load(2, 0.02, 8, 5)), 0),
    "steady": (FROM_ZERO, (Load(0, 3, 1.2), Load(1, 3, 4), Load(2, 0.1, 8)), 0),
    "sparse": (FROM_ZERO, (Load(0, 0.01, 1.2), Load(1, 0.005, 4), Load(2, 0.004, 8)), 0),
}
#: Window of the rate in seconds, patience, stretch, late.
AIMED = (
    (60, 2, 0.25, 0.05), (60, 2, 0.1, 0.05), (60, 2, 0.0, 0.05), (60, 4, 0.25, 0.05), (60, 4, 0.1, 0.02),
    (60, 8, 0.1, 0.05), (60, 2, 0.25, 0.01), (30, 2, 0.25, 0.05), (30, 2, 0.1, 0.05), (30, 4, 0.1, 0.02),
    (15, 2, 0.25, 0.05), (15, 2, 0.1, 0.05), (15, 4, 0.1, 0.02),
)  # fmt: skip


def played(name: str, scaler: Scaler, hours: float, seed: int) -> str:
    workloads, loads, nodes = LOADS[name]
    until_s = hours * 3600
    pools = (SimPool(min_nodes=nodes, max_nodes=20),)
    outcome = run.simulate(
        Scene(pools, workloads, random_requests(loads, until_s, seed)(), until_s, seed=seed), scaler
    )  # fmt: skip
    both = list(zip(outcome.waits, workloads, strict=True))
    late = sum(waits.longer_than(one.bounds.target_wait_s) * waits.count for waits, one in both)
    part = late / sum(waits.count for waits, _ in both)
    p95 = " / ".join(f"{waits.quantile(0.95):.1f}" for waits, _ in both)
    return f"{part:>7.1%} over the target {sum(outcome.spent.node_s) / 3600:>7.2f} GPU-h   p95 {p95} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=5)
    arguments = parser.parse_args()
    for name in LOADS:
        print(f"\n{name}; simulated")
        print(f"{'Serve default':<34}{played(name, ServeDefault(), arguments.hours, arguments.seed)}", flush=True)
        for window_s, patience, stretch, late in AIMED:
            run._RATE_WINDOW_S = float(window_s)
            aims = replace(AIMS, patience=patience, stretch=stretch, late=late)
            said = f"{window_s} s, {patience}, {stretch}, {late}"
            print(f"{said:<34}{played(name, Cotenant(aims=aims), arguments.hours, arguments.seed)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
