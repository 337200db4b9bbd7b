"""`cotenant manifests`: an environment's Kubernetes objects, node pools and scripts, as files that are committed."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import click

from cotenant.cli.options import with_budgets
from cotenant.cli.queue_names import queue_names
from cotenant.config import DEFAULT_FILE, Platform, environments, load_platform
from cotenant.errors import EnvironmentFault, PlanError
from cotenant.gpu.plan import Plan, plan
from cotenant.manifests.cloudrun import cloudrun_files
from cotenant.manifests.environment import command_for, environment_files
from cotenant.manifests.files import LIST, Files, digest, header_of, listed, with_list
from cotenant.manifests.gke.setup_script import setup_files
from cotenant.manifests.rules import cpu_shortages, upgrade_room
from cotenant.manifests.vm import vm_files

TARGETS = ("gke", "compose", "cloudrun")
#: Lines of a difference that are shown.
_SHOWN = 20


@click.command()
@click.option(
    "-f", "--file", type=click.Path(path_type=Path), default=DEFAULT_FILE, show_default=True, help="The platform file."
)
@click.option("-e", "--env", "names", multiple=True, help="Environment; may be repeated (gke: all that have gke).")
@click.option("--target", type=click.Choice(TARGETS), default="gke", show_default=True, help="For what.")
@click.option("--workload", help="The workload that goes to Cloud Run.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False),
    help="Folder (default: kuberay, with a folder for each environment; compose: images; cloudrun: cloudrun/WORKLOAD).",
)  # fmt: skip
@click.option("--check", is_flag=True, help="Write nothing; fail if what is there differs.")
@click.option("--stdout", is_flag=True, help="Write nothing; print.")
def manifests(
    *,
    file: Path,
    names: tuple[str, ...],
    target: str,
    workload: str | None,
    out: Path | None,
    check: bool,
    stdout: bool,
) -> None:
    """Write what an environment needs elsewhere.

    gke: RayService, network, node pools, set-up script. compose: one machine with Docker. cloudrun: one workload as a
    service with a GPU, to which the gateway can spill.
    """
    if (workload is None) == (target == "cloudrun"):
        raise click.UsageError("--target cloudrun and --workload NAME go together")
    folders = dict(rendered(file, names, target, workload, out))
    if stdout:
        for files in folders.values():
            for path, text in files.items():
                click.echo(f"# {path}\n{text}" if path.endswith(".yaml") else f"{path}:\n{text}")
        return
    if check:
        differences = [each for folder, files in folders.items() for each in differing(folder, files)]
        if differences:
            again = "" if target == "gke" else f" --target {target}"
            raise EnvironmentFault(
                "\n".join([*differences, f"run `cotenant manifests{again}` and commit what it writes"])
            )
        click.echo(f"{sum(map(len, folders.values()))} files in {', '.join(map(str, folders))} are up to date")
        return
    for folder, files in folders.items():
        for left in disowned(folder, files):
            note = f"{left} was generated, was changed since, and stays; delete it if nobody needs it"
            click.secho(note, fg="yellow", err=True)
        changed = write(folder, files)
        click.echo(f"{folder}: {len(files)} files, {len(changed)} changed")
        for path in changed:
            click.echo(f"  {path}")


def rendered(
    file: Path, names: tuple[str, ...], target: str, workload: str | None, out: Path | None
) -> Iterator[tuple[Path, Files]]:
    """Each folder and what belongs in it."""
    if target == "gke":
        for name in names or _on_gke(file):
            yield (out or Path("kuberay")) / name, with_list(_on_cluster(file, name))
        return
    (name,) = _one(names, target)
    if workload is not None:
        yield out or Path("cloudrun") / workload, with_list(cloudrun_files(*_planned(file, name), workload))
    else:
        folder = out or Path("images")
        platform, the_plan = _planned(file, name)
        yield folder, with_list(vm_files(platform, the_plan, queue_names(platform), os.path.relpath(file, folder)))


def _on_cluster(file: Path, name: str) -> Files:
    platform, the_plan = _planned(file, name)
    script = setup_files(platform, queue_names(platform), command=command_for(name), file=file.as_posix())
    return {**environment_files(platform, the_plan), **script}


def _one(names: tuple[str, ...], target: str) -> tuple[str, ...]:
    if len(names) != 1:
        raise click.UsageError(f"--target {target} is for one environment; name it with -e, e.g. -e dev")
    return names


def _on_gke(file: Path) -> tuple[str, ...]:
    found = tuple(name for name in environments(file) if load_platform(file, name).gke is not None)
    if not found:
        hint = "add e.g. gke: {project: acme, region: us-central1}"
        raise PlanError(f"{file}: no environment has a gke section; {hint}")
    return found


def _planned(file: Path, environment: str) -> tuple[Platform, Plan]:
    platform, notes = with_budgets(load_platform(file, environment))
    the_plan = plan(platform)
    short = [] if platform.gke is None else [*cpu_shortages(platform, the_plan), *upgrade_room(platform, the_plan)]
    for warning in (*notes, *the_plan.warnings, *short):
        click.secho(f"{environment}: {warning}", fg="yellow", err=True)
    return platform, the_plan


def differing(folder: Path, files: Files) -> list[str]:
    """What would change in `folder`, in words: files that are missing, differ, or aren't rendered any more."""
    found = []
    for path, text in files.items():
        there = folder / path
        if not there.exists():
            found.append(f"{there} is missing")
        elif (have := there.read_text(encoding="utf-8", errors="replace")) != text:
            lines = list(
                difflib.unified_diff(have.splitlines(), text.splitlines(), "there", "rendered", lineterm="", n=1)
            )
            found.append("\n".join([f"{there} differs:", *lines[:_SHOWN], *(["…"] if len(lines) > _SHOWN else [])]))
    return [*found, *(f"{path} is not rendered any more" for path in _stale(folder, files))]


