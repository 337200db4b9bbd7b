"""What `deploy`, `rollback` and `status` share: which cluster, what would change, changing it, seeing it come up."""

from __future__ import annotations

import getpass
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from cotenant.cli import deploying_view as view
from cotenant.cluster.alignment import Alignment, pass_on, settle
from cotenant.cluster.edge import Cluster
from cotenant.cluster.history import State, marked
from cotenant.cluster.objects import Object, Target
from cotenant.cluster.rayservice import read
from cotenant.cluster.revisions import Revisions
from cotenant.cluster.rollout import (
    Proposal,
    Step,
    carry_out,
    make_namespaces,
    propose,
    require_namespace,
    see_through,
)
from cotenant.cluster.verdict import Patience
from cotenant.config import Platform, load_platform
from cotenant.errors import EnvironmentFault, RolloutFailed
from cotenant.manifests.site import Site

Command = TypeVar("Command", bound=Callable[..., Any])

PATIENCE = Patience()
LOOK_S = 3.0


@dataclass(frozen=True)
class Wishes:
    """How a change is to be made."""

    environment: str
    wait: bool = True
    timeout_s: float = 1800.0
    yes: bool = False
    force: bool = False
    prune: bool = True
    dry_run: bool = False


def cluster_options(command: Command) -> Command:
    """Add `--context` and `--namespace` to a command."""
    command = click.option("--namespace", help="Another namespace than the platform file's.")(command)
    return click.option("--context", help="Context of the kubeconfig (default: its current one).")(command)


def change_options(command: Command) -> Command:
    """Add what `deploy` and `rollback` have in common."""
    for option in reversed(
        (
            click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until it is healthy."),
            click.option(
                "--timeout", "timeout_s", type=click.FloatRange(1), default=1800.0, show_default=True,
                help="Seconds to wait at most.",
            ),
            click.option("--dry-run", is_flag=True, help="Show what would change, and end."),
            click.option("-y", "--yes", is_flag=True, help="Do not ask."),
            click.option("--force-conflicts", "force", is_flag=True, help="Take fields that others have set."),
            click.option("--prune/--no-prune", default=True, show_default=True, help="Delete what is not rendered."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def open_cluster(context: str | None) -> Cluster:
    """Raises NotConnected; EnvironmentFault: the package for it is not installed."""
    try:
        from cotenant.cluster.kube import connect  # noqa: PLC0415 - imports kubernetes
    except ModuleNotFoundError as error:
        raise EnvironmentFault(
            f"this command needs the Kubernetes client ({error.name} is missing); pip install 'cotenant[kubernetes]'"
        ) from error
    return connect(context)


def on_gke(file: Path, environment: str, namespace: str | None) -> tuple[Platform, Target]:
    """The environment, and where it lives. Raises ConfigError; PlanError: it has no `gke`."""
    platform = load_platform(file, environment)
    Site.of(platform)
    if namespace is not None and platform.gke is not None:
        try:
            gke = type(platform.gke).model_validate({**platform.gke.model_dump(), "namespace": namespace})
        except ValueError as error:
            raise click.BadParameter(f"{namespace!r} is no name of a namespace", param_hint="--namespace") from error
        platform = platform.model_copy(update={"gke": gke})
    return platform, Target(platform.name, environment, Site.of(platform).namespace)


def change(
    cluster: Cluster,
    target: Target,
    things: Sequence[Mapping[str, Any]],
    wishes: Wishes,
    console: Console,
    *,
    rollback_of: int | None = None,
) -> None:
    """Bring the environment to `things`, as wished. Raises ClusterError."""
    console.print(f"{target.name} in namespace {target.namespace} of {cluster.where}", style="dim")
    require_namespace(cluster, target, things)
    revisions = Revisions(cluster, target)
    if not wishes.dry_run:
        revisions.catch_up()
    proposal = propose(cluster, things, target, force=wishes.force, prune=wishes.prune)
    view.show_proposal(proposal, console)
    if wishes.dry_run:
        return
    if proposal.size:
        _ask(proposal, cluster, wishes)
    make_namespaces(cluster, proposal, force=wishes.force)
    revision = revisions.begin(proposal.things, at=_now(), by=_who(cluster), rollback_of=rollback_of)
    service = _carry_out(cluster, proposal, wishes, console)
    if service is None:
        return
    generation = read(service).generation
    if revision.generation != generation or revision.state == "failed":
        revision = revisions.keep(replace(revision, generation=generation, state="applied", reason=""))
    console.print(f"[green]applied[/] revision {revision.number}")
    said = set(proposal.notes)
    _show(pass_on(cluster, proposal.bounds, service), said, console)
    if not wishes.wait:
        console.print(f"it comes up by itself; look with: cotenant status -e {wishes.environment}")
        return

    def mark(state: State, reason: str = "") -> None:
        if (revision.state, revision.reason) != (state, reason):
            revisions.keep(marked(revision, state, reason))

    _wait(cluster, service, wishes, mark, console)
    _show(settle(cluster, service), said, console)


def _show(found: Alignment, said: set[str], console: Console) -> None:
    """What was passed on to the Ray cluster; a note only once."""
    view.show_bounds(found.shifts, console)
    view.show_notes((note for note in found.notes if note not in said), console)
    said.update(found.notes)


def _ask(proposal: Proposal, cluster: Cluster, wishes: Wishes) -> None:
    if wishes.yes:
        return
    if not sys.stdin.isatty():
        raise EnvironmentFault("nobody can be asked here whether to go on; look with --dry-run, then say --yes")
    gone = f", {len(proposal.deletions)} of them deletions" if proposal.deletions else ""
    click.confirm(f"{proposal.size} changes{gone} in {cluster.where.context}: go on?", abort=True, err=True)


def _carry_out(cluster: Cluster, proposal: Proposal, wishes: Wishes, console: Console) -> Object | None:
    done: list[Step] = []

    def said(step: Step) -> None:
        done.append(step)
        if step.action != "same":
            console.print(f"{view.VERBS[step.action]} {step.ref}")

    total = len(proposal.things) + len(proposal.deletions)
    try:
        return carry_out(cluster, proposal, force=wishes.force, on_step=said)
    except BaseException:
        console.print(
            f"[yellow]note[/] {len(done)} of {total} objects were done and stay; the same command goes on from there"
        )
        raise


def _wait(cluster: Cluster, service: Object, wishes: Wishes, mark: Callable[..., None], console: Console) -> None:
    looks = see_through(cluster, service, timeout_s=wishes.timeout_s, look_s=LOOK_S, patience=PATIENCE)
    try:
        last = view.follow(looks, console)
    except KeyboardInterrupt:
        console.print(
            "[yellow]note[/] not waited for any longer; everything is applied and comes up by itself: "
            f"cotenant status -e {wishes.environment}"
        )
        raise SystemExit(130) from None
    except RolloutFailed as error:
        raise RolloutFailed(f"{error}\n{_next(wishes)}") from error
    if last.verdict.standing == "failed":
        mark("failed", last.verdict.reason)
        raise RolloutFailed(f"{last.verdict.reason}\n{_next(wishes)}")
    mark("healthy")
    console.print(f"[green]healthy[/] after {last.elapsed_s:.0f} s")


def _next(wishes: Wishes) -> str:
    env = wishes.environment
    return f"look with cotenant status -e {env}, or go back with cotenant rollback -e {env}"


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _who(cluster: Cluster) -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "somebody"
    return f"{user}@{socket.gethostname()} as {cluster.where.user}"
