"""How `cotenant top` looks: in 80 columns, in a pipe, without colour; bars of letters, as in `cotenant plan`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from string import ascii_lowercase, ascii_uppercase, digits

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cotenant.agent.snapshot import Event, GpuView, ReplicaView, Snapshot
from cotenant.errors import EnvironmentFault

_COLUMNS = 80
_BAR_CELLS = 40
_EVENTS_SHOWN = 8
_LETTERS = ascii_uppercase + ascii_lowercase + digits
_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")
_EVENT_COLOURS = {"warned": "yellow", "stopped": "red", "fault": "red", "refused": "red", "unknown": "yellow"}
_STRANGER = "?"
_LOST_LIMIT = 5


def show(snapshots: Sequence[Snapshot], console: Console | None = None) -> None:
    """Print it once."""
    console = console or Console(highlight=False)
    console.print(_screen(snapshots, unicode=console.encoding.startswith("utf"), events=_EVENTS_SHOWN))


def live(first: Sequence[Snapshot], again: Callable[[], list[Snapshot]], interval_s: float) -> None:
    """Show it until interrupted.

    Raises:
        EnvironmentFault: no agent has answered several times in a row.
    """
    console = Console(highlight=False)
    unicode = console.encoding.startswith("utf")

    def screen(snapshots: Sequence[Snapshot], note: str = "") -> RenderableType:
        return _screen(snapshots, unicode=unicode, events=_EVENTS_SHOWN, note=note)

    shown, lost = first, 0
    with Live(screen(shown), console=console, screen=console.is_terminal, auto_refresh=False) as view:
        while True:
            time.sleep(interval_s)
            try:
                shown, lost = again(), 0
                view.update(screen(shown), refresh=True)
            except EnvironmentFault as fault:
                lost += 1
                if lost > _LOST_LIMIT:
                    raise
                view.update(screen(shown, f"as it was: {fault}"), refresh=True)


def _screen(snapshots: Sequence[Snapshot], *, unicode: bool, events: int, note: str = "") -> RenderableType:
    letters = _letters(snapshots)
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(letters)}
    parts: list[RenderableType] = []
    for snapshot in snapshots:
        parts.append(Text(_heading(snapshot), style="bold"))
        for gpu in snapshot.gpus:
            parts += [Text(""), _title(gpu)]
            if gpu.usable_mib is not None:
                parts.append(_bar(gpu, letters, colours, "·" if unicode else "."))
            if measured := _measured(gpu):
                parts.append(Text(f"  {measured}", style="dim"))
            if gpu.replicas:
                parts.append(_table(gpu.replicas, letters, colours))
            parts += _notes(gpu)
        if snapshot.unplaced:
            parts += [Text("\nGPU not known yet"), _table(snapshot.unplaced, letters, colours)]
        parts += [Text("\nlately", style="bold"), *(_event(event) for event in snapshot.events[-events:][::-1])]
        parts.append(Text(""))
    if note:
        parts.append(Text(note, style="yellow"))
    return Group(*parts)


def _heading(snapshot: Snapshot) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(snapshot.at))
    waiting = sum(len(gpu.waiting) for gpu in snapshot.gpus)
    replicas = sum(len(gpu.replicas) for gpu in snapshot.gpus) + len(snapshot.unplaced)
    return (
        f"node {snapshot.node_id[:16]}  {at}  {_count(len(snapshot.gpus), 'GPU')}, {_count(replicas, 'replica')}, "
        f"{waiting} {'waits' if waiting == 1 else 'wait'} for memory"
    )


def _title(gpu: GpuView) -> Text:
    text = Text(f"GPU {gpu.index} {gpu.name}{f' {gpu.mig}' if gpu.mig else ''}", style="bold")
    if not gpu.pool:
        return text
    facts = f"pool {gpu.pool}"
    if gpu.usable_mib is not None:
        held = sum(replica.held_mib or 0.0 for replica in gpu.replicas)
        held += sum(stranger.held_mib or 0.0 for stranger in gpu.unknown)
        lent = sum(replica.lease_mib for replica in gpu.replicas)
        facts += f", {gpu.usable_mib / 1024:.3g} GiB: {_gib(held)} held, {_gib(lent)} lent"
        facts += f", {_gib(gpu.free_mib)} free to lend"
    gap = "  " if text.cell_len + 2 + cell_len(facts) <= _COLUMNS else "\n  "
    return text.append(f"{gap}{facts}", style="not bold")


def _measured(gpu: GpuView) -> str:
    """What the whole GPU reports of itself, whoever it is that uses it."""
    facts = []
    if gpu.used_mib is not None:
        facts.append(f"{_gib(gpu.used_mib)} of {_gib(gpu.total_mib)} GiB used")
    if gpu.sm_util is not None:
        facts.append(f"SM {gpu.sm_util:.0%}")
    return ", ".join(facts)


def _bar(gpu: GpuView, letters: dict[str, str], colours: dict[str, str], free: str) -> Text:
    """The usable memory: letters are what replicas hold, dashes what they were lent besides."""
    bar, drawn, upto = Text("  "), 0, 0.0
    usable = max(gpu.usable_mib or 0.0, 1.0)

    def draw(mark: str, mib: float, style: str) -> None:
        nonlocal drawn, upto
        upto += mib
        cells = max(0, min(_BAR_CELLS, round(upto / usable * _BAR_CELLS)) - drawn)
        bar.append(mark * cells, style=style)
        drawn += cells

    for replica in gpu.replicas:
        held = replica.held_mib or 0.0
        draw(letters[replica.workload], held, colours[replica.workload])
        draw("-", max(0.0, replica.lease_mib - held), colours[replica.workload])
    draw(_STRANGER, sum(stranger.held_mib or 0.0 for stranger in gpu.unknown), "red")
    bar.append(free * (_BAR_CELLS - drawn), style="dim")
    return bar.append("  letters held, - lent", style="dim")


def _table(replicas: Sequence[ReplicaView], letters: dict[str, str], colours: dict[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("  ", no_wrap=True)
    table.add_column("workload", no_wrap=True, overflow="ellipsis", max_width=20)
    table.add_column("pid", justify="right", no_wrap=True)
    table.add_column("tier", no_wrap=True)
    for heading in ("held", "lent", "budget", "peak", "run", "wait"):
        table.add_column(heading, justify="right", no_wrap=True)
    for replica in replicas:
        table.add_row(
            Text(f" {letters[replica.workload]}", style=colours[replica.workload]),
            replica.workload,
            str(replica.pid),
            replica.tier.value if replica.connected else "lost",
            _gib(replica.held_mib),
            _gib(replica.lease_mib),
            _gib(replica.budget_mib),
            _gib(replica.peak_mib),
            str(replica.running),
            str(replica.waiting),
        )
    return table


def _notes(gpu: GpuView) -> list[RenderableType]:
    notes: list[RenderableType] = []
    names = {replica.replica: replica.workload for replica in gpu.replicas}
    if gpu.waiting:
        notes.append(Text(f"  wait for memory: {', '.join(names.get(who, who) for who in gpu.waiting)}"))
    for stranger in gpu.unknown:
        notes.append(Text(f"  process {stranger.pid} is no replica, holds {_gib(stranger.held_mib)} GiB", style="red"))
    if gpu.measured_by == "reported":
        notes.append(
            Text(f"  NVML does not tell processes apart here; {_gib(gpu.unattributed_mib)} GiB unattributed", "yellow")
        )
    if gpu.fault:
        notes.append(Text(f"  {gpu.fault}", style="red"))
    return notes


def _event(event: Event) -> Text:
    at = time.strftime("%H:%M:%S", time.localtime(event.at))
    return Text(f"  {at} {event.kind:<9} {event.text}", style=_EVENT_COLOURS.get(event.kind, ""))


def _letters(snapshots: Sequence[Snapshot]) -> dict[str, str]:
    """A letter for each workload: its initial if that is free, else the next free one; past 62 they repeat."""
    views = [view for snapshot in snapshots for gpu in snapshot.gpus for view in gpu.replicas]
    views += [view for snapshot in snapshots for view in snapshot.unplaced]
    taken: dict[str, str] = {}
    free: list[str] = []
    for name in sorted({view.workload for view in views}):
        free = free or list(_LETTERS)
        letter = name[0].upper() if name[0].upper() in free else free[0]
        free.remove(letter)
        taken[name] = letter
    return taken


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _gib(mib: float | None) -> str:
    return "?" if mib is None else f"{mib / 1024:.1f}" if mib < 102_400 else f"{mib / 1024:.0f}"
