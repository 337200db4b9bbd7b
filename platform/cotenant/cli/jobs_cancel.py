"""`cotenant jobs cancel`: end jobs and batches that have not ended. What has a result by then keeps it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import click

from cotenant.cli import job_desk
from cotenant.cli.options import platform_options
from cotenant.config import Platform, load_platform
from cotenant.errors import JobError, RequestRefused
from cotenant.jobs.endings import CANCELLED, parsed, status_of
from cotenant.jobs.model import DEFAULT_TENANT, Identity, Result, error_line
from cotenant.jobs.store.results import ResultStore

_GONE = 404


@click.command()
@platform_options
@click.argument("ids", nargs=-1, required=True, metavar="ID…")
@click.option("--tenant", default=DEFAULT_TENANT, show_default=True, help="Whose they are.")
@click.option("--batch", help="The batch that the jobs are of: finds them at once.")
@click.option("--json", "as_json", is_flag=True, help="Print what became of each as JSON.")
def cancel(
    *, file: Path, environment: str, ids: tuple[str, ...], tenant: str, batch: str | None, as_json: bool
) -> None:
    """Cancel jobs (job_…) and batches; each ID is tried, whatever becomes of the others."""
    done = asyncio.run(_cancel(load_platform(file, environment), tenant, ids, batch))
    if as_json:
        click.echo(json.dumps(done, indent=2))
    for one in () if as_json else done:
        if one["error"] is None:
            click.echo(f"{one['id']}  {one['status']}")
        else:
            click.secho(f"{one['id']}: {one['error']}", fg="red", err=True)
    if any(one["error"] is not None for one in done):
        raise click.exceptions.Exit(1)


async def _cancel(platform: Platform, tenant: str, ids: tuple[str, ...], batch: str | None) -> list[dict[str, Any]]:
    done: list[dict[str, Any]] = []
    async with job_desk.opened(platform) as desk:
        for name in dict.fromkeys(ids):
            try:
                status, error = await _cancel_one(desk, tenant, name, batch), None
            except JobError as refused:
                status, error = None, str(refused)
            done.append({"id": name, "status": status, "error": error})
    return done


async def _cancel_one(desk: job_desk.Desk, tenant: str, name: str, batch: str | None) -> str:
    """The status that it has then. Raises JobError where it can't be cancelled."""
    if not name.startswith("job_"):
        return str((await desk.batches.cancel(tenant, name))["status"])
    if batch is None:
        try:
            return str((await desk.singles.cancel(tenant, name))["status"])
        except RequestRefused as refused:
            if refused.status != _GONE:
                raise
    found = await desk.find_in_batches(tenant, name, batch)
    if found is None:
        where = f"batch {batch}" if batch is not None else "any batch, nor by itself"
        raise JobError(f"is no job of tenant {tenant} in {where}; `cotenant jobs ls` lists what there is")
    store, identity = desk.store, found.identity
    line = await _line(store, identity)
    if line is None:
        # The mark ends what runs, the result settles it for everybody else: as for a job that was submitted by itself.
        await store.cancel(identity)
        ours = Result(identity, found.sha256, error_line(identity, CANCELLED, "the job was cancelled"))
        line = (await store.create_result(ours)).line
    status = status_of(parsed(line))
    if status != "cancelled":
        raise JobError(f"has {status} already; `cotenant jobs show` tells more")
    return status


async def _line(store: ResultStore, identity: Identity) -> bytes | None:
    result = await store.result(identity)
    return result.line if result is not None else await store.buried(identity)
