"""`cotenant record`: the jobs that ran, as a trace that `cotenant simulate --trace` plays."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import click

from cotenant.cli import jobs_door
from cotenant.cli.amounts import duration_s
from cotenant.cli.options import platform_options
from cotenant.cli.output import new_file
from cotenant.config import Platform, load_platform
from cotenant.errors import EnvironmentFault, JobError
from cotenant.jobs.desk.batches import BatchRecord
from cotenant.jobs.store import keys
from cotenant.jobs.store.results import ResultStore
from cotenant.jobs.store.runs import Ran, recorded


@click.command()
@platform_options
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write (default: stdout).")
@click.option("--since", metavar="DURATION", help="Only of so long ago until now, such as 12h or 7d.")
def record(*, file: Path, environment: str, output: Path | None, since: str | None) -> None:
    """Write the jobs that ran as JSON lines: when each came, for which workload, how long it had a slot, what it costs.

    Jobs only: requests over HTTP are not kept. Names of tenants, and what jobs say, are not in it.
    """
    ago_s = duration_s(since) if since is not None else None
    if since is not None and ago_s is None:
        raise click.BadParameter(f"takes a duration such as 12h or 7d, got {since!r}", param_hint="--since")
    since_s = 0.0 if ago_s is None else max(0.0, time.time() - ago_s)
    lines = asyncio.run(_lines(load_platform(file, environment), since_s))
    if output is None:
        click.echo(b"".join(lines), nl=False)
    else:
        with new_file(output) as out:
            out.writelines(lines)
    click.echo(f"{len(lines)} jobs", err=True)


async def _lines(platform: Platform, since_s: float) -> list[bytes]:
    store = jobs_door.existing_store(platform, jobs_door.running(platform))
    runs = [run async for run in recorded(store.objects, since_s)]
    if not runs:
        raise EnvironmentFault(
            f"no run of a job is recorded in {store.url}{' since then' if since_s else ''}: an ingress writes them "
            "down some seconds after they ended"
        )
    created = {one: await _created_s(store, *one) for one in {(run.tenant, run.batch) for run in runs}}
    return list(trace([(run, created[run.tenant, run.batch]) for run in runs]))


async def _created_s(store: ResultStore, tenant: str, batch: str) -> float | None:
    """When a batch was submitted; None where the batch is only a name, or its record is no more."""
    data = await store.objects.get(keys.batch_key(tenant, batch))
    try:
        return None if data is None else float(BatchRecord.load(data).created_at)
    except JobError:
        return None


def trace(runs: list[tuple[Ran, float | None]]) -> Iterator[bytes]:
    """Lines of a trace, in the order in which jobs came; a batch's jobs came when it was submitted.

    Args:
        runs: each with the Unix time at which its batch was submitted, if that is known.
    """
    came = sorted(
        (min(run.came_s, run.came_s if batch_s is None else batch_s), n) for n, (run, batch_s) in enumerate(runs)
    )
    for at_s, n in came:
        run = runs[n][0]
        row: dict[str, object] = {"at_s": round(at_s, 3), "service_s": round(run.seconds, 6), "workload": run.workload}
        if run.deadline_at_s is not None:
            row["within_s"] = round(max(0.001, run.deadline_at_s - at_s), 3)
        if run.units is not None:
            row["units"] = round(run.units, 6)
        if run.began_s is not None:
            row["waited_s"] = round(max(0.0, run.began_s - at_s), 3)
        yield json.dumps(row).encode() + b"\n"
