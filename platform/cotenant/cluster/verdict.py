"""Whether what was applied is healthy, has failed, or is still to be waited for. Pure: the time is an argument.

*Healthy*: the operator has taken up what was applied, no upgrade is under way, every application of the Serve config
is RUNNING, and some pod takes requests; and all that for `steady_s`, since the operator reports what ran before until
its next look (every 2 s). *Failed*: something that does not heal itself has lasted. Everything else is waited for, and
the reason said: a node may always come yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cotenant.cluster.pods import Group, Trouble, quota_trouble
from cotenant.cluster.rayservice import INITIALIZING_TIMEOUT, VALIDATION_FAILED, ServiceState, last_words

Standing = Literal["healthy", "failed", "waiting"]

#: After so long without a look of the operator's it is asked after.
OPERATOR_S = 60.0


@dataclass(frozen=True)
class Patience:
    """How long something must last before it counts."""

    steady_s: float = 10.0
    failed_s: float = 20.0
    #: Factor on the times after which a pod's trouble is hopeless; tests shorten them.
    hopeless: float = 1.0


@dataclass(frozen=True)
class Verdict:
    standing: Standing
    reasons: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        return "\n".join(self.reasons)


@dataclass(frozen=True)
class Memory:
    """Since when each thing has been so, without a break. `applied` is what the status said before the apply."""

    begun: float
    since: Mapping[str, float] = field(default_factory=dict)
    updated_before: str | None = None


def judge(
    memory: Memory, service: ServiceState, groups: Sequence[Group], now: float, patience: Patience
) -> tuple[Memory, Verdict]:
    """What to think of it at `now`, and what to remember until the next look."""
    present = _present(memory, service, groups)
    since = {name: memory.since.get(name, now) for name in present}
    after = Memory(memory.begun, since, memory.updated_before)
    broken = [
        reason
        for name, (reason, lasting_s) in present.items()
        if lasting_s is not None and now - since[name] >= lasting_s * _scale(name, patience)
    ]
    if broken:
        return after, Verdict("failed", tuple(dict.fromkeys(broken)))
    if "healthy" in present and now - since["healthy"] >= patience.steady_s:
        return after, Verdict("healthy")
    return after, Verdict("waiting", tuple(_waiting_for(service, groups, now - memory.begun)))


def standing_now(service: ServiceState, groups: Sequence[Group] = ()) -> Verdict:
    """What one look tells, without time: `healthy` if it looks so, `failed` if it may well be."""
    present = _present(Memory(0.0), service, groups)
    if "healthy" in present:
        return Verdict("healthy")
    broken = [reason for reason, lasting_s in present.values() if lasting_s is not None]
    if broken:
        return Verdict("failed", tuple(dict.fromkeys(broken)))
    return Verdict("waiting", tuple(_waiting_for(service, groups, 0.0)))


def _scale(name: str, patience: Patience) -> float:
    return patience.failed_s / 20.0 if name.startswith("state ") else patience.hopeless


def _present(memory: Memory, service: ServiceState, groups: Sequence[Group]) -> dict[str, tuple[str, float | None]]:
    """What is the case now: its text, and after how many seconds of it the rollout has failed (None: never)."""
    now: dict[str, tuple[str, float | None]] = {}
    ready = service.conditions.get("Ready")
    if ready is not None and ready.reason == VALIDATION_FAILED:
        # The operator leaves the generation alone here: a newer time of the status tells that this is about our spec.
        fresh = memory.updated_before is not None and service.updated != memory.updated_before
        text = f"KubeRay refuses the RayService: {ready.message}"
        now["state validation" + (" fresh" if fresh else "")] = (text, 0.0 if fresh else 20.0)
    if ready is not None and ready.reason == INITIALIZING_TIMEOUT:
        text = (
            f"KubeRay has given up on {service.name} ({ready.message}) and will not try again; delete it "
            f"(kubectl delete rayservice {service.name} -n {service.namespace}) and deploy again"
        )
        now["state timeout"] = (text, 0.0)
    if service.deleting:
        now["state deleting"] = (
            f"RayService {service.name} is being deleted; wait until it is gone, deploy again",
            0.0,
        )
    if service.taken_up:
        for name in service.expected:
            application = service.application(name)
            if application.status == "DEPLOY_FAILED":
                why = last_words(application.message) or "Serve gives no reason"
                now[f"state app {name}"] = (f"{name}: {why}", 20.0)
    for trouble, where in _troubles(service, groups):
        if trouble.hopeless_after_s is not None:
            now[f"pods {where} {trouble.what}"] = (f"{where}: {trouble}", trouble.hopeless_after_s)
    if _looks_healthy(service):
        now["healthy"] = ("", None)
    return now


def _looks_healthy(service: ServiceState) -> bool:
    return (
        service.taken_up
        and service.ready
        and not service.upgrading
        and not service.deleting
        and bool(service.expected)
        and all(service.application(name).running for name in service.expected)
    )


def _troubles(service: ServiceState, groups: Sequence[Group]) -> list[tuple[Trouble, str]]:
    """Troubles of the Ray cluster that is to come up; those of one that is on its way out are not ours."""
    found = [(trouble, group.name) for group in groups if group.cluster == service.coming for trouble in group.troubles]
    quota = quota_trouble(service.cluster_failure)
    return [*found, (quota, "operator")] if quota else found


def _waiting_for(service: ServiceState, groups: Sequence[Group], waited_s: float) -> list[str]:
    if not service.taken_up:
        asked = (
            "; is KubeRay's operator running? (kubectl get pods -A -l app.kubernetes.io/name=kuberay)"
            if waited_s > OPERATOR_S
            else ""
        )
        return [f"KubeRay has not taken up the change yet{asked}"]
    reasons = [f"{where}: {trouble}" for trouble, where in _troubles(service, groups)]
    if service.cluster_failure and quota_trouble(service.cluster_failure) is None:
        reasons.append(f"operator: {service.cluster_failure}")
    for name in service.expected:
        application = service.application(name)
        if not application.running:
            why = last_words(application.message)
            reasons.append(f"{name} is {application.status}" + (f": {why}" if why else ""))
    if service.upgrading and not reasons:
        reasons.append("the new Ray cluster is ready and takes over from the old one")
    if not service.ready and not reasons:
        ready = service.conditions.get("Ready")
        reasons.append(f"no pod takes requests yet ({ready.message if ready else 'no word of it'})")
    if not service.expected:
        reasons.append("its Serve config names no application")
    return reasons or ["it is to stay so for a few seconds"]
