"""`cotenant simulate`: a platform under a trace or a random load, scaled by our policy and by others, side by side."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import click

from cotenant.cli import simulate_plot
from cotenant.cli.options import platform_options, with_budgets
from cotenant.cli.simulate_load import load_of, stages_of
from cotenant.cli.simulate_runs import data_of, notes_of, play_all, sample_s
from cotenant.config import load_platform
from cotenant.errors import TraceError
from cotenant.gpu.plan import plan as make_plan
from cotenant.sim.model import Request, Scene
from cotenant.sim.scene import scene_parts
from cotenant.sim.stages import SPOT, Image
from cotenant.sim.traces import TokenSpeed, random_requests, read_trace


@click.command("simulate")
@platform_options
@click.option("--trace", type=click.Path(path_type=Path), help="Requests: CSV or JSON lines, or Azure's LLM trace.")
@click.option("--workload", help="The workload that the whole trace is for.")
@click.option(
    "--load",
    "loads",
    multiple=True,
    metavar="NAME=RATE@S[xB][/W]",
    help="Random calls instead of a trace: so many a second of so many seconds each; with xB, B times as many in the "
    "first tenth of every hour; with /W, each may wait W seconds.",
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
@click.option("--losses", type=click.FloatRange(0, 60), metavar="PER_HOUR",
              help=f"How often a spot node is taken away; {SPOT.losses_per_h:g} an hour is assumed.")  # fmt: skip
@click.option("--prefill", type=click.FloatRange(1), default=TokenSpeed.prefill_per_s, show_default=True,
              help="Tokens of a prompt a second, for traces in tokens.")  # fmt: skip
@click.option("--decode", type=click.FloatRange(0.1), default=TokenSpeed.decode_per_s, show_default=True,
              help="Tokens of an answer a second, for traces in tokens.")  # fmt: skip
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE.png|.svg", help="Draw it all into a file.")
@click.option("--tune", is_flag=True, help="Search the cheapest settings that keep waits short, instead of comparing.")
@click.option("--p95", type=click.FloatRange(0.01), metavar="SECONDS",
              help="With --tune: 95 % of calls wait no longer [default: each workload's target_wait_s].")  # fmt: skip
@click.option("--runs", "most_runs", type=click.IntRange(1, 10_000), default=80, show_default=True,
              help="With --tune: simulations at the most.")  # fmt: skip
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
    losses: float | None,
    prefill: float,
    decode: float,
    seed: int,
    plot: Path | None,
    tune: bool,
    p95: float | None,
    most_runs: int,
    as_json: bool,
) -> None:
    """Play a load through the platform, reckoned not run, and compare ways to scale it, or tune it.

    Every figure is simulated. The stages of a start are ranges that people report; --stages takes your own.
    """
    if plot is not None:
        simulate_plot.check(plot)
    if p95 is not None and not tune:
        raise click.UsageError("--p95 goes with --tune")
    platform, _ = with_budgets(load_platform(file, environment))
    stages, spot = stages_of(stages_file, losses)
    pools, workloads = scene_parts(
        platform, make_plan(platform), image=Image(image), spare_nodes=spare, stages=stages, spot=spot
    )
    names = [one.name for one in workloads]
    if (trace is None) == (not loads):
        raise TraceError("give either --trace FILE or one or more --load NAME=RATE@SECONDS")
    if workload is not None and workload not in names:
        raise TraceError(f"there is no workload {workload}; the platform has {', '.join(names)}")
    if trace is not None:
        listed = read_trace(trace, names, all_for=workload, speed=TokenSpeed(prefill, decode))
        until_s = listed[-1].at_s + 1
    else:
        asked = [load_of(text, names) for text in loads]
        until_s = hours * 3600

    def requests(day: int) -> Iterable[Request]:
        return iter(listed) if trace is not None else random_requests(asked, until_s, day)()

    def scene(day: int) -> Scene:
        return Scene(pools, workloads, requests(day), until_s, seed=day, sample_s=sample_s(until_s))

    notes, title = notes_of(pools), f"{platform.name}, {environment}"
    said = {"simulated": True, "environment": environment, "hours": until_s / 3600, "seed": seed, "notes": notes}
    if tune:
        from cotenant.cli import simulate_tune  # noqa: PLC0415 - the others do without rich

        now, best, found = simulate_tune.tune(
            partial(scene, seed), partial(scene, seed + 1), p95, most_runs, quiet=as_json
        )
        runs = [simulate_tune.run_of(scene(seed), one, name) for one, name in ((best, "as found"), (now, "as it is"))]
        said["tuned"] = found
        show = partial(simulate_tune.show, title, until_s / 3600, found, notes)
    else:
        from cotenant.cli import simulate_view  # noqa: PLC0415 - errors do without rich

        runs = list(play_all(pools, workloads, partial(requests, seed), until_s, seed, progress=not as_json))
        compared = [data_of(run) for run in runs]
        said["runs"] = compared
        show = partial(simulate_view.show, title, until_s, names, compared, notes)
    if plot is not None:
        simulate_plot.draw(plot, f"{title}: {until_s / 3600:.3g} h, simulated", names, runs)
    if as_json:
        click.echo(json.dumps(said, indent=2))
    else:
        show()
