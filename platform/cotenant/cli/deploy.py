"""`cotenant deploy`: an environment into its cluster, by server-side apply, and seen until it is healthy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from cotenant.cli import deploying
from cotenant.cli import deploying_view as view
from cotenant.cli.options import platform_options, with_budgets
from cotenant.config import Platform
from cotenant.gpu.plan import plan


@click.command()
@platform_options
@deploying.cluster_options
@deploying.change_options
def deploy(  # noqa: PLR0917 - click gives them by name
    file: Path,
    environment: str,
    context: str | None,
    namespace: str | None,
    wait: bool,
    timeout_s: float,
    dry_run: bool,
    yes: bool,
    force: bool,
    prune: bool,
) -> None:
    """Apply an environment to its Kubernetes cluster, and wait until it is healthy."""
    console = view.console(stderr=True)
    platform, target = deploying.on_gke(file, environment, namespace)
    things = _rendered(platform)
    wishes = deploying.Wishes(environment, wait, timeout_s, yes, force, prune, dry_run)
    deploying.change(deploying.open_cluster(context), target, things, wishes, console)


def _rendered(platform: Platform) -> list[Mapping[str, Any]]:
    from cotenant.manifests.environment import cluster_objects  # noqa: PLC0415 - only this command needs it

    platform, notes = with_budgets(platform)
    the_plan = plan(platform)
    for warning in (*notes, *the_plan.warnings):
        click.secho(warning, fg="yellow", err=True)
    return list(cluster_objects(platform, the_plan))
