"""`cotenant submit`: a file of jobs, or designs on templates, as one batch.

Everything is checked before anything is stored, and a submission is whole or not at all (`submitting`). stdout gets
the batch's name and one line a job, for scripts; what is meant for people goes to stderr.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cotenant.calls import Directory
from cotenant.calls.desk import Json
from cotenant.cli import jobs_door
from cotenant.cli.amounts import duration_s, time_text
from cotenant.cli.designs import Design, Look, Range, check_range, embeds, find_designs, lines, read_designs
from cotenant.cli.estimate import estimates
from cotenant.cli.interrupts import Stop, Stopped, stoppable
from cotenant.cli.options import platform_options, with_budgets
from cotenant.cli.submitting import Submission, check_references, exists, picture_id
from cotenant.cli.submitting import submit as submit_whole
from cotenant.config import Platform, load_platform
from cotenant.errors import (
    EnvironmentFault,
    JobsFileError,
    MalformedJob,
    OutboundError,
    PlanError,
    Problem,
    StoreUnavailable,
)
from cotenant.gpu.plan import Plan
from cotenant.gpu.plan import plan as make_plan
from cotenant.jobs.desk.batches import Batches, new_batch_id
from cotenant.jobs.desk.files import MAX_BATCH_FILE_BYTES
from cotenant.jobs.model import DEFAULT_TENANT, MAX_PRIORITY, MIN_PRIORITY, Job, Wishes, check_name
from cotenant.jobs.reading import read_jobs
from cotenant.jobs.store.records import Board, Records

#: Options that are a mockup's fields.
_LOOK = ("size", "samples", "format", "quality", "fit", "seed")
_ENDED = ("completed", "failed", "cancelled", "expired")


@dataclass(frozen=True)
class _Asked:
    """The options that say how, not what."""

    tenant: str
    batch: str
    named: bool
    priority: int
    deadline_at_s: float | None
    webhook: str | None


@click.command()
@platform_options
@click.argument("sources", nargs=-1, metavar="[JOBS.JSONL]")
@click.option("--template", "templates", multiple=True, help="Put designs on this template; may be given again.")
@click.option("--designs", multiple=True, help="Pictures: a file, a folder or a pattern such as 'art/*.png'.")
@click.option("--color", "colours", multiple=True, help="Background of the mockups, such as '#ff0000' or transparent.")
@click.option("--size", help="Pixels of a square mockup, or WIDTHxHEIGHT.")
@click.option("--samples", type=int, help="Light paths per pixel: less noise for more time.")
@click.option("--format", help="png, webp or jpeg.")
@click.option("--quality", type=int, help="1 to 100, for jpeg and webp.")
@click.option("--fit", help="cover, contain or stretch.")
@click.option("--seed", type=int, help="Same request and seed, same picture.")
@click.option("--tenant", default=DEFAULT_TENANT, show_default=True, help="Whose jobs they are.")
@click.option("--batch", help="Name of the batch (default: a new one). The same name again repeats no work.")
@click.option(
    "--priority",
    type=click.IntRange(MIN_PRIORITY, MAX_PRIORITY),
    default=0,
    show_default=True,
    help="A higher one goes first, among the tenant's own jobs.",
)
@click.option("--deadline", help="What has not begun by then is not begun: 2h, 7d or 2026-11-24T10:00:00Z.")
@click.option("--webhook", metavar="URL", help="Told when the batch has ended.")
@click.option("--dry-run", is_flag=True, help="Check everything, estimate time and cost, submit nothing.")
def submit(*, file: Path, environment: str, sources: tuple[str, ...], dry_run: bool, **options: Any) -> None:
    """Submit jobs: a file in OpenAI's batch format (- for stdin), or designs."""
    console = Console(stderr=True, highlight=False)
    try:
        asked = _asked(options)
        platform = load_platform(file, environment)
        submission = _submission(platform, sources, options, asked, console)
    except KeyboardInterrupt:
        console.print("[red]stopped[/]: nothing was submitted")
        raise click.exceptions.Exit(1) from None
    if dry_run:
        _estimate(platform, submission, named=asked.named)
    else:
        _submit(platform, submission, console)


