"""The Compose file of one machine: the platform as one container that owns the GPU, and what may stand beside it.

Ray shares a GPU inside itself only, so gateway, ingress and all replicas are processes of one container; services of
their own would be several owners of one GPU again. The profiles `emulator` and `tls` add Pub/Sub's emulator and a door
with TLS. MPS is no service: its clients must share user, processes and shared memory with its daemon, so the daemon
runs in the platform's container (`COTENANT_MPS=1`).

Nothing is privileged, nobody has a capability that it could do without, root file systems are read-only, secrets are in
a file of their own, and only the machine itself reaches what is published, unless `.env` says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cotenant
from cotenant.config import Platform
from cotenant.manifests.site import GROUP_ID, HOME, USER_ID
from cotenant.manifests.vm.host import EMULATOR_MIB, TLS_MIB, Host
from cotenant.manifests.vm.layout import PLATFORM_FILE, given, results_elsewhere

EMULATOR_IMAGE = "gcr.io/google.com/cloudsdktool/google-cloud-cli:587.0.0-emulators"
#: Caddy, by tag and digest.
TLS_IMAGE = (
    "docker.io/library/caddy:2.11.4-alpine@sha256:5f5c8640aae01df9654968d946d8f1a56c497f1dd5c5cda4cf95ab7c14d58648"
)
EMULATOR_PORT = 8085
#: The doors finish their answers for so long (`deployments.gateway`), whatever the workloads' deadlines.
_DOORS_DRAIN_S = 60
#: For Serve, Ray and the emulator to end once everything is drained.
_END_S = 60
#: Seconds that a first start may take: weights, compiled kernels. `cotenant up` gives up after them.
START_S = 1800
_MIB = 2**20


def stop_grace_s(platform: Platform) -> int:
    """Seconds from SIGTERM until Docker kills: as long as the longest request, or as long as the ingress finishes jobs.

    A job that takes longer is handed back and runs after the next start.
    """
    deadlines = [workload.deadline_s for workload in platform.workloads.values()]
    return int(max(*deadlines, platform.jobs.drain_s, _DOORS_DRAIN_S)) + _END_S


def compose(platform: Platform, host: Host, platform_file: str) -> dict[str, Any]:
    """The Compose file as plain data."""
    return {
        "name": host.name,
        "services": {
            "platform": _platform(platform, host, platform_file),
            "pubsub": _pubsub(platform),
            "tls": _tls(platform, host),
        },
        "volumes": {"home": None, "certificates": None},
    }


def image(host: Host) -> str:
    """The engines' image: the environment's own on Google Cloud, else one that was built on this machine."""
    name = "engines-cpu" if host.on_cpu else "engines"
    if host.site is None:
        return f"cotenant/{name}:{cotenant.__version__}"
    site = host.site
    if not host.on_cpu:
        return site.image("engines")
    return f"{site.registry_host}/{site.gke.project}/{site.repository}/{name}:{site.tag}"


def _platform(platform: Platform, host: Host, platform_file: str) -> dict[str, Any]:
    port = platform.gateway.port
    return {
        "image": f"${{COTENANT_IMAGE:-{image(host)}}}",
        **_command(platform, host),
        "working_dir": HOME,
        "user": f"{USER_ID}:{GROUP_ID}",
        "init": True,
        "restart": "unless-stopped",
        "stop_grace_period": f"{stop_grace_s(platform)}s",
        "depends_on": {"pubsub": {"condition": "service_healthy", "required": False}},
        "environment": _environment(host),
        "env_file": [{"path": "${COTENANT_SECRETS:-secrets.env}", "required": True}],
        "ports": [f"${{COTENANT_BIND:-127.0.0.1}}:${{COTENANT_PORT:-{port}}}:{port}"],
        **({"extra_hosts": {"metadata.google.internal": "169.254.169.254"}} if host.site is not None else {}),
        "volumes": _mounts(platform, platform_file),
        # Ray's session, its logs and sockets: their paths must be short, and nothing of them outlives a start.
        "tmpfs": ["/tmp:size=4g,mode=1777"],  # noqa: S108 - the container's
        "shm_size": f"{_shared_mib(host)}m",
        "ulimits": {"nofile": {"soft": 65536, "hard": 65536}, "memlock": {"soft": -1, "hard": -1}},
        **_confined(),
        "healthcheck": {
            "test": ["CMD", "wget", "-q", "-T", "5", "-O", "/dev/null", f"http://127.0.0.1:{port}/readyz"],
            "interval": "10s",
            "timeout": "6s",
            "retries": 3,
            "start_period": f"{START_S}s",
            "start_interval": "2s",
        },
        "deploy": {"resources": _resources(host)},
        "logging": _logging(),
    }


def _command(platform: Platform, host: Host) -> dict[str, Any]:
    """What the container runs. The door listens to the container's network: what is published is Docker's to say."""
    up = [
        "cotenant",
        "up",
        "--foreground",
        f"--file={PLATFORM_FILE}",
        f"--env={platform.environment}",
        "--host=0.0.0.0",
        f"--timeout={START_S}",
        f"--grace={stop_grace_s(platform) - _END_S}",
    ]
    if host.on_cpu:
        return {"entrypoint": up[:1], "command": up[1:]}
    daemon = 'mkdir -p "$$CUDA_MPS_PIPE_DIRECTORY" "$$CUDA_MPS_LOG_DIRECTORY" && nvidia-cuda-mps-control -d'
    script = f'if [ "$${{COTENANT_MPS:-0}}" = 1 ]; then {daemon} || exit 1; fi\nexec {" ".join(up)}\n'
    return {"entrypoint": ["bash", "-c"], "command": [script]}


def _environment(host: Host) -> dict[str, str]:
    environment = {
        "COTENANT_HOME": HOME,
        # What libraries keep under the user's home (weights, compiled kernels) outlives the container too.
        "HOME": HOME,
        "PUBSUB_EMULATOR_HOST": "${PUBSUB_EMULATOR_HOST:-}",
    }
    if not host.on_cpu:
        environment |= {
            "COTENANT_MPS": "${COTENANT_MPS:-0}",
            "CUDA_MPS_PIPE_DIRECTORY": "/tmp/mps",  # noqa: S108 - the container's
            "CUDA_MPS_LOG_DIRECTORY": "/tmp/mps-log",  # noqa: S108
        }
    return environment


def _mounts(platform: Platform, platform_file: str) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [
        _read_only(f"${{COTENANT_PLATFORM_FILE:-{_relative(platform_file)}}}", PLATFORM_FILE),
        *(_read_only(_relative(each.source), each.target) for each in given(platform)),
        {"type": "volume", "source": "home", "target": HOME},
    ]
    if (folder := results_elsewhere(platform)) is not None:
        mounts.append({"type": "bind", "source": folder, "target": folder, "bind": {"create_host_path": False}})
    return mounts


def _read_only(source: str, target: str) -> dict[str, Any]:
    """A bind mount that fails where the source is missing, instead of making an empty folder of root's."""
    return {
        "type": "bind",
        "source": source,
        "target": target,
        "read_only": True,
        "bind": {"create_host_path": False},
    }


