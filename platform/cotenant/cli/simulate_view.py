"""How `cotenant simulate` looks on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from cotenant.gpu.machines import PRICES_AS_OF, PRICES_REGION


def show(what: str, until_s: float, names: Sequence[str], runs: Sequence[Mapping[str, Any]]) -> None:
    """Print a table of all ways for the whole platform, and one for each workload that anything was asked of."""
    console = Console(highlight=False)
    console.print(f"{what}: {until_s / 3600:.3g} h, simulated", style="bold")
    ours = runs[0]
    table = Table(box=None, pad_edge=False)
    table.add_column("scaled by", no_wrap=True)
    for column in ("GPU-hours", "USD", "of ours", "nodes made", "left undone"):
        table.add_column(column, justify="right")
    for run in runs:
        of_ours = f"{run['gpu_hours'] / ours['gpu_hours']:.2f}x" if ours["gpu_hours"] else "-"
        table.add_row(
            run["name"], f"{run['gpu_hours']:.2f}", f"{run['usd']:.2f}", of_ours, str(run["nodes_made"]),
            str(run["undone"]) if run["undone"] else "",
        )  # fmt: skip
    console.print(table)
    for name in names:
        first = ours["workloads"][name]
        if not first["calls"]:
            continue
        console.print(f"\n{name}: {first['calls']} calls, to wait no longer than {first['target_wait_s']:g} s")
        table = Table(box=None, pad_edge=False)
        table.add_column("scaled by", no_wrap=True)
        for column in ("wait p50", "p95", "p99", "longer", "replica-hours", "starts", "wakes"):
            table.add_column(column, justify="right")
        for run in runs:
            one = run["workloads"][name]
            waits = [f"{one['wait_s'][part]:.1f} s" for part in ("p50", "p95", "p99")]
            late = f"{one['longer_than_target']:.1%}"
            table.add_row(
                run["name"], *waits, late, f"{one['replica_hours']:.2f}", str(one["starts"]), str(one["wakes"])
            )
        console.print(table)
    console.print(
        f"\nStart times are ranges that people report, prices by list ({PRICES_REGION}, {PRICES_AS_OF}): a comparison, "
        "not a bill.",
        style="dim",
    )
