"""`cotenant down`: stop what `cotenant up` started for this platform, and nothing else."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import click
from rich.console import Console

from cotenant.cli.machine import ray_node
from cotenant.cli.machine.serve_api import ServeApi
from cotenant.cli.machine.state import RunState
from cotenant.cli.options import platform_options
from cotenant.config import load_platform
from cotenant.errors import CotenantError, EnvironmentFault
from cotenant.jobs.queue import emulator

DRAIN_TIMEOUT_S = 60.0


@click.command()
@platform_options
def down(file: Path, environment: str) -> None:
    """Drain and stop what `cotenant up` started here."""
    console = Console(stderr=True, highlight=False)
    platform = load_platform(file, environment)
    state = RunState.load(platform.name)
    if state is None:
        console.print(f"nothing to stop: `cotenant up` has started nothing for {platform.name} here")
        return
    take_down(state, console)


def take_down(state: RunState, console: Console, *, within_s: float = DRAIN_TIMEOUT_S) -> None:
    """Drain and stop what is on record, and forget it. Requests and jobs in flight may finish `within_s`."""
    if state.ray is None or state.ray.find() is not None:
        with console.status("requests and jobs in flight finish"):
            _drain(state, console, within_s)
    if state.ray is not None and state.ray_dir is not None:
        with console.status("Ray stops"):
            ray_node.stop(state.ray, Path(state.ray_dir))
            shutil.rmtree(state.ray_dir, ignore_errors=True)
        console.print("[green]down[/] Ray")
    if state.emulator is not None and state.emulator.find() is not None:
        emulator.stop(state.emulator.pid)
        console.print("[green]down[/] Pub/Sub emulator")
    state.forget()


def _drain(state: RunState, console: Console, within_s: float) -> None:
    """Ask Serve to finish and delete its applications; a Ray that no longer answers is stopped all the same."""
    try:
        with ServeApi(state.dashboard, state.token_file) as serve:
            serve.shutdown()
            until = time.monotonic() + within_s
            while serve.applications() and time.monotonic() < until:
                time.sleep(0.3)
        console.print("[green]down[/] applications")
    except EnvironmentFault as fault:
        console.print(f"[yellow]note[/] could not drain: {fault}")
    except CotenantError as error:
        console.print(f"[yellow]note[/] {error}")
