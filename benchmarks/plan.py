"""How long `cotenant plan` takes on a large platform: 1,000 workloads, a pool that grows to 500 GPUs.

    python benchmarks/plan.py [--workloads 1000] [--gpus 500]

The platform is made so that it nearly fills the GPUs (budgets between 0.5 and 20 GiB, up to four replicas). What is
timed is what the command does: read and check the file, plan, cost, JSON. Limit: 1 s.
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

LIMIT_S = 1.0


def platform_file(workloads: int, gpus: int) -> str:
    """A platform file whose replicas take about 95 % of `gpus` at maximum."""
    chance = random.Random(7)
    usable_gib = 22.0
    budgets = [
        chance.choice((chance.uniform(0.5, 4), chance.uniform(4, 12), chance.uniform(12, 20))) for _ in range(workloads)
    ]
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", type=int, default=1000)
    parser.add_argument("--gpus", type=int, default=500)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "platform.yaml"
        file.write_text(platform_file(wanted.workloads, wanted.gpus))
        started = time.perf_counter()
        platform = load_platform(file, "prod")
        loaded = time.perf_counter()
        made = plan(platform)
        planned = time.perf_counter()
        json.dumps(as_data(made, monthly_cost(platform, made)))
        done = time.perf_counter()
    replicas = sum(booking.replicas_max for booking in made.workloads.values())
    shares = sum(booking.num_gpus * booking.replicas_max for booking in made.workloads.values())
    print(f"{wanted.workloads} workloads, {replicas} replicas, up to {wanted.gpus} GPUs")
    print(f"read and check {loaded - started:6.3f} s")
    print(f"plan           {planned - loaded:6.3f} s")
    print(f"cost, JSON     {done - planned:6.3f} s")
    print(
        f"GPUs needed    {made.gpus_needed} (the shares add up to {shares:.1f}), {made.gpus_needed_at_min} at minimum"
    )
    total_s = done - started
    print(f"together       {total_s:6.3f} s (limit {LIMIT_S:g} s): {'ok' if total_s < LIMIT_S else 'TOO SLOW'}")
    return 0 if total_s < LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())
