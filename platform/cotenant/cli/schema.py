"""`cotenant schema`: the JSON schema of the platform file, and whether the committed one is up to date."""

from __future__ import annotations

import click

from cotenant.config.schema import COMMITTED, render
from cotenant.errors import EnvironmentFault


@click.command()
@click.option("--check", is_flag=True, help="Fail if the committed schema differs from the models.")
@click.option("--write", is_flag=True, help="Write the schema to where it is committed.")
def schema(check: bool, write: bool) -> None:
    """Print the JSON schema of the platform file."""
    text = render()
    if write:
        COMMITTED.write_text(text, encoding="utf-8")
        click.echo(f"wrote {COMMITTED}")
    elif not check:
        click.echo(text, nl=False)
    if check:
        committed = COMMITTED.read_text(encoding="utf-8") if COMMITTED.exists() else ""
        if committed != text:
            raise EnvironmentFault(f"{COMMITTED} is not what the models say; run `cotenant schema --write`, commit it")
        click.echo(f"{COMMITTED.name} is up to date")
