"""`cotenant up`: run one environment of the platform on this machine, or bring a running one up to date.

What is already right is left alone: Ray and the emulator are started once, and Serve restarts only the
applications whose config changed. Whatever goes wrong, the version that served before goes on serving.
"""

from __future__ import annotations

import hmac
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import psutil
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

import cotenant
from cotenant.cli.down import DRAIN_TIMEOUT_S, take_down
from cotenant.cli.foreground import run as run_in_foreground
from cotenant.cli.machine import ray_node
from cotenant.cli.machine.engine_logs import root_cause
from cotenant.cli.machine.serve_api import ApplicationStatus, ServeApi
from cotenant.cli.machine.state import ProcessRef, RunState
from cotenant.cli.options import platform_options, with_budgets
from cotenant.config import Platform, load_platform
from cotenant.config.home import home
from cotenant.errors import CotenantError, DeployFailed, EnvironmentFault
from cotenant.gateway.keys import load_keys
from cotenant.gpu.plan import plan
from cotenant.gpu.probe import count_gpus
from cotenant.jobs.queue import emulator
from cotenant.manifests.one_machine import gpus_of_machine, only_gpu_pool
from cotenant.manifests.pools import node_resources
from cotenant.manifests.serve import serve_config

POLL_S = 0.5
#: Serve reports a failed start once, then retries; this many seconds of UNHEALTHY settle it.
FAILED_SETTLES_S = 3.0


@click.command()
@platform_options
@click.option("--address", envvar="RAY_API_SERVER_ADDRESS", help="Join the Ray whose dashboard is at this URL.")
@click.option("--timeout", "timeout_s", default=900.0, show_default=True, help="Seconds until all must be running.")
@click.option("--no-emulator", is_flag=True, help="Do not start the Pub/Sub emulator; serve jobs from memory.")
@click.option("--host", help="Address the HTTP door listens on, instead of gateway.host: 0.0.0.0 in a container.")
@click.option("--foreground", is_flag=True, help="Stay, and take everything down on SIGTERM or Ctrl-C: for containers.")
@click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(min=0),
    default=DRAIN_TIMEOUT_S,
    show_default=True,
    help="With --foreground: seconds that requests and jobs may take to finish then.",
)
@click.pass_context
def up(
    context: click.Context,
    file: Path,
    environment: str,
    *,
    address: str | None,
    timeout_s: float,
    no_emulator: bool,
    host: str | None,
    foreground: bool,
    grace_s: float,
) -> None:
    """Run an environment on this machine: Ray, the workloads, both front doors."""
    console = Console(stderr=True, highlight=False)
    platform = absolute_paths(listening(load_platform(file, environment), host), Path.cwd())

    def bring_up() -> RunState:
        return _bring_up(platform, console, address=address, timeout_s=timeout_s, no_emulator=no_emulator)

    if not foreground:
        bring_up()
        return
    context.exit(
        run_in_foreground(
            bring_up,
            find=lambda: RunState.load(platform.name),
            down=lambda state: take_down(state, console, within_s=grace_s),
        )
    )


def _bring_up(
    platform: Platform, console: Console, *, address: str | None, timeout_s: float, no_emulator: bool
) -> RunState:
    """Start what does not run, deploy what has changed, wait until all of it serves, and say where."""
    environment = platform.environment
    platform, notes = with_budgets(platform)
    the_plan = plan(platform)
    for warning in (*notes, *the_plan.warnings):
        console.print(f"[yellow]note[/] {warning}")
    _require_packages()
    config = serve_config(platform, the_plan)
    state = RunState.load(platform.name)
    if state is not None and not _still_runs(state):
        _clear_away(state)
        state = None
    if state is None:
        state = _join(platform, address) if address else _start(platform, console, no_emulator)
        if state.ray is not None:
            state.save()
    elif state.environment != environment:
        raise EnvironmentFault(
            f"{platform.name} runs here as environment {state.environment}; "
            f"`cotenant down` first, then `up -e {environment}`"
        )
    elif state.ray is not None and state.keys_digest != _keys_digest(platform):
        raise EnvironmentFault(
            f"{platform.gateway.keys_env}, {platform.jobs.webhooks_env} or a spill's key differs from what the running "
            "platform was started with, and its doors read them at the start only: `cotenant down` first (or keep the "
            "API keys in gateway.keys_file)"
        )
    with ServeApi(state.dashboard, state.token_file) as serve:
        _require_resources(serve, node_spec(platform))
        before = serve.applications()
        wanted = [application["name"] for application in config["applications"]]
        if state.ray is None and RunState.load(platform.name) is None:
            _require_no_neighbours(before, wanted)
        # A Ray that was joined is on record only once something of ours runs there: `down` empties what is on record.
        state.save()
        serve.deploy(config)
        asked_at = time.time()
        try:
            _wait(serve, wanted, before, timeout_s, console)
        except DeployFailed as failure:
            cause = root_cause(Path(state.ray_dir), asked_at) if state.ray_dir else None
            raise (DeployFailed(f"{failure}\n{cause}") if cause else failure) from None
    state = replace(state, gateway_url=_gateway_url(platform))
    state.save()
    _print_urls(platform, state, console)
    return state


