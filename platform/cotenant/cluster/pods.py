"""Why pods are not ready, in plain words and with a next step. Pure.

Read from the pods themselves, and from the events about them: the scheduler's and the node autoscaler's words come as
events, the kubelet's stand in the pod. Only the newest word of each about a pod counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cotenant.cluster.objects import Object, labels_of

GROUP = "ray.io/group"
CLUSTER = "ray.io/cluster"
HEAD = "headgroup"

What = Literal["node coming", "unschedulable", "stockout", "quota", "image", "config", "crash", "starting"]

#: What does not heal itself: after so many seconds of it a rollout is given up. Nodes may always come yet.
HOPELESS_AFTER_S: Mapping[What, float] = {"quota": 60.0, "image": 120.0, "config": 60.0, "crash": 90.0}

_COUNTS = re.compile(r"0/(\d+) nodes are available: (.*?)\.(?:\s|$)", re.DOTALL)
_REASON = re.compile(r"(\d+) (Insufficient [\w./-]+|(?:node\(s\)|nodes?) (?:\{[^}]*\}|[^,{])+)")
_IMAGE = ("ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ImageInspectError", "ErrImageNeverPull")
_CONFIG = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")


@dataclass(frozen=True)
class Trouble:
    """What keeps a pod of a group, and what to do. `pod` is one of those it keeps."""

    what: What
    text: str
    next_step: str = ""
    pod: str = ""

    @property
    def hopeless_after_s(self) -> float | None:
        return HOPELESS_AFTER_S.get(self.what)

    def __str__(self) -> str:
        return f"{self.text}; {self.next_step}" if self.next_step else self.text


@dataclass(frozen=True)
class Group:
    """The pods of one worker group (or the head) of one Ray cluster."""

    name: str
    cluster: str
    pods: int
    ready: int
    troubles: tuple[Trouble, ...] = ()


def groups(pods: Iterable[Object], events: Iterable[Object], clusters: Sequence[str]) -> tuple[Group, ...]:
    """The groups of `clusters`, the head first, each with its different troubles."""
    events = tuple(events)
    found: dict[tuple[int, str, str], list[Object]] = {}
    for pod in pods:
        labels = labels_of(pod)
        cluster, group = labels.get(CLUSTER, ""), labels.get(GROUP, "")
        if cluster in clusters and not pod["metadata"].get("deletionTimestamp"):
            found.setdefault((clusters.index(cluster), "" if group == HEAD else group, cluster), []).append(pod)
    return tuple(
        Group(
            name=name or "head",
            cluster=cluster,
            pods=len(members),
            ready=sum(map(is_ready, members)),
            troubles=_distinct(trouble_of(pod, events) for pod in members if not is_ready(pod)),
        )
        for (_, name, cluster), members in sorted(found.items(), key=lambda each: each[0])
    )


def _distinct(troubles: Iterable[Trouble | None]) -> tuple[Trouble, ...]:
    """One of each text: twenty pods that wait for the same thing say it once."""
    first: dict[tuple[str, str], Trouble] = {}
    for trouble in troubles:
        if trouble is not None:
            first.setdefault((trouble.what, trouble.text), trouble)
    return tuple(first.values())


def is_ready(pod: Object) -> bool:
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in _conditions(pod))


def trouble_of(pod: Object, events: Iterable[Object]) -> Trouble | None:
    """What keeps this pod from being ready; None where it is merely under way."""
    name = pod["metadata"]["name"]
    told = _newest_by_reason(events, name)
    unscheduled = next(
        (each for each in _conditions(pod) if each.get("type") == "PodScheduled" and each.get("status") == "False"),
        None,
    )
    if unscheduled is not None or (not pod.get("spec", {}).get("nodeName") and "FailedScheduling" in told):
        message = str((unscheduled or {}).get("message") or told.get("FailedScheduling", ""))
        return _unscheduled(message, told, name)
    for status in (pod.get("status") or {}).get("initContainerStatuses") or ():
        trouble = _container(status, told, name)
        if trouble is not None:
            return trouble
    for status in (pod.get("status") or {}).get("containerStatuses") or ():
        trouble = _container(status, told, name)
        if trouble is not None:
            return trouble
    if "FailedMount" in told or "FailedAttachVolume" in told:
        message = told.get("FailedMount") or told["FailedAttachVolume"]
        return Trouble("config", f"a volume can't be mounted: {_short(message)}", "see that what it names exists", name)
    return None


def _unscheduled(message: str, told: Mapping[str, str], pod: str) -> Trouble:
    reduced = scheduling_reason(message)
    if "TriggeredScaleUp" in told and "FailedScaleUp" not in told:
        return Trouble("node coming", f"a node is being made for it ({_scale_up(told['TriggeredScaleUp'])})", "", pod)
    if "FailedScaleUp" in told:
        why = told["FailedScaleUp"]
        if "quota" in why.lower():
            return Trouble(
                "stockout",
                f"no node can be made: the project's quota is used up ({_short(why)})",
                "raise the quota of that machine or GPU in the region, or give the pool fewer nodes",
                pod,
            )
        if "out of resources" in why.lower() or "stockout" in why.lower():
            return Trouble(
                "stockout",
                f"no node can be made: Google has none of that machine free in those zones ({_short(why)})",
                "wait, let the pool use more zones (gke.zones), or name another machine",
                pod,
            )
        return Trouble("stockout", f"no node could be made: {_short(why)}", "wait, or look at the node pool", pod)
    if "NotTriggerScaleUp" in told:
        why = told["NotTriggerScaleUp"].partition(":")[2].strip() or told["NotTriggerScaleUp"]
        step = (
            "let the pool grow past its max nodes"
            if "max" in why.lower()
            else "make the node pool that it asks for (cotenant manifests writes its script)"
        )
        return Trouble("unschedulable", f"{reduced}, and no node is made for it ({_short(why)})", step, pod)
    return Trouble("unschedulable", reduced, "a node must come free or be made; is its node pool there?", pod)


def scheduling_reason(message: str) -> str:
    """The scheduler's sentence, without preemption and in words: `0/5 nodes are available: 4 Insufficient cpu, …`."""
    found = _COUNTS.search(message)
    if found is None:
        return f"no node takes it: {_short(message)}" if message else "no node takes it"
    reasons = [_in_words(int(count), reason.strip()) for count, reason in _REASON.findall(found[2])]
    if not reasons:
        return f"none of {found[1]} nodes takes it: {_short(found[2])}"
    return f"none of {found[1]} nodes takes it: {', '.join(reasons)}"


