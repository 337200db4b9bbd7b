"""What the doors are told of spilling: plain data in their `user_config`, so that a changed URL restarts nothing."""

from __future__ import annotations

from typing import Any

from cotenant.config import Platform
from cotenant.manifests.scaling import ASSUMED_STARTS_S


def spill_terms(platform: Platform) -> list[dict[str, Any]]:
    """One entry a workload that spills, as `upstream.spill.Terms` spells it."""
    return [
        {
            "workload": name,
            "kind": workload.kind,
            "url": workload.spill.url,
            "key_env": workload.spill.key_env,
            "google": workload.spill.auth == "google",
            "model": workload.spill.model or next(iter(workload.models), None),
            "after_wait_s": workload.spills_after_s,
            "max_concurrency": workload.spill.max_concurrency,
            "jobs": workload.spill.jobs,
            # With a share of a node that is there, the quickest that a replica comes to be.
            "start_s": ASSUMED_STARTS_S[workload.kind][1],
            "gateways": platform.gateway.replicas,
            "ingresses": max(1, platform.jobs.ingresses),
            "spilled_from": f"{platform.name}-{platform.environment}",
        }
        for name, workload in platform.workloads.items()
        if workload.spill is not None
    ]
