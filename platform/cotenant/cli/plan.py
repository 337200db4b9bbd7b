"""`cotenant plan`: does an environment fit, who lies on which GPU, and what does it cost a month."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cotenant.cli.options import platform_options
from cotenant.config import load_platform
from cotenant.cost import Cost, monthly_cost
from cotenant.gpu.machines import PRICES_AS_OF, PRICES_REGION
from cotenant.gpu.plan import GpuFill, Plan
from cotenant.gpu.plan import plan as make_plan


@click.command()
@platform_options
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan(file: Path, environment: str, as_json: bool) -> None:
    """Show what runs where, whether it fits, and what it costs a month."""
    platform = load_platform(file, environment)
    the_plan = make_plan(platform)
    cost = monthly_cost(platform, the_plan)
    if as_json:
        click.echo(json.dumps(as_data(the_plan, cost), indent=2))
    else:
        from cotenant.cli.plan_view import show  # noqa: PLC0415 - `--json` and errors do without rich

        show(platform, the_plan, cost)


def as_data(the_plan: Plan, cost: Cost) -> dict[str, Any]:
    """The plan as plain data. What has no `_at_min` is at maximum replicas; money is USD a month."""
    return {
        "environment": the_plan.environment,
        "gpus_needed": the_plan.gpus_needed,
        "gpus_needed_at_min": the_plan.gpus_needed_at_min,
        "monthly_usd": round(cost.gpu_usd_at_max, 2),
        "monthly_usd_at_min": round(cost.gpu_usd_at_min, 2),
        "monthly_usd_whole_gpus": round(cost.whole_gpus_usd_at_max, 2),
        "monthly_usd_whole_gpus_at_min": round(cost.whole_gpus_usd_at_min, 2),
        "front_monthly_usd": round(cost.front_usd_at_max, 2),
        "front_monthly_usd_at_min": round(cost.front_usd_at_min, 2),
        "prices": {"kind": "list", "region": PRICES_REGION, "as_of": PRICES_AS_OF, "unpriced": list(cost.unpriced)},
        "workloads": {
            name: {
                "pool": booking.pool,
                "num_gpus": booking.num_gpus,
                "vram_gib": booking.vram_gib,
                "replicas": {"min": booking.replicas_min, "max": booking.replicas_max, "placed": booking.placed_max},
                "surge_room": the_plan.has_surge_room(name),
            }
            for name, booking in the_plan.workloads.items()
        },
        "pools": {
            name: {
                "accelerator": pool.accelerator,
                "usable_gib": pool.usable_gib,
                "nodes": {"min": pool.nodes_at_min, "max": pool.nodes_at_max},
                "gpus_at_min": [_gpu_data(gpu) for gpu in pool.gpus_at_min],
                "gpus": [_gpu_data(gpu) for gpu in pool.gpus_at_max],
            }
            for name, pool in the_plan.pools.items()
        },
        "warnings": list(the_plan.warnings),
    }


def _gpu_data(gpu: GpuFill) -> dict[str, Any]:
    return {
        "replicas": dict(gpu.replicas),
        "free_share": round(gpu.free_share, 4),
        "free_gib": round(gpu.free_gib, 3),
    }
