"""How long `cotenant plan` takes on large platforms: 1,000 workloads on up to 500 GPUs, 10,000 on up to 5,000.

    python benchmarks/plan.py [--workloads 1000 --gpus 500]

The platforms are made so that they nearly fill the GPUs (budgets between 0.5 and 20 GiB, up to four replicas), and
once with only 20 different budgets, where best fit is improved by the solver. What is timed is what the command does:
read and check the file, plan, cost, JSON. Limits: 1 s for all of it with 1,000 workloads; 2 s without reading the file
with 10,000, whose reading is shown beside it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

from cotenant.cli.plan import as_data
from cotenant.config import load_platform
from cotenant.cost import monthly_cost
from cotenant.gpu.plan import plan

_SMALL = 1_000
_SMALL_LIMIT_S = 1.0
_LARGE_LIMIT_S = 2.0


def platform_file(workloads: int, gpus: int, different: int | None = None) -> str:
    """A platform file whose replicas take about 95 % of `gpus` at maximum, with so many `different` budgets."""
    chance = random.Random(7)
    usable_gib = 22.0
    kinds = [
        chance.choice((chance.uniform(0.5, 4), chance.uniform(4, 12), chance.uniform(12, 20)))
        for _ in range(different or workloads)
    ]
    budgets = [chance.choice(kinds) for _ in range(workloads)] if different else kinds
    highs = [chance.randint(1, 4) for _ in range(workloads)]
    scale = min(1.0, 0.95 * gpus * usable_gib / sum(b * n for b, n in zip(budgets, highs, strict=True)))
    lines = ["workloads:"]
    for i, (budget, high) in enumerate(zip(budgets, highs, strict=True)):
        gib = max(0.1, round(budget * scale, 2))
        lines.append(f"  w{i}: {{mockup: {{}}, gpu: {{vram_gib: {gib}}}, replicas: {{min: 1, max: {high}}}}}")
    lines += [
        "environments:",
        "  prod:",
        f"    pools: {{shared: {{accelerator: nvidia-l4, machine: g2-standard-8, nodes: {{min: 0, max: {gpus}}}}}}}",
    ]
    return "\n".join(lines) + "\n"


def timed(workloads: int, gpus: int, different: int | None) -> bool:
    """Plan one such platform and print how long it took. Whether that was within the limit."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "platform.yaml"
        file.write_text(platform_file(workloads, gpus, different))
        started = time.perf_counter()
        platform = load_platform(file, "prod")
        loaded = time.perf_counter()
        made = plan(platform)
        planned = time.perf_counter()
        json.dumps(as_data(made, monthly_cost(platform, made)))
        done = time.perf_counter()
    replicas = sum(booking.replicas_max for booking in made.workloads.values())
    print(f"{workloads} workloads with {different or 'all'} different budgets, {replicas} replicas, up to {gpus} GPUs")
    print(f"  read and check {loaded - started:6.3f} s")
    print(f"  plan           {planned - loaded:6.3f} s")
    print(f"  cost, JSON     {done - planned:6.3f} s")
    ratio = made.gpus_needed / made.gpus_lower_bound
    print(f"  GPUs needed    {made.gpus_needed}, no packing takes fewer than {made.gpus_lower_bound} ({ratio:.4f})")
    small = workloads <= _SMALL
    took_s, limit_s = (done - started, _SMALL_LIMIT_S) if small else (done - loaded, _LARGE_LIMIT_S)
    what = "together" if small else "without reading"
    print(f"  {what} {took_s:.3f} s (limit {limit_s:g} s): {'ok' if took_s < limit_s else 'TOO SLOW'}")
    return took_s < limit_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", type=int)
    parser.add_argument("--gpus", type=int, default=500)
    wanted = parser.parse_args()
    sizes = [(wanted.workloads, wanted.gpus)] if wanted.workloads else [(1_000, 500), (10_000, 5_000)]
    results = [timed(workloads, gpus, different) for workloads, gpus in sizes for different in (None, 20)]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
