"""`cotenant jobs setup`: the topics and subscriptions that jobs go through, created or brought up to date.

Nothing that exists is ever deleted. What Pub/Sub can't change in place is told, with the commands that make it anew
once it is empty; so are the rights that Pub/Sub's own agent lacks.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from cotenant.cli import jobs_door
from cotenant.cli.options import platform_options
from cotenant.config import Platform, load_platform
from cotenant.jobs.queue.setup import Applied, Right, agent_rights, apply, recreate_commands
from cotenant.jobs.queue.setup import check as differences_of
from cotenant.jobs.queue.topology import Step, labels_of, wanted

_DONE = {Step.CREATE: "created", Step.UPDATE: "updated"}
_TO_DO = {Step.CREATE: "missing", Step.UPDATE: "differs", Step.RECREATE: "differs"}


@click.command()
@platform_options
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--check", "only_check", is_flag=True, help="Do nothing, and end with 1 if anything is to be done.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found and done as JSON.")
def setup(*, file: Path, environment: str, dry_run: bool, only_check: bool, as_json: bool) -> None:
    """Create the topics and subscriptions of jobs, or bring them up to date."""
    platform = load_platform(file, environment)
    looks_only = dry_run or only_check
    steps, rights = asyncio.run(_set_up(platform, looks_only=looks_only))
    if as_json:
        click.echo(json.dumps(_as_data(platform, steps, rights), indent=2))
    else:
        _tell(platform, steps, rights, looks_only=looks_only)
    lacking = any(right.given is False for right in rights) or not all(step.done for step in steps)
    if lacking and not dry_run:
        raise click.exceptions.Exit(1)


async def _set_up(platform: Platform, *, looks_only: bool) -> tuple[Sequence[Applied], Sequence[Right]]:
    door = jobs_door.door_of(platform)
    topology = wanted(platform.jobs, platform.workloads, labels_of(platform.name, platform.environment))
    async with jobs_door.admin(door) as admin:
        steps = await apply(admin, await differences_of(admin, topology), dry_run=looks_only)
        rights = () if door.emulator is not None else await agent_rights(admin, topology)
    return steps, rights


def _tell(platform: Platform, steps: Sequence[Applied], rights: Sequence[Right], *, looks_only: bool) -> None:
    project = platform.jobs.project
    for applied in steps:
        step = applied.difference
        word = _DONE[step.step] if applied.done else _TO_DO[step.step]
        changes = ", ".join(f"{one.setting} {one.found} (needs {one.wanted})" for one in step.changes)
        line = f"{word} {step.kind} {step.resource.name}" + (f": {changes}" if changes else "")
        click.secho(line, fg="green" if applied.done else None if looks_only and not applied.trouble else "red")
        if applied.trouble:
            click.echo(f"  {applied.trouble}")
        for command in recreate_commands(project, step) if step.step is Step.RECREATE else ():
            click.echo(f"  {command}")
    for right in rights:
        if right.given is False:
            click.secho(f"missing right of Pub/Sub's agent on {right.grant.kind} {right.grant.name}:", fg="red")
            click.echo(f"  {right.grant.command(project)}")
    if not steps and all(right.given is not False for right in rights):
        click.echo(f"all topics and subscriptions of {platform.name} are as they should be in project {project}")
    elif any(right.given is None for right in rights):
        click.echo("whether Pub/Sub's agent has its rights could not be asked", err=True)


def _as_data(platform: Platform, steps: Sequence[Applied], rights: Sequence[Right]) -> dict[str, Any]:
    project = platform.jobs.project
    return {
        "project": project,
        "steps": [
            {
                "step": applied.difference.step.value,
                "kind": applied.difference.kind,
                "name": applied.difference.resource.name,
                "changes": [asdict(change) for change in applied.difference.changes],
                "done": applied.done,
                "trouble": applied.trouble or None,
            }
            for applied in steps
        ],
        "rights": [
            {**asdict(right.grant), "given": right.given, "command": right.grant.command(project)} for right in rights
        ],
    }
