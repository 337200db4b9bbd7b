"""`cotenant jobs`: what was submitted, how far it is, and taking it back."""

from __future__ import annotations

import click

from cotenant.cli.lazy import LazyGroup

COMMANDS = {
    "ls": "cotenant.cli.jobs_ls:ls",
    "show": "cotenant.cli.jobs_show:show",
    "cancel": "cotenant.cli.jobs_cancel:cancel",
    "setup": "cotenant.cli.jobs_setup:setup",
}


@click.group(cls=LazyGroup, lazy=COMMANDS)
def jobs() -> None:
    """List, show and cancel jobs and batches; set up their topics."""
