"""Whether an environment's parts lie in one region, and what else can't work there that the file already tells."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cotenant.config import Platform
from cotenant.manifests.gke.buckets import bucket_of, weight_buckets
from cotenant.manifests.site import Site

#: From this version a compute class makes node pools without auto-provisioning of the whole cluster.
AUTO_POOLS_SINCE = "1.33.3-gke.1136000"
_SHORTEST_ACCOUNT = 6


def region_problems(platform: Platform) -> tuple[str, ...]:
    """What is wrong, one line each; empty if nothing.

    The registry and the disk image follow the cluster's region by construction, zones are checked when the file is
    read, and where a bucket really is only Google Cloud knows: `setup.sh` asks.

    Raises PlanError: the environment has no `gke`.
    """
    return tuple(platform.wrong(message, *path) for message, path in _problems(platform))


def _problems(platform: Platform) -> Iterator[tuple[str, tuple[str, ...]]]:
    site, store = Site.of(platform), platform.jobs.store
    if platform.jobs.ingresses and bucket_of(store) is None:
        yield (
            f"jobs.store is {store}, which is no bucket in {site.gke.region}: results would "
            + ("leave Google Cloud" if "://" in store and not store.startswith("memory:") else "go with the pod")
            + f"; write e.g. gs://{site.gke.project}-{site.name}/results",
            ("jobs", "store"),
        )
    for workload, source in weight_buckets(platform).items():
        if not source.startswith("gs://"):
            yield f"{workload} loads its model from {source}, outside Google Cloud; copy it to gs://", ("workloads",)
    if site.gke.node_pools == "auto" and _ordered(site.gke.version) < _ordered(AUTO_POOLS_SINCE):
        yield (
            f"gke.node_pools is auto, which needs gke.version {AUTO_POOLS_SINCE} or later and has {site.gke.version}",
            ("gke", "version"),
        )
    if len(site.service_account) < _SHORTEST_ACCOUNT:
        yield (
            f"the environment's account would be called {site.service_account}, and Google Cloud wants at least "
            f"{_SHORTEST_ACCOUNT} characters; write a longer name",
            ("name",),
        )


def _ordered(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))