def listening(platform: Platform, host: str | None) -> Platform:
    """`platform` with its HTTP door on `host`, if one is given: what a container publishes is not for it to say."""
    if host is None:
        return platform
    return platform.model_copy(update={"gateway": platform.gateway.model_copy(update={"host": host})})


def absolute_paths(platform: Platform, base: Path) -> Platform:
    """`platform` with its local paths (job store, key file, templates, model folders) made absolute from `base`."""

    def absolute(path: str) -> str:
        return path if "://" in path else str((base / Path(path).expanduser()).resolve())

    workloads = dict(platform.workloads)
    for name, workload in workloads.items():
        if workload.mockup is not None:
            templates = tuple(absolute(t) if t.endswith(".glb") else t for t in workload.mockup.templates)
            workloads[name] = workload.model_copy(
                update={"mockup": workload.mockup.model_copy(update={"templates": templates})}
            )
        elif workload.llm is not None and workload.llm.model.startswith((".", "~")):
            model = absolute(workload.llm.model)
            workloads[name] = workload.model_copy(update={"llm": workload.llm.model_copy(update={"model": model})})
        elif workload.image is not None and workload.image.model.startswith((".", "~")):
            model = absolute(workload.image.model)
            workloads[name] = workload.model_copy(update={"image": workload.image.model_copy(update={"model": model})})
    jobs = platform.jobs.model_copy(update={"store": absolute(platform.jobs.store)})
    gateway = platform.gateway
    if gateway.keys_file is not None:
        gateway = gateway.model_copy(update={"keys_file": absolute(gateway.keys_file)})
    return platform.model_copy(update={"workloads": workloads, "jobs": jobs, "gateway": gateway})


def node_spec(platform: Platform) -> ray_node.NodeSpec:
    """What one machine must offer to run `platform`. Raises EnvironmentFault if no one machine can."""
    _, pool = only_gpu_pool(platform)
    gpus = gpus_of_machine(pool)
    if pool.accelerator == "cpu":
        _require_memory(gpus * (pool.vram_gib or 0), platform.environment)
    else:
        _require_gpus(gpus, str(pool.accelerator), platform.environment)
    return ray_node.NodeSpec(
        num_cpus=max(os.cpu_count() or 1, _cpus_at_min(platform)),
        num_gpus=gpus,
        resources={name: amount for pool in platform.pools for name, amount in node_resources(platform, pool).items()},
    )


def _cpus_at_min(platform: Platform) -> int:
    """CPU cores that the platform books with every workload at its smallest, rounded up.

    On one machine cores are shared like the GPU is: booking them must not be what keeps a small laptop from
    running every workload once.
    """
    booked = sum(w.cpus * max(1, w.replicas.max) for w in platform.workloads.values())
    return int(booked) + 2


def _require_packages() -> None:
    for package in ("ray", "obstore"):
        if find_spec(package) is None:
            raise EnvironmentFault(
                f"`cotenant up` needs {package}, which is not installed; pip install 'cotenant[cpu]'"
            )


def _require_memory(vram_gib: float, environment: str) -> None:
    have_gib = psutil.virtual_memory().total / 2**30
    if vram_gib > have_gib:
        raise EnvironmentFault(
            f"environment {environment} gives its virtual GPUs {vram_gib:.1f} GiB, but this machine has "
            f"{have_gib:.1f} GiB of memory; lower vram_gib of the pool"
        )


def _require_gpus(need: int, accelerator: str, environment: str) -> None:
    have = count_gpus()
    if have < need:
        raise EnvironmentFault(
            f"environment {environment} needs {need} {accelerator}, but this machine has {have} NVIDIA GPUs; "
            "use -e local here, or `cotenant compile` and `serve deploy` on a cluster"
        )


def _still_runs(state: RunState) -> bool:
    """Whether the Ray of `state` is there: by its process if it is ours, by its dashboard if it was joined."""
    if state.ray is not None:
        return state.ray.find() is not None
    try:
        with ServeApi(state.dashboard, state.token_file) as serve:
            serve.applications()
    except CotenantError:
        return False
    return True


def _clear_away(state: RunState) -> None:
    """Stop what is left of a platform whose Ray has ended, so that its record can go."""
    if state.ray is not None and state.ray_dir is not None:
        ray_node.stop(state.ray, Path(state.ray_dir))
    if state.emulator is not None and state.emulator.find() is not None:
        emulator.stop(state.emulator.pid)
    state.forget()


