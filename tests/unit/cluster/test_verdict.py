"""When something applied is healthy, when it has failed, and what it waits for."""

from __future__ import annotations

from typing import Any

import pytest

from cotenant.cluster.pods import Group, Trouble
from cotenant.cluster.rayservice import ServiceState, read
from cotenant.cluster.verdict import Memory, Patience, Verdict, judge, standing_now
from tests.contracts.cluster import ray_service
from tests.contracts.ray_statuses import ACTIVE, PENDING, applications, condition, status

pytestmark = pytest.mark.unit

PATIENCE = Patience()
RUNNING = applications(writer="RUNNING")
TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: no model of that name\n'


def service(told: dict[str, Any], *, generation: int = 2, **metadata: Any) -> ServiceState:
    thing = ray_service("shop")
    thing["metadata"] |= {"generation": generation, **metadata}
    return read({**thing, "status": told})


def over_time(*looks: tuple[float, ServiceState], groups: tuple[Group, ...] = (), before: str | None = None) -> Verdict:
    memory, verdict = Memory(0.0, updated_before=before), Verdict("waiting")
    for now, state in looks:
        memory, verdict = judge(memory, state, groups, now, PATIENCE)
    return verdict


def test_healthy_is_what_stays_so() -> None:
    state = service(status(2, active=RUNNING))
    assert over_time((0, state)).standing == "waiting"
    assert over_time((0, state), (9, state)).standing == "waiting"
    assert over_time((0, state), (10, state)).standing == "healthy"


def test_what_falls_ill_in_between_starts_anew() -> None:
    well, ill = service(status(2, active=RUNNING)), service(status(2, active=applications(writer="UNHEALTHY")))
    assert over_time((0, well), (5, ill), (6, well), (12, well)).standing == "waiting"
    assert over_time((0, well), (5, ill), (6, well), (16, well)).standing == "healthy"


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (service(status(1, active=RUNNING)), "has not taken up the change yet"),
        (service(status(2, active=RUNNING, pending=RUNNING)), "takes over from the old one"),
        (service(status(2, active=applications(writer="DEPLOYING"))), "writer is DEPLOYING"),
        (service(status(2, active={})), "writer is NOT_STARTED"),
        (service(status(2, active=RUNNING, ready=False)), "no pod takes requests yet"),
        (service({}, generation=1), "has not taken up the change yet"),
    ],
    ids=["stale", "upgrade", "deploying", "no application", "no endpoint", "no status"],
)
def test_what_is_waited_for_is_said(state: ServiceState, reason: str) -> None:
    verdict = over_time((0, state), (500, state))
    assert verdict.standing == "waiting"
    assert reason in verdict.reason


def test_an_operator_that_does_not_look_is_asked_after() -> None:
    state = service(status(1, active=RUNNING))
    assert "operator running" not in over_time((0, state), (59, state)).reason
    assert "is KubeRay's operator running?" in over_time((0, state), (61, state)).reason


def test_an_application_that_cannot_be_deployed_fails_with_its_last_words() -> None:
    state = service(status(2, active=RUNNING, pending=applications(writer=("DEPLOY_FAILED", TRACEBACK))))
    assert over_time((0, state), (19, state)).standing == "waiting"
    verdict = over_time((0, state), (20, state))
    assert verdict == Verdict("failed", ("writer: ValueError: no model of that name",))


def test_a_failure_of_what_ran_before_is_not_ours() -> None:
    stale = service(status(1, active=applications(writer=("DEPLOY_FAILED", TRACEBACK))))
    assert over_time((0, stale), (300, stale)).standing == "waiting"


def test_a_refusal_of_the_operator_counts_at_once_when_it_is_new() -> None:
    told = status(1, active=RUNNING, updated="2026-01-01T00:10:00Z")
    told["conditions"][0] = condition("Ready", False, "ValidationFailed", "spec.x is wrong")
    verdict = over_time((0, service(told)), before="2026-01-01T00:00:00Z")
    assert verdict == Verdict("failed", ("KubeRay refuses the RayService: spec.x is wrong",))


def test_a_refusal_from_before_is_given_time_to_be_taken_back() -> None:
    told = status(1, active=RUNNING, updated="2026-01-01T00:00:00Z")
    told["conditions"][0] = condition("Ready", False, "ValidationFailed", "spec.x is wrong")
    old, mended = service(told), service(status(2, active=RUNNING))
    before = "2026-01-01T00:00:00Z"
    assert over_time((0, old), (5, mended), (15, mended), before=before).standing == "healthy"
    assert over_time((0, old), (20, old), before=before).standing == "failed"


def test_an_operator_that_gave_up_for_good_says_to_delete_it() -> None:
    told = status(2)
    told["conditions"][0] = condition("Ready", False, "InitializingTimeout", "not ready in 20m")
    verdict = over_time((0, service(told)))
    assert verdict.standing == "failed"
    assert "kubectl delete rayservice shop -n shop" in verdict.reason


def test_a_service_that_is_being_deleted_has_failed() -> None:
    state = service(status(2, active=RUNNING), deletionTimestamp="2026-01-01T00:00:00Z")
    assert "is being deleted" in over_time((0, state)).reason


def group(trouble: Trouble, cluster: str = ACTIVE) -> Group:
    return Group("shared", cluster, 1, 0, (trouble,))


def test_what_does_not_heal_itself_fails_after_a_while() -> None:
    state = service(status(2, active=applications(writer="DEPLOYING")))
    image = (group(Trouble("image", "its image can't be pulled", "push it")),)
    assert over_time((0, state), (119, state), groups=image).standing == "waiting"
    assert over_time((0, state), (120, state), groups=image).reason == "shared: its image can't be pulled; push it"


def test_a_node_that_may_come_is_waited_for() -> None:
    state = service(status(2, active=applications(writer="DEPLOYING")))
    waiting = (group(Trouble("stockout", "no node can be made")),)
    verdict = over_time((0, state), (5000, state), groups=waiting)
    assert verdict.standing == "waiting"
    assert verdict.reasons[0] == "shared: no node can be made"


def test_trouble_of_the_cluster_on_its_way_out_is_not_ours() -> None:
    state = service(status(2, active=RUNNING, pending=applications(writer="DEPLOYING")))
    old, new = (group(Trouble("crash", "ended"), ACTIVE),), (group(Trouble("crash", "ended"), PENDING),)
    assert over_time((0, state), (500, state), groups=old).standing == "waiting"
    assert over_time((0, state), (500, state), groups=new).standing == "failed"


def test_a_quota_of_the_namespace_fails_with_what_to_do() -> None:
    told = status(2, pending={}, failure='pods "w" is forbidden: exceeded quota: gpus, used: 4, limited: 4')
    verdict = over_time((0, service(told)), (60, service(told)))
    assert verdict.standing == "failed"
    assert "raise the namespace's ResourceQuota" in verdict.reason


def test_one_look_tells_what_it_can() -> None:
    assert standing_now(service(status(2, active=RUNNING))).standing == "healthy"
    assert standing_now(service(status(2, active=applications(writer="DEPLOYING")))).standing == "waiting"
    assert standing_now(service(status(2, active=applications(writer=("DEPLOY_FAILED", "x"))))).standing == "failed"
