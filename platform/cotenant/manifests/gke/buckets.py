"""Buckets that an environment uses: results, weights of models, and one for what is needed for a day."""

from __future__ import annotations

from cotenant.config import Platform
from cotenant.manifests.site import Site


def bucket_of(address: str) -> str | None:
    """`acme` of `gs://acme/results`; None if it is no address in a bucket of Google Cloud."""
    return address.removeprefix("gs://").split("/")[0] if address.startswith("gs://") else None


def weight_buckets(platform: Platform) -> dict[str, str]:
    """Where workloads load their models from, of those that name an object store: workload to address."""
    return {
        name: spec.model
        for name, workload in platform.workloads.items()
        if (spec := workload.llm or workload.image) is not None and "://" in spec.model
    }


def results_bucket(platform: Platform) -> str | None:
    """The bucket of `jobs.store`; None if results go elsewhere."""
    return bucket_of(platform.jobs.store)


def weights(platform: Platform) -> tuple[str, ...]:
    """Buckets that models are loaded from, each once."""
    found = (bucket_of(address) for address in weight_buckets(platform).values())
    return tuple(dict.fromkeys(bucket for bucket in found if bucket is not None))


def scratch_bucket(site: Site) -> str:
    """Where the disk image's builder keeps its script and logs, for a week; at most 63 characters."""
    return f"{site.gke.project}-{site.repository}-scratch"[:63].rstrip("-")