def write(folder: Path, files: Files) -> list[str]:
    """Make `folder` hold `files`, and of what was generated before nothing else. Paths of what changed."""
    changed, stale = [], _stale(folder, files)
    # Before the list of them is written anew: who is stopped here finds them stale again.
    for path in stale:
        path.unlink()
    for name, text in files.items():
        there = folder / name
        if not there.exists() or there.read_bytes() != text.encode():
            there.parent.mkdir(parents=True, exist_ok=True)
            draft = there.with_name(f".{there.name}.tmp")
            draft.write_text(text, encoding="utf-8")
            if text.startswith("#!"):
                draft.chmod(0o755)
            draft.replace(there)
            changed.append(name)
    return [*changed, *(f"{path.relative_to(folder)} (removed)" for path in stale)]


def disowned(folder: Path, files: Files) -> list[Path]:
    """Files there that the list names, that are not rendered any more, and that somebody has changed since."""
    return [path for path, as_generated in _left(folder, files) if not as_generated]


def _stale(folder: Path, files: Files) -> list[Path]:
    """Files there that the same command generated and doesn't any more: by their header, or by the list and unchanged
    since. All others stay."""
    return [path for path, as_generated in _left(folder, files) if as_generated]


def _left(folder: Path, files: Files) -> Iterator[tuple[Path, bool]]:
    """Files of an earlier run that are not rendered any more, and whether each is still known to be generated."""
    ours = {made_by for text in files.values() if (made_by := header_of(text)) is not None}
    bare = _listed(folder, ours)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name in files or not path.is_file():
            continue
        if header_of(_beginning(path)) in ours:
            yield path, True
        elif name in bare:
            yield path, digest(path.read_bytes()) == bare[name]


def _listed(folder: Path, ours: set[str]) -> Mapping[str, str]:
    """Digests of what was generated without a header; of another command's none."""
    path = folder / LIST
    if not path.is_file() or header_of(_beginning(path)) not in ours:
        return {}
    return listed(path.read_text(encoding="utf-8", errors="replace"))


def _beginning(path: Path) -> str:
    """The first two lines; nothing if it is no text."""
    try:
        with path.open(encoding="utf-8") as text:
            return text.readline() + text.readline()
    except UnicodeDecodeError:
        return ""
