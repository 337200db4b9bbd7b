"""`cotenant dead`: what was given up, why, and having it tried again or thrown away."""

from __future__ import annotations

import click

from cotenant.cli.lazy import LazyGroup

COMMANDS = {
    "list": "cotenant.cli.dead_look:list_letters",
    "show": "cotenant.cli.dead_look:show",
    "retry": "cotenant.cli.dead_act:retry",
    "purge": "cotenant.cli.dead_act:purge",
}


@click.group(cls=LazyGroup, lazy=COMMANDS)
def dead() -> None:
    """List, show, retry and purge the jobs that were given up."""
