"""`cotenant jobs ls`: the tenant's jobs that were submitted by themselves, or its batches, the newest first."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import click

from cotenant.calls.desk import Json, Page
from cotenant.cli import job_desk
from cotenant.cli.options import platform_options
from cotenant.config import Platform, load_platform
from cotenant.jobs.model import DEFAULT_TENANT


@click.command()
@platform_options
@click.option("--tenant", default=DEFAULT_TENANT, show_default=True, help="Whose jobs they are.")
@click.option("--batches", is_flag=True, help="List batches instead, and how far each is.")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="How many, the newest first.")
@click.option("--after", metavar="ID", help="Go on after this one.")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def ls(
    *, file: Path, environment: str, tenant: str, batches: bool, limit: int, after: str | None, as_json: bool
) -> None:
    """List jobs that were submitted by themselves; with --batches, batches."""
    found = asyncio.run(_page(load_platform(file, environment), tenant, Page(limit, after), batches=batches))
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    from cotenant.cli.jobs_view import show_batches, show_jobs  # noqa: PLC0415 - `--json` does without rich

    if batches:
        show_batches(found["data"])
    else:
        show_jobs(found["data"])
    if not found["data"]:
        other = "jobs submitted by themselves: leave --batches out" if batches else "batches: --batches lists them"
        click.echo(f"nothing of tenant {tenant}; there may be {other}", err=True)
    elif found["has_more"]:
        click.echo(f"there are more: --after {found['last_id']}", err=True)


async def _page(platform: Platform, tenant: str, page: Page, *, batches: bool) -> Json:
    async with job_desk.opened(platform) as desk:
        return await (desk.batches.page(tenant, page) if batches else desk.singles.page(tenant, page))