def _asked(options: Mapping[str, Any]) -> _Asked:
    """The options that say how, checked. Raises click's usage errors."""
    name = options["batch"]
    for option, value in (("--tenant", options["tenant"]), ("--batch", name)):
        try:
            check_name("a name", value if value is not None else "any")
        except MalformedJob as error:
            raise click.BadParameter(str(error), param_hint=option) from error
    if name is not None and name.startswith("job_"):
        raise click.BadParameter("a name that begins with job_ is a job's; choose another", param_hint="--batch")
    return _Asked(
        tenant=options["tenant"],
        batch=name or new_batch_id(),
        named=name is not None,
        priority=options["priority"],
        deadline_at_s=_deadline(options["deadline"], time.time()),
        webhook=_webhook(options["webhook"]),
    )


def _webhook(url: str | None) -> str | None:
    """The URL, if its text is that of one which is ever called. Its secret is the ingress's to know."""
    if url is not None:
        from cotenant.outbound.delivery import check_url, load_trusted_hosts  # noqa: PLC0415 (few want one)

        try:
            check_url(url, load_trusted_hosts(os.environ))
        except OutboundError as error:
            raise click.BadParameter(str(error), param_hint="--webhook") from error
    return url


def _deadline(text: str | None, now_s: float) -> float | None:
    """Unix time of a deadline that is told as a duration or a time."""
    if text is None:
        return None
    seconds = duration_s(text)
    try:
        at_s = now_s + seconds if seconds is not None else Wishes.of({"deadline": text}).deadline_at_s
    except MalformedJob:
        hint = "takes a duration (2h, 1h30m, 7d) or a time with its zone (2026-11-24T10:00:00Z)"
        raise click.BadParameter(f"{hint}, got {text!r}", param_hint="--deadline") from None
    if at_s is not None and at_s <= now_s:
        raise click.BadParameter(f"{text} has passed; no job would begin", param_hint="--deadline")
    return at_s


def _submission(
    platform: Platform, sources: Sequence[str], options: Mapping[str, Any], asked: _Asked, console: Console
) -> Submission:
    """What is to be submitted, checked whole. Raises JobsFileError and click's usage errors."""
    wanted = Range(options["templates"], options["colours"], Look(**{name: options[name] for name in _LOOK}))
    if options["templates"] or options["designs"]:
        made = _of_designs(platform, [*options["designs"], *sources], wanted, asked, console)
    else:
        given = [f"--{name}" for name in _LOOK if options[name] is not None] + ["--color"] * bool(wanted.colours)
        if given:
            raise click.UsageError(f"{given[0]} is for designs; give --template and --designs too")
        if len(sources) != 1:
            raise click.UsageError("give one file of jobs, - for stdin, or --template and --designs")
        made = _of_file(platform, sources[0], asked)
    size = sum(len(line) + 1 for line in made.lines())
    if size > MAX_BATCH_FILE_BYTES:
        text = f"has {size >> 20} MB of jobs, and a batch may have {MAX_BATCH_FILE_BYTES >> 20} MB; split it"
        raise JobsFileError([Problem(made.filename, len(made.jobs), text)])
    return made


def _of_file(platform: Platform, source: str, asked: _Asked) -> Submission:
    jobs = _read(_lines(source), source, platform, asked)
    name = "stdin.jsonl" if source == "-" else Path(source).name
    return _made(asked, name, jobs, lambda: (job.line() for job in jobs), ())


