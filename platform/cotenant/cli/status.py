"""`cotenant status`: how an environment stands in its cluster, by workload and by pool."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from cotenant.cli import deploying
from cotenant.cli import deploying_view as view
from cotenant.cli.options import platform_options
from cotenant.cluster.alignment import differing
from cotenant.cluster.edge import Cluster
from cotenant.cluster.history import Revision
from cotenant.cluster.objects import Object, Target
from cotenant.cluster.rayservice import last_words, read, serve_applications
from cotenant.cluster.revisions import Revisions
from cotenant.cluster.rollout import Progress, find_service, look
from cotenant.cluster.verdict import standing_now
from cotenant.errors import ClusterError
from cotenant.manifests.pools import pool_resource


@click.command()
@platform_options
@deploying.cluster_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(file: Path, environment: str, context: str | None, namespace: str | None, as_json: bool) -> None:
    """Show how an environment stands in its cluster: workloads, pods, last revision."""
    _, target = deploying.on_gke(file, environment, namespace)
    cluster = deploying.open_cluster(context)
    service = find_service(cluster, target)
    if service is None:
        raise ClusterError(
            f"there is no RayService of {target.name} in namespace {target.namespace} of {cluster.where}; "
            f"make it with cotenant deploy -e {environment}, or name another cluster with --context"
        )
    progress = _now(cluster, service)
    revisions = Revisions(cluster, target).known()
    if as_json:
        click.echo(json.dumps(told(cluster, target, service, progress, revisions), indent=2))
        return
    console = view.console()
    console.print(f"{target.name} in namespace {target.namespace} of {cluster.where}", style="dim")
    console.print(view.picture(progress))
    console.print(_workloads(service))
    if revisions:
        console.print(view.history(revisions[-1:]))


def _now(cluster: Cluster, service: Object) -> Progress:
    state = read(service)
    groups, notes = look(cluster, state)
    return Progress(state, groups, standing_now(state, groups), 0.0, (*notes, *differing(cluster, service)))


def _workloads(service: Object) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("workload", "replicas asked for", "pool", "deployments"):
        table.add_column(heading)
    state = read(service)
    for application in serve_applications(service):
        deployments = ", ".join(
            f"{name} {each.lower()}" for name, each in state.application(application["name"]).deployments.items()
        )
        table.add_row(
            application["name"], _bounds_text(application), ", ".join(pools_of(application)), Text(deployments, "dim")
        )
    return table


def told(
    cluster: Cluster, target: Target, service: Object, progress: Progress, revisions: tuple[Revision, ...]
) -> dict[str, Any]:
    """What `--json` prints."""
    state = progress.service
    return {
        "context": cluster.where.context,
        "server": cluster.where.server,
        "namespace": target.namespace,
        "environment": target.environment,
        "standing": progress.verdict.standing,
        "reasons": list(progress.verdict.reasons),
        "rayservice": {
            "name": state.name,
            "generation": state.generation,
            "observed_generation": state.observed,
            "active": state.active or None,
            "pending": state.pending or None,
            "endpoints": state.endpoints,
            "conditions": {
                each.type: {"status": each.status, "reason": each.reason, "message": each.message}
                for each in state.conditions.values()
            },
        },
        "workloads": [
            {
                "name": application["name"],
                "status": state.application(application["name"]).status,
                "message": last_words(state.application(application["name"]).message),
                "deployments": dict(state.application(application["name"]).deployments),
                "replicas": bounds_of(application),
                "pools": pools_of(application),
            }
            for application in serve_applications(service)
        ],
        "pools": [
            {
                "name": group.name,
                "ray_cluster": group.cluster,
                "pods": group.pods,
                "ready": group.ready,
                "troubles": [
                    {"what": each.what, "text": each.text, "next_step": each.next_step, "pod": each.pod}
                    for each in group.troubles
                ],
            }
            for group in progress.groups
        ],
        "notes": list(progress.notes),
        "revision": _revision(revisions[-1]) if revisions else None,
    }


def _revision(revision: Revision) -> dict[str, Any]:
    names = ("number", "state", "at", "by", "digest", "reason", "rollback_of")
    return {name: getattr(revision, name) for name in names}


def bounds_of(application: Mapping[str, Any]) -> dict[str, int]:
    """Least and most replicas that a Serve application asks for, over its deployments."""
    least = most = 0
    for deployment in application.get("deployments") or ():
        scaling = deployment.get("autoscaling_config") or {}
        fixed = deployment.get("num_replicas")
        count = fixed if isinstance(fixed, int) else 1
        least += int(scaling.get("min_replicas", count))
        most += int(scaling.get("max_replicas", count))
    return {"min": least, "max": most}


def _bounds_text(application: Mapping[str, Any]) -> str:
    bounds = bounds_of(application)
    return str(bounds["min"]) if bounds["min"] == bounds["max"] else f"{bounds['min']} to {bounds['max']}"


def pools_of(application: Mapping[str, Any]) -> list[str]:
    """Pools that its replicas are tied to, by the resources that they book."""
    mark, found = pool_resource(""), []
    for deployment in application.get("deployments") or ():
        booked = [(deployment.get("ray_actor_options") or {}).get("resources") or {}]
        booked += deployment.get("placement_group_bundles") or ()
        found += [name.removeprefix(mark) for each in booked for name in each if name.startswith(mark)]
    return list(dict.fromkeys(found))
