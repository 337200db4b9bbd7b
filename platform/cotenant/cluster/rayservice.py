"""What a RayService says of itself, read once and with names. Pure.

KubeRay keeps up to two Ray clusters for it: the *active* one serves, a *pending* one comes up beside it when the Ray
cluster itself changed. Applications are reported of the pending one alone, while there is one. `Ready` says that some
pod takes requests, of whichever cluster: it stays true while an upgrade fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

#: The operator refused the spec. It then leaves `observedGeneration` as it was.
VALIDATION_FAILED = "ValidationFailed"
#: The operator has given up for good: only a new RayService helps.
INITIALIZING_TIMEOUT = "InitializingTimeout"


@dataclass(frozen=True)
class Condition:
    type: str
    status: str
    reason: str
    message: str

    @property
    def true(self) -> bool:
        return self.status == "True"


@dataclass(frozen=True)
class Application:
    """A Serve application. `status` is Serve's: NOT_STARTED, DEPLOYING, RUNNING, DEPLOY_FAILED, UNHEALTHY, DELETING."""

    name: str
    status: str
    message: str = ""
    deployments: Mapping[str, str] = field(default_factory=dict)

    @property
    def running(self) -> bool:
        return self.status == "RUNNING"


@dataclass(frozen=True)
class ServiceState:
    """A RayService as it stands."""

    name: str
    namespace: str
    generation: int
    observed: int
    conditions: Mapping[str, Condition]
    applications: Mapping[str, Application]
    expected: tuple[str, ...]
    active: str = ""
    pending: str = ""
    endpoints: int = 0
    updated: str = ""
    cluster_failure: str = ""
    deleting: bool = False

    @property
    def ready(self) -> bool:
        return "Ready" in self.conditions and self.conditions["Ready"].true

    @property
    def upgrading(self) -> bool:
        return bool(self.pending) or (
            "UpgradeInProgress" in self.conditions and self.conditions["UpgradeInProgress"].true
        )

    @property
    def taken_up(self) -> bool:
        """Whether the operator has seen what was applied last."""
        return self.observed >= self.generation > 0

    @property
    def coming(self) -> str:
        """The Ray cluster on which it depends whether this comes up."""
        return self.pending or self.active

    def application(self, name: str) -> Application:
        return self.applications.get(name, Application(name, "NOT_STARTED"))


def read(service: Mapping[str, Any]) -> ServiceState:
    """Whatever is missing is read as not there yet."""
    metadata, status = service.get("metadata") or {}, service.get("status") or {}
    active, pending = status.get("activeServiceStatus") or {}, status.get("pendingServiceStatus") or {}
    coming = pending if pending.get("rayClusterName") else active
    return ServiceState(
        name=str(metadata.get("name", "")),
        namespace=str(metadata.get("namespace") or ""),
        generation=int(metadata.get("generation") or 0),
        observed=int(status.get("observedGeneration") or 0),
        conditions=_conditions(status),
        applications={
            name: Application(
                name,
                str(told.get("status") or "NOT_STARTED"),
                str(told.get("message") or ""),
                {
                    deployment: str(each.get("status") or "")
                    for deployment, each in (told.get("serveDeploymentStatuses") or {}).items()
                },
            )
            for name, told in (coming.get("applicationStatuses") or {}).items()
        },
        expected=tuple(application["name"] for application in serve_applications(service)),
        active=str(active.get("rayClusterName") or ""),
        pending=str(pending.get("rayClusterName") or ""),
        endpoints=int(status.get("numServeEndpoints") or 0),
        updated=str(status.get("lastUpdateTime") or ""),
        cluster_failure=_cluster_failure(coming.get("rayClusterStatus") or {}),
        deleting=bool(metadata.get("deletionTimestamp")),
    )


def serve_applications(service: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The applications that its Serve config asks for; none where that can't be read."""
    text = (service.get("spec") or {}).get("serveConfigV2") or ""
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:
        return []
    listed = config.get("applications") if isinstance(config, Mapping) else None
    return [each for each in listed or () if isinstance(each, Mapping) and "name" in each]


def _conditions(status: Mapping[str, Any]) -> dict[str, Condition]:
    return {
        str(each.get("type")): Condition(
            str(each.get("type")),
            str(each.get("status")),
            str(each.get("reason") or ""),
            str(each.get("message") or ""),
        )
        for each in status.get("conditions") or ()
    }


def _cluster_failure(status: Mapping[str, Any]) -> str:
    """Why the operator could not make or delete pods, empty where it could."""
    failure = _conditions(status).get("ReplicaFailure")
    if failure is not None and failure.true:
        return failure.message or failure.reason
    return str(status.get("reason") or "")


def last_words(message: str) -> str:
    """The last line of a message that may hold a whole traceback."""
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    return lines[-1] if lines else ""
