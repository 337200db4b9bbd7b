"""`cotenant simulate --plot`: one figure of what was asked, what waited, what was there and what it cost.

The one file that knows matplotlib (the extra `plots`), imported where it draws. The same runs give the same bytes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from cotenant.cli.simulate_runs import Run
from cotenant.errors import EnvironmentFault, TraceError
from cotenant.sim.model import Sample

SUFFIXES = (".png", ".svg")
#: Waits are shown for so many workloads, those that most calls were for.
_SHOWN = 3
#: Okabe and Ito's colours, which most colour-blind people tell apart; ours first.
_LINES: tuple[tuple[str, str], ...] = (
    ("#0072B2", "-"), ("#E69F00", "-"), ("#009E73", "-"), ("#CC79A7", "-"), ("#8A8A8A", (0, (5, 2))), ("#333333", ":"),
)  # type: ignore[assignment] # fmt: skip
_WORKLOADS = ("#56B4E9", "#F0C75E", "#7FC8A9", "#D99AB8", "#B0A8D8", "#C9C9C9")
_TIERS = {"resident": "#0072B2", "asleep": "#A6CEE3", "starting": "#F2A65A"}
_HOW_TO_READ = (
    "Start times are ranges that people report, prices by list. Waits and queues: even up to 1, then by tenfolds; "
    "the shade is from our median to our p95."
)
_STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#888888",
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#E6E6E6", "grid.linewidth": 0.7, "xtick.color": "#555555",
    "ytick.color": "#555555", "legend.frameon": False, "svg.hashsalt": "cotenant", "svg.fonttype": "path",
}  # fmt: skip


def check(file: Path) -> None:
    """That a figure could be written there, before anything is simulated for it.

    Raises:
        TraceError: its name ends in nothing that is drawn, or its folder is not there.
        EnvironmentFault: matplotlib is not installed.
    """
    if file.suffix.lower() not in SUFFIXES:
        raise TraceError(f"--plot {file} ends in {file.suffix or 'nothing'}; a figure is {' or '.join(SUFFIXES)}")
    if not file.absolute().parent.is_dir():
        raise TraceError(f"--plot {file}: there is no folder {file.absolute().parent}")
    if importlib.util.find_spec("matplotlib") is None:
        raise EnvironmentFault("--plot needs matplotlib, which is not installed; pip install 'cotenant[plots]'")


def draw(file: Path, title: str, names: Sequence[str], runs: Sequence[Run]) -> None:
    """Draw the runs, ours first, into a file.

    Raises:
        EnvironmentFault: the file can't be written.
    """
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    calls = [waits.count for waits in runs[0].outcome.waits]
    asked = sorted((n for n, count in enumerate(calls) if count), key=lambda n: -calls[n])
    shown = sorted(asked[:_SHOWN])
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(13, 5.6 + 1.15 * len(shown)), dpi=110)
        outer = figure.add_gridspec(1, 2, left=0.055, right=0.985, top=0.865, bottom=0.06, wspace=0.13)
        columns = outer[0].subgridspec(2 + len(shown), 1, hspace=0.42), outer[1].subgridspec(3, 1, hspace=0.3)
        left, right = ([figure.add_subplot(column[row, 0]) for row in range(column.nrows)] for column in columns)
        unit_s, unit = _unit(runs[0].outcome.samples[-1].at_s)
        last_s = max(run.outcome.samples[-1].at_s for run in runs)
        _arrivals(left[0], runs[0], names, asked, unit_s)
        _waiting(left[1], runs, unit_s)
        for axes, number in zip(left[2:], shown, strict=True):
            _waits(axes, runs, number, names[number], unit_s)
        _replicas(right[0], runs[0], unit_s)
        _each(right[1], runs, unit_s, "nodes, ready and coming", lambda run, sample: sum(sample.nodes), step=True)
        _each(right[2], runs, unit_s, "cost until then, USD", _usd)
        _totals(right[2], runs)
        for axes in (*left, *right):
            axes.set_xlim(0, last_s / unit_s)
            axes.margins(y=0.08)
            if axes not in (left[-1], right[-1]):
                axes.tick_params(labelbottom=False)
        for axes in (left[-1], right[-1]):
            axes.set_xlabel(unit)
        figure.text(0.012, 0.972, title, fontsize=13, fontweight="bold", va="center")
        figure.text(0.012, 0.945, _HOW_TO_READ, color="#666666", va="center")
        figure.legend(
            *left[1].get_legend_handles_labels(), loc="center left", bbox_to_anchor=(0.004, 0.914), ncols=len(runs)
        )
        _save(figure, file)


def _save(figure: Any, file: Path) -> None:
    """Without a date or a version, so that the same runs give the same bytes."""
    svg = file.suffix.lower() == ".svg"
    try:
        figure.savefig(
            file,
            format=file.suffix[1:].lower(),
            metadata={"Date": None, "Creator": None} if svg else {"Software": None},
        )
    except OSError as error:
        raise EnvironmentFault(f"--plot {file} can't be written: {error}") from error


def _unit(last_s: float) -> tuple[float, str]:
    if last_s <= 2 * 3600:
        return 60.0, "minutes"
    return (3600.0, "hours") if last_s <= 72 * 3600 else (86400.0, "days")


def _lines(runs: Sequence[Run]) -> Iterator[tuple[Run, dict[str, Any]]]:
    """How each run is drawn; ours over the others."""
    for number, run in enumerate(runs):
        colour, dashes = _LINES[number % len(_LINES)]
        ours = number == 0
        yield run, {"color": colour, "linestyle": dashes, "linewidth": 2.0 if ours else 1.2,
                    "zorder": 5 if ours else 3, "label": run.name}  # fmt: skip


def _arrivals(axes: Any, run: Run, names: Sequence[str], asked: Sequence[int], unit_s: float) -> None:
    samples = run.outcome.samples
    at = [sample.at_s / unit_s for sample in samples]
    rates = [
        [0.0] + [60 * (b.arrived[n] - a.arrived[n]) / (b.at_s - a.at_s) for a, b in pairwise(samples)] for n in asked
    ]
    colours = [_WORKLOADS[n % len(_WORKLOADS)] for n in asked]
    axes.stackplot(at, *rates, step="pre", colors=colours, labels=[names[n] for n in asked], linewidth=0)
    axes.set_title("calls a minute that come")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.97), ncols=6, fontsize=8, handlelength=1, borderpad=0)


def _waiting(axes: Any, runs: Sequence[Run], unit_s: float) -> None:
    _each(axes, runs, unit_s, "calls that wait", lambda run, sample: sum(sample.waiting), step=True)
    axes.set_yscale("symlog", linthresh=1)
    _plain(axes)


def _waits(axes: Any, runs: Sequence[Run], number: int, name: str, unit_s: float) -> None:
    """The 95th percentile of each way; of ours the median too."""
    target_s = runs[0].workloads[number].bounds.target_wait_s
    for run, line in _lines(runs):
        had = [(one.at_s / unit_s, one.waits_s[number]) for one in run.outcome.samples]
        at = [at for at, waits in had if waits is not None]
        p95 = [waits[1] for _, waits in had if waits is not None]
        axes.plot(at, p95, **{**line, "linewidth": line["linewidth"] * 0.8})
        if run is runs[0]:
            p50 = [waits[0] for _, waits in had if waits is not None]
            axes.fill_between(at, p50, p95, color=line["color"], alpha=0.18, linewidth=0, zorder=4)
    axes.axhline(target_s, color="#D55E00", linewidth=1, linestyle=(0, (1, 1.5)), zorder=6)
    axes.set_title(f"{name}: wait, p95, in s")
    axes.set_title(f"target {target_s:g} s", loc="right", color="#D55E00", fontsize=8, fontweight="normal")
    axes.set_yscale("symlog", linthresh=1)
    _plain(axes)
    axes.set_ylim(top=max(axes.get_ylim()[1], 2 * target_s))


def _replicas(axes: Any, run: Run, unit_s: float) -> None:
    samples = run.outcome.samples
    at = [sample.at_s / unit_s for sample in samples]
    tiers = {"resident": [sum(one.resident) for one in samples], "asleep": [sum(one.asleep) for one in samples],
             "starting": [sum(one.starting) for one in samples]}  # fmt: skip
    there = {name: counts for name, counts in tiers.items() if any(counts)}
    axes.stackplot(at, *there.values(), step="post", colors=[_TIERS[name] for name in there], labels=list(there),
                   linewidth=0, alpha=0.9)  # fmt: skip
    axes.set_title(f"replicas of {run.name}")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.97), ncols=3, fontsize=8, handlelength=1, borderpad=0)


def _each(
    axes: Any, runs: Sequence[Run], unit_s: float, title: str, what: Callable[[Run, Sample], float], *,
    step: bool = False,
) -> None:  # fmt: skip
    for run, line in _lines(runs):
        samples = run.outcome.samples
        at, values = [one.at_s / unit_s for one in samples], [what(run, one) for one in samples]
        axes.plot(at, values, drawstyle="steps-post" if step else "default", **line)
    axes.set_ylim(bottom=0)
    axes.set_title(title)


def _totals(axes: Any, runs: Sequence[Run]) -> None:
    """What each came to in the end, the dearest first, as it is drawn."""
    lines = sorted(zip(axes.get_lines(), runs, strict=True), key=lambda one: -one[1].usd)
    axes.legend(
        [line for line, _ in lines], [f"{run.usd:,.2f} {run.name}" for _, run in lines], loc="upper left", fontsize=8,
        labelspacing=0.25, borderpad=0,
    )  # fmt: skip


def _usd(run: Run, sample: Sample) -> float:
    return sum(s / 3600 * pool.usd_per_h for s, pool in zip(sample.node_s, run.pools, strict=True))


def _plain(axes: Any) -> None:
    """Numbers on the axis as they are read."""
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.minorticks_off()