def _in_words(count: int, reason: str) -> str:
    if reason.startswith("Insufficient "):
        return f"{count} without enough {reason.removeprefix('Insufficient ')} free"
    if "node affinity" in reason or "node selector" in reason:
        return f"{count} of another pool"
    if "taint" in reason:
        taint = re.search(r"\{([^}]*)\}", reason)
        name = taint[1].split(":")[0].strip() if taint else ""
        return f"{count} kept for others" + (f" (taint {name})" if name else "")
    if "unschedulable" in reason:
        return f"{count} cordoned"
    return f"{count} {reason.removeprefix('node(s) ')}"


def _scale_up(message: str) -> str:
    """`pod triggered scale-up: [{…/instanceGroups/gke-shop-prod-shared-1 0->1 (max: 4)}]` as its pool and numbers."""
    found = re.search(r"\{?([^\s{}]+) (\d+->\d+) \(max: (\d+)\)", message)
    if found is None:
        return _short(message)
    return f"{found[1].rpartition('/')[2]} {found[2].replace('->', ' to ')}, at most {found[3]}"


def _container(status: Mapping[str, Any], told: Mapping[str, str], pod: str) -> Trouble | None:
    state = status.get("state") or {}
    waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
    reason = str(waiting.get("reason") or "")
    if reason in _IMAGE:
        why = str(waiting.get("message") or told.get("Failed") or reason)
        return Trouble(
            "image",
            f"its image {status.get('image', '')} can't be pulled: {_short(why)}",
            "push the image, and let the nodes' service account read the repository",
            pod,
        )
    if reason in _CONFIG:
        why = str(waiting.get("message") or reason)
        return Trouble("config", f"its container can't be made: {_short(why)}", "make what it names", pod)
    last = (status.get("lastState") or {}).get("terminated") or {}
    if reason == "CrashLoopBackOff" or (ended and int(ended.get("exitCode") or 0) != 0):
        how = ended or last
        code, why = how.get("exitCode"), str(how.get("reason") or "")
        end = "for lack of memory" if why == "OOMKilled" else f"with exit code {code}"
        text = f"container {status.get('name', '')} ended {end}"
        restarts = int(status.get("restartCount") or 0)
        again = f", {restarts} times" if restarts > 1 else ""
        step = (
            "give its group more memory"
            if why == "OOMKilled"
            else f"look why: kubectl logs {pod} -c {status.get('name', '')}{' --previous' if restarts else ''}"
        )
        words = f" ({_short(str(how['message']))})" if how.get("message") else ""
        return Trouble("crash", f"{text}{again}{words}", step, pod)
    return None


def quota_trouble(message: str) -> Trouble | None:
    """What the operator says when it may not make pods, if it is that a quota of the namespace is used up."""
    if "exceeded quota" not in message:
        return None
    words = re.search(r"exceeded quota: .*", message)
    return Trouble(
        "quota",
        f"pods can't be made: {_short(words[0] if words else message)}",
        "raise the namespace's ResourceQuota, or ask for less; an upgrade needs room for two Ray clusters",
    )


def _newest_by_reason(events: Iterable[Object], pod: str) -> dict[str, str]:
    """Message of the newest event of each reason. A scale-up begun after one failed hides that, and the reverse."""
    mine = [
        each
        for each in events
        if (each.get("involvedObject") or {}).get("kind") == "Pod" and each["involvedObject"].get("name") == pod
    ]
    told: dict[str, str] = {}
    for event in sorted(mine, key=_when):
        reason = str(event.get("reason") or "")
        if reason in ("TriggeredScaleUp", "FailedScaleUp", "NotTriggerScaleUp"):
            for other in ("TriggeredScaleUp", "FailedScaleUp", "NotTriggerScaleUp"):
                told.pop(other, None)
        told[reason] = str(event.get("message") or "")
    return told


def _when(event: Object) -> str:
    series = event.get("series") or {}
    return str(
        series.get("lastObservedTime")
        or event.get("lastTimestamp")
        or event.get("eventTime")
        or event.get("firstTimestamp")
        or event.get("metadata", {}).get("creationTimestamp")
        or ""
    )


def _conditions(pod: Object) -> Sequence[Mapping[str, Any]]:
    return (pod.get("status") or {}).get("conditions") or ()


def _short(text: str, most: int = 220) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}…"
