"""`cotenant top`: who holds this machine's GPUs, who waits, and what the agent did lately."""

from __future__ import annotations

import json
import sys
import time

import click

from cotenant.agent.look import snapshots
from cotenant.agent.paths import agent_dir
from cotenant.agent.snapshot import Snapshot
from cotenant.errors import EnvironmentFault


@click.command()
@click.option("--once", is_flag=True, help="Show it once and end.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line; with --once for scripts.")
@click.option("--address", help="Show all nodes of the Ray cluster at this address, such as auto; once.")
@click.option("--interval", "interval_s", type=click.FloatRange(0.1), default=1.0, help="Seconds between looks.")
def top(once: bool, as_json: bool, address: str | None, interval_s: float) -> None:
    """Show who holds the GPUs of this machine, live."""
    found = agents(address)
    once = once or address is not None
    try:
        if not as_json:
            once = once or not _watched()
            from cotenant.cli.top_view import live, show  # noqa: PLC0415 - `--json` and errors do without rich

            if once:
                show(found)
            else:
                live(found, agents, interval_s)
            return
        while True:
            click.echo(json.dumps({"agents": [agent.model_dump(mode="json") for agent in found]}))
            if once:
                return
            time.sleep(interval_s)
            found = agents()
    except KeyboardInterrupt:
        return


def agents(address: str | None = None) -> list[Snapshot]:
    """What the agents of this machine say, or those of the Ray cluster at `address`.

    Raises:
        EnvironmentFault: there are none.
    """
    if address is not None:
        from cotenant.cli.machine.cluster import agents_of  # noqa: PLC0415 - imports Ray

        return agents_of(address)
    found = snapshots()
    if not found:
        raise EnvironmentFault(
            f"no GPU agent runs on this machine ({agent_dir()} has none that answers); "
            "start one with cotenant up, or set COTENANT_AGENT_DIR as it was there"
        )
    return found


def _watched() -> bool:
    """Whether somebody looks on: a pipe gets it once."""
    return sys.stdout.isatty()