def _of_designs(
    platform: Platform, patterns: Sequence[str], wanted: Range, asked: _Asked, console: Console
) -> Submission:
    if not wanted.templates:
        raise click.UsageError("give a --template for the designs")
    if not patterns:
        raise click.UsageError("give --designs for the templates: a picture, a folder or a pattern such as 'art/*.png'")
    wanted = check_range(wanted, platform)
    paths = find_designs(patterns)
    columns = (TextColumn("reading designs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=len(paths))
        designs = read_designs(paths, lambda: bar.advance(task))
    embedded = embeds(designs, wanted)
    stored = [design for design in designs if not embedded or design.embedded is None]

    def reference(design: Design) -> dict[str, str]:
        return {"file_id": picture_id(asked.tenant, asked.batch, design.sha256)}

    def made() -> Iterator[bytes]:
        return lines(designs, wanted, reference, embed=embedded)

    jobs = _read(made(), "designs", platform, asked)
    return _made(asked, "designs.jsonl", jobs, made, list({design.sha256: design for design in stored}.values()))


def _read(found: Iterable[bytes], name: str, platform: Platform, asked: _Asked) -> list[Job]:
    directory = Directory.of(platform)
    return read_jobs(found, name, tenant=asked.tenant, batch=asked.batch, directory=directory)


def _made(
    asked: _Asked, filename: str, jobs: Sequence[Job], made: Callable[[], Iterable[bytes]], pictures: Sequence[Design]
) -> Submission:
    return Submission(
        tenant=asked.tenant,
        batch=asked.batch,
        filename=filename,
        jobs=jobs,
        lines=made,
        pictures=pictures,
        priority=asked.priority,
        deadline_at_s=asked.deadline_at_s,
        webhook=asked.webhook,
    )


def _lines(source: str) -> list[bytes]:
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        hint = "name a file of jobs, or - for stdin"
        raise JobsFileError([Problem(source, 1, f"can't be read: {error.strerror}; {hint}")]) from error
    return data.split(b"\n")


# --- submitting ---


def _submit(platform: Platform, submission: Submission, console: Console) -> None:
    batch = escape(submission.batch)

    def stopping() -> None:
        console.print("[yellow]stopping[/] as soon as nothing is left half done; Ctrl-C again leaves at once")

    with stoppable(stopping) as stop:
        try:
            shown = stop.run(_submit_now(platform, submission, console, stop))
        except Stopped:
            console.print("[red]stopped[/]: nothing was submitted")
            raise click.exceptions.Exit(1) from None
        except KeyboardInterrupt:
            console.print(
                f"[red]stopped[/], and it can't be told whether batch {batch} was submitted: `cotenant jobs show "
                f"{batch}` tells; the same jobs again with --batch {batch} repeat no work"
            )
            raise click.exceptions.Exit(1) from None
        _tell(submission, shown, console, late=stop.wanted)


def _tell(submission: Submission, shown: Json, console: Console, *, late: bool) -> None:
    print(submission.batch)
    for job in submission.jobs:
        print(f"{job.identity.job_id}  {job.identity.custom_id}")
    batch = escape(submission.batch)
    if shown["status"] in _ENDED:
        console.print(
            f"[yellow]note[/] batch {batch} was submitted before and has ended ({shown['status']}); nothing is done "
            "again: another --batch would be"
        )
    elif late:
        console.print(f"[yellow]too late[/] to stop: `cotenant jobs cancel {batch}` takes it back")
    count = f"{len(submission.jobs)} job{'' if len(submission.jobs) == 1 else 's'}"
    console.print(f"[green]submitted[/] {count}; `cotenant results {batch}` collects what they give")


async def _submit_now(platform: Platform, submission: Submission, console: Console, stop: Stop) -> Json:
    door = jobs_door.door_of(platform)
    if not door.is_there:
        raise jobs_door.nothing_there(platform)
    store = jobs_door.result_store(platform, door.state)
    columns = (TextColumn("submitting"), BarColumn(), DownloadColumn(binary_units=True), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("submitting", total=submission.bytes)
        async with jobs_door.publisher(door) as publish:
            made = Batches(store.objects, publish, platform.jobs, check_webhook=lambda tenant, url: None)
            return await submit_whole(submission, store.objects, made, stop, lambda size: bar.advance(task, size))


# --- the dry run ---


def _estimate(platform: Platform, submission: Submission, *, named: bool) -> None:
    from cotenant.cli.estimate_view import show  # noqa: PLC0415 (only a dry run draws a table)

    notes: list[str] = []
    plan = _plan(platform, notes)
    boards = asyncio.run(_known(platform, submission, named, notes))
    found = estimates(platform, plan, submission.jobs, boards)
    if submission.deadline_at_s is not None:
        left_s = submission.deadline_at_s - time.time()
        if max(each.time_s for each in found) > left_s:
            notes.append(f"the deadline is in {time_text(left_s)}: what has not begun by then is not done")
    show(Console(highlight=False), found, stored_bytes=submission.bytes, notes=notes)


def _plan(platform: Platform, notes: list[str]) -> Plan | None:
    try:
        budgeted, _ = with_budgets(platform)
        return make_plan(budgeted)
    except PlanError as error:
        notes.append(f"no cost: {str(error).splitlines()[0]}")
        return None


async def _known(platform: Platform, submission: Submission, named: bool, notes: list[str]) -> tuple[Board, ...]:
    """The boards of ingresses that live; nothing is created for the sake of looking."""
    door = jobs_door.door_of(platform)
    if not door.is_there:
        return ()
    try:
        store = jobs_door.existing_store(platform, door.state)
    except EnvironmentFault:
        return ()
    try:
        await check_references(submission, store.objects)
        if named and await exists(submission, store.objects, submission.sha256()):
            notes.append(f"batch {submission.batch} was submitted before: the same again repeats no work")
        return await Records(store.objects).boards(time.time())
    except StoreUnavailable as error:
        notes.append(str(error))
        return ()