def _require_no_neighbours(running: Collection[str], ours: Collection[str]) -> None:
    """A Serve config replaces the whole of what runs: a Ray that is joined must not serve anybody else."""
    others = sorted(set(running) - set(ours))
    if others:
        raise EnvironmentFault(
            f"the running Ray serves {', '.join(others)} already, which a deploy from here would delete; "
            "join one without Serve applications, or `serve shutdown` those first"
        )


def _start(platform: Platform, console: Console, no_emulator: bool) -> RunState:
    """Start Ray (and the emulator) for `platform` and say so."""
    spec = node_spec(platform)
    load_keys(platform.gateway, os.environ)  # a door that may not open is to be said now, not when Ray is there
    emulator_host, emulator_process = _pubsub(platform, console, no_emulator)
    with console.status("Ray starts") as status:
        environment = {"PYTHONPATH": _python_path(), "COTENANT_HOME": str(home())}
        if emulator_host:
            environment["PUBSUB_EMULATOR_HOST"] = emulator_host
        elif platform.gke is None:
            environment["COTENANT_JOBS_SOURCE"] = "memory"
        try:
            node = ray_node.start(spec, environment, lambda waited_s: status.update(f"Ray starts ({waited_s:.0f} s)"))
        except BaseException:  # Ctrl-C too: nobody has a record of the emulator yet
            if emulator_process is not None:
                emulator.stop(emulator_process.pid)
            raise
    console.print(f"[green]up[/] Ray on {node.address}: {spec.num_gpus} GPU, {spec.num_cpus} CPU")
    return RunState(
        platform=platform.name,
        environment=platform.environment,
        dashboard=node.dashboard,
        token_file=str(node.token_file),
        ray=node.process,
        ray_dir=str(node.directory),
        ray_address=node.address,
        emulator=emulator_process,
        pubsub_emulator_host=emulator_host,
        store=platform.jobs.store,
        gateway_url=_gateway_url(platform),
        keys_digest=_keys_digest(platform),
        metrics_url=node.metrics,
    )


def _keys_digest(platform: Platform) -> str | None:
    """A digest of the secrets in the environment, salted with what only this user can read; None if there are none."""
    spills = (workload.spill.key_env for workload in platform.workloads.values() if workload.spill is not None)
    names = (platform.gateway.keys_env, platform.jobs.webhooks_env, *sorted({name for name in spills if name}))
    secrets = [os.environ.get(name or "", "") for name in names]
    if not any(secrets):
        return None
    return hmac.digest(ray_node.token_file().read_bytes(), "\0".join(secrets).encode(), "sha256").hex()


def _join(platform: Platform, address: str) -> RunState:
    return RunState(
        platform=platform.name,
        environment=platform.environment,
        dashboard=address,
        token_file=os.environ.get("RAY_AUTH_TOKEN_PATH"),
        ray=None,
        ray_dir=None,
        ray_address=None,
        emulator=None,
        pubsub_emulator_host=os.environ.get("PUBSUB_EMULATOR_HOST"),
        store=platform.jobs.store,
        gateway_url=_gateway_url(platform),
    )


def _pubsub(platform: Platform, console: Console, no_emulator: bool) -> tuple[str | None, ProcessRef | None]:
    """Address of the Pub/Sub emulator for this run and, if it was started here, its process."""
    given = os.environ.get("PUBSUB_EMULATOR_HOST")
    if platform.jobs.ingresses == 0 or platform.gke is not None or given:
        return given, None
    if no_emulator:
        console.print("[yellow]note[/] --no-emulator: jobs are held in memory and are lost when the platform stops")
        return None, None
    found = emulator.find_emulator()
    if isinstance(found, str):
        console.print(f"[yellow]note[/] {found}; jobs are held in memory and are lost when the platform stops")
        return None, None
    with console.status("the Pub/Sub emulator starts"):
        running = found.start(home() / "run" / platform.name)
    console.print(f"[green]up[/] Pub/Sub emulator on {running.host_port}")
    return running.host_port, ProcessRef.of(running.pid)


def _python_path() -> str:
    """PYTHONPATH for Ray's processes: where `deployments` and `cotenant` are importable from."""
    package = Path(cotenant.__file__).parent.parent
    roots = [
        package,
        *(root for root in (package.parent, Path.cwd()) if (root / "deployments" / "__init__.py").exists()),
    ]
    paths = [str(root) for root in dict.fromkeys(roots)]
    return os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])


def _require_resources(serve: ServeApi, spec: ray_node.NodeSpec) -> None:
    lacking = spec.lacking(serve.cluster_resources())
    if lacking:
        parts = ", ".join(f"{name} (need {need:g}, have {have:g})" for name, (need, have) in lacking.items())
        raise EnvironmentFault(f"the running Ray lacks {parts}; this would serve:\n  {spec.start_line()}")


