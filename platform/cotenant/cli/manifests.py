"""`cotenant manifests`: an environment's Kubernetes objects, node pools and scripts, as files that are committed."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

import click

from cotenant.cli.options import with_budgets
from cotenant.config import DEFAULT_FILE, Platform, environments, load_platform
from cotenant.errors import EnvironmentFault, PlanError
from cotenant.gpu.plan import Plan, plan
from cotenant.manifests.environment import environment_files
from cotenant.manifests.files import HEADER, Files
from cotenant.manifests.rules import cpu_shortages

Render = Callable[[Platform, Plan], Files]
_TARGETS: dict[str, Render] = {"gke": environment_files}
#: Lines of a difference that are shown.
_SHOWN = 20


@click.command()
@click.option(
    "-f", "--file", type=click.Path(path_type=Path), default=DEFAULT_FILE, show_default=True, help="The platform file."
)
@click.option("-e", "--env", "names", multiple=True, help="Environment; may be repeated (default: all that have gke).")
@click.option("--target", type=click.Choice(list(_TARGETS)), default="gke", show_default=True, help="For what.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("kuberay"), show_default=True,
    help="Folder that gets a folder for each environment.",
)  # fmt: skip
@click.option("--check", is_flag=True, help="Write nothing; fail if what is there differs.")
@click.option("--stdout", is_flag=True, help="Write nothing; print.")
def manifests(  # noqa: PLR0917 - click gives them by name
    file: Path, names: tuple[str, ...], target: str, out: Path, check: bool, stdout: bool
) -> None:
    """Write what an environment needs on GKE: RayService, network, node pools, set-up script, …"""
    wanted = names or _on_gke(file)
    rendered = {name: _rendered(file, name, _TARGETS[target]) for name in wanted}
    if stdout:
        for files in rendered.values():
            for path, text in files.items():
                click.echo(f"# {path}\n{text}" if path.endswith(".yaml") else f"{path}:\n{text}")
        return
    if check:
        differences = [each for name, files in rendered.items() for each in differing(out / name, files)]
        if differences:
            raise EnvironmentFault("\n".join([*differences, "run `cotenant manifests` and commit what it writes"]))
        click.echo(f"{sum(map(len, rendered.values()))} files of {', '.join(rendered)} are up to date")
        return
    for name, files in rendered.items():
        changed = write(out / name, files)
        click.echo(f"{out / name}: {len(files)} files, {len(changed)} changed")
        for path in changed:
            click.echo(f"  {path}")


def _on_gke(file: Path) -> tuple[str, ...]:
    found = tuple(name for name in environments(file) if load_platform(file, name).gke is not None)
    if not found:
        raise PlanError(
            f"{file}: no environment has a gke section; add e.g. gke: {{project: acme, region: us-central1}}"
        )
    return found


def _rendered(file: Path, environment: str, render: Render) -> Files:
    platform, notes = with_budgets(load_platform(file, environment))
    the_plan = plan(platform)
    short = cpu_shortages(platform, the_plan) if platform.gke is not None else []
    for warning in (*notes, *the_plan.warnings, *short):
        click.secho(f"{environment}: {warning}", fg="yellow", err=True)
    return render(platform, the_plan)


def differing(folder: Path, files: Files) -> list[str]:
    """What would change in `folder`, in words: files that are missing, differ, or aren't rendered any more."""
    found = []
    for path, text in files.items():
        there = folder / path
        if not there.exists():
            found.append(f"{there} is missing")
        elif (have := there.read_text(encoding="utf-8")) != text:
            lines = list(
                difflib.unified_diff(have.splitlines(), text.splitlines(), "there", "rendered", lineterm="", n=1)
            )
            found.append("\n".join([f"{there} differs:", *lines[:_SHOWN], *(["…"] if len(lines) > _SHOWN else [])]))
    return [*found, *(f"{path} is not rendered any more" for path in _stale(folder, files))]


def write(folder: Path, files: Files) -> list[str]:
    """Make `folder` hold `files`, and of what was generated before nothing else. Paths of what changed."""
    changed = []
    for path, text in files.items():
        there = folder / path
        if not there.exists() or there.read_text(encoding="utf-8") != text:
            there.parent.mkdir(parents=True, exist_ok=True)
            draft = there.with_name(f".{there.name}.tmp")
            draft.write_text(text, encoding="utf-8")
            if text.startswith("#!"):
                draft.chmod(0o755)
            draft.replace(there)
            changed.append(path)
    for stale in _stale(folder, files):
        stale.unlink()
        changed.append(f"{stale.relative_to(folder)} (removed)")
    return changed


def _stale(folder: Path, files: Files) -> list[Path]:
    """Files there that were generated, by their header, and aren't any more. What somebody added stays."""
    kept = {folder / path for path in files}
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path not in kept and _generated(path)]


def _generated(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as text:
            return any(line.startswith(HEADER) for line in (text.readline(), text.readline()))
    except UnicodeDecodeError:
        return False
