"""`cotenant dead retry` and `purge`: the only two ways in which a dead letter goes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from cotenant.cli import dead_door
from cotenant.cli.amounts import duration_s
from cotenant.cli.options import platform_options
from cotenant.config import Platform, load_platform
from cotenant.jobs.queue.dead import Chosen, DeadLetter, older_than, with_ids

Command = TypeVar("Command", bound=Callable[..., Any])


def _choice(command: Command) -> Command:
    """The argument and options that say which letters are meant."""
    options = (
        click.argument("ids", nargs=-1, metavar="[ID…]"),
        click.option("--all", "every", is_flag=True, help="All of them."),
        click.option("--older-than", "age", metavar="AGE", help="Of all, those given up longer ago: 12h, 7d."),
        click.option("--tenant", help="Of all, only this tenant's."),
        click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@platform_options
@_choice
def retry(*, file: Path, environment: str, as_json: bool, **which: Any) -> None:
    """Publish dead letters again, as their publishers sent them; ids are a letter's, a message's or a job's."""
    ids, picked = _picked(which)
    went = asyncio.run(_retry(load_platform(file, environment), which["tenant"], ids, picked))
    _tell("retried", went, picked.missed(ids, went), as_json=as_json)


@click.command()
@platform_options
@_choice
@click.option("--yes", is_flag=True, help="Do not ask.")
def purge(*, file: Path, environment: str, as_json: bool, yes: bool, **which: Any) -> None:
    """Throw dead letters away, for good."""
    ids, picked = _picked(which)
    platform = load_platform(file, environment)
    if not yes:
        asyncio.run(_meet(platform, which["tenant"], picked))
        met = picked.met
        if not met:
            _tell("purged", (), picked.missed(ids, ()), as_json=as_json)
            return
        text = f"throw {len(met)} dead letter{'' if len(met) == 1 else 's'} away, for good?"
        click.confirm(text, abort=True, err=True)
        # Those that were agreed to, and none that came since.
        picked = dead_door.Picked(lambda letter: letter.id in met)
    went = asyncio.run(_purge(platform, which["tenant"], ids, picked))
    _tell("purged", went, picked.missed(ids, went), as_json=as_json)


def _picked(which: dict[str, Any]) -> tuple[Sequence[str], dead_door.Picked]:
    """The ids that were given, and the choice of letters. Raises click's usage errors."""
    ids, age = tuple(dict.fromkeys(which["ids"])), which["age"]
    every = which["every"] or age is not None
    if bool(ids) == bool(every):
        raise click.UsageError("name dead letters by their ids, or give --all (and --older-than)")
    seconds = duration_s(age) if age is not None else None
    if age is not None and seconds is None:
        raise click.BadParameter(f"takes a duration such as 12h or 7d, got {age!r}", param_hint="--older-than")
    choices: list[Chosen | None] = [dead_door.of_tenant(which["tenant"])]
    if ids:
        choices.append(with_ids(ids))
    if seconds is not None:
        choices.append(older_than(seconds, time.time()))
    return ids, dead_door.Picked(*choices)


async def _retry(
    platform: Platform, tenant: str | None, ids: Sequence[str], picked: dead_door.Picked
) -> Sequence[DeadLetter]:
    async with dead_door.opened(platform, tenant) as dead:
        try:
            return await dead.letters.retry(picked, before=dead.forgetting.forget, enough=_enough(ids))
        except BaseException:
            await dead.forgetting.remember()
            raise


async def _purge(
    platform: Platform, tenant: str | None, ids: Sequence[str], picked: dead_door.Picked
) -> Sequence[DeadLetter]:
    async with dead_door.opened(platform, tenant) as dead:
        return await dead.letters.purge(picked, enough=_enough(ids))


def _enough(ids: Sequence[str]) -> int | None:
    """How many letters those ids can mean; None where that is unknown: a job may have several."""
    return len(ids) if ids and not any(name.startswith("job_") for name in ids) else None


async def _meet(platform: Platform, tenant: str | None, picked: dead_door.Picked) -> None:
    """Have `picked` meet all letters, and hold none of them."""
    async with dead_door.opened(platform, tenant) as dead:
        await dead.letters.list(chosen=lambda letter: picked(letter) and False)


def _tell(done: str, went: Sequence[DeadLetter], missed: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({done: [letter.id for letter in went], "not_found": list(missed)}, indent=2))
    else:
        for letter in went:
            click.echo(f"{letter.id}  {letter.custom_id or '-'}")
        click.echo(f"{done} {len(went)}", err=True)
        for name in missed:
            click.secho(f"no dead letter is called {name}; `cotenant dead list` lists them", fg="red", err=True)
    if missed:
        raise click.exceptions.Exit(1)
