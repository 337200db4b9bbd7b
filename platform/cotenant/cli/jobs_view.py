"""How jobs and batches look: a row each, and one of them whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cotenant.calls.desk import Json
from cotenant.cli.amounts import when_text

_BAR_CELLS = 20
_COLOURS = {
    "succeeded": "green",
    "completed": "green",
    "running": "cyan",
    "in_progress": "cyan",
    "finalizing": "cyan",
    "failed": "red",
    "expired": "yellow",
    "cancelled": "yellow",
    "cancelling": "yellow",
}


def show_jobs(jobs: Sequence[Json]) -> None:
    """Print a table of jobs."""
    rows = [
        (
            Text(str(job["id"])),
            status(job["status"]),
            Text(str(job.get("workload") or "")),
            Text(when_text(job["created_at"])),
            Text(str(job.get("custom_id") or "")),
        )
        for job in jobs
    ]
    _print(("id", "status", "workload", "created", "custom_id"), rows)


def show_batches(batches: Sequence[Json]) -> None:
    """Print a table of batches, each with a bar of how far it is."""
    plain = not Console().encoding.startswith("utf")
    rows = [
        (
            Text(str(batch["id"])),
            status(batch["status"]),
            bar(batch["request_counts"], plain=plain),
            _counts(batch["request_counts"]),
            Text(when_text(batch["created_at"])),
        )
        for batch in batches
    ]
    _print(("id", "status", "", "done", "created"), rows)


def show_one(facts: Mapping[str, Any]) -> None:
    """Print one thing: a line for each fact, further lines for what is a list."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        if value is None or value in ([], {}):
            continue
        if name == "status":
            grid.add_row(name, status(str(value)))
        elif isinstance(value, (list, tuple)):
            for number, line in enumerate(value):
                grid.add_row("" if number else name, Text(str(line)))
        else:
            grid.add_row(name, Text(str(value)))
    Console(highlight=False).print(grid)


def status(name: str) -> Text:
    return Text(name, style=_COLOURS.get(name, ""))


def bar(counts: Mapping[str, int], *, plain: bool = False) -> Text:
    """How far a batch is: done, failed, open."""
    total = counts["total"]
    done = round(counts["completed"] / total * _BAR_CELLS) if total else 0
    failed = min(_BAR_CELLS - done, -(-counts["failed"] * _BAR_CELLS // total)) if total else 0
    full, lost, free = ("#", "x", ".") if plain else ("█", "x", "·")
    return Text.assemble((full * done, "green"), (lost * failed, "red"), (free * (_BAR_CELLS - done - failed), "dim"))


def _counts(counts: Mapping[str, int]) -> Text:
    text = Text(f"{counts['completed'] + counts['failed']}/{counts['total']}")
    if counts["failed"]:
        text.append(f" ({counts['failed']} failed)", style="red")
    return text


def _print(headings: Sequence[str], rows: Iterable[Sequence[Text]]) -> None:
    rows = list(rows)
    if not rows:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        # An id is there to be copied.
        fold = heading in ("id", "custom_id")
        table.add_column(heading, overflow="fold" if fold else "ellipsis", no_wrap=heading == "id")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)
