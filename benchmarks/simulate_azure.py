"""Azure's LLM traces under our policy, an HPA on the queue metric and a fixed peak, at the same p95. Simulated.

    python benchmarks/simulate_azure.py --traces DIR [--limits 2 5] [--share 0.25] [--slots 8] [--times 4]

DIR holds AzureLLMInferenceTrace_code.csv and _conv.csv of Azure's 2023 traces (github.com/Azure/AzurePublicDataset,
CC-BY 4.0), an hour each. They run side by side as two workloads on one pool, `--times` one after the other, so that
the start from nothing is less than 5 % of the calls. A call has a slot for prompt / 4,000 + answer / 30 seconds
(tokens; assumed); calls in other slots do not slow it. Start times are the simulator's assumed ones.

For each limit L every way is tuned to the fewest GPU-hours at which the p95 of waits of both workloads is within L:

- ours: `cotenant simulate --tune`'s search (spare nodes, idle time, aims, minimum of replicas);
- HPA: for each workload the target per replica (a quarter of the slots to twice the slots) and the minimum (1 to 16);
- fixed: for each workload the fewest replicas.

The HPA is shown on the same shares as ours, and with a whole GPU for each replica; fixed with a whole GPU each is what
there was before sharing. GPU-hours are those of nodes from being asked for to being gone, idle and starting included.
The first block is ours without tuning; there the others are tuned to be no slower than that for either workload.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cotenant.scaling.terms import Bounds, Target
from cotenant.sim.model import Request, Scaler, Scene, SimPool, SimWorkload, View
from cotenant.sim.run import Outcome, simulate
from cotenant.sim.scalers import Cotenant, FixedPeak, HpaOnMetric
from cotenant.sim.traces import TokenSpeed, read_trace
from cotenant.sim.tuning import attempt, present, search

NAMES = ("code", "conv")
MOST = 24
MINS = (1, 2, 3, 4, 6, 8, 10, 12, 16)
PARTS = (0.25, 0.375, 0.5, 0.625, 0.75, 1.0, 1.5, 2.0)


@dataclass
class Each:
    """A scaler for each workload."""

    scalers: Sequence[Scaler]
    name: str = "each"
    every_s: float = 15.0

    def target(self, workload: int, view: View, now: float) -> Target:
        return self.scalers[workload].target(workload, view, now)


@dataclass(frozen=True)
class World:
    """The platform and its calls."""

    requests: Sequence[Request]
    slots: int
    share: float
    hpas: dict[int, list[tuple[float, float, int, float]]] = field(default_factory=dict)
    """By workload: replica-seconds, p95, minimum and target per replica of every HPA that was tried."""
    peaks: dict[int, list[float]] = field(default_factory=dict)
    """By workload: p95 with one replica, with two, ..."""

    def scene(self, mins: Sequence[int], *, whole: bool = False, only: int | None = None) -> Scene:
        """A scene with these minima; `whole`: a GPU for each replica; `only`: the calls of one workload alone."""
        share = 1.0 if whole else self.share
        workloads = tuple(
            SimWorkload(name, Bounds(self.slots, least, MOST, 5.0), share)
            for name, least in zip(NAMES, mins, strict=True)
        )
        calls = [one for one in self.requests if only in (None, one.workload)]
        return Scene((SimPool(max_nodes=2 * MOST),), workloads, calls, self.requests[-1].at_s + 1, patience_s=1800)


def p95(outcome: Outcome) -> list[float]:
    return [waits.quantile(0.95) for waits in outcome.waits]


def gpu_hours(outcome: Outcome) -> float:
    return sum(outcome.spent.node_s) / 3600


def tried_hpas(world: World, number: int) -> list[tuple[float, float, int, float]]:
    """Every HPA for one workload, by itself."""
    if number not in world.hpas:
        found = world.hpas[number] = []
        for least in MINS:
            for part in PARTS:
                mins = [least if n == number else 0 for n in range(len(NAMES))]
                scalers = [HpaOnMetric(part * world.slots) if n == number else FixedPeak(0) for n in range(len(NAMES))]
                outcome = simulate(world.scene(mins, only=number), Each(scalers))
                found.append((outcome.spent.replica_s[number], p95(outcome)[number], least, part * world.slots))
    return world.hpas[number]


def hpa(world: World, limits: Sequence[float], *, whole: bool) -> tuple[Outcome, str]:
    found = [
        min(one for one in tried_hpas(world, number) if one[1] <= limit_s)[2:] for number, limit_s in enumerate(limits)
    ]
    outcome = simulate(
        world.scene([least for least, _ in found], whole=whole), Each([HpaOnMetric(per) for _, per in found])
    )
    said = (f"{name} min {least}, {per:g} each" for name, (least, per) in zip(NAMES, found, strict=True))
    return outcome, ", ".join(said)


def tried_peaks(world: World, number: int) -> list[float]:
    """The p95 of one workload by itself with ever more replicas, until nothing waits."""
    if number not in world.peaks:
        found = world.peaks[number] = []
        while len(found) < MOST and (not found or found[-1] > 0):
            mins = [len(found) + 1 if n == number else 0 for n in range(len(NAMES))]
            scaler = Each([FixedPeak(least) for least in mins], every_s=600.0)
            found.append(p95(simulate(world.scene(mins, only=number), scaler))[number])
    return world.peaks[number]


def fixed(world: World, limits: Sequence[float], *, whole: bool) -> tuple[Outcome, str]:
    counts = [
        next(count for count, seen in enumerate(tried_peaks(world, number), 1) if seen <= limit_s)
        for number, limit_s in enumerate(limits)
    ]
    outcome = simulate(world.scene(counts, whole=whole), Each([FixedPeak(one) for one in counts], every_s=600.0))
    return outcome, ", ".join(f"{name} {count}" for name, count in zip(NAMES, counts, strict=True))


def ours(world: World, limit_s: float, runs: int) -> tuple[Outcome, str]:
    make = partial(world.scene, (1, 1))
    *_, (_, best) = search(partial(attempt, make, p95_s=limit_s), present(make()), (MOST, MOST), most=runs)
    one = best.settings
    return best.outcome, f"spare {one.spare}, idle {one.idle_s:g} s, patience {one.patience:g}, " + (
        f"stretch {one.stretch:g}, late {one.late:g}, min {' and '.join(map(str, one.mins))}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--limits", type=float, nargs="*", default=[2.0, 5.0])
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--times", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    requests = sorted(
        one._replace(workload=number, at_s=one.at_s + 3600 * time)
        for time in range(arguments.times)
        for number, name in enumerate(NAMES)
        for one in read_trace(
            arguments.traces / f"AzureLLMInferenceTrace_{name}.csv", [name], all_for=name, speed=TokenSpeed()
        )
    )
    world = World(requests, arguments.slots, arguments.share)
    default = simulate(world.scene((1, 1)), Cotenant())
    rows = [compared("default", world, default, "as the policy is", p95(default))]
    show(rows[-1], as_json=arguments.json)
    for limit_s in arguments.limits:
        outcome, how = ours(world, limit_s, arguments.runs)
        rows.append(compared(f"{limit_s:g} s", world, outcome, how, [limit_s] * len(NAMES)))
        show(rows[-1], as_json=arguments.json)
    return 0


def compared(name: str, world: World, outcome: Outcome, how: str, limits: Sequence[float]) -> dict[str, object]:
    ways: dict[str, Callable[[], tuple[Outcome, str]]] = {
        "cotenant": lambda: (outcome, how),
        "HPA, same shares": partial(hpa, world, limits, whole=False),
        "HPA, a GPU each": partial(hpa, world, limits, whole=True),
        "fixed, same shares": partial(fixed, world, limits, whole=False),
        "fixed, a GPU each": partial(fixed, world, limits, whole=True),
    }
    base = gpu_hours(outcome)
    rows = []
    for way, play in ways.items():
        its, said = play()
        rows.append({"way": way, "gpu_hours": round(gpu_hours(its), 2), "ours_to_it": round(base / gpu_hours(its), 3),
                     "p95_s": [round(one, 2) for one in p95(its)], "undone": its.undone, "settings": said})  # fmt: skip
    return {"limit": name, "limits_s": [round(one, 2) for one in limits], "ways": rows}


def show(row: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(row), flush=True)
        return
    print(f"\np95 of waits within {row['limits_s']} s ({', '.join(NAMES)}); {row['limit']}; simulated")
    for way in row["ways"]:  # type: ignore[attr-defined]
        waits = " / ".join(f"{one:.1f}" for one in way["p95_s"])
        print(f"  {way['way']:<20}{way['gpu_hours']:>7.2f} GPU-h  ours/it {way['ours_to_it']:>6.2f}  p95 {waits} s"
              f"  {way['settings']}", flush=True)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
