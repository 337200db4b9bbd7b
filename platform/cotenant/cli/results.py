"""`cotenant results`: what a batch gave, as OpenAI's output file, as pictures, or both.

Without `--follow` it waits for the last job and writes the lines in the order of the input; the file is written beside
its name and put in place when complete. With it, each line is written as its job settles, and a file that was left is
taken up where it stands. A job that failed has a line that says so; one that is not settled in time is named on
stderr, and the exit code is 1.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from cotenant.cli import jobs_door
from cotenant.cli.options import platform_options
from cotenant.cli.output import Followed, new_file
from cotenant.cli.save import pictures_of, safe_names, save
from cotenant.config import Platform, load_platform
from cotenant.jobs.collecting import Collected, Collection, Progress, StoredCourse, is_failure
from cotenant.jobs.model import DEFAULT_TENANT, Identity

_NAMED_MISSING = 20
_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class _Wanted:
    platform: Platform
    batch: str
    tenant: str
    output: Path | None
    follow: bool
    save_to: Path | None
    timeout_s: float


@dataclass
class _Wrote:
    """What this run has written."""

    lines: int = 0
    failed: int = 0
    pictures: int = 0


@click.command()
@platform_options
@click.argument("batch", metavar="BATCH")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write (default: stdout).")
@click.option("--follow", is_flag=True, help="Write each line as its job settles; a file is taken up where it stands.")
@click.option(
    "--save",
    "save_to",
    type=click.Path(path_type=Path),
    help="Folder for pictures, named by custom_id (lines then go to -o only).",
)
@click.option("--tenant", default=DEFAULT_TENANT, show_default=True, help="Whose batch it is.")
@click.option(
    "--timeout", "timeout_s", type=float, help="Seconds to wait for the last job (default: 600; with --follow no end)."
)
def results(
    *,
    file: Path,
    environment: str,
    batch: str,
    output: Path | None,
    follow: bool,
    save_to: Path | None,
    tenant: str,
    timeout_s: float | None,
) -> None:
    """Wait for a batch and write its results as an OpenAI batch output file."""
    if timeout_s is None:
        timeout_s = math.inf if follow else _TIMEOUT_S
    wanted = _Wanted(load_platform(file, environment), batch, tenant, output, follow, save_to, timeout_s)
    console = Console(stderr=True, highlight=False)
    wrote = _Wrote()
    try:
        collected = asyncio.run(_collect(wanted, wrote, console))
        if collected is None:
            console.print(
                f"[red]nothing yet[/] after {timeout_s:g} s: no ingress has begun with batch {escape(batch)}; is one "
                "up? The same command waits on"
            )
            raise click.exceptions.Exit(1)
    except KeyboardInterrupt:
        console.print(f"[red]stopped[/] after {escape(_told(wrote, wanted))}; the same command goes on")
        raise click.exceptions.Exit(1) from None
    console.print(f"[green]wrote[/] {escape(_told(wrote, wanted))}, {collected.failed} of them failed jobs")
    if collected.missing:
        some = escape(", ".join(collected.missing[:_NAMED_MISSING]))
        more = len(collected.missing) - _NAMED_MISSING
        console.print(
            f"[red]missing[/] {len(collected.missing)} after {timeout_s:g} s: {some}"
            + (f" and {more} more" if more > 0 else "")
            + "; the same command waits on"
        )
        raise click.exceptions.Exit(1)


def _told(wrote: _Wrote, wanted: _Wanted) -> str:
    pictures = f"{wrote.pictures} pictures to {wanted.save_to}" if wanted.save_to else ""
    if pictures and wanted.output is None:
        return f"{pictures} of {wrote.lines} jobs"
    where = f" to {wanted.output}" if wanted.output else ""
    return f"{wrote.lines} lines{where}" + (f" and {pictures}" if pictures else "")


async def _collect(wanted: _Wanted, wrote: _Wrote, console: Console) -> Collected | None:
    """What was collected; None where the batch is known by name alone."""
    store = jobs_door.existing_store(wanted.platform, jobs_door.running(wanted.platform))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Bar(*columns, console=console, transient=True, disable=not _has_a_bar(wanted, console)) as bar,
        ExitStack() as stack,
    ):
        task = bar.add_task("waiting", total=None)

        def show(progress: Progress) -> None:
            text = f"waiting ({progress.given_up} given up)" if progress.given_up else "waiting"
            bar.update(task, description=text, completed=progress.done + progress.given_up, total=progress.total)

        collection = Collection(
            store,
            wanted.tenant,
            wanted.batch,
            course=StoredCourse(store.objects, wanted.tenant, wanted.batch),
            on_progress=show,
        )
        began = asyncio.get_running_loop().time()
        if not await collection.open(wanted.timeout_s):
            return None
        left_s = max(0.0, wanted.timeout_s - (asyncio.get_running_loop().time() - began))
        names = safe_names(collection.identities) if wanted.save_to is not None else {}
        write, there = _sink(wanted, collection, stack)
        async for identity, line in collection.lines(left_s, in_order=not wanted.follow, without=there):
            if wanted.save_to is not None:
                pictures = await pictures_of(line, identity, store.objects)
                wrote.pictures += len(save(wanted.save_to, names[identity], pictures))
            write(identity, line)
            wrote.lines += 1
            wrote.failed += is_failure(line)
    return Collected(wrote.lines, wrote.failed, collection.missing)


def _has_a_bar(wanted: _Wanted, console: Console) -> bool:
    """Whether there is a terminal for it that lines don't go to."""
    lines_there = wanted.follow and wanted.output is None and wanted.save_to is None and sys.stdout.isatty()
    return console.is_terminal and not lines_there


def _sink(
    wanted: _Wanted, collection: Collection, stack: ExitStack
) -> tuple[Callable[[Identity, bytes], None], frozenset[str]]:
    """Where lines go, and the ids of jobs whose lines are there already."""
    if wanted.output is not None and wanted.follow:
        job_ids = {identity.job_id for identity in collection.identities}
        followed = stack.enter_context(Followed(wanted.output, job_ids, wanted.batch))
        return lambda identity, line: followed.add(identity.job_id, line), frozenset(followed.written)
    if wanted.output is not None:
        file = stack.enter_context(new_file(wanted.output))

        def to_file(_: Identity, line: bytes) -> None:
            file.write(line + b"\n")

        return to_file, frozenset()
    if wanted.save_to is not None:
        return lambda *_: None, frozenset()

    def to_stdout(_: Identity, line: bytes) -> None:
        sys.stdout.buffer.write(line + b"\n")
        sys.stdout.buffer.flush()

    return to_stdout, frozenset()
