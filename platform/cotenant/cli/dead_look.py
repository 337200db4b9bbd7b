"""`cotenant dead list` and `show`: what was given up, and why. Looking consumes nothing."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import click

from cotenant.cli import dead_door
from cotenant.cli.amounts import when_text
from cotenant.cli.options import platform_options
from cotenant.config import Platform, load_platform
from cotenant.errors import JobError
from cotenant.jobs.queue.dead import DeadLetter, Listing

#: What of a message's data is shown to people.
_SHOWN_BYTES = 400


@click.command("list")
@platform_options
@click.option("--tenant", help="Only this tenant's (default: everybody's; without Pub/Sub the default tenant's).")
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="How many.")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON, with all that is known.")
def list_letters(*, file: Path, environment: str, tenant: str | None, limit: int, as_json: bool) -> None:
    """List what was given up, the oldest first; nothing is consumed."""
    listing = asyncio.run(_list(load_platform(file, environment), tenant, limit))
    if as_json:
        found = {"data": [as_data(letter) for letter in listing.letters], "complete": listing.complete}
        click.echo(json.dumps(found, indent=2))
        return
    if listing.letters:
        from cotenant.cli.dead_view import show_letters  # noqa: PLC0415 - `--json` does without rich

        show_letters(listing.letters)
    if not listing.complete:
        click.echo(f"there are more, or may be: --limit {limit * 10} looks further", err=True)
    elif not listing.letters:
        click.echo("nothing was given up", err=True)


@click.command()
@platform_options
@click.argument("name", metavar="ID")
@click.option("--tenant", help="Whose it is; only needed without Pub/Sub.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def show(*, file: Path, environment: str, name: str, tenant: str | None, as_json: bool) -> None:
    """Show one dead letter, by its id, its message's or its job's (job_…)."""
    letter = asyncio.run(_show(load_platform(file, environment), tenant, name))
    if as_json:
        click.echo(json.dumps(as_data(letter), indent=2))
        return
    from cotenant.cli.jobs_view import show_one  # noqa: PLC0415 - `--json` does without rich

    show_one(_for_people(letter))


async def _list(platform: Platform, tenant: str | None, limit: int) -> Listing:
    async with dead_door.opened(platform, tenant) as dead:
        return await dead.letters.list(limit, dead_door.Picked(dead_door.of_tenant(tenant)))


async def _show(platform: Platform, tenant: str | None, name: str) -> DeadLetter:
    async with dead_door.opened(platform, tenant) as dead:
        letter = await dead.letters.show(name)
        if letter is None:
            raise JobError(f"no dead letter is called {name}; `cotenant dead list` lists them")
        return letter


def as_data(letter: DeadLetter) -> dict[str, Any]:
    """A letter as plain data; what is no text is in base64."""
    identity = letter.identity
    try:
        text, b64 = letter.data.decode(), None
    except UnicodeDecodeError:
        text, b64 = None, base64.b64encode(letter.data).decode()
    return {
        "id": letter.id,
        "job_id": identity.job_id if identity is not None else None,
        "outcome": letter.outcome,
        "reason": letter.reason,
        "attempts": letter.attempts,
        "attempt_history": _history(letter),
        "buried_at": letter.buried_at_s,
        "topic": letter.topic,
        "message_id": letter.message_id or None,
        "attributes": dict(letter.attributes),
        "ordering_key": letter.ordering_key or None,
        "data": text,
        "data_b64": b64,
    }


def _for_people(letter: DeadLetter) -> dict[str, Any]:
    told = {name: value for name, value in as_data(letter).items() if name not in ("data", "data_b64")}
    told["buried_at"] = when_text(letter.buried_at_s) if letter.buried_at_s else None
    told["attempt_history"] = [
        f"{when_text(one['at_s'])}  {one['outcome']}: {one['reason']}" for one in told["attempt_history"]
    ]
    told["attributes"] = [f"{name}: {value}" for name, value in letter.attributes.items()]
    size = len(letter.data)
    clipped = letter.data[:_SHOWN_BYTES].decode(errors="replace")
    told["data"] = clipped + (f"… ({size:,} bytes; --json has all of them)" if size > _SHOWN_BYTES else "")
    return told


def _history(letter: DeadLetter) -> list[dict[str, Any]]:
    """The attempts as they were written; none of what can't be read."""
    try:
        history = json.loads(letter.attempt_history or "[]")
        return [one for one in history if {"at_s", "outcome", "reason"} <= one.keys()]
    except (ValueError, AttributeError, TypeError):
        return []
