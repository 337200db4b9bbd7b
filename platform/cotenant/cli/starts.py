"""`cotenant starts`: what the latest starts consisted of, and what a stage takes of each workload's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click
import yaml

from cotenant.cli.top import agents
from cotenant.errors import EnvironmentFault
from cotenant.sim.stages import overridden
from cotenant.telemetry.starts import Stage, Start, figures

#: The simulator's stages, by those of ours that they are made of.
SIMULATED: dict[str, tuple[Stage, ...]] = {
    "node": ("node",),
    "pull": ("image",),
    "process": ("queued", "process", "imports"),
    "weights": ("weights",),
    "warm_up": ("warm_up",),
    "wake": ("wake",),
}


@click.command()
@click.option("--address", help="Ask all nodes of the Ray cluster at this address, such as auto.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the starts, and the figures by stage.")
@click.option("--workload", help="Show this workload's only.")
@click.option(
    "--stages", "stages_file", type=click.Path(path_type=Path, dir_okay=False), help="Write what `simulate` reads here."
)
def starts(address: str | None, as_json: bool, workload: str | None, stages_file: Path | None) -> None:
    """Show how long replicas took to start, stage by stage."""
    snapshots = agents(address)
    found = sorted((start for snapshot in snapshots for start in snapshot.starts), key=lambda start: start.began_at)
    names = sorted({start.workload for start in found})
    found = [start for start in found if workload in (None, start.workload)]
    if not found:
        raise EnvironmentFault(
            f"no start of {workload} is on record; here are {', '.join(names)}"
            if workload and names
            else "no start is on record here; a replica's is, once it is ready (cotenant up)"
        )
    numbers = figures(found)
    if stages_file is not None:
        stages_file.write_text(stages_yaml(found))
        click.echo(
            f"{stages_file}: from {len(found)} starts; use it by cotenant simulate --stages {stages_file}", err=True
        )
    if as_json:
        click.echo(
            json.dumps(
                {
                    "starts": [_plain(start) for start in found],
                    "figures": [number.model_dump(mode="json") for number in numbers],
                }
            )
        )
    elif stages_file is None:
        from cotenant.cli.starts_view import show  # noqa: PLC0415 - `--json` and errors do without rich

        show(found, numbers)


def stages_yaml(found: Sequence[Start]) -> str:
    """The file that `cotenant simulate --stages` reads: `[least, median, most]` seconds of each stage on record.

    Memory and turns that starts wait for are not in it (the simulator has them happen), nor the first result. A wake is
    a wake's; the rest comes from cold starts, and weights and warm-up from loads too.
    """
    lines = [f"# Measured: {len(found)} starts of {', '.join(sorted({start.workload for start in found}))}."]
    lines.append("# Seconds: [least, median, most]; a stage that no start went through keeps the simulator's default.")
    given: dict[str, list[float]] = {}
    for name, parts in SIMULATED.items():
        values = sorted(seconds for start in found if (seconds := _seconds_of(start, parts)) is not None)
        if values:
            middle = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
            given[name] = [round(value, 3) for value in (values[0], middle, values[-1])]
    overridden(given)
    lines += [f"{name}: {yaml.safe_dump(values, default_flow_style=True).strip()}" for name, values in given.items()]
    return "\n".join(lines) + "\n"


def _seconds_of(start: Start, parts: Sequence[Stage]) -> float | None:
    """None where the start went through none of them, or is of a kind that has not all of them."""
    if parts[0] == "queued" and start.kind != "cold":
        return None
    seconds = start.seconds()
    here = [seconds[part] for part in parts if part in seconds]
    return sum(here) if here else None


def _plain(start: Start) -> dict[str, object]:
    seconds = {stage: round(value, 6) for stage, value in start.seconds().items()}
    return {**start.model_dump(mode="json"), "ready_s": round(start.ready_s, 6), "seconds": seconds}
