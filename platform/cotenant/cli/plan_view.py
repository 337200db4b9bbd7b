"""How `cotenant plan` looks on a terminal, in a pipe, in 80 columns: bars of letters, so that colour is not needed.

A letter is what a workload books always, `~` the room kept free for one that sleeps to wake in, a dot is free.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from string import ascii_lowercase, ascii_uppercase, digits
from textwrap import fill

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cotenant.config import Platform
from cotenant.cost import Cost
from cotenant.gpu.machines import PRICES_AS_OF, PRICES_REGION
from cotenant.gpu.plan import Booking, GpuFill, Plan, PoolPlan

_BAR_CELLS = 24
_FREE = "·"
_WAKE = "~"
_LETTERS = ascii_uppercase + ascii_lowercase + digits
_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")


def show(platform: Platform, plan: Plan, cost: Cost) -> None:
    """Print the plan: GPUs at maximum replicas, workloads, monthly cost, warnings."""
    console = Console(highlight=False)
    free = _FREE if console.encoding.startswith("utf") else "."
    letters = _letters(plan.workloads)
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(plan.workloads)}
    console.print(
        f"{platform.name}, {plan.environment}: {_count(plan.gpus_needed, 'GPU')} with every replica, "
        f"{plan.gpus_needed_at_min} at minimum",
        style="bold",
    )
    if not plan.is_fewest:
        console.print(f"No fewer than {_count(plan.gpus_lower_bound, 'GPU')} could do, however packed.", style="dim")
    for pool in plan.pools.values():
        grows = _count(platform.pools[pool.name].nodes.max, "node")
        device = f"{pool.accelerator} cut into {pool.mig}" if pool.mig else pool.accelerator
        console.print(f"\npool {pool.name}: {device}, {pool.usable_gib:g} GiB each, up to {grows}")
        if pool.gpus_at_max:
            console.print(_gpu_rows(pool, plan, letters, colours, free))
            _print_sleepers(console, pool)
        else:
            console.print("  no workload goes here")
    console.print()
    console.print(_workload_table(plan, letters, colours))
    console.print()
    _print_cost(console, plan, cost)
    for warning in plan.warnings:
        console.print(Text.assemble(("\nnote ", "yellow"), warning))


def _print_sleepers(console: Console, pool: PoolPlan) -> None:
    """How many more models are at home than fit at once, where some may sleep."""
    if not pool.wake_gib:
        return
    more = pool.at_home - pool.awake
    than = f"{more} more than fit at once" if more else "which all fit at once"
    text = (
        f"{_WAKE} {pool.wake_gib:.1f} GiB of each GPU are kept free for whichever wakes. "
        f"{_count(pool.at_home, 'replica')} at home, {than}."
    )
    console.print(fill(text, console.width, initial_indent="  ", subsequent_indent="    "))


def _gpu_rows(pool: PoolPlan, plan: Plan, letters: Mapping[str, str], colours: Mapping[str, str], free: str) -> Table:
    """A row for each GPU, or for each run of GPUs that hold the same."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, justify="right")
    grid.add_column()
    for first, last, gpu in _runs(pool.gpus_at_max):
        label = f"  GPU {first}" if first == last else f"  GPU {first}-{last} x{last - first + 1}"
        bar = Text()
        for letter, name, cells in _bar(gpu, pool, plan, letters):
            bar.append((free if letter == _FREE else letter) * cells, style=colours.get(name, "dim"))
        counts = ((name, gpu.replicas[name]) for name in _by_share(gpu, plan))
        held = ", ".join(name if count == 1 else f"{name} x{count}" for name, count in counts)
        grid.add_row(label, bar, f"{gpu.free_gib:.1f} GiB free", held)
    return grid


def _runs(gpus: Iterable[GpuFill]) -> list[tuple[int, int, GpuFill]]:
    """First number, last number and content of each run of GPUs that hold the same, fullest first."""
    alike = sorted(gpus, key=lambda gpu: (gpu.free_share, sorted(gpu.replicas.items())))
    runs: list[tuple[int, int, GpuFill]] = []
    number = 1
    for _, group in groupby(alike, key=lambda gpu: sorted(gpu.replicas.items())):
        members = list(group)
        runs.append((number, number + len(members) - 1, members[0]))
        number += len(members)
    return runs


