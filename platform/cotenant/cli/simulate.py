"""`cotenant simulate`: a platform under a trace or a random load, scaled by our policy and by others, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import yaml

from cotenant.cli.options import platform_options, with_budgets
from cotenant.config import load_platform
from cotenant.errors import TraceError
from cotenant.gpu.plan import plan as make_plan
from cotenant.sim.model import Request, Scaler, Scene, SimPool, SimWorkload
from cotenant.sim.run import Outcome, simulate
from cotenant.sim.scalers import Cotenant, FixedPeak, HpaOnMetric, Keda, ServeDefault
from cotenant.sim.scene import scene_parts
from cotenant.sim.stages import DEFAULTS, Image, Stages, overridden
from cotenant.sim.traces import Load, TokenSpeed, random_requests, read_trace


@dataclass(frozen=True)
class _Run:
    """One way to run the platform, and what came of it."""

    name: str
    pools: tuple[SimPool, ...]
    workloads: tuple[SimWorkload, ...]
    outcome: Outcome

    @property
    def usd(self) -> float:
        return self.outcome.cost_usd(tuple(pool.usd_per_h for pool in self.pools))

    @property
    def gpu_hours(self) -> float:
        return sum(self.outcome.spent.node_s) / 3600


@click.command("simulate")
@platform_options
@click.option("--trace", type=click.Path(path_type=Path), help="Requests: CSV or JSON lines, or Azure's LLM trace.")
@click.option("--workload", help="The workload that the whole trace is for.")
@click.option(
    "--load",
    "loads",
    multiple=True,
    metavar="NAME=RATE@S[xB]",
    help="Random calls instead of a trace: so many a second of so many seconds each; with xB, B times as many in the "
    "first tenth of every hour.",
)
@click.option(
    "--hours", type=click.FloatRange(0.01, 24 * 31), default=4, show_default=True, help="How long loads last."
)
@click.option("--image", type=click.Choice([one.value for one in Image]), default="stream", show_default=True,
              help="How a new node gets the container image.")  # fmt: skip
@click.option(
    "--spare", type=click.IntRange(0, 100), help="Nodes kept ready and empty, instead of the file's nodes.spare."
)
@click.option("--stages", "stages_file", type=click.Path(path_type=Path), help="YAML with your own times of stages.")
@click.option("--prefill", type=click.FloatRange(1), default=TokenSpeed.prefill_per_s, show_default=True,
              help="Tokens of a prompt a second, for traces in tokens.")  # fmt: skip
@click.option("--decode", type=click.FloatRange(0.1), default=TokenSpeed.decode_per_s, show_default=True,
              help="Tokens of an answer a second, for traces in tokens.")  # fmt: skip
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def simulate_command(
    *,
    file: Path,
    environment: str,
    trace: Path | None,
    workload: str | None,
    loads: tuple[str, ...],
    hours: float,
    image: str,
    spare: int | None,
    stages_file: Path | None,
    prefill: float,
    decode: float,
    seed: int,
    as_json: bool,
) -> None:
    """Play a load through the platform, reckoned not run, and compare ways to scale it.

    Every figure is simulated. The stages of a start are ranges that people report; --stages takes your own.
    """
    platform, _ = with_budgets(load_platform(file, environment))
    stages = _stages(stages_file)
    pools, workloads = scene_parts(platform, make_plan(platform), image=Image(image), spare_nodes=spare, stages=stages)
    names = [one.name for one in workloads]
    if (trace is None) == (not loads):
        raise TraceError("give either --trace FILE or one or more --load NAME=RATE@SECONDS")
    if workload is not None and workload not in names:
        raise TraceError(f"there is no workload {workload}; the platform has {', '.join(names)}")
    requests: Callable[[], Iterable[Request]]
    if trace is not None:
        listed = read_trace(trace, names, all_for=workload, speed=TokenSpeed(prefill, decode))
        until_s = listed[-1].at_s + 1
        requests = partial(iter, listed)
    else:
        until_s = hours * 3600
        requests = random_requests([_load(text, names) for text in loads], until_s, seed)
    runs = _runs(pools, workloads, requests, until_s, seed, progress=not as_json)
    if as_json:
        click.echo(json.dumps({"simulated": True, "environment": environment, "hours": until_s / 3600, "seed": seed,
                               "runs": [_data(run) for run in runs]}, indent=2))  # fmt: skip
    else:
        from cotenant.cli.simulate_view import show  # noqa: PLC0415 - `--json` and errors do without rich

        show(f"{platform.name}, {environment}", until_s, names, [_data(run) for run in runs])


def _runs(
    pools: tuple[SimPool, ...],
    workloads: tuple[SimWorkload, ...],
    requests: Callable[[], Iterable[Request]],
    until_s: float,
    seed: int,
    *,
    progress: bool,
) -> Sequence[_Run]:
    """Ours, the others on the same shares, and what there was before: a whole GPU for every replica, at its peak."""
    whole = tuple(replace(one, share=1.0) for one in workloads)
    replicas = sum(one.bounds.max for one in workloads)
    roomy = tuple(replace(pool, max_nodes=max(pool.max_nodes, replicas)) for pool in pools)

    def at_peak(some: tuple[SimWorkload, ...]) -> tuple[SimWorkload, ...]:
        return tuple(replace(one, bounds=replace(one.bounds, min=one.bounds.max)) for one in some)

    ways: list[tuple[str, tuple[SimPool, ...], tuple[SimWorkload, ...], Scaler]] = [
        ("cotenant", pools, workloads, Cotenant()),
        ("Serve's default", pools, workloads, ServeDefault()),
        ("HPA on the queue metric", pools, workloads, HpaOnMetric()),
        ("KEDA", pools, workloads, Keda()),
        ("fixed at the peak", pools, at_peak(workloads), FixedPeak()),
        ("a GPU each, at the peak", roomy, at_peak(whole), FixedPeak()),
    ]
    from rich.console import Console  # noqa: PLC0415 - `--json` and errors do without rich
    from rich.progress import track  # noqa: PLC0415

    runs = []
    console = Console(stderr=True)
    shown = progress and console.is_terminal
    for name, its_pools, its_workloads, scaler in track(
        ways, "simulating", console=console, transient=True, disable=not shown
    ):
        scene = Scene(its_pools, its_workloads, requests(), until_s, seed=seed)
        runs.append(_Run(name, its_pools, its_workloads, simulate(scene, scaler)))
    return runs


def _data(run: _Run) -> dict[str, Any]:
    outcome = run.outcome
    waits = {
        one.name: {
            "calls": seen.count,
            "wait_s": {f"p{round(part * 100)}": round(seen.quantile(part), 3) for part in (0.5, 0.95, 0.99)},
            "longer_than_target": round(seen.longer_than(one.bounds.target_wait_s), 4),
            "target_wait_s": one.bounds.target_wait_s,
            "starts": outcome.spent.starts[number],
            "wakes": outcome.spent.wakes[number],
            "replica_hours": round(outcome.spent.replica_s[number] / 3600, 3),
            "busy_slot_hours": round(outcome.busy_s[number] / 3600, 3),
        }
        for number, (one, seen) in enumerate(zip(run.workloads, outcome.waits, strict=True))
    }
    return {
        "name": run.name,
        "gpu_hours": round(run.gpu_hours, 3),
        "usd": round(run.usd, 2),
        "nodes_made": outcome.spent.nodes_made,
        "undone": outcome.undone,
        "workloads": waits,
    }


def _load(text: str, names: Sequence[str]) -> Load:
    name, _, rest = text.partition("=")
    rest, _, burst = rest.partition("x")
    rate, at, seconds = rest.partition("@")
    try:
        load = Load(names.index(name), float(rate), float(seconds), float(burst or 1))
    except ValueError:
        load = None
    if load is None or not at or not (load.per_s > 0 and load.service_s > 0 and 1 <= load.burst <= 10):
        raise TraceError(
            f"--load {text} is not NAME=RATE@SECONDS[xB], such as {names[0]}=0.5@2 (a call every 2 s that takes 2 s) "
            f"or {names[0]}=0.5@2x8; NAME is one of {', '.join(names)}, B is 1 to 10"
        )
    return load


def _stages(file: Path | None) -> Stages:
    if file is None:
        return DEFAULTS
    try:
        given = yaml.safe_load(file.read_text())
        if not isinstance(given, Mapping):
            raise ValueError("is no mapping of stages to seconds")
        return overridden(given)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise TraceError(f"{file}: {error}") from error
