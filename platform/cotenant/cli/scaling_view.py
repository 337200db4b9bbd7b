"""How `cotenant scaling` looks on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def show(decisions: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a table, a line a workload, and under it the reasons."""
    table = Table(box=None, pad_edge=False)
    table.add_column("workload")
    for column in ("serve", "start", "wanted", "calls run", "wait", "a second", "take"):
        table.add_column(column, justify="right")
    for name, one in sorted(decisions.items()):
        starting = one["starting_in_s"]
        table.add_row(
            name,
            str(one["serving"]),
            f"{len(starting)} in {max(starting):.0f} s" if starting else "-",
            str(one["replicas"]),
            str(one["running"]),
            str(one["waiting"]),
            f"{one['arriving_per_s']:.3g}",
            f"{one['service_s']:.3g} s" if one["service_s"] else "?",
        )
    console = Console(highlight=False)
    console.print(table)
    for name, one in sorted(decisions.items()):
        console.print(f"{name}: {one['why']}", style="dim", soft_wrap=True)
