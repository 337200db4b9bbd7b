"""The scripts for a VM on Compute Engine: what makes it, and what it runs when it starts.

Their bodies are shell files beside this module; what differs from environment to environment is assigned in front, so
the text that runs is the text that is checked.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from importlib.resources import files

from cotenant.config import Platform
from cotenant.gpu.machines import MACHINES
from cotenant.manifests.gke.buckets import results_bucket, weights
from cotenant.manifests.gke.queue import Queue, right_lines
from cotenant.manifests.site import Site
from cotenant.manifests.vm.compose import START_S, image, stop_grace_s
from cotenant.manifests.vm.host import Host

#: OptiX, by which mockups are rendered, wants this driver.
_DRIVER_MIN = 570
#: Images of Compute Engine by family. The first one brings a signed driver, 580.
_GPU_IMAGE = ("ubuntu-os-accelerator-images", "ubuntu-accelerator-2404-amd64-with-nvidia-580")
_CPU_IMAGE = ("debian-cloud", "debian-12")
#: Google Cloud's services that a machine needs; the last two let people in by `create.sh ssh`.
SERVICES = (
    "artifactregistry.googleapis.com",
    "compute.googleapis.com",
    "iam.googleapis.com",
    "logging.googleapis.com",
    "pubsub.googleapis.com",
    "secretmanager.googleapis.com",
    "storage.googleapis.com",
    "iap.googleapis.com",
    "oslogin.googleapis.com",
)
#: What of the 30 s of a spot machine, and of the 90 s of another, the containers get.
_LAST_WORDS_S = {True: 22, False: 80}
#: Room for images of 10 to 20 GB, two versions of them, and weights.
_DISK_GB = 200


def startup_script(platform: Platform, host: Host, site: Site, command: str) -> str:
    """What the machine runs at every start."""
    return _script(
        "startup_body.sh",
        command,
        {
            "environment": platform.environment,
            "project": site.gke.project,
            "registry": site.registry_host,
            "secret": secret_name(host),
            "gpus": host.gpus,
            "driver_min": _DRIVER_MIN,
            "start_s": START_S,
            "grace_s": stop_grace_s(platform),
            "last_words_s": _LAST_WORDS_S[host.spot],
        },
    )


def create_script(platform: Platform, host: Host, site: Site, queue: Queue, *, platform_file: str, command: str) -> str:
    """Makes the machine and what it needs with gcloud, gives it changed files, and deletes it."""
    image_project, image_family = _CPU_IMAGE if host.on_cpu else _GPU_IMAGE
    buckets = dict.fromkeys(each for each in (results_bucket(platform), *weights(platform)) if each is not None)
    lists = {
        "services": SERVICES,
        "buckets": tuple(buckets),
        "weight_buckets": weights(platform),
        "subscriptions": queue.subscriptions,
        "grants": right_lines(queue.rights),
        "agent_grants": right_lines(queue.agent_rights),
        "model": _model(platform, host),
    }
    return _script(
        "create_body.sh",
        command,
        {
            "environment": platform.environment,
            "project": site.gke.project,
            "region": site.gke.region,
            "zone": zone(site),
            "name": host.name,
            "machine": host.machine or "",
            "image_project": image_project,
            "image_family": image_family,
            "account": site.vm_account_email,
            "secret": secret_name(host),
            "keys": platform.gateway.keys_env or "" if platform.gateway.keys_file is None else "",
            "repository": site.repository,
            "image": image(host),
            "target": "engines-cpu" if host.on_cpu else "engines",
            "jobs_project": queue.project,
            "domain": site.gke.domain or "",
            "disk_gb": _DISK_GB,
            "port": platform.gateway.port,
            "platform_file": platform_file,
        },
        "".join(f"{name}=({shlex.join(values)})\n" for name, values in lists.items()),
    )


def _model(platform: Platform, host: Host) -> list[str]:
    """How the machine is had: a GPU or a spot machine can't be moved while it runs, and N1 gets its GPUs by name."""
    flags = []
    if host.spot:
        flags += ["--provisioning-model=SPOT", "--instance-termination-action=STOP"]
    flags.append(f"--maintenance-policy={'MIGRATE' if host.on_cpu and not host.spot else 'TERMINATE'}")
    if host.gpus and MACHINES[str(host.machine)].gpus is None:
        flags.append(f"--accelerator=type={platform.pools[host.pool].accelerator},count={host.gpus}")
    return flags


def zone(site: Site) -> str:
    return site.gke.zones[0] if site.gke.zones else f"{site.gke.region}-a"


def secret_name(host: Host) -> str:
    """Secret Manager's secret that holds `secrets.env`."""
    return f"{host.name}-secrets"


def caddyfile(platform: Platform) -> str:
    """How the door with TLS passes requests on."""
    body_mib = int(platform.gateway.max_body_mib) + 1
    text = _body("Caddyfile").replace("@PORT@", str(platform.gateway.port))
    return text.replace("@BODY@", f"{body_mib}MiB")


def _script(body: str, command: str, values: Mapping[str, str | int], more: str = "") -> str:
    assigned = "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in values.items())
    head = f"#!/usr/bin/env bash\n# Generated by `{command}`: change the platform file instead.\nset -euo pipefail\n"
    return f"{head}\n{assigned}{more}\n{_body(body)}"


def _body(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