def _relative(path: str) -> str:
    """`path` as Compose tells a path from a volume's name."""
    return path if path.startswith(("/", "./", "../", "~", "$")) else f"./{path}"


def _shared_mib(host: Host) -> int:
    """Ray's object store (512 MiB) and what torch's and vLLM's processes share."""
    return 1024 if host.on_cpu else 2048


def _resources(host: Host) -> dict[str, Any]:
    mib = f"{host.platform_mib}M"
    limits = {"memory": mib if host.machine else f"${{COTENANT_MEMORY:-{mib}}}", "pids": 16384}
    if host.on_cpu:
        return {"limits": limits}
    device = {
        "driver": "nvidia",
        "count": host.gpus,
        # graphics: OptiX, which the mockup renderer uses. utility: NVML.
        "capabilities": ["gpu", "compute", "graphics", "utility"],
    }
    return {"limits": limits, "reservations": {"devices": [device]}}


def _pubsub(platform: Platform) -> dict[str, Any]:
    get = f"exec 3<>/dev/tcp/127.0.0.1/{EMULATOR_PORT}; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; grep -q ' 200 ' <&3"
    return {
        "image": EMULATOR_IMAGE,
        "profiles": ["emulator"],
        "entrypoint": ["gcloud"],
        "command": [
            "beta",
            "emulators",
            "pubsub",
            "start",
            f"--host-port=0.0.0.0:{EMULATOR_PORT}",
            f"--project={platform.jobs.project}",
            "--data-dir=/tmp",
        ],
        "user": f"{USER_ID}:{GROUP_ID}",
        "init": True,
        "restart": "unless-stopped",
        "environment": {
            "HOME": "/tmp",  # noqa: S108 - the container's
            "CLOUDSDK_CONFIG": "/tmp/gcloud",  # noqa: S108
            "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
            "JAVA_TOOL_OPTIONS": "-Xmx512m",
        },
        "tmpfs": ["/tmp:size=256m,mode=1777"],  # noqa: S108
        **_confined(),
        "healthcheck": {
            "test": ["CMD", "bash", "-c", get],
            "interval": "10s",
            "timeout": "5s",
            "retries": 3,
            "start_period": "60s",
            "start_interval": "1s",
        },
        "deploy": {"resources": {"limits": {"memory": f"{EMULATOR_MIB}M", "pids": 1024}}},
        "logging": _logging(),
    }


def _tls(platform: Platform, host: Host) -> dict[str, Any]:
    domain = (host.site.gke.domain if host.site is not None else None) or "localhost"
    return {
        "image": TLS_IMAGE,
        "profiles": ["tls"],
        # Root without a right: its image's folder for certificates is root's.
        "user": "0:0",
        "init": True,
        "restart": "unless-stopped",
        "depends_on": {"platform": {"condition": "service_healthy"}},
        "environment": {
            "DOMAIN": f"${{DOMAIN:-{domain}}}",
            "XDG_DATA_HOME": "/data",
            "XDG_CONFIG_HOME": "/tmp",  # noqa: S108 - the container's
        },
        "ports": ["80:8080", "443:8443", "443:8443/udp"],
        "volumes": [
            _read_only("./Caddyfile", "/etc/caddy/Caddyfile"),
            {"type": "volume", "source": "certificates", "target": "/data"},
        ],
        "tmpfs": ["/tmp:size=64m,mode=1777"],  # noqa: S108
        # The program carries this capability in its file and can't be started without it.
        **_confined(keep=["NET_BIND_SERVICE"]),
        "healthcheck": {
            "test": ["CMD", "wget", "-q", "-T", "3", "-O", "/dev/null", "http://127.0.0.1:2019/config/"],
            "interval": "10s",
            "timeout": "5s",
            "retries": 3,
            "start_period": "20s",
        },
        "deploy": {"resources": {"limits": {"memory": f"{TLS_MIB}M", "pids": 256}}},
        "logging": _logging(),
    }


def _confined(keep: list[str] | None = None) -> Mapping[str, Any]:
    return {
        "read_only": True,
        "cap_drop": ["ALL"],
        **({"cap_add": keep} if keep else {}),
        "security_opt": ["no-new-privileges:true"],
    }


def _logging() -> dict[str, Any]:
    """Docker's own compressed log files, rotated: by default they grow until the disk is full."""
    return {"driver": "local", "options": {"max-size": "20m", "max-file": "5"}}
