"""How `cotenant fit` looks on a terminal, in a pipe, in 80 columns: a bar of letters and a row for each part."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cotenant.cli.fit import Answer, Reach
from cotenant.gpu.fit import Part

_BAR_CELLS = 60
_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")


def show(answers: Sequence[Answer]) -> None:
    """Print the estimates, one below the other."""
    console = Console(highlight=False)
    plain = not console.encoding.startswith("utf")
    for number, answer in enumerate(answers):
        if number:
            console.print()
        _show(console, answer, plain=plain)


def _show(console: Console, answer: Answer, *, plain: bool) -> None:
    typical = answer.typical
    model = "" if answer.model == answer.name else f" ({answer.model})"
    console.print(f"{answer.name}{model}: {typical.total_gib:.2f} GiB on {typical.accelerator}", style="bold")
    parts = sorted(typical.parts, key=lambda part: -part.bytes)
    letters = _letters(parts)
    bar = Text()
    for part, cells in _cells(parts):
        bar.append(letters[part.name] * cells, style=_colour(parts, part))
    console.print(bar)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column()
    for part in parts:
        words = part.formula.encode("ascii", "replace").decode().replace("?", "^2") if plain else part.formula
        table.add_row(
            Text(letters[part.name], style=_colour(parts, part)),
            part.name + ("*" if part.asleep else ""),
            f"{part.gib:.2f}",
            Text.assemble(words, (f"\n{part.source}", "dim")),
        )
    console.print(table)
    for line in _summary(answer):
        console.print("\n".join(wrap(line, 80)))
    console.print()
    console.print(_reach_table(answer.reach))
    for note in typical.notes:
        console.print(Text.assemble(("note ", "yellow"), note))


def _summary(answer: Answer) -> list[str]:
    typical, least = answer.typical, answer.least
    lines = [
        f"vram_gib: auto takes {typical.budget_gib:g} GiB; it serves one request at a time from "
        f"{least.total_gib:.2f} GiB on. What has a * is held while asleep: {typical.asleep_gib:.2f} GiB."
    ]
    if answer.declared_gib is not None:
        verdict = "enough" if answer.declared_gib >= typical.total_gib else "enough for fewer at once"
        if not answer.enough:
            verdict = "too little to serve anything"
        lines.append(f"Its vram_gib is {answer.declared_gib:g}: {verdict}.")
    return lines


def _reach_table(reach: Sequence[Reach]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("accelerator", no_wrap=True)
    headings = ["GiB", "replicas"]
    has_context = any(each.longest_context is not None for each in reach)
    if has_context:
        headings += ["longest context", "full requests"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for each in reach:
        serves = each.least_gib <= each.usable_gib
        replicas = str(each.replicas) if each.replicas else "1, fewer at once" if serves else "does not fit"
        row = [each.accelerator, f"{each.usable_gib:g}", replicas]
        if has_context:
            row += [f"{each.longest_context:,}" if each.longest_context else "-", f"{each.requests}" if serves else "-"]
        table.add_row(*row, style=None if serves else "dim")
    return table


def _cells(parts: Sequence[Part]) -> list[tuple[Part, int]]:
    """Cells of each part in the bar; the parts are sorted, and none that can be seen gets none."""
    total = sum(part.bytes for part in parts) or 1
    upto = drawn = 0
    cells = []
    for part in parts:
        upto += part.bytes
        count = min(max(1, round(upto / total * _BAR_CELLS) - drawn), _BAR_CELLS - drawn)
        drawn += count
        cells.append((part, count))
    return cells


def _letters(parts: Sequence[Part]) -> dict[str, str]:
    """A letter for each part: the first of its own name that is free."""
    taken: dict[str, str] = {}
    for part in parts:
        free = [letter for letter in part.name.upper() if letter.isalpha() and letter not in taken.values()]
        taken[part.name] = free[0] if free else "#"
    return taken


def _colour(parts: Sequence[Part], part: Part) -> str:
    return _COLOURS[parts.index(part) % len(_COLOURS)]
