"""`cotenant submit`: publish a file of jobs, one OpenAI-batch line each.

The whole file is checked before the first line is published. stdout gets the batch's name and one line a job, for
scripts; what is meant for people goes to stderr.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cotenant.calls import Directory
from cotenant.cli import jobs_door
from cotenant.cli.options import platform_options
from cotenant.config import Platform, load_platform
from cotenant.errors import JobError, JobsFileError, Problem
from cotenant.jobs import batch as batches
from cotenant.jobs.model import DEFAULT_TENANT, Job


@click.command()
@platform_options
@click.argument("jobs_file", metavar="JOBS.JSONL", type=click.Path(allow_dash=True, path_type=Path))
@click.option("--tenant", default=DEFAULT_TENANT, show_default=True, help="Whose jobs they are.")
@click.option("--batch", help="Name of the batch (default: a new one). The same name again repeats no work.")
def submit(file: Path, environment: str, jobs_file: Path, tenant: str, batch: str | None) -> None:
    """Publish jobs from a file in OpenAI's batch format (- for stdin)."""
    platform = load_platform(file, environment)
    name = batch or batches.new_batch_id()
    jobs = batches.read_jobs(
        _lines(jobs_file), str(jobs_file), tenant=tenant, batch=name, directory=Directory.of(platform)
    )
    console = Console(stderr=True, highlight=False)
    asyncio.run(_publish(platform, jobs, console))
    print(name)
    for job in jobs:
        print(f"{job.identity.job_id}  {job.identity.custom_id}")
    console.print(f"[green]published[/] {len(jobs)} jobs; `cotenant results {name}` collects what they give")


async def _publish(platform: Platform, jobs: Sequence[Job], console: Console) -> None:
    state = jobs_door.running(platform)
    store = jobs_door.result_store(platform, state)
    columns = (TextColumn("publishing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    published = 0
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("publishing", total=len(jobs))

        def show(count: int) -> None:
            nonlocal published
            published = count
            bar.update(task, completed=count)

        try:
            async with jobs_door.publisher(platform, state) as publish:
                await batches.submit(jobs, store, publish, show)
        except JobError as error:
            if not published:
                raise
            again = f"`cotenant submit --batch {jobs[0].identity.batch}` with the same file publishes the rest"
            raise JobError(f"{published} of {len(jobs)} jobs were published, then: {error}; {again}") from error


def _lines(path: Path) -> list[bytes]:
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        hint = "name a file of jobs, or - for stdin"
        raise JobsFileError([Problem(str(path), 1, f"can't be read: {error.strerror}; {hint}")]) from error
    return data.split(b"\n")
