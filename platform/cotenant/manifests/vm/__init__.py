"""One machine that runs an environment with Docker Compose: the files for it, and the scripts for a VM on Google Cloud.

`compose.yaml` stands alone: on a machine of your own it is all that is needed. Where the environment has `gke`, the
scripts that make a VM of it come along.
"""

from __future__ import annotations

from cotenant.config import Platform
from cotenant.gpu.machines import PRICES_AS_OF
from cotenant.gpu.plan import Plan
from cotenant.manifests.files import Files, header, yaml_text
from cotenant.manifests.gke.queue import Queue
from cotenant.manifests.vm.compose import compose, image
from cotenant.manifests.vm.host import Host, host_of
from cotenant.manifests.vm.scripts import caddyfile, create_script, startup_script

__all__ = ["vm_files"]


def vm_files(platform: Platform, plan: Plan, queue: Queue, platform_file: str = "platform.yaml") -> Files:
    """Files for one machine: compose.yaml, Caddyfile, .env.example, secrets.env.example, and for a VM on Google Cloud
    startup.sh and create.sh.

    Args:
        platform: with its budgets filled in.
        plan: its plan.
        queue: topics and subscriptions that its jobs go through, and the rights on them.
        platform_file: where the platform file lies, as seen from the folder that these files go to.

    Raises:
        EnvironmentFault: the environment has several GPU pools.
        PlanError: its minimum does not fit one machine, or its pool can't be made of one VM.
    """
    host = host_of(platform, plan)
    command = f"cotenant manifests --target compose -e {platform.environment}"
    files = {
        "compose.yaml": yaml_text([compose(platform, host, platform_file)], command, _note(platform, host)),
        "Caddyfile": header(command) + caddyfile(platform),
        # Without the header: what is copied from them is the user's, not something generated to be cleared away.
        ".env.example": _settings(platform, host, platform_file),
        "secrets.env.example": _secrets(platform),
    }
    if host.site is not None and host.machine is not None:
        files["startup.sh"] = startup_script(platform, host, host.site, command)
        files["create.sh"] = create_script(
            platform, host, host.site, queue, platform_file=platform_file, command=command
        )
    return files


def _note(platform: Platform, host: Host) -> str:
    what = f"{host.machine or 'any machine'}, " + ("CPU only" if host.on_cpu else f"{host.gpus} GPU")
    if host.usd_per_h is not None:
        spot = ", spot" if host.spot else ""
        price = f"{host.usd_per_h:.2f} USD/h{spot} (us-central1, {PRICES_AS_OF})"
        what += f"; list price {price}, without disks and network"
    return f"Environment {platform.environment} on one machine: {what}.\ndocs/one-vm.md"


def _settings(platform: Platform, host: Host, platform_file: str) -> str:
    domain = (host.site.gke.domain if host.site is not None else None) or "mockups.example.com"
    lines = [
        "# Copy it to .env. Every line has a default; none of them is a secret.",
        "",
        "# tls: a door with TLS for DOMAIN on ports 80 and 443. emulator: Pub/Sub's emulator, which forgets its",
        "# messages when it stops; then PUBSUB_EMULATOR_HOST too. Both: tls,emulator.",
        "COMPOSE_PROFILES=",
        f"#DOMAIN={domain}",
        "#PUBSUB_EMULATOR_HOST=pubsub:8085",
        "",
        "# Where the HTTP door without TLS is published.",
        "#COTENANT_BIND=127.0.0.1",
        f"#COTENANT_PORT={platform.gateway.port}",
        "",
        "# Another image, or one pinned by digest.",
        f"#COTENANT_IMAGE={image(host)}",
        f"#COTENANT_PLATFORM_FILE={platform_file}",
        "#COTENANT_SECRETS=secrets.env",
    ]
    if not host.on_cpu:
        lines += ["", "# 1: CUDA's MPS, whose driver keeps each replica within its budget.", "#COTENANT_MPS=0"]
    if host.machine is None:
        lines += ["", "# Most memory that the platform may take.", f"#COTENANT_MEMORY={host.platform_mib}M"]
    return "\n".join(lines) + "\n"


def _secrets(platform: Platform) -> str:
    lines = [
        "# Copy it to secrets.env, chmod 600, and add to it. Never commit it. Nothing in it is expanded, $(…) would",
        "# stay as it is: have a shell add the line.",
    ]
    if platform.gateway.keys_env:
        lines += [
            "# API keys, tenant:key, comma-separated:",
            f'#   echo "{platform.gateway.keys_env}=acme:$(openssl rand -hex 24)" >> secrets.env',
        ]
    spills = [workload.spill for workload in platform.workloads.values() if workload.spill is not None]
    if names := sorted({spill.key_env for spill in spills if spill.key_env is not None}):
        lines += ["# Keys of servers that workloads spill to.", *(f"#{name}=" for name in names)]
    lines += [
        "# What signs webhooks, tenant:whsec_…, comma-separated.",
        f"#{platform.jobs.webhooks_env}=",
        "# For models of Hugging Face that want it.",
        "#HF_TOKEN=",
    ]
    return "\n".join(lines) + "\n"
