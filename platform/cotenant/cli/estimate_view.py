"""How an estimate looks: a row for each workload, and what the figures rest on."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cotenant.cli.amounts import size_text, time_text
from cotenant.cli.estimate import Estimate
from cotenant.gpu.machines import PRICES_AS_OF, PRICES_REGION


def show(console: Console, found: Sequence[Estimate], *, stored_bytes: int, notes: Sequence[str] = ()) -> None:
    """Print the estimate. `stored_bytes` is what the submission would put into the store."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("workload")
    for heading in ("jobs", "bytes", "a job takes", "at once", "time", "cost"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in found:
        table.add_row(
            each.workload,
            f"{each.jobs:,}",
            size_text(each.bytes),
            f"{time_text(each.mean_s)}{'' if each.measured else '?'}",
            f"{each.slots:,}",
            time_text(each.time_s),
            _money(each),
        )
    console.print(table)
    jobs = sum(each.jobs for each in found)
    slowest = max((each.time_s for each in found), default=0.0)
    console.print(
        f"{jobs:,} job{'' if jobs == 1 else 's'}, {size_text(stored_bytes)} to be stored, done in about "
        f"{time_text(slowest)} if nothing else runs"
    )
    if any(not each.measured for each in found):
        text = "? is assumed (what two CPU cores took), as no platform that runs has measured it yet; GPUs are faster"
        console.print(text, style="dim")
    if any(each.usd is not None for each in found):
        text = f"list prices, {PRICES_REGION}, about {PRICES_AS_OF}, of the GPU share while it works"
        console.print(text, style="dim")
    for note in notes:
        console.print(f"[yellow]note[/] {escape(note)}")


def _money(each: Estimate) -> str:
    if each.usd is not None:
        return f"${each.usd:,.2f}" if each.usd >= 0.01 or each.usd == 0 else "< $0.01"
    return "?" if each.priced else "no price"
