"""An environment put into a cluster, played on the twin under a clock that the test owns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from cotenant.cluster.memory import InMemoryCluster
from cotenant.cluster.objects import CONFIG_MAP, NAMESPACE, POD, RAY_SERVICE, Kind, Ref, Target, version_of
from cotenant.cluster.revisions import Revisions
from cotenant.cluster.rollout import Progress, carry_out, make_namespaces, propose, require_namespace, see_through
from cotenant.errors import (
    ClusterBusy,
    FieldsOwned,
    KindMissing,
    NamespaceMissing,
    NotPermitted,
    RolloutFailed,
)
from tests.contracts.cluster import config, ray_service
from tests.contracts.ray_statuses import LATER, PENDING, applications, condition, event, pod, status

pytestmark = pytest.mark.unit

TARGET = Target("shop", "prod", "shop")
SERVICE = Ref(RAY_SERVICE, "shop", "shop")
NS = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}
RUNNING = applications(writer="RUNNING")


class Clock:
    """Time that passes by sleeping; what was planned for then happens."""

    def __init__(self) -> None:
        self.time = 0.0
        self.plans: list[tuple[float, Callable[[], object]]] = []

    def now(self) -> float:
        return self.time

    def at(self, seconds: float, what: Callable[[], object]) -> None:
        self.plans.append((seconds, what))

    def sleep(self, seconds: float) -> None:
        until = self.time + seconds
        for planned in sorted(self.plans, key=lambda each: each[0]):
            if planned[0] <= until:
                self.plans.remove(planned)
                self.time = max(self.time, planned[0])
                planned[1]()
                return
        self.time = until


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cluster(clock: Clock) -> InMemoryCluster:
    return InMemoryCluster(clock=clock, namespaces=("default", "shop"))


def deploy(cluster: InMemoryCluster, *things: dict[str, Any], **how: Any) -> dict[str, Any] | None:
    return carry_out(cluster, propose(cluster, things, TARGET, **how), force=bool(how.get("force")))


def rollout(cluster: InMemoryCluster, clock: Clock, timeout_s: float = 600) -> Iterator[Progress]:
    applied = deploy(cluster, ray_service("shop"))
    assert applied is not None
    return see_through(cluster, applied, timeout_s=timeout_s, clock=clock)


def test_a_proposal_changes_nothing(cluster: InMemoryCluster) -> None:
    before = cluster.list(CONFIG_MAP).version
    proposal = propose(cluster, [config("shop"), ray_service("shop")], TARGET)
    assert [(str(step.ref), step.action) for step in proposal.steps] == [
        ("ConfigMap settings", "create"),
        ("RayService shop", "create"),
    ]
    assert cluster.list(CONFIG_MAP).version == before


def test_what_is_applied_again_is_the_same(cluster: InMemoryCluster) -> None:
    deploy(cluster, config("shop"), ray_service("shop"))
    again = propose(cluster, [config("shop"), ray_service("shop")], TARGET)
    assert again.changes == ()
    assert {step.action for step in again.steps} == {"same"}


def test_a_change_is_shown_as_the_server_would_have_it(cluster: InMemoryCluster) -> None:
    deploy(cluster, config("shop", size="1"))
    cluster.patch(Ref(CONFIG_MAP, "settings", "shop"), {"data": {"theirs": "x"}})
    (step,) = propose(cluster, [config("shop", size="2")], TARGET).changes
    assert step.action == "change"
    changed = [line for line in step.diff.splitlines()[2:] if line[:1] in "+-"]
    assert changed == ["-  size: '1'", "+  size: '2'"]


def test_what_is_not_rendered_any_more_is_deleted_after_the_rest(cluster: InMemoryCluster) -> None:
    deploy(cluster, config("shop", "old"), config("shop", "kept"), ray_service("shop"))
    cluster.apply(config("shop", "not-ours"))
    proposal = propose(cluster, [config("shop", "kept"), ray_service("shop")], TARGET)
    assert [str(step.ref) for step in proposal.deletions] == ["ConfigMap old"]
    assert "-  name: old" in proposal.deletions[0].diff
    carry_out(cluster, proposal)
    left = {each["metadata"]["name"] for each in cluster.list(CONFIG_MAP, "shop").items}
    assert left == {"kept", "not-ours"}
    assert propose(cluster, [ray_service("shop")], TARGET, prune=False).deletions == ()


def test_another_environment_of_the_same_namespace_is_left_alone(cluster: InMemoryCluster) -> None:
    other = Target("shop", "dev", "shop")
    carry_out(cluster, propose(cluster, [config("shop", "dev-settings")], other))
    assert propose(cluster, [ray_service("shop")], TARGET).deletions == ()


def test_kinds_that_may_not_be_listed_are_not_deleted_and_said(
    cluster: InMemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = cluster.list

    def guarded(kind: Kind, *rest: Any) -> Any:
        if kind.name == "ConfigMap":
            raise NotPermitted("no")
        return listed(kind, *rest)

    deploy(cluster, config("shop", "old"))
    monkeypatch.setattr(cluster, "list", guarded)
    proposal = propose(cluster, [ray_service("shop")], TARGET)
    assert proposal.deletions == ()
    assert any("may not list ConfigMaps" in note for note in proposal.notes)


def test_a_namespace_of_its_own_is_made_first(clock: Clock) -> None:
    cluster = InMemoryCluster(clock=clock)
    proposal = propose(cluster, [ray_service("shop"), NS], TARGET)
    assert [step.action for step in proposal.steps] == ["create", "create"]
    assert cluster.get(Ref(NAMESPACE, "shop")) is None
    make_namespaces(cluster, proposal)
    assert Revisions(cluster, TARGET).begin(proposal.things, at="now", by="me").number == 1
    assert carry_out(cluster, proposal) is not None


def test_a_namespace_that_nobody_makes_is_asked_for(clock: Clock) -> None:
    cluster = InMemoryCluster(clock=clock)
    with pytest.raises(NamespaceMissing, match="kubectl create namespace shop"):
        require_namespace(cluster, TARGET, [ray_service("shop")])
    require_namespace(cluster, TARGET, [NS, ray_service("shop")])


def test_a_missing_operator_is_found_before_anything_is_applied(clock: Clock) -> None:
    cluster = InMemoryCluster(clock=clock, lacks=(RAY_SERVICE,))
    with pytest.raises(KindMissing, match="helm install"):
        propose(cluster, [NS, config("shop"), ray_service("shop")], TARGET)
    assert cluster.get(Ref(NAMESPACE, "shop")) is None


def test_fields_of_others_are_found_before_anything_is_applied(cluster: InMemoryCluster) -> None:
    deploy(cluster, config("shop", "a"), ray_service("shop"))
    cluster.patch(SERVICE, {"spec": {"serveConfigV2": "applications: []"}}, manager="kubectl-edit")
    before = version_of(cluster.get(Ref(CONFIG_MAP, "a", "shop")) or {})
    things = [config("shop", "a", size="2"), ray_service("shop")]
    with pytest.raises(FieldsOwned, match=r"kubectl-edit owns \.spec\.serveConfigV2"):
        propose(cluster, things, TARGET)
    assert version_of(cluster.get(Ref(CONFIG_MAP, "a", "shop")) or {}) == before
    service = deploy(cluster, *things, force=True)
    assert service is not None
    assert service["spec"]["serveConfigV2"] == "applications: [{name: writer}]\n"


def test_a_rollout_is_followed_until_it_is_healthy(cluster: InMemoryCluster, clock: Clock) -> None:
    clock.at(5, lambda: cluster.set_status(SERVICE, status(1, pending=applications(writer="DEPLOYING"))))
    clock.at(60, lambda: cluster.set_status(SERVICE, status(1, pending=RUNNING)))
    clock.at(62, lambda: cluster.set_status(SERVICE, status(1, active=RUNNING)))
    looks = list(rollout(cluster, clock))
    assert [look.verdict.standing for look in looks[:-1]] == ["waiting"] * (len(looks) - 1)
    assert looks[-1].verdict.standing == "healthy"
    assert 72 <= looks[-1].elapsed_s < 80
    told = [look.verdict.reason for look in looks]
    assert "KubeRay has not taken up the change yet" in told
    assert "writer is DEPLOYING" in told


def test_what_ran_before_is_not_taken_for_the_new(cluster: InMemoryCluster, clock: Clock) -> None:
    """The operator reports the old applications as running until its next look."""
    deploy(cluster, ray_service("shop", serve="applications: [{name: writer, old: yes}]"))
    cluster.set_status(SERVICE, status(1, active=RUNNING))
    applied = deploy(cluster, ray_service("shop"))
    assert applied is not None
    clock.at(2, lambda: cluster.set_status(SERVICE, status(2, active=RUNNING)))
    clock.at(4, lambda: cluster.set_status(SERVICE, status(2, active=applications(writer="DEPLOYING"))))
    clock.at(50, lambda: cluster.set_status(SERVICE, status(2, active=RUNNING)))
    *_, last = see_through(cluster, applied, timeout_s=600, clock=clock)
    assert last.verdict.standing == "healthy"
    assert last.elapsed_s >= 60


def test_an_application_that_fails_ends_it_with_the_reason(cluster: InMemoryCluster, clock: Clock) -> None:
    failed = applications(writer=("DEPLOY_FAILED", "Traceback\nValueError: no such model"))
    clock.at(5, lambda: cluster.set_status(SERVICE, status(1, pending=failed)))
    *_, last = rollout(cluster, clock)
    assert (last.verdict.standing, last.verdict.reason) == ("failed", "writer: ValueError: no such model")


def test_a_refusal_by_the_operator_ends_it(cluster: InMemoryCluster, clock: Clock) -> None:
    told = status(0, updated=LATER)
    told["conditions"] = [condition("Ready", False, "ValidationFailed", "the headGroupSpec is odd")]
    clock.at(1, lambda: cluster.set_status(SERVICE, told))
    *_, last = rollout(cluster, clock)
    assert "the headGroupSpec is odd" in last.verdict.reason


def test_time_that_runs_out_says_what_was_waited_for(cluster: InMemoryCluster, clock: Clock) -> None:
    cluster.put(pod(cluster=PENDING, unschedulable="0/3 nodes are available: 3 Insufficient nvidia.com/gpu. x"))
    cluster.put(event("NotTriggerScaleUp", "pod didn't trigger scale-up: 1 max node group size reached"))
    clock.at(5, lambda: cluster.set_status(SERVICE, status(1, pending=applications(writer="DEPLOYING"))))
    with pytest.raises(RolloutFailed) as failed:
        list(rollout(cluster, clock, timeout_s=120))
    first, *reasons = str(failed.value).splitlines()
    assert first == "not healthy after 120 s; it stays applied and may come up yet:"
    assert reasons == [
        "shared: none of 3 nodes takes it: 3 without enough nvidia.com/gpu free, and no node is made for it "
        "(1 max node group size reached); let the pool grow past its max nodes",
        "writer is DEPLOYING",
    ]


def test_a_service_that_is_deleted_meanwhile_ends_it(cluster: InMemoryCluster, clock: Clock) -> None:
    clock.at(5, lambda: cluster.delete(SERVICE))
    with pytest.raises(RolloutFailed, match="was deleted while it came up"):
        list(rollout(cluster, clock))


def test_an_api_server_that_is_away_for_minutes_is_waited_for(
    cluster: InMemoryCluster, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = rollout(cluster, clock)
    first = next(looks)
    assert first.notes == ()
    watch = cluster.watch

    def away(*rest: Any, **named: Any) -> Any:
        if clock.now() < 300:
            raise ClusterBusy("the API server does not answer")
        return watch(*rest, **named)

    monkeypatch.setattr(cluster, "watch", away)
    clock.at(100, lambda: cluster.set_status(SERVICE, status(1, active=RUNNING)))
    *between, last = looks
    assert between[0].notes == ("the API server does not answer",)
    assert last.verdict.standing == "healthy"
    assert last.elapsed_s > 300


def test_history_that_is_forgotten_meanwhile_is_listed_anew(cluster: InMemoryCluster, clock: Clock) -> None:
    looks = rollout(cluster, clock)
    next(looks)

    def jump() -> None:
        cluster.set_status(SERVICE, status(1, active=RUNNING))
        cluster.compact()

    clock.at(5, jump)
    *_, last = looks
    assert last.verdict.standing == "healthy"


def test_whoever_may_not_see_pods_still_learns_how_it_stands(
    cluster: InMemoryCluster, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = cluster.list

    def guarded(kind: Kind, *rest: Any) -> Any:
        if kind == POD:
            raise NotPermitted("can't list pods\nmore")
        return listed(kind, *rest)

    monkeypatch.setattr(cluster, "list", guarded)
    clock.at(5, lambda: cluster.set_status(SERVICE, status(1, active=RUNNING)))
    *_, last = rollout(cluster, clock)
    assert last.verdict.standing == "healthy"
    assert last.notes == ("why pods wait is not seen: can't list pods",)


def test_revisions_are_numbered_kept_and_read(cluster: InMemoryCluster) -> None:
    revisions = Revisions(cluster, TARGET)
    for number in range(1, 14):
        revisions.begin([config("shop", size=str(number))], at="now", by="me")
    assert [each.number for each in revisions.known()] == list(range(4, 14))
    assert revisions.begin([config("shop", size="13")], at="later", by="you").number == 13


def test_two_who_deploy_at_once_get_two_numbers(cluster: InMemoryCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    revisions, other = Revisions(cluster, TARGET), Revisions(cluster, TARGET)
    known = revisions.known
    stale = iter([known()])
    other.begin([config("shop", size="1")], at="now", by="you")
    monkeypatch.setattr(revisions, "known", lambda: next(stale, None) or known())
    assert revisions.begin([config("shop", size="2")], at="now", by="me").number == 2


def test_what_came_up_after_no_wait_is_marked_when_next_looked_at(cluster: InMemoryCluster) -> None:
    revisions = Revisions(cluster, TARGET)
    things = [ray_service("shop")]
    made = revisions.begin(things, at="now", by="me")
    deploy(cluster, *things)
    assert revisions.catch_up()[-1].state == "applied"
    revisions.keep(replace(made, generation=1))
    assert revisions.catch_up()[-1].state == "applied"
    cluster.set_status(SERVICE, status(1, active=RUNNING))
    assert revisions.catch_up()[-1].state == "healthy"
    assert revisions.known()[-1].state == "healthy"


def test_revisions_are_not_taken_for_leftovers(cluster: InMemoryCluster) -> None:
    Revisions(cluster, TARGET).begin([ray_service("shop")], at="now", by="me")
    assert propose(cluster, [ray_service("shop")], TARGET).deletions == ()
