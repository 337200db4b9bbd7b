"""`cotenant plan`: does an environment fit, who lies on which GPU, and what does it cost a month."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from textwrap import fill
from typing import Any

import click

from cotenant.cli.options import platform_options, with_budgets
from cotenant.cli.what_if import Priced, attempt, difference, what_if
from cotenant.cli.what_if import as_data as what_if_data
from cotenant.config import Platform, load_platform
from cotenant.cost import Cost, monthly_cost
from cotenant.errors import PlanError
from cotenant.gpu.machines import PRICES_AS_OF, PRICES_REGION
from cotenant.gpu.plan import GpuFill, Plan
from cotenant.gpu.plan import plan as make_plan


@click.command()
@platform_options
@click.option(
    "--add",
    "added",
    multiple=True,
    metavar="NAME=GIB[xN]",
    help="What if there were this workload too: N replicas of so many GiB, always resident.",
)
@click.option(
    "--gpus", multiple=True, metavar="[POOL=]N", help="What if the pool could have so many GPUs (not its nodes.max)."
)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan(file: Path, environment: str, added: tuple[str, ...], gpus: tuple[str, ...], as_json: bool) -> None:
    """Show what runs where, whether it fits, and what it costs a month."""
    change = what_if(added, gpus)
    platform, notes = with_budgets(load_platform(file, environment))
    if not change:
        _print(platform, *_priced(platform, notes), as_json=as_json)
        return
    before, _ = attempt(lambda: _priced(platform, notes))
    changed = change.of(platform)
    after, why = attempt(lambda: _priced(changed, notes))
    if as_json:
        plain = as_data(*after) if after else {"environment": environment}
        click.echo(json.dumps(plain | {"what_if": what_if_data(change, before, after, why)}, indent=2))
        if after is None:
            click.get_current_context().exit(PlanError.exit_code)
    elif after is None:
        raise PlanError("\n".join(f"does not fit: {line}" for line in why.splitlines()))
    else:
        _print(changed, *after, as_json=False)
        click.echo("\n" + fill(difference(change, before, after), width=80))


def _priced(platform: Platform, notes: tuple[str, ...]) -> Priced:
    the_plan = make_plan(platform)
    the_plan = replace(the_plan, warnings=(*notes, *the_plan.warnings))
    return the_plan, monthly_cost(platform, the_plan)


def _print(platform: Platform, the_plan: Plan, cost: Cost, *, as_json: bool) -> None:
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
        "gpus_lower_bound": the_plan.gpus_lower_bound,
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
                "floor_gib": booking.terms.floor_gib,
                "residency": booking.terms.residency,
                "replicas": {"min": booking.replicas_min, "max": booking.replicas_max, "placed": booking.placed_max},
                "surge_room": the_plan.has_surge_room(name),
            }
            for name, booking in the_plan.workloads.items()
        },
        "pools": {
            name: {
                "accelerator": pool.accelerator,
                "mig": pool.mig,
                "usable_gib": pool.usable_gib,
                "wake_gib": round(pool.wake_gib, 3),
                "gpus_lower_bound": pool.gpus_lower_bound,
                "at_home": pool.at_home,
                "awake": pool.awake,
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
        "node": gpu.node,
        "awake": gpu.awake,
    }
