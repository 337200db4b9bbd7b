"""How dead letters look: a row each."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cotenant.cli.amounts import when_text
from cotenant.jobs.queue.dead import DeadLetter


def show_letters(letters: Sequence[DeadLetter]) -> None:
    """Print a table of letters."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("id", overflow="fold")
    table.add_column("buried", no_wrap=True)
    table.add_column("outcome", overflow="fold")
    table.add_column("tries", justify="right")
    table.add_column("job", overflow="fold")
    table.add_column("reason", overflow="fold")
    for letter in letters:
        identity = letter.identity
        name = identity.custom_id if identity is not None else letter.custom_id
        table.add_row(
            Text(letter.id),
            Text(when_text(letter.buried_at_s) if letter.buried_at_s else "-"),
            Text(letter.outcome, style="red"),
            Text(str(letter.attempts)),
            Text(name or "-"),
            Text(letter.reason[:200]),
        )
    Console(highlight=False).print(table)
