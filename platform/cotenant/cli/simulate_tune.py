"""`cotenant simulate --tune`: what to write into the platform file for this load, and what that saves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from cotenant.cli.simulate_runs import Run, data_of
from cotenant.scaling.policy import AIMS
from cotenant.sim.model import Scene
from cotenant.sim.scalers import Cotenant
from cotenant.sim.tuning import Settings, Trial, attempt, present, search, under

_WORDS = {
    "spare": "nodes.spare", "idle_s": "a node idles, s", "patience": "patience", "stretch": "stretch", "late": "late",
}  # fmt: skip


def tune(
    scene: Callable[[], Scene], another: Callable[[], Scene], p95_s: float | None, most: int, *, quiet: bool
) -> tuple[Trial, Trial, dict[str, Any]]:
    """The trial of the present settings, the best, and all of it as data.

    Args:
        scene: the day that settings are searched on.
        another: a day with another seed, on which both are played once more.
    """
    first = scene()
    start, maxima = present(first), tuple(one.bounds.max for one in first.workloads)
    trials = list(_shown(search(lambda one: attempt(scene, one, p95_s), start, maxima, most=most), most, quiet=quiet))
    now, best = trials[0][0], trials[-1][1]
    check = [attempt(another, one.settings, p95_s) for one in (now, best)]
    data = {
        "runs": len(trials),
        "p95_s": p95_s,
        "present": _data(first, now),
        "found": _data(first, best),
        "on_another_day": {"present": _data(first, check[0]), "found": _data(first, check[1])},
        "to_write": _to_write(first, now.settings, best.settings),
    }
    return now, best, data


def _shown(trials: Iterator[tuple[Trial, Trial]], most: int, *, quiet: bool) -> Iterator[tuple[Trial, Trial]]:
    """The trials, with a bar that tells the best so far."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        bar = progress.add_task("tuning", total=most)
        for trial, best in trials:
            progress.update(bar, advance=1, description=f"tuning, best so far {best.usd:.2f} USD")
            yield trial, best


def run_of(scene: Scene, trial: Trial, name: str) -> Run:
    """A trial as a run that can be drawn."""
    played = under(scene, trial.settings)
    return Run(name, played.pools, played.workloads, trial.outcome)


def _data(scene: Scene, trial: Trial) -> dict[str, Any]:
    settings = {name: getattr(trial.settings, name) for name in _WORDS}
    mins = {one.name: least for one, least in zip(scene.workloads, trial.settings.mins, strict=True)}
    return {"settings": {**settings, "replicas.min": mins}, "met": trial.excess == 0,
            **data_of(run_of(scene, trial, Cotenant.name))}  # fmt: skip


def _to_write(scene: Scene, now: Settings, found: Settings) -> dict[str, Any]:
    """What differs, as keys of the environment in the platform file, and apart from it what has no key there."""
    pools = {scene.pools[one.pool].name: {"nodes": {"spare": found.spare}} for one in scene.workloads}
    mins = {
        one.name: {"replicas": {"min": new}}
        for one, old, new in zip(scene.workloads, now.mins, found.mins, strict=True)
        if new != old
    }
    file = {**({"pools": pools} if found.spare != now.spare else {}), **({"workloads": mins} if mins else {})}
    idle = {"idle_s": found.idle_s} if found.idle_s != now.idle_s else {}
    aims = {name: getattr(found, name) for name in ("patience", "stretch", "late")}
    return {"file": file, "beside": {**idle, **{name: one for name, one in aims.items() if one != getattr(AIMS, name)}}}


def show(what: str, hours: float, data: Mapping[str, Any], notes: Sequence[str]) -> None:
    """Print both settings side by side, and what to write."""
    console = Console(highlight=False)
    now, found = data["present"], data["found"]
    names = [name for name, one in now["workloads"].items() if one["calls"] or "dated" in one]
    aim = f"{data['p95_s']:g} s" if data["p95_s"] is not None else "each workload's target"
    console.print(f"{what}: {hours:.3g} h, simulated, p95 of waits within {aim}; {data['runs']} runs", style="bold")
    table = Table(box=None, pad_edge=False)
    for column in ("", "as it is", "found"):
        table.add_column(column, justify="right" if column else "left")
    for setting, word in _WORDS.items():
        table.add_row(word, *(f"{one['settings'][setting]:g}" for one in (now, found)))
    for name in now["settings"]["replicas.min"]:
        table.add_row(f"{name}: replicas.min", *(str(one["settings"]["replicas.min"][name]) for one in (now, found)))
    for name in names:
        table.add_row(
            f"{name}: wait p95, s", *(f"{one['workloads'][name]['wait_s']['p95']:.1f}" for one in (now, found))
        )
    table.add_row("GPU-hours", *(f"{one['gpu_hours']:.2f}" for one in (now, found)))
    table.add_row("USD", *(f"{one['usd']:.2f}" for one in (now, found)))
    table.add_row("within", *("yes" if one["met"] else "no" for one in (now, found)))
    console.print(table)
    console.print(f"\n{_verdict(now, found)}")
    other = data["on_another_day"]
    console.print(f"With another seed: {_verdict(other['present'], other['found'])}")
    written = data["to_write"]
    if written["file"]:
        console.print("\nIn the environment of the platform file:")
        console.print(_yaml(written["file"]), markup=False)
    if written["beside"]:
        said = ", ".join(f"{name} {value:g}" for name, value in written["beside"].items())
        console.print(f"\nWithout a key in the file: {said}.")
    for note in notes:
        console.print(f"\n{note}", style="dim")


def _verdict(now: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """What the change is worth."""
    more = found["usd"] - now["usd"]
    kept = {(True, True): "both keep within it", (False, True): "as it is the waits are too long",
            (True, False): "what was found misses it", (False, False): "neither keeps within it"}  # fmt: skip
    amount = "costs the same" if abs(more) < 0.005 else f"{'costs' if more > 0 else 'saves'} {abs(more):.2f} USD"
    return f"found against as it is {amount}; {kept[now['met'], found['met']]}."


def _yaml(data: Mapping[str, Any]) -> str:
    import yaml  # noqa: PLC0415

    return yaml.safe_dump(data, default_flow_style=None, sort_keys=False).rstrip()
