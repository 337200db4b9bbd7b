"""Why pods wait, in plain words."""

from __future__ import annotations

from typing import Any

import pytest

from cotenant.cluster.pods import groups, quota_trouble, scheduling_reason, trouble_of
from tests.contracts.ray_statuses import ACTIVE, PENDING, event, pod

pytestmark = pytest.mark.unit

FULL = (
    "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available: "
    "3 Preemption is not helpful for scheduling."
)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (FULL, "none of 3 nodes takes it: 3 without enough nvidia.com/gpu free"),
        (
            "0/5 nodes are available: 1 Insufficient cpu, 2 node(s) didn't match Pod's node affinity/selector, "
            "2 node(s) had untolerated taint {nvidia.com/gpu: present}. no new claims to deallocate, preemption: "
            "0/5 nodes are available: 5 Preemption is not helpful for scheduling.",
            "none of 5 nodes takes it: 1 without enough cpu free, 2 of another pool, "
            "2 kept for others (taint nvidia.com/gpu)",
        ),
        (
            "0/2 nodes are available: 1 node(s) were unschedulable, 1 node(s) had volume node affinity conflict.",
            "none of 2 nodes takes it: 1 cordoned, 1 of another pool",
        ),
        ("no nodes available to schedule pods", "no node takes it: no nodes available to schedule pods"),
        ("", "no node takes it"),
    ],
)
def test_the_schedulers_sentence_is_put_in_words(message: str, words: str) -> None:
    assert scheduling_reason(message) == words


def test_a_pod_without_a_node_says_why_and_what_to_do() -> None:
    trouble = trouble_of(pod(unschedulable=FULL), [])
    assert trouble is not None
    assert (trouble.what, trouble.hopeless_after_s) == ("unschedulable", None)
    assert str(trouble).endswith("a node must come free or be made; is its node pool there?")


@pytest.mark.parametrize(
    ("reason", "message", "what", "words"),
    [
        (
            "TriggeredScaleUp",
            "pod triggered scale-up: [{https://www.googleapis.com/compute/v1/projects/p/zones/z/instanceGroups/"
            "gke-shop-prod-shared-1-grp 0->1 (max: 4)}]",
            "node coming",
            "a node is being made for it (gke-shop-prod-shared-1-grp 0 to 1, at most 4)",
        ),
        (
            "NotTriggerScaleUp",
            "pod didn't trigger scale-up: 1 max node group size reached, 2 node(s) didn't match Pod's node affinity",
            "unschedulable",
            "let the pool grow past its max nodes",
        ),
        (
            "FailedScaleUp",
            "Node scale up in zones us-central1-a associated with this pod failed: GCE out of resources. Pod is at "
            "risk of not being scheduled.",
            "stockout",
            "Google has none of that machine free",
        ),
        (
            "FailedScaleUp",
            "Node scale up in zones us-central1-a associated with this pod failed: GCE quota exceeded. Pod is at risk "
            "of not being scheduled.",
            "stockout",
            "raise the quota",
        ),
    ],
    ids=["node coming", "pool at its max", "stockout", "project's quota"],
)
def test_what_the_node_autoscaler_says_counts(reason: str, message: str, what: str, words: str) -> None:
    trouble = trouble_of(pod(unschedulable=FULL), [event(reason, message)])
    assert trouble is not None
    assert trouble.what == what
    assert words in str(trouble)
    assert trouble.hopeless_after_s is None


def test_of_two_words_of_the_node_autoscaler_the_newer_counts() -> None:
    events = [
        event("TriggeredScaleUp", "pod triggered scale-up: [{pool 0->1 (max: 4)}]", at="2026-01-01T00:05:00Z"),
        event("FailedScaleUp", "GCE out of resources", at="2026-01-01T00:01:00Z"),
    ]
    assert trouble_of(pod(unschedulable=FULL), events).what == "node coming"  # type: ignore[union-attr]
    events.append(event("FailedScaleUp", "GCE out of resources", at="2026-01-01T00:09:00Z"))
    assert trouble_of(pod(unschedulable=FULL), events).what == "stockout"  # type: ignore[union-attr]


def test_events_of_other_pods_and_things_do_not_count() -> None:
    events = [event("FailedScaleUp", "x", about="other"), event("FailedScaleUp", "x", kind="Node")]
    assert trouble_of(pod(unschedulable=FULL), events).what == "unschedulable"  # type: ignore[union-attr]


def container(state: dict[str, Any], **told: Any) -> dict[str, Any]:
    return {"name": "ray-worker", "image": "engines:1", "state": state, **told}


@pytest.mark.parametrize(
    ("status", "what", "words"),
    [
        (
            container({"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling "engines:1"'}}),
            "image",
            'its image engines:1 can\'t be pulled: Back-off pulling "engines:1"; push the image',
        ),
        (
            container({"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "keys" not found'}}),
            "config",
            'secret "keys" not found',
        ),
        (
            container(
                {"waiting": {"reason": "CrashLoopBackOff"}},
                lastState={"terminated": {"exitCode": 1, "reason": "Error"}},
                restartCount=4,
            ),
            "crash",
            "container ray-worker ended with exit code 1, 4 times; look why: "
            "kubectl logs shop-worker-1 -c ray-worker --previous",
        ),
        (
            container({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}),
            "crash",
            "container ray-worker ended for lack of memory; give its group more memory",
        ),
    ],
    ids=["image", "secret", "crash loop", "out of memory"],
)
def test_what_the_kubelet_says_counts(status: dict[str, Any], what: str, words: str) -> None:
    trouble = trouble_of(pod(containers=[status]), [])
    assert trouble is not None
    assert trouble.what == what
    assert words in str(trouble)
    assert trouble.hopeless_after_s is not None


def test_a_pod_that_is_merely_starting_is_in_no_trouble() -> None:
    starting = pod(containers=[container({"waiting": {"reason": "ContainerCreating"}})])
    assert trouble_of(starting, []) is None


def test_twenty_pods_that_wait_for_the_same_say_it_once() -> None:
    waiting = [pod(f"w{number}", unschedulable=FULL) for number in range(20)]
    (group,) = groups([*waiting, pod("ready", ready=True)], [], [ACTIVE])
    assert (group.name, group.pods, group.ready, len(group.troubles)) == ("shared", 21, 1, 1)


def test_groups_come_by_ray_cluster_with_the_head_first() -> None:
    pods = [
        pod("a", group="shared", cluster=ACTIVE),
        pod("b", group="front", cluster=PENDING),
        pod("c", group="headgroup", cluster=PENDING),
        pod("d", group="shared", cluster="another"),
    ]
    found = groups(pods, [], [PENDING, ACTIVE])
    assert [(each.cluster, each.name) for each in found] == [(PENDING, "head"), (PENDING, "front"), (ACTIVE, "shared")]


def test_a_namespaces_quota_is_told_from_other_failures() -> None:
    told = 'pods "w" is forbidden: exceeded quota: gpus, requested: nvidia.com/gpu=1, used: 4, limited: 4'
    trouble = quota_trouble(told)
    assert trouble is not None
    assert "exceeded quota: gpus, requested: nvidia.com/gpu=1" in str(trouble)
    assert quota_trouble("the webhook is down") is None
