"""`cotenant rollback`: back to the last configuration that was healthy, or to one that is named."""

from __future__ import annotations

from pathlib import Path

import click

from cotenant.cli import deploying
from cotenant.cli import deploying_view as view
from cotenant.cli.options import platform_options
from cotenant.cluster.history import way_back
from cotenant.cluster.revisions import Revisions


@click.command()
@platform_options
@deploying.cluster_options
@click.option("--to", type=click.IntRange(1), help="Revision to go back to (default: the last healthy one).")
@click.option("--list", "listed", is_flag=True, help="Show the revisions that there are, and end.")
@deploying.change_options
def rollback(  # noqa: PLR0917 - click gives them by name
    file: Path,
    environment: str,
    context: str | None,
    namespace: str | None,
    to: int | None,
    listed: bool,
    wait: bool,
    timeout_s: float,
    dry_run: bool,
    yes: bool,
    force: bool,
    prune: bool,
) -> None:
    """Go back to the last healthy revision of an environment."""
    console = view.console(stderr=True)
    _, target = deploying.on_gke(file, environment, namespace)
    cluster = deploying.open_cluster(context)
    revisions = Revisions(cluster, target)
    if listed:
        view.console().print(view.history(revisions.known()))
        return
    back = way_back(revisions.known() if dry_run else revisions.catch_up(), to)
    console.print(f"back to revision {back.number}, applied {back.at} by {back.by} ({back.state})")
    wishes = deploying.Wishes(environment, wait, timeout_s, yes, force, prune, dry_run)
    deploying.change(cluster, target, back.things(), wishes, console, rollback_of=back.number)
