"""A million requests over a simulated day, on one core: seconds it takes, and that the same seed gives the same day.

    python benchmarks/simulate.py [--requests 1000000] [--seed 1]

Three workloads of four slots on shared GPUs, a policy that is asked every second, requests at random over 24 hours.
Exit status 1 if a million requests take more than 60 s, or two plays of a tenth of them differ.
"""

from __future__ import annotations

import argparse
import sys
import time

from cotenant.scaling.terms import Bounds
from cotenant.sim.model import Scene, SimPool, SimWorkload
from cotenant.sim.run import Outcome, simulate
from cotenant.sim.scalers import Cotenant
from cotenant.sim.traces import Load, random_requests

DAY_S, LIMIT_S = 86_400.0, 60.0
NAMES = ("writer", "mockups", "painter")


def play(requests: int, seed: int) -> Outcome:
    each = Load(0, requests / DAY_S / len(NAMES), 1.25, burst=3)
    loads = [Load(number, each.per_s, each.service_s, each.burst) for number in range(len(NAMES))]
    workloads = tuple(SimWorkload(name, Bounds(4, 0, 20, 5.0), 0.25) for name in NAMES)
    pools = (SimPool(min_nodes=1, max_nodes=40),)
    return simulate(Scene(pools, workloads, random_requests(loads, DAY_S, seed)(), DAY_S, seed=seed), Cotenant())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    same = play(arguments.requests // 10, arguments.seed) == play(arguments.requests // 10, arguments.seed)
    began = time.process_time()
    outcome = play(arguments.requests, arguments.seed)
    took_s = time.process_time() - began
    count = sum(waits.count for waits in outcome.waits)
    print(f"{count} requests in {took_s:.1f} s of one core ({count / took_s:,.0f} a second), limit {LIMIT_S:.0f} s")
    print(f"the same seed gives {'the same day' if same else 'ANOTHER DAY'}; {outcome.undone} undone")
    return 0 if same and took_s * 1_000_000 / arguments.requests <= LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())
