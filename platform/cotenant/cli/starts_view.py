"""How `cotenant starts` looks: in 80 columns, in a pipe, without colour; a bar of letters for each start."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cotenant.telemetry.starts import KINDS, STAGES, Figures, Kind, Stage, Start

LETTERS: dict[Stage, str] = {
    "queued": "Q",
    "node": "N",
    "image": "G",
    "process": "P",
    "imports": "I",
    "turn": "T",
    "weights": "W",
    "warm_up": "U",
    "wake": "K",
    "first_result": "F",
}
_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")
_BAR_CELLS = 32
_SHOWN = 15


def show(starts: Sequence[Start], figures: Sequence[Figures], console: Console | None = None) -> None:
    """Print the latest of them, oldest first, then the figures."""
    console = console or Console(highlight=False)
    for kind in KINDS:
        latest = [start for start in starts if start.kind == kind][-_SHOWN:]
        if latest:
            console.print(_bars(kind, latest))
            console.print()
    used = [stage for stage in STAGES if any(stage in start.seconds() for start in starts)]
    legend = Text("  ")
    for stage in used:
        legend.append(LETTERS[stage], style=_colour(stage)).append(f" {_words(stage)}  ", style="dim")
    console.print(legend)
    for kind in KINDS:
        here = [figure for figure in figures if figure.kind == kind]
        if here:
            console.print()
            console.print(_figures(kind, here))


def _bars(kind: Kind, starts: Sequence[Start]) -> Table:
    longest = max(sum(start.seconds().values()) for start in starts) or 1.0
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(kind, no_wrap=True)
    table.add_column("workload", no_wrap=True, overflow="ellipsis", max_width=12)
    table.add_column("", no_wrap=True, width=_BAR_CELLS)
    table.add_column("ready", justify="right", no_wrap=True)
    table.add_column("first result", justify="right", no_wrap=True)
    for start in starts:
        first = start.first_result
        table.add_row(
            time.strftime("%H:%M:%S", time.localtime(start.began_at)),
            start.workload,
            _bar(start, longest),
            _seconds(start.ready_s),
            _seconds(first.seconds) if first is not None else "-",
        )
    return table


def _bar(start: Start, longest_s: float) -> Text:
    """Stages in the order in which they were, each as long as it took; what takes under half a cell is not seen."""
    bar, drawn, upto = Text(), 0, 0.0
    for span in start.spans:
        upto += span.seconds
        cells = max(0, round(upto / longest_s * _BAR_CELLS) - drawn)
        bar.append(LETTERS[span.stage] * cells, style=_colour(span.stage))
        drawn += cells
    return bar


def _figures(kind: Kind, figures: Sequence[Figures]) -> Table:
    """A row for each stage, and two columns, p50 and mean, for each workload."""
    workloads = list(dict.fromkeys(figure.workload for figure in figures))
    found = {(figure.workload, figure.stage): figure for figure in figures}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(f"{kind}, s: p50 (mean)", no_wrap=True)
    for workload in workloads:
        count = found[workload, None].starts
        table.add_column(f"{workload} ({count})", justify="right", overflow="fold")
    before: list[Stage] = [stage for stage in STAGES if stage != "first_result"]
    rows: list[Stage | None] = [*before, None, "first_result"]
    for stage in rows:
        cells = [found.get((workload, stage)) for workload in workloads]
        if any(cells):
            table.add_row(
                Text(f"{LETTERS[stage]} {_words(stage)}", style=_colour(stage))
                if stage
                else Text("ready", style="bold"),
                *(f"{_seconds(cell.p50_s)} ({_seconds(cell.mean_s)})" if cell else "" for cell in cells),
            )
    return table


def _words(stage: Stage) -> str:
    return stage.replace("_", " ").replace("warm up", "warm-up")


def _colour(stage: Stage) -> str:
    return _COLOURS[list(STAGES).index(stage) % len(_COLOURS)]


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds >= 9.95 else f"{seconds:.2f}"