def _bar(gpu: GpuFill, pool: PoolPlan, plan: Plan, letters: Mapping[str, str]) -> list[tuple[str, str, int]]:
    """Letter, workload and cells of each part of a GPU's bar: largest first, then what is free, then wake-up room."""
    wake = max(1, round(pool.wake_gib / pool.usable_gib * _BAR_CELLS)) if pool.wake_gib else 0
    width = _BAR_CELLS - wake
    shares = _by_share(gpu, plan)
    parts: list[tuple[str, str, int]] = []
    upto, drawn = 0.0, 0
    for name, share in shares.items():
        upto += share
        cells = min(max(1, round(upto * width) - drawn), width - drawn)
        parts.append((letters[name], name, cells))
        drawn += cells
    return [*parts, (_FREE, "", width - drawn), (_WAKE, "", wake)]


def _by_share(gpu: GpuFill, plan: Plan) -> dict[str, float]:
    """What each workload books of a GPU with all of its replicas there, the most first."""
    shares = {name: count * plan.workloads[name].num_gpus for name, count in gpu.replicas.items()}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _letters(workloads: Iterable[str]) -> dict[str, str]:
    """A letter for each workload: its initial if that is free, else the next free one; past 62 they repeat."""
    taken: dict[str, str] = {}
    free: list[str] = []
    for name in workloads:
        free = free or list(_LETTERS)
        letter = name[0].upper() if name[0].upper() in free else free[0]
        free.remove(letter)
        taken[name] = letter
    return taken


def _workload_table(plan: Plan, letters: Mapping[str, str], colours: Mapping[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("", "workload", "pool"):
        table.add_column(heading)
    for heading in ("num_gpus", "GiB", "replicas"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, booking in plan.workloads.items():
        low, high = booking.replicas_min, booking.replicas_max
        table.add_row(
            Text(letters[name], style=colours[name]),
            name,
            booking.pool,
            f"{booking.num_gpus:.4f}",
            _gib(booking),
            str(low) if low == high else f"{low}..{high}",
        )
    return table


def _gib(booking: Booking) -> str:
    asleep = booking.terms.residency != "always"
    return f"{booking.vram_gib:g}, {booking.terms.floor_gib:g} asleep" if asleep else f"{booking.vram_gib:g}"


def _print_cost(console: Console, plan: Plan, cost: Cost) -> None:
    if not any(pool.usd_per_h for pool in cost.pools) and not cost.unpriced:
        whole = sum(booking.placed_max for booking in plan.workloads.values())
        console.print(
            f"No price: this machine is paid for. One GPU per replica would take {_count(whole, 'GPU')} "
            f"instead of {plan.gpus_needed}."
        )
        return
    unpriced = f"no price known for pool {', '.join(cost.unpriced)}; give it usd_per_h"
    if not any(pool.usd_per_h for pool in cost.pools):
        console.print(Text.assemble(("note ", "yellow"), unpriced))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("USD a month")
    for heading in ("at minimum", "with every replica"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row("GPU pools, shared", f"{cost.gpu_usd_at_min:,.0f}", f"{cost.gpu_usd_at_max:,.0f}")
    table.add_row(
        "one GPU per replica instead", f"{cost.whole_gpus_usd_at_min:,.0f}", f"{cost.whole_gpus_usd_at_max:,.0f}"
    )
    table.add_row(
        "saved by sharing",
        _saved(cost.gpu_usd_at_min, cost.whole_gpus_usd_at_min),
        _saved(cost.gpu_usd_at_max, cost.whole_gpus_usd_at_max),
    )
    if any(not pool.holds_workloads for pool in cost.pools):
        table.add_row("front pools", f"{cost.front_usd_at_min:,.0f}", f"{cost.front_usd_at_max:,.0f}")
    console.print(table)
    source = f"List prices, {PRICES_REGION}, about {PRICES_AS_OF}; a pool's usd_per_h overrides them."
    console.print(source, style="dim")
    if cost.unpriced:
        console.print(Text.assemble(("note ", "yellow"), unpriced))


def _saved(shared_usd: float, whole_usd: float) -> str:
    return f"{1 - shared_usd / whole_usd:.0%}" if whole_usd else "-"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
