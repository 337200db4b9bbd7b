"""`cotenant results`: wait for a batch and write OpenAI's output file, in the order of its input.

The file is written beside its name and put in place when complete. A job that failed has a line that says so; one
that is not settled in time is named on stderr, and the exit code is 1.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cotenant.cli import jobs_door
from cotenant.cli.options import platform_options
from cotenant.config import Platform, load_platform
from cotenant.errors import EnvironmentFault
from cotenant.jobs import batch as batches
from cotenant.jobs.model import DEFAULT_TENANT

_NAMED_MISSING = 20


@dataclass(frozen=True)
class _Wanted:
    platform: Platform
    batch: str
    tenant: str
    timeout_s: float


@click.command()
@platform_options
@click.argument("batch", metavar="BATCH")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write (default: stdout).")
@click.option("--tenant", default=DEFAULT_TENANT, show_default=True, help="Whose batch it is.")
@click.option("--timeout", "timeout_s", default=600.0, show_default=True, help="Seconds to wait for the last job.")
def results(*, file: Path, environment: str, batch: str, output: Path | None, tenant: str, timeout_s: float) -> None:
    """Wait for a batch and write its results as an OpenAI batch output file."""
    wanted = _Wanted(load_platform(file, environment), batch, tenant, timeout_s)
    console = Console(stderr=True, highlight=False)
    if output is None:
        collected = asyncio.run(_collect(wanted, sys.stdout.buffer, console))
        sys.stdout.buffer.flush()
    else:
        collected = _to_file(output, wanted, console)
    where = f" to {output}" if output else ""
    console.print(f"[green]wrote[/] {collected.written} lines{where}, {collected.failed} of them failed jobs")
    if collected.missing:
        some = ", ".join(collected.missing[:_NAMED_MISSING])
        more = len(collected.missing) - _NAMED_MISSING
        console.print(
            f"[red]missing[/] {len(collected.missing)} after {timeout_s:g} s: {some}"
            + (f" and {more} more" if more > 0 else "")
            + "; the same command waits on"
        )
        raise click.exceptions.Exit(1)


def _to_file(output: Path, wanted: _Wanted, console: Console) -> batches.Collected:
    draft = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            collected = asyncio.run(_collect(wanted, file, console))
        draft.replace(output)
    except OSError as error:
        raise EnvironmentFault(f"{output} can't be written: {error.strerror}; name another file with -o") from error
    finally:
        draft.unlink(missing_ok=True)
    return collected


async def _collect(wanted: _Wanted, file: BinaryIO, console: Console) -> batches.Collected:
    store = jobs_door.result_store(wanted.platform, jobs_door.running(wanted.platform))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("waiting")

        def show(progress: batches.Progress) -> None:
            text = f"waiting ({progress.given_up} given up)" if progress.given_up else "waiting"
            bar.update(task, description=text, completed=progress.done + progress.given_up, total=progress.total)

        return await batches.collect(
            store,
            file.write,
            tenant=wanted.tenant,
            batch=wanted.batch,
            timeout_s=wanted.timeout_s,
            on_progress=show,
        )
