"""A platform file of one environment: what its platform is, with everything merged. For whoever runs it elsewhere."""

from __future__ import annotations

from typing import Any

from cotenant.config import Platform
from cotenant.manifests.files import plain_yaml


def platform_file(platform: Platform) -> str:
    """The text of a file from which `load_platform` makes the same platform."""

    def said(part: Any) -> Any:
        return part.model_dump(mode="json", exclude_defaults=True)

    environment: dict[str, Any] = {"pools": {name: said(pool) for name, pool in platform.pools.items()}}
    if platform.gke is not None:
        environment["gke"] = said(platform.gke)
    return plain_yaml(
        {
            "name": platform.name,
            "workloads": {name: said(workload) for name, workload in platform.workloads.items()},
            "jobs": said(platform.jobs),
            "gateway": said(platform.gateway),
            "environments": {platform.environment: environment},
        }
    )
