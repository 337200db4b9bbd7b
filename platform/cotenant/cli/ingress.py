"""`cotenant ingress`: the job door as a process of its own, outside of Ray, in front of a gateway.

It is the ingress that Serve runs, with HTTP where that has Ray: the same pump, so the same settlement. What it adds is
what a plain Deployment needs: an end on SIGTERM after the jobs under way, and probes.
"""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import click

from cotenant.cli.options import platform_options
from cotenant.config import load_platform
from cotenant.config.spill import URL_PATTERN
from cotenant.errors import EnvironmentFault

SOURCE_ENV = "COTENANT_JOBS_SOURCE"


@click.command()
@platform_options
@click.option("--upstream", envvar="COTENANT_UPSTREAM", required=True, help="URL of the gateway that does the work.")
@click.option(
    "--key-env",
    default="COTENANT_UPSTREAM_KEY",
    show_default=True,
    help="Environment variable with the key for it; it need not be set.",
)
@click.option("--google-auth", is_flag=True, help="Send an identity token of this machine's service account too.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 100_000),
    help="Jobs of each workload worked on at once (default: the workload's slots times its replicas there, divided by "
    "jobs.ingresses).",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of /healthz, /readyz and /metrics.")
@click.option("--port", type=click.IntRange(0, 65535), default=8090, show_default=True, help="Their port.")
def ingress(  # noqa: PLR0917 - click gives them by name
    file: Path,
    environment: str,
    upstream: str,
    key_env: str,
    google_auth: bool,
    concurrency: int | None,
    host: str,
    port: int,
) -> None:
    """Serve jobs without Ray: pull them, have a gateway do them, settle them. Drains on SIGTERM."""
    from cotenant.cli.ingress_process import serve  # noqa: PLC0415 - what a command needs when it runs
    from cotenant.cli.up import absolute_paths  # noqa: PLC0415
    from cotenant.telemetry.logs import configure_logs  # noqa: PLC0415
    from cotenant.upstream.auth import auth_of  # noqa: PLC0415

    platform = absolute_paths(load_platform(file, environment), Path.cwd())
    if not re.fullmatch(URL_PATTERN, upstream):
        raise EnvironmentFault(f"--upstream needs a URL such as http://gateway:8000, got {upstream!r}")
    if platform.jobs.store.startswith("memory:"):
        raise EnvironmentFault("jobs.store is memory://, which ends with this process; name a folder or a bucket")
    if os.environ.get(SOURCE_ENV) == "memory":
        raise EnvironmentFault(f"{SOURCE_ENV} is memory, and nobody can publish into this process; unset it")
    auth = auth_of(os.environ, url=upstream, key_env=key_env if os.environ.get(key_env) else None, google=google_auth)
    configure_logs()
    asyncio.run(serve(platform, upstream, auth, concurrency=concurrency, host=host, port=port))