def _wait(
    serve: ServeApi,
    wanted: list[str],
    before: Mapping[str, ApplicationStatus],
    timeout_s: float,
    console: Console,
) -> None:
    """Return when every application in `wanted` is RUNNING. Raises DeployFailed with the reason otherwise."""
    begun = time.monotonic()
    ready_after: dict[str, float] = {}
    failed_since: dict[str, float] = {}
    with Live(console=console, refresh_per_second=4, transient=not console.is_terminal) as live:
        while True:
            elapsed_s = time.monotonic() - begun
            applications = serve.applications()
            for name in wanted:
                application = applications.get(name)
                if application is not None and application.ready:
                    ready_after.setdefault(name, elapsed_s)
                else:
                    ready_after.pop(name, None)
                if application is not None and application.failed:
                    failed_since.setdefault(name, elapsed_s)
                else:
                    failed_since.pop(name, None)
            if console.is_terminal:
                live.update(_table(wanted, applications, ready_after, elapsed_s))
            broken = [name for name, since in failed_since.items() if elapsed_s - since >= FAILED_SETTLES_S]
            if broken:
                raise DeployFailed(_why(broken, applications, before))
            # A PUT marks changed applications DEPLOYING before it returns, so RUNNING here is the new version's.
            if len(ready_after) == len(wanted):
                break
            if elapsed_s > timeout_s:
                missing = [name for name in wanted if name not in ready_after]
                raise DeployFailed(
                    f"not running after {timeout_s:.0f} s: {', '.join(missing)}\n{_why(missing, applications, before)}"
                )
            time.sleep(POLL_S)
    for name, after_s in ready_after.items():
        console.print(f"[green]up[/] {name} after {after_s:.0f} s")


def _why(
    names: list[str], applications: Mapping[str, ApplicationStatus], before: Mapping[str, ApplicationStatus]
) -> str:
    lines = []
    for name in names:
        application = applications.get(name)
        message = (application.message if application else "") or "Serve gives no reason"
        lines.append(f"{name}: {_last_words(message)}")
        if name in before and before[name].ready:
            lines.append(f"{name}: the version that ran before goes on serving where its replicas are still up")
    return "\n".join(lines)


def _last_words(message: str, lines: int = 12) -> str:
    """What a message that may hold remote tracebacks comes to: its last exception's own text, or its end."""
    kept = [line for line in message.strip().splitlines() if line.strip()]
    frames = [number for number, line in enumerate(kept) if line.startswith(("  File ", "    ", "Traceback "))]
    if frames and frames[-1] + 1 < len(kept):
        kept = kept[frames[-1] + 1 :]
    return "\n".join(kept[-lines:])


def _table(
    wanted: list[str],
    applications: Mapping[str, ApplicationStatus],
    ready_after: Mapping[str, float],
    elapsed_s: float,
) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("application", "status", "replicas", "seconds"):
        table.add_column(heading)
    for name in wanted:
        application = applications.get(name)
        status = application.status if application else "DEPLOYING"
        colour = "green" if status == "RUNNING" else "red" if application and application.failed else "yellow"
        replicas = ", ".join(f"{n} {s.lower()}" for s, n in application.replicas.items()) if application else ""
        table.add_row(name, Text(status.lower(), colour), replicas, f"{ready_after.get(name, elapsed_s):.0f}")
    return table


def _gateway_url(platform: Platform) -> str:
    host = platform.gateway.host
    return f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{platform.gateway.port}"  # noqa: S104


def _short(path: str) -> str:
    """`path` with the user's home as ~."""
    return path.replace(f"{Path.home()}/", "~/", 1) if path.startswith(f"{Path.home()}/") else path


def _print_urls(platform: Platform, state: RunState, console: Console) -> None:
    rows: list[tuple[str, Any]] = [("HTTP", _gateway_url(platform)), ("Ray dashboard", state.dashboard)]
    if state.token_file:
        rows.append(("", f"its token: {_short(state.token_file)}"))
    if state.metrics_url:
        rows.append(("GPU metrics", f"{state.metrics_url}, and `cotenant top`"))
    if state.ray_dir:
        rows.append(("logs", _short(f"{state.ray_dir}/session_latest/logs")))
    if state.pubsub_emulator_host:
        rows.append(("Pub/Sub", f"PUBSUB_EMULATOR_HOST={state.pubsub_emulator_host}"))
    if state.store:
        rows.append(("job store", state.store))
    grid = Table.grid(padding=(0, 2))
    for label, value in rows:
        grid.add_row(Text(label, "dim"), str(value))
    console.print(grid)
