"""How `cotenant simulate` looks on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from cotenant.gpu.machines import PRICES_AS_OF, PRICES_REGION


def show(
    what: str, until_s: float, names: Sequence[str], runs: Sequence[Mapping[str, Any]], notes: Sequence[str]
) -> None:
    """Print a table of all ways for the whole platform, and one for each workload that anything was asked of."""
    console = Console(highlight=False)
    console.print(f"{what}: {until_s / 3600:.3g} h, simulated", style="bold")
    ours = runs[0]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("scaled by", no_wrap=True)
    lossy = any(run["nodes_lost"] for run in runs)
    columns = ["GPU-hours", "USD", "of ours", "nodes made", *(["nodes lost"] if lossy else []), "left undone"]
    for column in columns:
        table.add_column(column, justify="right")
    for run in runs:
        of_ours = f"{run['gpu_hours'] / ours['gpu_hours']:.2f}x" if ours["gpu_hours"] else "-"
        table.add_row(
            run["name"], f"{run['gpu_hours']:.2f}", f"{run['usd']:.2f}", of_ours, str(run["nodes_made"]),
            *([str(run["nodes_lost"])] if lossy else []), str(run["undone"]) if run["undone"] else "",
        )  # fmt: skip
    console.print(table)
    for name in names:
        first = ours["workloads"][name]
        dated = first.get("dated")
        if not first["calls"] and dated is None:
            continue
        more = f" ({dated['calls']} more with deadlines of their own)" if dated else ""
        console.print(f"\n{name}: {first['calls']} calls, to wait no longer than {first['target_wait_s']:g} s{more}")
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("scaled by", no_wrap=True)
        columns = [
            "p50, s",
            "p95, s",
            "p99, s",
            "longer",
            *(["overdue"] if dated else []),
            "replica-h",
            "starts",
            "wakes",
        ]
        for column in columns:
            table.add_column(column, justify="right", no_wrap=True)
        for run in runs:
            one = run["workloads"][name]
            cells = [f"{one['wait_s'][part]:.1f}" for part in ("p50", "p95", "p99")]
            cells.append(f"{one['longer_than_target']:.1%}")
            if dated:
                cells.append(f"{one['dated']['overdue']:.1%}")
            table.add_row(run["name"], *cells, f"{one['replica_hours']:.2f}", str(one["starts"]), str(one["wakes"]))
        console.print(table)
    for note in notes:
        console.print(f"\n{note}", style="dim")
    console.print(
        f"\nStart times are ranges that people report, prices by list ({PRICES_REGION}, {PRICES_AS_OF}): a comparison, "
        "not a bill.",
        style="dim",
    )
