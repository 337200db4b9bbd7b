"""What sets an environment up on Google Cloud: `gke/setup.sh`, and the definitions that it sends.

The script is the environment's names and lists, then the parts in `script/`, which are the same for all. Node pools are
sent as they lie in `gke/node-pools/`, so what was checked here is what GKE gets.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from cotenant.config import Platform
from cotenant.manifests.files import Files, header
from cotenant.manifests.gke.buckets import results_bucket, scratch_bucket, weights
from cotenant.manifests.gke.node_pools import DIGEST_LABEL, node_pools
from cotenant.manifests.gke.placement import has_gpu
from cotenant.manifests.gke.queue import Queue, right_lines
from cotenant.manifests.gke.registry import cleanup_policy
from cotenant.manifests.kubernetes.cluster import TOKEN_KEY, TOKEN_SECRET
from cotenant.manifests.kubernetes.containers import SECRET
from cotenant.manifests.kubernetes.door import address_name, certificate_map
from cotenant.manifests.kubernetes.redis import KEY as REDIS_KEY
from cotenant.manifests.kubernetes.redis import SECRET as REDIS_SECRET
from cotenant.manifests.kubernetes.standalone import UPSTREAM_KEY
from cotenant.manifests.serve import longest_call_s
from cotenant.manifests.site import IMAGES, Site

#: Google Cloud's services that an environment uses.
SERVICES = (
    "artifactregistry.googleapis.com",
    "certificatemanager.googleapis.com",
    "cloudbuild.googleapis.com",
    "compute.googleapis.com",
    "container.googleapis.com",
    "containerfilesystem.googleapis.com",
    "containerscanning.googleapis.com",
    "iam.googleapis.com",
    "iamcredentials.googleapis.com",
    "logging.googleapis.com",
    "monitoring.googleapis.com",
    "pubsub.googleapis.com",
    "storage.googleapis.com",
)
#: What the nodes' account may do in the project: write logs and metrics, and stream images. It reads images by a right
#: on their repositories.
NODE_ROLES = ("roles/container.defaultNodeServiceAccount", "roles/serviceusage.serviceUsageConsumer")
#: The cluster's own node pool, for what GKE and KubeRay run: one node, at the most so many.
SYSTEM_MACHINE, SYSTEM_NODES_MAX = "e2-standard-2", 3
#: Size of the disk image with the engines' image unpacked in it.
NODE_IMAGE_GB = 60

#: Parts of the script, in their order.
_PARTS = ("helpers", "project", "secrets", "cluster", "nodes", "deleting", "main")
_SCRATCH_DAYS = 7
#: What a pod that is deleted may take besides its longest call: Kubernetes, a clean-up of Redis, and their like.
_END_S = 1800

_Value: TypeAlias = "str | bool | int | Sequence[str]"


def setup_files(
    platform: Platform, queue: Queue, *, command: str = "cotenant manifests", file: str = "platform.yaml"
) -> Files:
    """Everything below `gke/` of an environment's folder. `file` is the platform file, from where the script is run.

    Raises:
        PlanError: the environment has no `gke`, or a pool can't be a node pool.
    """
    site = Site.of(platform)
    pools = node_pools(platform)
    files = {f"gke/node-pools/{pool['name']}.json": _json({"nodePool": pool}) for pool in pools}
    files["gke/cleanup-policy.json"] = _json(cleanup_policy())
    if _baked(platform):
        files["gke/scratch-lifecycle.json"] = _json(_scratch_lifecycle())
    values = {**_names(site, file), **_lists(platform, site, queue), **_pool_lines(pools), **_secrets(platform, site)}
    files["gke/setup.sh"] = "".join(
        ("#!/usr/bin/env bash\n", header(command), "set -euo pipefail\n\n", *map(_line, values.items()), *_body())
    )
    return files


def _body() -> Iterator[str]:
    folder = Path(__file__).parent / "script"
    for part in _PARTS:
        yield "\n" + (folder / f"{part}.sh").read_text(encoding="utf-8")


def _names(site: Site, file: str) -> Mapping[str, _Value]:
    return {
        "DEFAULT_PLATFORM_FILE": file,
        "PLATFORM": site.platform,
        "ENVIRONMENT": site.environment,
        "PROJECT": site.gke.project,
        "REGION": site.gke.region,
        "ZONES": site.gke.zones,
        "CLUSTER": site.cluster,
        "LEAST_VERSION": site.gke.version,
        "NAMESPACE": site.namespace,
        "REPOSITORY": site.repository,
        "MIRROR": site.mirror,
        "NODE_ACCOUNT": site.node_account,
        "NODE_EMAIL": site.node_account_email,
        "ACCOUNT": site.service_account,
        "EMAIL": site.service_account_email,
        "DOMAIN": site.gke.domain or "",
        "ADDRESS": address_name(site),
        "CERTIFICATE": certificate_map(site),
        "SYSTEM_MACHINE": SYSTEM_MACHINE,
        "SYSTEM_NODES_MAX": SYSTEM_NODES_MAX,
        "NODE_IMAGE": site.node_image,
        "NODE_IMAGE_GB": NODE_IMAGE_GB,
        "ENGINES_IMAGE": site.image("engines"),
        "IMAGES": [site.image(image) for image in IMAGES],
    }


def _lists(platform: Platform, site: Site, queue: Queue) -> Mapping[str, _Value]:
    return {
        "APIS": SERVICES,
        "NODE_ROLES": NODE_ROLES,
        "BAKED": _baked(platform),
        "RESULTS_BUCKET": results_bucket(platform) or "",
        "WEIGHTS": weights(platform),
        "SCRATCH_BUCKET": scratch_bucket(site),
        "JOBS_PROJECT": queue.project,
        "TOPICS": queue.topics,
        "SUBSCRIPTIONS": queue.subscriptions,
        "GRANTS": right_lines(queue.rights),
        "AGENT_GRANTS": right_lines(queue.agent_rights),
        "DRAIN_S": int(max(longest_call_s(platform, name) for name in platform.workloads)) + _END_S,
    }


def _baked(platform: Platform) -> bool:
    """Whether some node has the images on a disk of their own."""
    return Site.of(platform).gke.baked and any(has_gpu(pool) for pool in platform.pools.values())


def _pool_lines(pools: Sequence[Mapping[str, Any]]) -> Mapping[str, _Value]:
    """Of each: name, digest, and what is changed in place."""
    lines = []
    for pool in pools:
        scaling, digest = pool["autoscaling"], pool["config"]["resourceLabels"][DIGEST_LABEL]
        lines.append(
            f"{pool['name']} {digest} {scaling['totalMinNodeCount']} {scaling['totalMaxNodeCount']} "
            f"{scaling['locationPolicy']}"
        )
    return {"NODE_POOLS": lines}


def _secrets(platform: Platform, site: Site) -> Mapping[str, _Value]:
    """Names of the secrets: those that containers ask the Secret for (`kubernetes.containers`, `.standalone`)."""
    gateway = platform.gateway
    needed = gateway.keys_env if gateway.keys_file is None else None
    upstream = UPSTREAM_KEY if platform.jobs.ingresses else None
    keys = (needed, platform.jobs.webhooks_env, *_spill_keys(platform), upstream)
    return {
        "SECRET": SECRET,
        "SECRET_KEYS": tuple(dict.fromkeys(key for key in keys if key)),
        "NEEDED_KEY": needed or "",
        "WEBHOOKS_KEY": platform.jobs.webhooks_env,
        "UPSTREAM_KEY": upstream or "",
        "TOKEN_SECRET": TOKEN_SECRET,
        "TOKEN_KEY": TOKEN_KEY,
        "REDIS_SECRET": REDIS_SECRET,
        "REDIS_KEY": REDIS_KEY,
        "OWN_REDIS": site.gke.redis is None,
    }


def _spill_keys(platform: Platform) -> list[str]:
    """Variables with the keys of servers that workloads spill to."""
    spills = (workload.spill for workload in platform.workloads.values() if workload.spill is not None)
    return sorted({spill.key_env for spill in spills if spill.key_env is not None})


def _line(item: tuple[str, _Value]) -> str:
    """`readonly NAME=value`, so that no value is ever read as shell."""
    name, value = item
    if isinstance(value, bool):
        return f"readonly {name}={str(value).lower()}\n"
    if isinstance(value, (str, int)):
        return f"readonly {name}={shlex.quote(str(value))}\n"
    return f"readonly -a {name}=({' '.join(map(shlex.quote, value))})\n"


def _json(content: Any) -> str:
    return json.dumps(content, indent=2) + "\n"


def _scratch_lifecycle() -> dict[str, Any]:
    return {"rule": [{"action": {"type": "Delete"}, "condition": {"age": _SCRATCH_DAYS}}]}
